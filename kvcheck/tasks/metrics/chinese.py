"""Metrics of Chinese answers: jieba words or single characters, and the marks that are dropped."""

from __future__ import annotations

import logging
import string
import warnings
from functools import lru_cache
from types import ModuleType

from kvcheck.core.errors import SpecError
from kvcheck.tasks.metrics.text import rouge_l, token_f1


def _chinese_marks() -> str:
    """The non-ASCII punctuation that LongBench and SCBench drop.

    Their list lacks U+3008 to U+300A (the opening book-title marks, while the closing U+300B is in it) and U+FF0E (full
    width full stop); so does this one, or scores would differ.
    """
    spans = [(0xFF01, 0xFF0D), (0xFF0F, 0xFF0F), (0xFF1A, 0xFF20), (0xFF3B, 0xFF40), (0xFF5B, 0xFF64)]
    spans += [(0x3001, 0x3003), (0x300B, 0x3011), (0x3014, 0x301F), (0x3030, 0x3030), (0x303E, 0x303F)]
    spans += [(0x2013, 0x2014), (0x2018, 0x2019), (0x201B, 0x201F), (0x2026, 0x2027), (0xFE4F, 0xFE4F)]
    return "".join(chr(code) for first, last in spans for code in range(first, last + 1))


_MARKS = str.maketrans("", "", string.punctuation + _chinese_marks())


def normalize_zh(text: str) -> str:
    """Lowercase, drop ASCII and Chinese punctuation and all whitespace."""
    return "".join(text.lower().translate(_MARKS).split())


@lru_cache(maxsize=1)
def _jieba() -> ModuleType:
    """The jieba module, loaded on first use and without its log lines. Raises SpecError where it is missing."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its source has invalid escape sequences
            import jieba
    except ImportError as error:
        raise SpecError(f"Chinese words are cut by jieba: {error}", "pip install 'kvcheck[benchmarks]'") from error
    jieba.setLogLevel(logging.ERROR)
    return jieba


def _words(text: str) -> list[str]:
    return list(_jieba().cut(text, cut_all=False))


def rouge_zh(prediction: str, reference: str) -> float:
    """`rouge_l` over jieba words joined by spaces. Source: LongBench metrics.py `rouge_zh_score`."""
    return rouge_l(" ".join(_words(prediction)), " ".join(_words(reference)))


def f1_zh_words(prediction: str, reference: str) -> float:
    """Token F1 over jieba words, each normalised, empty ones dropped. Source: LongBench metrics.py `qa_f1_zh_score`."""
    pred = [word for word in map(normalize_zh, _words(prediction)) if word]
    gold = [word for word in map(normalize_zh, _words(reference)) if word]
    return token_f1(pred, gold)


def f1_zh_chars(prediction: str, reference: str) -> float:
    """Token F1 where one character is one token. Source: SCBench compute_scores.py `qa_f1_score_zh`, InfiniteBench.

    SCBench itself passes its gold text where a list is expected, see `f1_zh_chars_compat`.
    """
    return token_f1(normalize_zh(prediction), normalize_zh(reference))


def f1_zh_chars_compat(prediction: str, reference: str) -> float:
    """`f1_zh_chars` with SCBench's slip: every character of the reference is a reference of its own.

    A perfect answer of three characters scores 0.5. Source: SCBench qa_chn, `get_ground_truth`.
    """
    return max((f1_zh_chars(prediction, character) for character in reference), default=0.0)
