"""Metrics that only InfiniteBench has."""

from __future__ import annotations

import re
from collections.abc import Sequence

from kvcheck.core.errors import SpecError

_MARKS = str.maketrans(dict.fromkeys("\n:\"'.,?!{}", " "))
_RUN_MARKS = str.maketrans(dict.fromkeys("\n.`'\":", " "))
_CUES = ("answer is:", "is:", "answer:", "correct option is:")
_INTEGER = re.compile(r"[+-]?\d+")


def kv_words(prediction: str, reference: str) -> float:
    """1.0 if the reference is one of the prediction's words, once punctuation is spaced; case counts.

    Source: InfiniteBench compute_scores.py `get_score_one_kv_retrieval`.
    """
    return float(reference in prediction.translate(_MARKS).split())


def first_word_compat(prediction: str, references: Sequence[str], options: Sequence[str] = ()) -> float:
    """1.0 if the first label is one of the upper-cased words; a label of several words never is.

    Source: InfiniteBench compute_scores.py `get_score_one_longdialogue_qa_eng`; the sound rule is `any_substring`.
    """
    return float(references[0] in prediction.strip().translate(_MARKS).upper().split())


def code_run(prediction: str, reference: str) -> float:
    """1.0 if the last word is a whole number and equals the reference.

    Source: InfiniteBench compute_scores.py `get_score_one_code_run`.
    """
    words = prediction.strip().translate(_RUN_MARKS).split()
    gold = _whole(reference, "code_run")
    try:
        return float(bool(words) and int(words[-1]) == gold)
    except ValueError:
        return 0.0


def code_debug_compat(prediction: str, references: Sequence[str], options: Sequence[str] = ()) -> float:
    """1.0 if the answer begins with the letter and "." or ":", or letter or function name follow a cue.

    A bare letter scores 0, and the character right behind the cue is skipped. references: function name, then letter.
    Source: InfiniteBench compute_scores.py `get_score_one_code_debug`; the sound rule is `choice`.
    """
    name, letter = references[0], references[-1]
    text = prediction.strip()
    if text[:2] in (f"{letter}.", f"{letter}:"):
        return 1.0
    text = re.sub(r"[\n`'\"*-]|Option|option", " ", text)
    text = re.sub(" +", " ", text)
    for cue in _CUES:
        place = text.find(cue)
        if place >= 0:
            return float(text[place + len(cue) + 1 :].startswith((letter, name)))
    return 0.0


def _share(found: Sequence[int], references: Sequence[str], metric: str) -> float:
    golds = [_whole(reference, metric) for reference in references]
    right = next((at for at, pair in enumerate(zip(golds, found, strict=False)) if pair[0] != pair[1]), None)
    return (min(len(golds), len(found)) if right is None else right) / len(golds)


def math_calc(prediction: str, references: Sequence[str], options: Sequence[str] = ()) -> float:
    """Length of the correct beginning of a list of whole numbers, divided by its full length; signs count.

    references: the numbers in order. InfiniteBench's rule with signs, which its own code drops: `math_calc_compat`.
    """
    return _share([int(run) for run in re.findall(r"-?\d+", prediction)], references, "math_calc")


def math_calc_compat(prediction: str, references: Sequence[str], options: Sequence[str] = ()) -> float:
    """`math_calc` as InfiniteBench computes it: signs of the answer are dropped, so a negative number is never right.

    Source: InfiniteBench compute_scores.py `get_score_one_math_calc` (not its GPT-4 branch).
    """
    return _share([int(run) for run in re.findall(r"[0-9]+", prediction)], references, "math_calc_compat")


def _whole(reference: str, metric: str) -> int:
    if _INTEGER.fullmatch(reference.strip()) is None:
        raise SpecError(f"metric {metric}: the reference {reference!r} is no whole number", "write 12 or -3")
    return int(reference)
