"""A verdict in words, for someone who sees kvcheck for the first time."""

from __future__ import annotations

import math

from kvcheck.core import front
from kvcheck.core.front import words
from kvcheck.core.record import AGAINST_OWN, CaseRecord, Verdict

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


def headline(verdict: Verdict) -> str:
    """One line: what was measured, its interval, the limit, the outcome."""
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
        limit = f"   allowed {verdict.limit:.1f}"
    else:
        what = _NAMES.get(verdict.question, verdict.question)
        numbers = f"{verdict.value:.4g}"
        if verdict.low != verdict.high:
            numbers += f" [{verdict.low:.4g}, {verdict.high:.4g}]"
        limit = f"   {'at least' if verdict.question == 'agree' else 'allowed'} {verdict.limit:.4g}"
    return f"{what}: {numbers}{limit}   {outcome}"


def explain(
    verdict: Verdict,
    record: CaseRecord,
    baseline: str = "",
    *,
    alpha: float | None = None,
    command: str = "",
) -> str:
    """The text of a failed (or inconclusive) test: what was measured, against what, how sure, what to type.

    baseline: the file that it was compared with. alpha: the error rate of this case. command: how the run was started;
    by default the method alone.
    """
    command = command or front.command(record.method)
    lines = [f"{record.case}  {record.method}", f"  {headline(verdict)}"]
    if verdict.question in _POINTS:
        lines += _paired_lines(verdict, record, alpha)
    if verdict.reason:
        lines.append(f"  why: {verdict.reason}")
    if baseline:
        lines.append(f"  baseline: {baseline}")
    if record.memory is not None:
        memory = record.memory
        held = f"{memory.dense_bytes / 1e6:.2f} MB -> {memory.kv_bytes / 1e6:.2f} MB ({memory.ratio:.2f})"
        held += f" and {memory.host_bytes / 1e6:.2f} MB in host memory" if memory.host_bytes else ""
        lines.append(
            f"  cache: {memory.touched}/{memory.layers} layers, {held}, {memory.kept:.0f} of {memory.seen} slots kept"
        )
    lines += [f"  {line}" for line in _remedies(verdict, record, command)]
    return "\n".join(lines)


def _paired_lines(verdict: Verdict, record: CaseRecord, alpha: float | None) -> list[str]:
    same = verdict.n - verdict.lost - verdict.won
    level = "" if alpha is None else f"; interval at {100 * (1 - alpha):.4g} % for this case"
    counts = f"{verdict.lost} lost, {verdict.won} won, {same} unchanged"
    lines = [f"  accuracy now {record.accuracy:.3f} (a guess scores {record.chance:.3f})"]
    lines.append(f"  on the same {verdict.n} prompts, one by one: {counts}{level}")
    if len(record.samples) < record.case.n:
        lines.append(f"  stopped after {len(record.samples)} of {record.case.n} contexts: {record.stopped}")
    if verdict.outcome == "inconclusive" and verdict.detectable is not None:
        lines.append(f"  the smallest drop that {verdict.n} contexts could have shown: {verdict.detectable:.1f} points")
    return lines


def _remedies(verdict: Verdict, record: CaseRecord, command: str) -> list[str]:
    """What to do, ending in the command that would accept the result."""
    case = record.case
    look = f"look: {command} {words(tasks=case.task, modes=case.mode, lengths=case.length)}"
    if verdict.outcome == "inconclusive":
        return [f"more samples: {command} {words(tasks=case.task, n=4 * case.n)}"]
    if verdict.question in AGAINST_OWN or "recorded" in verdict.reason:
        return [look, f"accept, if the change is meant: {command} {words(record='changed')}"]
    unit = {"budget": "drop"}.get(verdict.question, verdict.question)
    return [look, f"accept, if this price is right: {command} {words(budget=f'{unit}={bearable(verdict)}')}"]


def bearable(verdict: Verdict) -> str:
    """The limit that would not have failed this result, rounded to something one would write."""
    if verdict.question == "agree":
        return f"{math.floor(100 * verdict.value) / 100:g}"
    if verdict.question == "budget":
        return f"{math.ceil(verdict.value)}"
    return f"{math.ceil(1000 * verdict.high) / 1000:g}"
