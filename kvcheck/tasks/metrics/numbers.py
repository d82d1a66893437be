"""Metrics that read numbers out of an answer."""

from __future__ import annotations

import re

from kvcheck.core.errors import SpecError

_PARAGRAPH = re.compile(r"(?:Paragraph |段落)(\d+)")
_NUMBER = re.compile(r"\d+\.\d+|\d+")


def retrieval(prediction: str, reference: str) -> float:
    """Share of the prediction's digit runs that equal the gold number; 0.0 without digits. Extra numbers dilute.

    The gold number follows "Paragraph " (or 段落) in the reference; without that the reference is the number itself
    (passage_count). Source: LongBench metrics.py `retrieval_score`, `retrieval_zh_score`, `count_score`.
    """
    named = _PARAGRAPH.search(reference)
    gold = named.group(1) if named else reference
    runs = re.findall(r"\d+", prediction)
    return sum(run == gold for run in runs) / len(runs) if runs else 0.0


def first_int(prediction: str, reference: str) -> float:
    """1.0 if the first run of ASCII digits equals the reference as text, so "007" is not "7".

    Source: SCBench and InfiniteBench compute_scores.py, passkey and number_string.
    """
    run = re.search(r"[0-9]+", prediction)
    return float(run is not None and run.group() == reference)


def math_find(prediction: str, reference: str) -> float:
    """1.0 if the first number (digits, or digits.digits; signs are not read) equals the reference.

    A whole-number reference compares int(float(number)), so "3.7" counts as 3; another reference compares as float.
    Deviation: a run of digits beyond the range of a float scores 0.0, where the benchmark's code raises OverflowError.
    Source: SCBench and InfiniteBench compute_scores.py, math_find (not kvpress, which raises on "3.7").
    """
    found = _NUMBER.search(prediction)
    try:
        if re.fullmatch(r"\s*[+-]?\d+\s*", reference):
            return float(found is not None and int(float(found.group())) == int(reference))
        gold = float(reference)
    except OverflowError:
        return 0.0
    except ValueError:
        raise SpecError(f"metric math_find: the reference {reference!r} is not a number", "write 12 or 0.5") from None
    return float(found is not None and float(found.group()) == gold)


def integer(text: str) -> int | None:
    """The whole number that a text is, with leading zeros or without; None for any other text."""
    return int(text) if re.fullmatch(r"\s*[+-]?[0-9]{1,4000}\s*", text) else None
