"""The metrics of the benchmarks, exactly as they compute them, and a few of our own. No torch.

Every score is in [0, 1] for one answer; a task's score is the mean. Names that end in _compat, and code_sim_difflib,
keep a slip of the benchmark's code for comparison with published numbers; the plain name is the sound rule.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, version

from kvcheck.core.errors import SpecError, did_you_mean
from kvcheck.tasks.metrics import chinese, choice, code, contain, infinite, maths, numbers, own, text
from kvcheck.tasks.metrics.base import Metric, Rule, best_of
from kvcheck.tasks.metrics.functions import LANGUAGES
from kvcheck.tasks.metrics.text import first_line

__all__ = ["METRICS", "Metric", "first_line", "library", "score"]

GRADED, BINARY = False, True

Pair = Callable[[str, str], float]


def _each(name: str, binary: bool, pair: Pair, source: str, refuses_empty: bool = False) -> Metric:
    """A metric that is defined for one reference: the best over the references counts."""
    return Metric(name, binary, best_of(pair), source, _first_sentence(pair), refuses_empty)


def _whole(name: str, binary: bool, rule: Rule, source: str, refuses_empty: bool = False) -> Metric:
    """A metric that looks at all references at once."""
    return Metric(name, binary, rule, source, _first_sentence(rule), refuses_empty)


def _first_sentence(function: object) -> str:
    return (function.__doc__ or "").split("\n\n")[0].strip()


def _repoqa(language: str) -> Metric:
    """The metric for one language; Python's has the plain name."""
    name, rule = f"repoqa_{language}", partial(code.repoqa, language=language)
    source = f"RepoQA, SCBench (nltk's BLEU-4, tree-sitter), {language}"
    return Metric("repoqa" if language == "python" else name, BINARY, rule, source, _first_sentence(code.repoqa), True)


_ALL = (
    _each("qa_f1", GRADED, text.qa_f1, "LongBench, SCBench"),
    _each("qa_f1_line", GRADED, text.qa_f1_line, "LongBench triviaqa"),
    _each("rouge_l", GRADED, text.rouge_l, "LongBench (rouge 1.0.1)"),
    _each("rouge_l_line", GRADED, text.rouge_l_line, "LongBench samsum (rouge 1.0.1)"),
    _each("rouge_zh", GRADED, chinese.rouge_zh, "LongBench (jieba, rouge 1.0.1)"),
    _each("rouge_lsum", GRADED, text.rouge_lsum, "SCBench (rouge-score 0.1.2)"),
    _each("f1_zh_words", GRADED, chinese.f1_zh_words, "LongBench (jieba)"),
    _each("f1_zh_chars", GRADED, chinese.f1_zh_chars, "SCBench, InfiniteBench"),
    _each("f1_zh_chars_compat", GRADED, chinese.f1_zh_chars_compat, "SCBench, with its slip"),
    _each("code_sim", GRADED, code.code_sim, "LongBench (fuzz.ratio with Levenshtein)"),
    _each("code_sim_difflib", GRADED, code.code_sim_difflib, "longctx_bench (fuzzywuzzy 0.18.0 without Levenshtein)"),
    _whole("classification", GRADED, choice.classification, "LongBench, without its slip"),
    _whole("classification_compat", GRADED, choice.classification_compat, "LongBench, with its slip"),
    _each("retrieval", GRADED, numbers.retrieval, "LongBench"),
    _each("substring", BINARY, contain.substring, "SCBench", True),
    _whole("any_substring", BINARY, contain.any_substring, "SCBench, InfiniteBench", True),
    _whole("string_match_all", GRADED, contain.string_match_all, "RULER", True),
    _whole("string_match_all_2dp", GRADED, contain.string_match_all_2dp, "SCBench vt", True),
    _whole("string_match_part", BINARY, contain.string_match_part, "RULER", True),
    _each("first_int", BINARY, numbers.first_int, "SCBench, InfiniteBench"),
    _each("math_find", BINARY, numbers.math_find, "SCBench, InfiniteBench"),
    _each("kv_words", BINARY, infinite.kv_words, "InfiniteBench", True),
    _whole("first_word_compat", BINARY, infinite.first_word_compat, "InfiniteBench, with its slip", True),
    _each("code_run", BINARY, infinite.code_run, "InfiniteBench"),
    _whole("code_debug_compat", BINARY, infinite.code_debug_compat, "InfiniteBench"),
    _whole("math_calc", GRADED, infinite.math_calc, "InfiniteBench, without its slip"),
    _whole("math_calc_compat", GRADED, infinite.math_calc_compat, "InfiniteBench, with its slip"),
    _whole("choice", BINARY, choice.choice, "kvcheck, in place of SCBench's first-letter rule"),
    _whole("choice_compat", BINARY, choice.choice_compat, "SCBench, InfiniteBench"),
    *(_repoqa(language) for language in LANGUAGES),
    _each("passkey_exact", BINARY, contain.passkey_exact, "longctx_bench", True),
    _each("passkey_partial", GRADED, contain.passkey_partial, "longctx_bench", True),
    _each("longbench_v2", BINARY, choice.longbench_v2, "LongBench v2"),
    _whole("babilong", BINARY, choice.babilong, "BABILong"),
    _each("gsm8k", BINARY, maths.gsm8k, "lm-evaluation-harness gsm8k_cot_zeroshot, flexible-extract", True),
    _each("gsm8k_strict", BINARY, maths.gsm8k_strict, "lm-evaluation-harness gsm8k_cot_zeroshot, strict-match", True),
    _each("math_equal", BINARY, maths.math_equal, "lm-evaluation-harness aime", True),
    _each("math_dollars_compat", BINARY, maths.math_dollars_compat, "lm-evaluation-harness hendrycks_math", True),
    _each("aime", BINARY, maths.aime, "lm-evaluation-harness aime, without its slip", True),
    _whole("longgenbench", GRADED, maths.longgenbench, "LongGenBench, without its slips", True),
    _whole("longgenbench_compat", GRADED, maths.longgenbench_compat, "LongGenBench", True),
    _each("exact", BINARY, contain.exact, "kvcheck"),
    _whole("fact_recall", GRADED, own.fact_recall, "kvcheck", True),
    _whole("prefix_trace", GRADED, own.prefix_trace, "kvcheck, after LongProc", True),
)

METRICS: dict[str, Metric] = {metric.name: metric for metric in _ALL}

_PACKAGES = {
    "rouge_zh": ("jieba",),
    "f1_zh_words": ("jieba",),
    "code_sim": ("rapidfuzz",),
    "repoqa": ("tree-sitter", *(f"tree-sitter-{language}" for language in LANGUAGES)),
}
"""The packages whose code decides a score; the other metrics rest on Python alone."""


def library(names: Sequence[str]) -> str:
    """The packages that these metrics rest on, with their versions; "none" where Python is enough."""
    used = sorted({package for name in names for package in _PACKAGES.get(name, ())})
    return ", ".join(f"{package} {_version(package)}" for package in used) or "none"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def score(name: str, prediction: str, references: Sequence[str], options: Sequence[str] = ()) -> float:
    """Grade one answer with the named metric; in [0, 1].

    options: the class names, the texts of the choices, or the pool of functions, where the metric needs them.

    >>> score("qa_f1", "The Eiffel Tower", ("eiffel tower", "tower"))
    1.0
    """
    if name not in METRICS:
        raise SpecError(f"unknown metric {name!r}", did_you_mean(name, METRICS))
    return METRICS[name].score(prediction, references, options)
