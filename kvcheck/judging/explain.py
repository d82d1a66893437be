"""A verdict on a case in one line, for someone who sees kvcheck for the first time."""

from __future__ import annotations

import math

from kvcheck.core.record import Verdict

_POINTS = ("budget", "regression")
_NAMES = {
    "bytes": "KV bytes as a share of fp16",
    "ttft": "time to first token as a ratio to fp16",
    "tpot": "time per output token as a ratio to fp16",
    "nll": "increase of the reference answers' nll (nats per token)",
    "agree": "share of answer tokens where method and fp16 agree",
    "drift": "rise of the reference answers' nll against its own record (nats per token)",
    "kl": "KL divergence from fp16 on the answer tokens (nats)",
}


def headline(verdict: Verdict, origin: str = "") -> str:
    """One line: what was measured, its interval, the limit, the outcome. origin: where the limit comes from."""
    whose = f" ({origin})" if origin else ""
    if verdict.question == "acted":
        return f"{'not shown to act' if verdict.outcome == 'fail' else 'acted'}: {verdict.value:.4g} of fp16's bytes"
    outcome = verdict.outcome.upper()
    fails = verdict.outcome == "fail"
    if fails and verdict.question == "regression" and verdict.low <= verdict.limit:
        drop = f"{verdict.value:.1f} points [{verdict.low:.1f}, {verdict.high:.1f}]"
        return f"regression by {verdict.reason.partition(';')[0]} (accuracy drop {drop}, not significant)   {outcome}"
    if fails and verdict.question == "bytes" and "recorded" in verdict.reason and "allowed" not in verdict.reason:
        return f"KV bytes changed: {verdict.limit:.4g} of fp16's recorded, {verdict.value:.4g} now   {outcome}"
    if verdict.question in _POINTS:
        what = "accuracy drop against fp16" if verdict.question == "budget" else "accuracy drop against its own record"
        numbers = f"{verdict.value:.1f} points [{verdict.low:.1f}, {verdict.high:.1f}]"
        limit = f"   allowed {verdict.limit:g}{whose}"
    else:
        what = _NAMES.get(verdict.question, verdict.question)
        numbers = f"{verdict.value:.4g}"
        if verdict.low != verdict.high:
            numbers += f" [{verdict.low:.4g}, {verdict.high:.4g}]"
        limit = f"   {'at least' if verdict.question == 'agree' else 'allowed'} {verdict.limit:.4g}{whose}"
    return f"{what}: {numbers}{limit}   {outcome}"


def bearable(verdict: Verdict) -> str:
    """The limit that would not have failed this result, rounded to something one would write."""
    if verdict.question == "agree":
        return f"{math.floor(100 * verdict.value) / 100:g}"
    if verdict.question == "budget":
        return f"{math.ceil(verdict.value)}"
    return f"{math.ceil(1000 * verdict.high) / 1000:g}"
