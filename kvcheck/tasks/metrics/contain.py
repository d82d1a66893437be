"""Metrics that look for the reference inside the answer, and equality."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import SequenceMatcher

from kvcheck.core.errors import SpecError
from kvcheck.tasks.metrics.text import normalize

_CONTROL = re.compile(r"[\x00-\x1f]")


def exact(prediction: str, reference: str) -> float:
    """1.0 if both texts are equal once surrounding whitespace is off; case and punctuation count.

    Not a benchmark's metric.
    """
    return float(prediction.strip() == reference.strip())


def substring(prediction: str, reference: str) -> float:
    """1.0 if the reference occurs in the prediction, case-sensitive, no normalisation.

    Source: SCBench compute_scores.py, kv and prefix_suffix.
    """
    return float(reference in prediction)


def any_substring(prediction: str, references: Sequence[str], options: Sequence[str] = ()) -> float:
    """1.0 if any reference, upper-cased, occurs in the stripped, upper-cased prediction. No word boundary.

    Source: SCBench qa_eng and many_shot, InfiniteBench En.Dia (`get_score_one_longdialogue_qa_eng`).
    """
    text = prediction.strip().upper()
    return float(any(reference.upper() in text for reference in references))


def _found(prediction: str, references: Sequence[str]) -> list[bool]:
    """RULER: strip, control characters become newlines, then case-insensitive substrings without word boundary."""
    text = _CONTROL.sub("\n", prediction.strip()).strip().lower()
    return [reference.lower() in text for reference in references]


def string_match_all(prediction: str, references: Sequence[str], options: Sequence[str] = ()) -> float:
    """Share of the references that occur in the prediction, case-insensitive. Not rounded.

    Source: RULER scripts/eval (`string_match_all`: niah, vt, cwe, fwe), which rounds only the mean of a task.
    """
    found = _found(prediction, references)
    return sum(found) / len(found)


def string_match_all_2dp(prediction: str, references: Sequence[str], options: Sequence[str] = ()) -> float:
    """Share of the references in the prediction, case-insensitive, rounded to two places for every turn.

    Source: SCBench compute_scores.py, vt; it also leaves control characters alone.
    """
    text = prediction.lower()
    return round(sum(reference.lower() in text for reference in references) / len(references), 2)


def string_match_part(prediction: str, references: Sequence[str], options: Sequence[str] = ()) -> float:
    """1.0 if any reference occurs in the prediction, case-insensitive; "no" is found in "not" (RULER issue 112).

    Source: RULER scripts/eval (`string_match_part`: qa).
    """
    return float(any(_found(prediction, references)))


def passkey_exact(prediction: str, reference: str) -> float:
    """1.0 if the normalised reference occurs in the normalised prediction; articles are deleted, not spaced.

    Source: longctx_bench eval_metrics.py `exact_match`.
    """
    gold = normalize(reference, article="")
    if not gold:
        raise SpecError(f"metric passkey_exact: nothing is left of the reference {reference!r}", "give another one")
    return float(gold in normalize(prediction, article=""))


def passkey_partial(prediction: str, reference: str) -> float:
    """Length of the longest common contiguous run of characters, divided by the reference's length; raw texts.

    Source: longctx_bench eval_metrics.py `partial_match` (difflib, autojunk off).
    """
    matcher = SequenceMatcher(None, reference, prediction, autojunk=False)
    return matcher.find_longest_match(0, len(reference), 0, len(prediction)).size / len(reference)
