"""The single questions that a gate asks about a case. Pure: records and numbers in, one verdict out."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import zip_longest

import numpy as np

from kvcheck.core.errors import MethodFailed
from kvcheck.core.front import option
from kvcheck.core.record import (
    AS_RECORDED,
    EXCEEDS,
    CaseRecord,
    LatencyRecord,
    MemoryRecord,
    SampleRecord,
    Verdict,
    Weight,
)
from kvcheck.judging import stats
from kvcheck.judging.pairing import Pairs, differences, identical, is_complete, is_right_or_wrong, pair, score

ANYTIME = 0.25
"""Share of alpha spent on looking after every block; the rest goes to the test at full n. A record that stopped early
is judged by the anytime-valid part alone, so stopping can never turn into a false alarm."""

COUNTERS = 0.01
"""Share of fp16's bytes that a cache may hold beside: lengths, places, an index of its layers."""


@dataclass(frozen=True)
class DriftRule:
    """When a change of the reference answers' nll against the method's own record is more than float noise.

    A turn counts as changed when |change| > nats + share * recorded nll; a context is worse or better by the sum of
    its changed turns. It is broken when it is worse by more than `broken` nats per token on average: other hardware
    moves at most `noise` of all contexts that far. `margin`: a smaller mean worsening, in nats per token, never fails.
    points: the drop of the scores that other hardware may cause, by flipping answers that were close.
    times, kl: the mean KL from the full cache may be `times` the recorded one and `kl` nats more, which is what keys
    and values of 16 bits and sums in another order make of it.
    """

    nats: float = 0.02
    share: float = 0.02
    margin: float = 0.02
    broken: float = 0.5
    noise: float = 1 / 2000
    points: float = 2.0
    times: float = 1.5
    kl: float = 0.001


def drop_interval(record: CaseRecord, other: CaseRecord, pairs: Pairs, alpha: float) -> tuple[float, float]:
    """Interval of level 1 - alpha for the mean drop against `other`, as a share; holds if sampling stopped early too.

    The other's scores on these prompts are the yardstick: a context can gain no more than they leave room for. The
    guards of the graded interval are therefore the mean room above and below: all contexts right, or all wrong.
    """
    spent, level = alpha * ANYTIME, alpha * (1 - ANYTIME)
    drops = differences(pairs)
    if is_right_or_wrong(pairs):
        lost, won = stats.count_changes(drops)
        right = sum(then.turns[0].score == 1 for _, then in pairs)
        counts = (lost, right, won, len(pairs) - right)
        low, high = stats.binary_sequence(*counts, _share_right(record, other), spent)
        fixed = stats.paired_interval(*counts, level) if is_complete(record) else (low, high)
    else:
        yardstick = [score(sample) for sample in other.samples]
        bounds = (min(min(yardstick) - 1.0, -1e-3), max(*yardstick, 1e-3))
        low, high = stats.confidence_sequence(drops, spent, lowest=bounds[0], highest=bounds[1])
        fixed = (low, high)
        if is_complete(record):
            mean = float(np.mean(yardstick))
            fixed = stats.bootstrap_interval(drops, level, lowest=mean - 1.0, highest=mean)
    return max(low, fixed[0]), min(high, fixed[1])


def _share_right(record: CaseRecord, other: CaseRecord) -> float:
    """Share of the case's contexts that the other has right."""
    ordered = sorted(other.samples, key=lambda sample: sample.index)[: record.case.n]
    return sum(sample.turns[0].score == 1 for sample in ordered) / len(ordered)


def _detectable(record: CaseRecord, pairs: Pairs, alpha: float, limit: float) -> float | None:
    """The smallest drop in points that these contexts could have shown to lie beyond the limit (a share)."""
    if not is_complete(record):
        return None
    right = sum(then.turns[0].score == 1 for _, then in pairs) if is_right_or_wrong(pairs) else len(pairs)
    share = stats.detectable(len(pairs), alpha * (1 - ANYTIME), limit=limit, right=right)
    return None if share is None else 100 * share


def judge_drop(record: CaseRecord, fp16: CaseRecord, limit: float, alpha: float) -> Verdict:
    """Does the method lose more than `limit` points against fp16?"""
    pairs = pair(record, fp16, "fp16")
    drops = differences(pairs)
    lost, won = stats.count_changes(drops)
    low, high = drop_interval(record, fp16, pairs, alpha)
    n, share = len(drops), limit / 100
    seen = _detectable(record, pairs, alpha, share)
    outcome, reason = "inconclusive", f"{n} contexts cannot tell"
    if low > share:
        outcome, reason = "fail", f"even the low end ({100 * low:.1f}) exceeds the allowed {limit:g}"
    elif identical(pairs):
        outcome, reason = "pass", "identical answers"
    elif high <= share:
        outcome, reason = "pass", "the whole interval lies inside the budget"
    elif seen is not None:
        reason = f"{n} contexts can tell a drop of {seen:.1f} points from the budget"
    mean = float(np.mean(drops))
    return Verdict("budget", outcome, 100 * mean, 100 * low, 100 * high, limit, n, lost, won, seen, reason)


@dataclass(frozen=True)
class Drift:
    """What moved in nll against the method's own record; mean in nats per token, above 0 is worse."""

    worse: int
    better: int
    broken: int
    mean: float
    fails: bool
    reason: str


def drift_regression(pairs: Pairs, alpha: float, rule: DriftRule) -> Drift:
    """Whether the nll of the reference answers got much worse in more contexts than other hardware moves that far.

    An exact binomial test of the broken ones against the noise rate, and a mean worsening above the margin. What is a
    little worse in many contexts shows in all cases together: kvcheck/judging/pooled.py.
    """
    changes = [change for now, then in pairs if (change := context_drift(now, then, rule)) is not None]
    if not changes:
        return Drift(0, 0, 0, 0.0, False, "")
    worse, better = stats.count_changes(changes)
    broken = sum(change > rule.broken for change in changes)
    mean = float(np.mean(changes))
    fails = mean > rule.margin and float(stats.tail(broken, len(changes), rule.noise)) <= alpha
    reason = f"drift: {worse} contexts worse, {better} better, {broken} broken, {mean:+.3f} nats per token"
    return Drift(worse, better, broken, mean, fails, reason if worse or better else "")


def context_drift(now: SampleRecord, then: SampleRecord, rule: DriftRule) -> float | None:
    """Mean change over the turns of a context, changes within the tolerance taken as 0; None without measurements."""
    changes = []
    for a, b in zip(now.turns, then.turns, strict=True):
        if a.nll is not None and b.nll is not None:
            change = a.nll - b.nll
            changes.append(change if abs(change) > rule.nats + rule.share * abs(b.nll) else 0.0)
    return sum(changes) / len(changes) if changes else None


def judge_regression(record: CaseRecord, own: CaseRecord, alpha: float, rule: DriftRule) -> Verdict:
    """Is the method far worse than its own stored record? Half of alpha goes to the scores, half to the drift.

    Scores: the interval of the drop lies beyond what other hardware may flip.
    """
    pairs = pair(record, own, record.method)
    drops = differences(pairs)
    lost, won = stats.count_changes(drops)
    low, high = drop_interval(record, own, pairs, alpha / 2)
    drift = drift_regression(pairs, alpha / 2, rule)
    mean, n = float(np.mean(drops)), len(drops)
    seen = _detectable(record, pairs, alpha / 2, rule.points / 100)
    reasons = [drift.reason] if drift.reason else []
    if 100 * low > rule.points or drift.fails:
        outcome = "fail"
    elif mean > 0 or drift.mean > rule.margin:
        outcome = "inconclusive"
        reasons.append("worse, but not clearly")
    else:
        outcome = "pass"
        if lost or won or drift.reason:
            reasons.append("changed and not worse: record it again to keep the gate sharp")
    reason = "; ".join(reasons) or AS_RECORDED
    return Verdict("regression", outcome, 100 * mean, 100 * low, 100 * high, rule.points, n, lost, won, seen, reason)


def judge_own_drift(record: CaseRecord, own: CaseRecord, alpha: float, rule: DriftRule) -> Verdict:
    """Is the method's drift alone far worse than in its own record? For cases of which the scores tell nothing."""
    pairs = pair(record, own, record.method)
    drift = drift_regression(pairs, alpha, rule)
    outcome = "fail" if drift.fails else "inconclusive" if drift.mean > rule.margin else "pass"
    reason = drift.reason or ("" if differences(pairs).count(0) < len(pairs) else AS_RECORDED)
    mean, counts = drift.mean, (len(pairs), drift.worse, drift.better)
    return Verdict("drift", outcome, mean, mean, mean, rule.margin, *counts, reason=reason)


def judge_bytes(record: CaseRecord, own: CaseRecord | None, limit: float | None) -> Verdict | None:
    """Are the KV bytes within the budget, and those of the method's own record? None where nothing is asked.

    A method may hold no more than fp16 does, host memory counted in, unless it declares that (MethodInfo.exceeds) or
    the budget allows as much. The larger share counts of the two moments at which bytes are measured: when the prompt
    is in, and behind the last decoded token.

    Bytes are deterministic, so there is no interval, and on the recorded contexts fewer are a change too: a slot that
    should have been kept is gone. They are recorded context by context and compared on the contexts that were measured.
    Of a record of before, that has them as a mean over other contexts, the ratio is compared within 0.5 %, because
    questions differ in length; there only more bytes fail.
    """
    memory = record.memory
    allowed = memory is None or (limit is not None and limit >= 1)
    beyond = [] if memory is None or allowed else list(_more_than_fp16(memory))
    if limit is None and not beyond and (own is None or own.memory is None):
        return None
    if memory is None:
        why = dict(record.not_measured).get("memory", "no reason given")
        raise MethodFailed(
            f"{record.method} on {record.case}: KV bytes were not measured ({why})",
            f"drop bytes= from {option('budget')}",
        )
    n, ratio = len(record.samples), memory.most
    then = _recorded(record, own) if own is not None else None
    bounds = [limit if limit is not None else 1.0 if beyond else None, then.most if then is not None else None]
    bound = min(value for value in bounds if value is not None)
    outcome, reasons = "fail" if beyond else "pass", beyond
    if limit is not None and ratio > limit + 1e-9:
        outcome = "fail"
        when = " after decoding" if ratio > memory.ratio else ""
        reasons.append(f"{ratio:.4f} of fp16's bytes{when}, allowed {limit:g}")
    if own is not None and then is not None:
        change = memory_change(record, own)
        if change > 0 or (change and _on_recorded_contexts(record, own)):
            outcome = "fail"
        if change:
            grew = "more" if change > 0 else "less: slots are missing, or it is meant to keep fewer now"
            reasons.append(
                f"{memory.kv_bytes} bytes, {memory.kept:g} slots now; {then.kv_bytes}, {then.kept:g} recorded ({grew})"
            )
        later = end_change(record, own)
        if later:
            outcome = "fail"
            reasons.append(
                f"after decoding {memory.end_kv_bytes} bytes now; {then.end_kv_bytes} recorded "
                f"({'more' if later > 0 else 'less, though the answers are the same'})"
            )
    return Verdict("bytes", outcome, ratio, ratio, ratio, bound, n, reason="; ".join(reasons))


def _more_than_fp16(memory: MemoryRecord) -> Iterator[str]:
    """At which moments more is held than fp16 holds, where the method does not declare it. Of a record of before, in
    which it is not known what is declared, nothing is said.
    """
    if memory.claims is None or memory.does(EXCEEDS):
        return
    moments = [("after the prompt", memory.kv_bytes, memory.host_bytes, memory.dense_bytes)]
    if memory.end_kv_bytes is not None and memory.end_host_bytes is not None and memory.end_dense_bytes is not None:
        moments.append(("after decoding", memory.end_kv_bytes, memory.end_host_bytes, memory.end_dense_bytes))
    for when, kv, host, dense in moments:
        if kv + host > (1 + COUNTERS) * dense:
            away = f", {host:,} of them in host memory" if host else ""
            if memory.elsewhere_bytes:
                away += f", {memory.elsewhere_bytes:,} of them outside of its cache (globals, the model, files)"
            yield (
                f"{kv + host:,} bytes {when}{away}, {(kv + host) / dense:.0%} of what fp16 holds, and the method does "
                "not declare it (MethodInfo.exceeds)"
            )


def _weights(record: CaseRecord, own: CaseRecord) -> list[tuple[Weight, Weight]]:
    """(now, then) of every context of the record; [] where what one of them held is not known on both sides."""
    return [weights for _, weights in _weighed(record, own)]


def _weighed(record: CaseRecord, own: CaseRecord) -> list[tuple[bool, tuple[Weight, Weight]]]:
    """The same, with whether the answers are."""
    theirs = {sample.index: sample for sample in own.samples}
    pairs = [(mine, theirs.get(mine.index)) for mine in record.samples]
    known = [
        (_answers(mine) == _answers(other), (mine.weight, other.weight))
        for mine, other in pairs
        if other is not None and mine.weight is not None and other.weight is not None
    ]
    return known if len(known) == len(pairs) else []


def _on_recorded_contexts(record: CaseRecord, own: CaseRecord) -> bool:
    """Whether the record's bytes can be compared with those of the same contexts, to the byte."""
    indices = ({sample.index for sample in one.samples} for one in (record, own))
    return len(set(map(frozenset, indices))) == 1 or bool(_weights(record, own))


def _recorded(record: CaseRecord, own: CaseRecord) -> MemoryRecord | None:
    """What was recorded, of the record's contexts alone where that is known."""
    weights = [then for _, then in _weights(record, own)]
    if own.memory is None or record.memory is None or not weights:
        return own.memory
    caches, ends = sum(one.caches for one in weights), sum(one.ends for one in weights)
    kv, slots = (sum(sizes) / caches for sizes in zip(*((one.kv, one.kept) for one in weights), strict=True))
    found = replace(own.memory, kv_bytes=round(kv), kept=round(slots, 2), dense_bytes=record.memory.dense_bytes)
    if not ends or own.memory.end_dense_bytes is None or not own.memory.end_seen:
        return found
    size, seen = (
        round(sum(sums) / ends) for sums in zip(*((one.end_kv, one.end_seen) for one in weights), strict=True)
    )
    dense = round(own.memory.end_dense_bytes * seen / own.memory.end_seen)
    return replace(found, end_kv_bytes=size, end_dense_bytes=dense, end_seen=seen)


def memory_change(record: CaseRecord, other: CaseRecord) -> int:
    """1 when more is held than by the other record of the method, -1 when less, 0 when the same. Both have bytes.

    On the same contexts one byte counts, in every context where they are known one by one. Else ratios are compared,
    within 0.5 %.
    """
    now, then = record.memory, other.memory
    if now is None or then is None:
        raise ValueError("bytes were not measured")
    changes = [_sign(a.kv, b.kv) or _sign(a.kept, b.kept) for a, b in _weights(record, other)]
    if any(changes):
        return max(changes) or min(changes)
    if changes:
        return 0
    if _on_recorded_contexts(record, other):
        return _sign(now.kv_bytes, then.kv_bytes) or _sign(now.kept, then.kept)
    return 0 if math.isclose(now.ratio, then.ratio, rel_tol=0.005) else _sign(now.ratio, then.ratio)


def end_change(record: CaseRecord, own: CaseRecord) -> int:
    """1 when more is held after decoding than in the method's own record, -1 when less, 0 when the same or not known.

    Only the same answers on the same contexts are compared to the byte, as others are of other lengths (`_later`).
    Where the contexts are not known one by one, more is what additional tokens at fp16's size do not explain, of their
    mean beyond 0.5 %.
    """
    now, then = record.memory, own.memory
    if now is None or now.end_kv_bytes is None or now.end_dense_bytes is None or now.end_seen is None:
        return 0
    if then is None or then.end_kv_bytes is None or then.end_seen is None:
        return 0
    token = now.end_dense_bytes / now.end_seen
    both = [(same, a, b) for same, (a, b) in _weighed(record, own) if a.ends and b.ends == a.ends]
    if both and len(both) == len(record.samples):
        changes = [_later(*one, token) for one in both]
        return max(changes) or min(changes)
    if all(_answers(one) == _answers(other) for one, other in zip_longest(record.samples, own.samples)):
        return _sign(now.end_kv_bytes, then.end_kv_bytes)
    explained = token * max(0, now.end_seen - then.end_seen) + 0.005 * then.end_kv_bytes
    return int(now.end_kv_bytes - then.end_kv_bytes > explained)


def _later(same: bool, now: Weight, then: Weight, token: float) -> int:
    """The sign of a change in what one context held behind its answers. same: they are the recorded ones.

    Others are of other lengths, and what is held may go down with a token, where a method evicts or quantizes while it
    decodes. So there more is only what neither the additional tokens nor all that were decoded explain, each at fp16's
    size (token).
    """
    if same and now.end_seen == then.end_seen:
        return _sign(now.end_kv, then.end_kv)
    longer = then.end_kv + token * max(0, now.end_seen - then.end_seen)
    whole = now.kv * now.ends / now.caches + token * max(0, now.end_seen - now.seen * now.ends / now.caches)
    return int(now.end_kv > max(longer, whole))


def _answers(sample: SampleRecord | None) -> tuple[int, list[str]] | None:
    """A context by its index, and its answers."""
    return None if sample is None else (sample.index, [turn.answer for turn in sample.turns])


def _sign(now: float, then: float) -> int:
    """1 for more, -1 for less, 0 for the same but for how slots are rounded when they are stored."""
    near = now == then if isinstance(now, int) else math.isclose(now, then, rel_tol=1e-6, abs_tol=0.0051)
    return 0 if near else (1 if now > then else -1)


def judge_latency(latency: LatencyRecord, limit: float) -> Verdict:
    """Is the latency ratio to fp16, with its interval, within the limit?"""
    if not all(math.isfinite(value) for value in (latency.ratio, latency.low, latency.high)):
        raise MethodFailed(f"{latency.what} at {latency.length} tokens is not finite", "run it again with more rounds")
    outcome = "inconclusive"
    if latency.low > limit:
        outcome = "fail"
    elif latency.high <= limit:
        outcome = "pass"
    reason = f"{latency.length} tokens, {1e3 * latency.seconds:.2f} ms against {1e3 * latency.fp16_seconds:.2f} ms"
    return Verdict(
        latency.what, outcome, latency.ratio, latency.low, latency.high, limit, latency.rounds, reason=reason
    )


def expect_drift(record: CaseRecord, fp16: CaseRecord, what: str) -> None:
    """Raise MethodFailed where a limit asks for "nll", "agree" or "kl" and it was not measured in every context.

    A case has too few contexts to be held to such a limit; all of them together are (kvcheck/judging/pooled.py).
    """
    for now, then in pair(record, fp16, "fp16"):
        turns = zip(now.turns, then.turns, strict=True)
        if not any(getattr(a, what) is not None and (what != "nll" or b.nll is not None) for a, b in turns):
            why = dict(record.not_measured).get(what, "no reason given")
            raise MethodFailed(
                f"{record.method} on {record.case}: {what} was not measured ({why})",
                f"drop {what}= from {option('budget')}",
            )
