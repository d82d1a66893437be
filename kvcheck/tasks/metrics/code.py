"""Metrics of code: similarity of the next line, and repeating a function from memory."""

from __future__ import annotations

import ast
import re
import textwrap
import warnings
from collections.abc import Sequence
from difflib import SequenceMatcher
from functools import lru_cache
from typing import Any

REPOQA_THRESHOLD = 0.8

_FENCED = re.compile(r"^```\w*\s*\n(.*?)^```", re.DOTALL | re.MULTILINE)
_DEF = re.compile(r"^[ \t]*(?:async[ \t]+)?def[ \t]+\w+[ \t]*\(", re.MULTILINE)


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


def _parse(source: str) -> ast.Module | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about escape sequences and the like in the model's code
            return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _first_suite(block: str) -> str:
    """The first `def` line and the suite below it, by indentation alone; "" without a `def` line.

    The suite ends before a line that is not indented deeper than the `def`, unless it begins with a closing bracket,
    and before one that falls back to a depth at which no line of it began.
    """
    start = _DEF.search(block)
    if start is None:
        return ""
    head, *rest = block[start.start() :].split("\n")
    top = len(head) - len(head.lstrip())
    lines, depths = [head], [top]
    for line in rest:
        code = line.lstrip()
        if code and code[0] not in ")]}":
            depth = len(line) - len(code)
            fell = depth < depths[-1]
            depths = [known for known in depths if known <= depth]
            if depth <= top or (fell and depths[-1] != depth):
                break
            if depths[-1] != depth:
                depths.append(depth)
        lines.append(line)
    return textwrap.dedent("\n".join(lines)).strip()


def _first_function(block: str) -> str | None:
    """Source of the first Python function of the block (decorators off), or None where there is none.

    In a block that does not parse it is the first `def` line and the suite below it.
    """
    source = textwrap.dedent(block)
    tree = _parse(source)
    if tree is None:
        return _first_suite(block) or None
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    if not functions:
        return None
    return ast.get_source_segment(source, min(functions, key=lambda node: (node.lineno, node.col_offset)))


def cut_function(prediction: str) -> str:
    """The part of an answer that RepoQA grades: the function in the first fenced block that has one.

    Without such a block the first block, and without any closed fence the whole answer. Deviation: RepoQA finds the
    function with tree-sitter in six languages. Here it is Python only: `ast` where the block parses (same cut), and the
    indentation where it does not, which may cut at another line than tree-sitter's error recovery (3 of 300 verdicts
    differed, on answers of which 118 did not parse). A block in another language is graded whole.
    """
    text = prediction.strip()
    blocks = _FENCED.findall(text)
    if not blocks:
        return text
    return next((found for found in map(_first_function, blocks) if found is not None), str(blocks[0]))


@lru_cache(maxsize=1)
def _bleu() -> tuple[Any, Any]:
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

    return sentence_bleu, SmoothingFunction().method4


def function_bleu(candidate: str, reference: str) -> float:
    """BLEU-4 over whitespace tokens, nltk `sentence_bleu` with smoothing method 4."""
    sentence_bleu, smoothing = _bleu()
    tokens, gold = (re.split(r"\s+", text.strip()) for text in (candidate, reference))
    return float(sentence_bleu([gold], tokens, smoothing_function=smoothing))


def repoqa(prediction: str, references: Sequence[str], options: Sequence[str] = ()) -> float:
    """1.0 if, of all functions asked about in the repository, the gold one is most like the answer, with BLEU >= 0.8.

    options: that pool of functions; a reference that is not in it is added at its end. The first of equals wins. A pool
    of the functions of the rows actually run, as upstream builds it, makes a subset easier than the full set.
    Source: SCBench repo_qa_utils.py (RepoQA), pass@1 at threshold 0.8, comments kept.
    """
    answer = cut_function(prediction)
    pool = list(dict.fromkeys((*options, *references)))
    scores = [function_bleu(answer, function) for function in pool]
    best = max(scores)
    return float(best >= REPOQA_THRESHOLD and pool[scores.index(best)] in references)
