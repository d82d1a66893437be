"""Metrics of code: similarity of the next line, and repeating a function from memory."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from difflib import SequenceMatcher

from kvcheck.tasks.metrics.functions import first_function

REPOQA_THRESHOLD = 0.8

_FENCED = re.compile(r"^```\w*\s*\n(.*?)^```", re.DOTALL | re.MULTILINE)


def first_code_line(prediction: str) -> str:
    """The first line, after leading newlines, without a backtick, '#' or '//'; it may be blank. "" if there is none."""
    lines = prediction.lstrip("\n").split("\n")
    return next((line for line in lines if not any(mark in line for mark in ("`", "#", "//"))), "")


def code_sim(prediction: str, reference: str) -> float:
    """Edit similarity of the prediction's first code line: the rapidfuzz ratio rounded to a whole percent.

    Equal to `thefuzz` and to fuzzywuzzy with python-Levenshtein. fuzzywuzzy without it falls back to difflib and gives
    lower values, see `code_sim_difflib`. Source: LongBench metrics.py `code_sim_score`.
    """
    from rapidfuzz import fuzz

    return round(fuzz.ratio(first_code_line(prediction), reference)) / 100


def code_sim_difflib(prediction: str, reference: str) -> float:
    """`code_sim` as fuzzywuzzy 0.18.0 computes it without python-Levenshtein: difflib's ratio, autojunk on.

    To compare with published longctx_bench numbers, which pin that version and no Levenshtein.
    """
    line = first_code_line(prediction)
    return round(100 * SequenceMatcher(None, line, reference).ratio()) / 100


def cut_function(prediction: str, language: str = "python") -> str:
    """The part of an answer that RepoQA grades: the first function in the first fenced block that has one.

    Without such a block the first block, and without any closed fence the whole answer.
    """
    text = prediction.strip()
    blocks = _FENCED.findall(text)
    if not blocks:
        return text
    found = (first_function(block, language) for block in blocks)
    return next((function for function in found if function is not None), str(blocks[0]))


def function_bleu(candidate: str, reference: str) -> float:
    """BLEU-4 over whitespace tokens, as nltk's `sentence_bleu` computes it with smoothing method 4.

    In place of no match at an order, that method counts a part of one, halved each time. Source: Chen and Cherry 2014.
    Not called from nltk, which would be needed for nothing else (tests compare the two).
    """
    tokens, gold = (re.split(r"\s+", text.strip()) for text in (candidate, reference))
    logs, missed = [], 0
    for order in range(1, 5):
        mine, theirs = (Counter(zip(*(words[at:] for at in range(order)), strict=False)) for words in (tokens, gold))
        hits: float = (mine & theirs).total()
        if not hits and order == 1:
            return 0.0
        if not hits and len(tokens) > 1:
            missed += 1
            hits = 1 / (2**missed * 5 / math.log(len(tokens)))
        logs += [0.25 * math.log(hits / max(1, mine.total()))] if hits else []
    brevity = 1.0 if len(tokens) > len(gold) else math.exp(1 - len(gold) / len(tokens))
    return brevity * math.exp(math.fsum(logs))


def repoqa(prediction: str, references: Sequence[str], options: Sequence[str] = (), language: str = "python") -> float:
    """1.0 if, of all functions asked about in the repository, the gold one is most like the answer, with BLEU >= 0.8.

    options: that pool of functions; a reference that is not in it is added at its end. The first of equals wins. A pool
    of the functions of the rows actually run, as upstream builds it, makes a subset easier than the full set.
    Source: SCBench repo_qa_utils.py (RepoQA), pass@1 at threshold 0.8, comments kept.
    """
    answer = cut_function(prediction, language)
    pool = list(dict.fromkeys((*options, *references)))
    scores = [function_bleu(answer, function) for function in pool]
    best = max(scores)
    return float(best >= REPOQA_THRESHOLD and pool[scores.index(best)] in references)
