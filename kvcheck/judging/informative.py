"""Can a case show a loss of accuracy at all? Pure.

Where fp16 answers no better than a guess there is nothing to lose, and answers that the limit of new tokens cut say
more about the limit than about the cache. Such a case is not informative: scores are left out of every verdict on it,
and of those on several cases together. The likelihood of the reference answers counts all the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import lru_cache

from kvcheck.core.front import option
from kvcheck.core.record import ACCURACY, NOT_INFORMATIVE, CaseRecord, TurnRecord, Verdict
from kvcheck.judging import stats
from kvcheck.store.lines import SCORE_DIGITS

LEVEL = 0.05
"""The chance that a case counts as informative where fp16 only guesses."""
LEAST = 0.02
"""What a guess scores at least, also where the analytic chance is less: the default budget. Whoever has no more than
that cannot lose more than may be lost."""
NAMED = 8
"""Cases that a verdict on all of them names."""
QUESTION = "informative"
"""The question of the verdicts made here: how many cases can show a loss of accuracy?"""


def why_not(fp16: CaseRecord | None) -> str:
    """Why no method can be seen to lose accuracy in the case of this record; "" where it can, or there is no record.

    It can where the mean score is surely above chance: a one-sided test at LEVEL over the answers of the whole record,
    also where a run measures fewer contexts. Each answer is one draw: what is lost in the turns of a context is lost
    together, but a guess at one question says nothing of the next. An answer that the limit of new tokens cut before it
    had the full score counts as 0: so many may be cut that the others alone are surely above chance.
    fp16: or the record that is taken for it, where two runs are compared.
    """
    if fp16 is not None and not fp16.scored:
        return f"no accuracy: {dict(fp16.not_measured)[ACCURACY]}"
    turns = [turn for sample in fp16.samples for turn in sample.turns] if fp16 is not None else []
    if fp16 is None or not turns:
        return ""
    scores = [round(turn.score, SCORE_DIGITS) for turn in turns]
    chance, cut = max(fp16.chance, LEAST), sum(map(unfinished, turns))
    p = _guessed(fp16)
    if p <= LEVEL:
        return ""
    limited = f"{cut} of {len(turns)} answers of {fp16.method} were cut by the limit of new tokens"
    if cut and _p(tuple(scores), chance) <= LEVEL:
        return f"{limited}, and the others are not surely above chance (p = {p:.2g})"
    floor = (
        f"{fp16.method} is not surely above chance: {fp16.accuracy:.3f} over {len(turns)} answers, "
        f"a guess scores {fp16.chance:.3f} (p = {p:.2g})"
    )
    return f"{floor}; {limited}" if cut else floor


def why_not_here(record: CaseRecord, fp16: CaseRecord | None) -> str:
    """The same of a case that was just measured: where nothing is asked, it says so itself."""
    return why_not(fp16 if record.scored else record)


def _guessed(reference: CaseRecord) -> float:
    """One-sided p-value of "above chance"; answers that were cut count as 0."""
    turns = [turn for sample in reference.samples for turn in sample.turns]
    whole = tuple(0.0 if unfinished(turn) else round(turn.score, SCORE_DIGITS) for turn in turns) or (0.0,)
    return _p(whole, max(reference.chance, LEAST))


def unfinished(turn: TurnRecord) -> bool:
    """Whether the limit of new tokens cut an answer that is not fully right. Not known of old records: then not."""
    return turn.ended is False and turn.score < 1


@lru_cache(maxsize=4096)
def _p(scores: Sequence[float], chance: float) -> float:
    """One-sided p-value of "the mean is above chance" for scores in [0, 1]: exact for 0 and 1, else Gaffke's."""
    if set(scores) <= {0.0, 1.0}:
        return float(stats.tail(sum(scores), len(scores), chance))
    return stats.bootstrap_p(scores, chance, lowest=0.0)


def nothing(cases: Iterable[tuple[CaseRecord, CaseRecord | None, str]]) -> Verdict | None:
    """The failure of a run of (case, fp16's record, why it is not informative, else "") where no case is; else None.

    Of many cases in which fp16 guesses some look informative. One of them must be at its part of LEVEL.
    """
    found = list(cases)
    level = LEVEL / max(1, len(found))
    if not found or any(not why and (fp16 is None or _guessed(fp16) <= level) for _, fp16, why in found):
        return None
    few = f"fp16 may be above chance by luck (p > {level:.2g}), as one of {len(found)} cases"
    named = [f"{one.case.task} {one.case.mode} {one.case.length}: {why or few}" for one, _, why in found[:NAMED]]
    more = [f"and {len(found) - NAMED} more"] if len(found) > NAMED else []
    if not all(one.scored for one, _, _ in found):
        named.append(f"where nothing is asked, a limit can be told from: {option('budget', 'kl=0.01')}")
    remedy = f"another task, length or model, or more contexts of fp16 ({option('n')}, {option('record')}=changed)"
    reason = "\n    ".join(["no case can show a loss of accuracy", *named, *more, remedy])
    return Verdict(QUESTION, "fail", 0, 0, 0, 1, len(found), reason=reason)


def noted(verdict: Verdict) -> Verdict:
    """The same where a run records: it makes references and claims nothing of a method, so this is no failure of it."""
    return replace(verdict, outcome=NOT_INFORMATIVE) if verdict.question == QUESTION else verdict


def told(verdicts: Iterable[Verdict]) -> str:
    """What the verdicts on a case say of why it is not informative, "" where it is. For reports: no drop is shown."""
    return next((one.reason for one in verdicts if one.outcome == NOT_INFORMATIVE), "")


def left_out(record: CaseRecord, why: str) -> Verdict:
    """What stands in the place of the verdicts on the scores of a case that is not informative."""
    return Verdict(QUESTION, NOT_INFORMATIVE, 0, 0, 0, 1, len(record.samples), reason=why)
