"""kvcheck's own metrics. No benchmark reports these; never compare them with a published number."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from kvcheck.core.errors import SpecError
from kvcheck.tasks.metrics.text import holds_words

_SEPARATORS = ("\n", "->", "→", "=>", ";", "|", ",")
_MARKER = re.compile(r"^\s*(?:\d+[.)]|[-*•])\s+", re.MULTILINE)


def _fold(text: str) -> str:
    return unicodedata.normalize("NFC", text).casefold()


def fact_recall(prediction: str, references: Sequence[str], options: Sequence[str] = ()) -> float:
    """Share of the expected facts (the references) that the answer contains as whole words.

    Case and runs of whitespace do not count. "12" is not found in "112", "12.5" or "3,12"; "cat" not in "catalog" or
    "cat_2". Extra text costs nothing. kvcheck's own, not a benchmark's.
    """
    text = _fold(prediction)
    return sum(holds_words(text, _fold(fact)) for fact in references) / len(references)


def _clean(item: str) -> str:
    """An item without list marker, quotes and final full stop."""
    return _MARKER.sub("", item).strip().rstrip(".\"'`*").lstrip("\"'`*").strip()


def _split(text: str, separators: Sequence[str]) -> list[str]:
    """The items between the separators, cleaned; empty ones are dropped. Whitespace separates if " " is given."""
    if "\n" in separators:
        text = _MARKER.sub("", text)
    pattern = "|".join(r"\s+" if mark == " " else re.escape(mark) for mark in separators)
    return [item for item in map(_clean, re.split(pattern, text)) if item]


def _expected(references: Sequence[str]) -> list[str]:
    """Several references are the items; one reference is split at the first kind of separator that it has."""
    if len(references) > 1:
        return [_clean(item) for item in references]
    text = references[0].strip()
    mark = next((mark for mark in (*_SEPARATORS, " ") if mark in text), None)
    return [_clean(text)] if mark is None else _split(text, (mark,))


def prefix_trace(prediction: str, references: Sequence[str], options: Sequence[str] = ()) -> float:
    """Items of the expected trace matched before the first error, divided by the number of items.

    references: the items in order, or one text with the whole trace. Answers may separate items by newline, -> , → ,
    => , ; , | , comma or whitespace, as far as the mark does not occur inside an expected item; list markers, quotes
    and a final full stop are ignored, case is not. Extra items after a complete trace are one error: n / (n + 1), so
    1.0 means exactly this trace. options: words of the answer's form that are no items and are skipped ("to", "end").
    kvcheck's own, in the manner of LongProc's accuracy up to the first wrong line.
    """
    expected = _expected(references)
    if not expected or not all(expected):
        raise SpecError(f"metric prefix_trace: an empty item in the references {tuple(references)!r}", "remove it")
    marks = [mark for mark in _SEPARATORS if not any(mark in item for item in expected)]
    if not any(re.search(r"\s", item) for item in expected):
        marks.append(" ")
    form = set(options) - set(expected)
    found = [item for item in _split(prediction, marks) if item not in form]
    matched = 0
    while matched < min(len(expected), len(found)) and found[matched] == expected[matched]:
        matched += 1
    overrun = matched == len(expected) and len(found) > matched
    return matched / (len(expected) + overrun)
