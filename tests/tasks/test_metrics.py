"""The metrics give the values that the benchmarks' own code gives, also for awkward answers.

Three sources of expected values: the fact sheet's test vectors, values derived by hand (the derivation is the test's
id), and data/upstream_*.json, which upstream code produced (their provenance is in the files).
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from kvcheck.core.errors import SpecError
from kvcheck.tasks.metrics import METRICS, first_line, score
from kvcheck.tasks.metrics.choice import chosen_letter
from kvcheck.tasks.metrics.code import cut_function, function_bleu

FILES = [
    Path(__file__).parent / "data" / f"upstream_{name}.json"
    for name in ("metrics", "infinitebench", "maths", "awkward")
]
TABLES = [json.loads(file.read_text(encoding="utf-8")) for file in FILES]
UPSTREAM = {
    metric: [row for found in TABLES for row in found["rows"] if row[0] == metric]
    for metric in {metric for found in TABLES for metric in found["sources"]}
}
KINDS = {
    "empty": lambda text: not text.strip(),
    "unicode": lambda text: not text.isascii(),
    "punctuation": lambda text: bool(text.strip()) and not any(map(str.isalnum, text)),
    "refusal": lambda text: "I cannot answer" in text or "无法回答" in text,
    "repeated": lambda text: re.fullmatch(r"(.+?)(\s*\1){2}", text.strip(), re.DOTALL) is not None,
}
SEVERAL = {"rouge_zh", "f1_zh_words", "f1_zh_chars", "code_sim", "code_sim_difflib", "choice_compat", "any_substring",
           "qa_f1", "qa_f1_line", "rouge_l", "rouge_l_line", "string_match_all", "string_match_all_2dp",
           "string_match_part", "passkey_exact", "passkey_partial"}  # fmt: skip
"""Metrics whose own code takes several references (code_run and others take one)."""

CLASSES = ("Other", "location", "Other location", "Other entity")
CITIES = ("Berlin", "Rome", "Paris", "Paris, Texas")
ADD = "def add(items, start):\n    total = start\n    return total"  # 8 tokens
SUB = "def sub(items, start):\n    total = start - 1\n    return total"
POOL = (ADD, SUB)

SHEET = [
    ("qa_f1", "The Eiffel Tower, in Paris", "eiffel tower", 0.666667),
    ("qa_f1", "unanswerable.", "Unanswerable", 1.0),
    ("qa_f1", "twenty-one", "twenty one", 0.0),
    ("rouge_l", "The cat sat on the mat.", "the cat was on the mat", 0.727273),
    ("rouge_lsum", "The cat sat on the mat.", "the cat was on the mat", 0.833333),
    ("rouge_l", "a b a b a b", "a b", 1.0),
    ("rouge_lsum", "a b a b a b", "a b", 0.5),
    ("rouge_l", "the cat sat on the mat. the dog ran.", "the dog ran. the cat sat on the mat.", 1.0),
    ("rouge_lsum", "the cat sat on the mat. the dog ran.", "the dog ran. the cat sat on the mat.", 0.666667),
    ("rouge_l", "Hello, world", "hello world", 0.5),
    ("rouge_lsum", "Hello, world", "hello world", 1.0),
    ("rouge_l", "", "x", 0.0),
    ("rouge_l", ".", "x", 0.0),
    ("f1_zh_words", "他是张三丰。", "张三丰", 0.5),
    ("f1_zh_chars", "他是张三丰。", "张三丰", 0.75),
    ("f1_zh_chars_compat", "张三丰", "张三丰", 0.5),
    ("code_sim", "for i in range(10):", "for idx in range(len(a)):", 0.77),
    ("code_sim", "self.assertEqual(foo(bar), baz)", "self.assertTrue(foo(baz), bar)", 0.82),
    ("retrieval", "Paragraph 7 of 30", "7", 0.5),
    ("retrieval", "There are 12, maybe 13", "12", 0.5),
    ("passkey_partial", "123 4567", "1234567", 0.571429),
    ("passkey_partial", "7654321", "1234567", 0.142857),
]


@pytest.mark.parametrize(("metric", "prediction", "reference", "value"), SHEET)
def test_the_vectors_of_the_fact_sheet_hold(metric: str, prediction: str, reference: str, value: float) -> None:
    assert score(metric, prediction, (reference,)) == pytest.approx(value, abs=1e-6)


def test_the_class_vector_of_the_fact_sheet_holds_in_both_forms() -> None:
    gold = ("Other location",)
    assert score("classification_compat", "Other location", gold, CLASSES) == 0.5
    assert score("classification", "Other location", gold, CLASSES) == 1.0


@pytest.mark.parametrize("metric", sorted(UPSTREAM))
def test_the_values_of_the_benchmarks_own_code_are_reproduced(metric: str) -> None:
    def value(*given: object) -> float:
        """As upstream gives it: RULER rounds its percentage to two places."""
        found = score(metric, *given)
        return round(100 * found, 2) / 100 if metric == "string_match_all" else found

    rows = UPSTREAM[metric]
    assert len(rows) >= 30
    assert [row for row in rows if abs(value(*row[1:4]) - row[4]) > 1e-6] == []


@pytest.mark.parametrize("metric", sorted(TABLES[-1]["sources"]))
def test_the_values_of_the_benchmarks_own_code_cover_every_kind_of_awkward_answer(metric: str) -> None:
    rows = [row for row in TABLES[-1]["rows"] if row[0] == metric]
    assert len(rows) >= 30
    assert [kind for kind, is_one in KINDS.items() if not any(is_one(row[1]) for row in rows)] == []
    assert metric not in SEVERAL or any(len(row[2]) > 1 for row in rows)
    assert len({row[4] for row in rows}) > 1


def test_every_metric_of_a_benchmark_has_values_of_its_code() -> None:
    own = {
        "exact",
        "fact_recall",
        "prefix_trace",
        "classification",
        "choice",
        "math_calc",
        "aime",
        "longgenbench",
    }  # no benchmark's, or without its slip
    assert set(METRICS) - own == set(UPSTREAM)


HAND = {
    # name: metric, prediction, references, options, value
    "f1 of punctuation only has no token": ("qa_f1", "?!...", ("x",), (), 0.0),
    "f1 takes the better reference, 2*1*(1/2)/(3/2)": ("qa_f1", "red", ("blue", "red fox"), (), 2 / 3),
    "f1 of an answer said three times is 2*(1/3)/(4/3)": ("qa_f1", "red red red", ("red",), (), 0.5),
    "f1 of a gold article has no token left": ("qa_f1", "the", ("the",), (), 0.0),
    "f1 keeps accents": ("qa_f1", "Café", ("cafe",), (), 0.0),
    "rouge-l of one space holds one empty word": ("rouge_l", " ", ("x",), (), 0.0),
    "rouge-l of a final 'dot space' counts an empty word, P=1/2": ("rouge_l", "x. ", ("x",), (), 2 / 3),
    "rouge-l of an empty reference is caught": ("rouge_l", "x", ("",), (), 0.0),
    "rouge-l takes the better reference": ("rouge_l", "a b", ("c", "a b"), (), 1.0),
    "rouge-lsum of punctuation only": ("rouge_lsum", "?!", ("x",), (), 0.0),
    "rouge-lsum drops accents' letters, 'caf' in 'caf'": ("rouge_lsum", "café", ("caf",), (), 1.0),
    "zh rouge of one word in two, 2*(1/2)/(3/2)": ("rouge_zh", "北京 上海", ("北京",), (), 2 / 3),
    "zh rouge of an empty answer": ("rouge_zh", "", ("北京",), (), 0.0),
    "zh words of marks only": ("f1_zh_words", "。！？", ("张三丰",), (), 0.0),
    "zh chars ignore marks and spaces": ("f1_zh_chars", "张 三，丰。", ("张三丰",), (), 1.0),
    "zh chars of an opening title mark count, 2*(3/4)/(7/4)": ("f1_zh_chars", "《张三丰》", ("张三丰",), (), 6 / 7),
    "zh compat of an empty reference": ("f1_zh_chars_compat", "张", ("",), (), 0.0),
    "code skips comment and fence": ("code_sim", "\n```python\n# sum\nx = 1\ny", ("x = 1",), (), 1.0),
    "code takes a blank first line": ("code_sim", "  \nx = 1", ("x = 1",), (), 0.57),  # 2 spaces of 2 + 5: 4/7
    "code without a fit line is empty": ("code_sim", "# x = 1", ("x = 1",), (), 0.0),
    "code empty against empty is equal": ("code_sim", "", ("",), (), 1.0),
    "class in the second line does not count": ("classification", "\n?\nlocation", ("location",), CLASSES, 0.0),
    "class among two named": ("classification", "location or Other entity?", ("location",), CLASSES, 1 / 3),
    "class of a refusal": ("classification", "I do not know", ("location",), CLASSES, 0.0),
    "class of an empty answer": ("classification", "", ("location",), CLASSES, 0.0),
    "class takes the better gold": ("classification", "location", ("Other", "location"), CLASSES, 1.0),
    "number after Paragraph": ("retrieval", "It is 7.", ("Paragraph 7",), (), 1.0),
    "number after 段落": ("retrieval", "段落7", ("段落7",), (), 1.0),
    "number repeated is still right": ("retrieval", "7 7 7", ("7",), (), 1.0),
    "number inside another is not it": ("retrieval", "17", ("7",), (), 0.0),
    "number of nothing": ("retrieval", " \n", ("7",), (), 0.0),
    "number with leading zero is another text": ("retrieval", "07", ("7",), (), 0.0),
    "substring minds case": ("substring", "ABC", ("abc",), (), 0.0),
    "substring across quotes": ("substring", 'it is "abc".', ("x", "abc"), (), 1.0),
    "any label ignores case": ("any_substring", " straße ", ("STRASSE", "q"), (), 1.0),
    "any label inside a word counts": ("any_substring", "because", ("A",), (), 1.0),
    "match all finds two of three": ("string_match_all", "Alpha, BETA", ("alpha", "beta", "gamma"), (), 2 / 3),
    "match all rounded by SCBench": ("string_match_all_2dp", "alpha beta", ("alpha", "beta", "gamma"), (), 0.67),
    "match turns a tab into a newline": ("string_match_all", "a\tb", ("a\tb",), (), 0.0),
    "match part finds no in not": ("string_match_part", "not sure", ("no", "yes"), (), 1.0),
    "match part of an empty answer": ("string_match_part", "", ("no", "yes"), (), 0.0),
    "first digits only": ("first_int", "no. 12, not 7", ("7",), (), 0.0),
    "first digits keep zeros": ("first_int", "key=007;", ("007",), (), 1.0),
    "first digits of a refusal": ("first_int", "I cannot say", ("7",), (), 0.0),
    "find truncates 3.7 to 3": ("math_find", "3.7", ("3",), (), 1.0),
    "find compares floats": ("math_find", "about 0.50", ("0.5",), (), 1.0),
    "find does not read a sign": ("math_find", "-12", ("-12",), (), 0.0),
    "find stops at a thousands comma": ("math_find", "1,200", ("1200",), (), 0.0),
    "find survives 400 digits": ("math_find", "9" * 400, ("9",), (), 0.0),
    "find of nothing": ("math_find", "", ("3",), (), 0.0),
    "choice after a cue": ("choice", "The answer is: **B**.", ("B",), CITIES, 1.0),
    "choice of a single letter": ("choice", "b.", ("B",), (), 1.0),
    "choice in brackets": ("choice", "(c) since it is", ("C",), CITIES, 1.0),
    "choice by text": ("choice", "It is Rome.", ("Rome",), CITIES, 1.0),
    "choice by the longer of nested texts": ("choice", "paris texas, surely", ("D",), CITIES, 1.0),
    "choice of two texts is none": ("choice", "Berlin or Rome", ("A",), CITIES, 0.0),
    "choice by equal text without options": ("choice", "rome", ("Rome", "B"), (), 1.0),
    "choice does not read the article": ("choice", "A city in the north", ("A",), (), 0.0),
    "choice does not read a word's letter": ("choice", "Definitely", ("D",), (), 0.0),
    "choice of a refusal": ("choice", "I can't tell.", ("A",), CITIES, 0.0),
    "choice of a later standalone letter": ("choice", "I would pick B here, not C", ("B",), (), 1.0),
    "choice in a Chinese sentence": ("choice", "答案是B。", ("B",), (), 1.0),
    "choice beyond D with seven options": ("choice", "(F)", ("F",), tuple("opqrstu"), 1.0),
    "compat reads Answer as A": ("choice_compat", "Answer: B", ("Rome", "B"), CITIES, 0.0),
    "compat reads Definitely as D": ("choice_compat", "Definitely", ("D",), (), 1.0),
    "compat after a cue takes the text": ("choice_compat", "my answer is: Rome", ("Rome", "B"), (), 1.0),
    "compat of a cue at the end": ("choice_compat", "the answer is", ("B",), (), 0.0),
    "compat of an empty answer": ("choice_compat", " ", ("B",), (), 0.0),
    "v2 in brackets and bold": ("longbench_v2", "**The correct answer is (C)**", ("C",), (), 1.0),
    "v2 unparsed is wrong": ("longbench_v2", "C", ("C",), (), 0.0),
    "babilong must name one label": ("babilong", "The office or garden", ("office",), ("office", "garden"), 0.0),
    "babilong reads one sentence": ("babilong", "Office. Not the garden", ("office",), ("office", "garden"), 1.0),
    "babilong list of two": ("babilong", "milk and apple", ("apple,milk",), ("apple", "milk", "nothing"), 1.0),
    "repo exact function in a fence": ("repoqa", f"Sure:\n```python\n{ADD}\n```\nDone.", (ADD,), POOL, 1.0),
    "repo other function of the pool": ("repoqa", SUB, (ADD,), POOL, 0.0),
    "repo prose without a fence": ("repoqa", f"Here is the function that you asked for: {ADD}", (ADD,), POOL, 0.0),
    "repo empty answer": ("repoqa", "", (ADD,), POOL, 0.0),
    "repo refusal": ("repoqa", "I cannot find it.", (ADD,), (), 0.0),
    "passkey among words": ("passkey_exact", "The key is 12-34.", ("1234",), (), 1.0),
    "passkey deletes articles, 'xay' keeps": ("passkey_exact", "x a y", ("x y",), (), 1.0),
    "passkey of an empty answer": ("passkey_exact", "", ("1234",), (), 0.0),
    "partial takes the longest run, 3/4": ("passkey_partial", "99123 4", ("1234",), (), 0.75),
    "partial of an empty answer": ("passkey_partial", "", ("1234",), (), 0.0),
    "partial takes the better key": ("passkey_partial", "12", ("3456", "1234"), (), 0.5),
    "exact ignores outer space": ("exact", " a b\n", ("a b",), (), 1.0),
    "exact minds case": ("exact", "A", ("a",), (), 0.0),
    "facts found one of two": ("fact_recall", "Otter 12, as said", ("12", "13"), (), 0.5),
    "facts are whole words": ("fact_recall", "catalog cat_2 112 3.12 12.5", ("cat", "12"), (), 0.0),
    "facts ignore case and line breaks": ("fact_recall", "in NEW\n york.", ("New York",), (), 1.0),
    "facts in Chinese need no boundary": ("fact_recall", "他是张三丰，42岁", ("张三丰", "42"), (), 1.0),
    "facts composed or not are equal": ("fact_recall", "cafe\u0301", ("café",), (), 1.0),
    "facts of an empty answer": ("fact_recall", "", ("x",), (), 0.0),
    "facts end a sentence": ("fact_recall", "It is 12.", ("12",), (), 1.0),
    "trace complete": ("prefix_trace", "a -> b -> c", ("a", "b", "c"), (), 1.0),
    "trace in other marks": ("prefix_trace", "1. a\n2. b\n3. c.", ("a->b->c",), (), 1.0),
    "trace stops at its first error": ("prefix_trace", "a, x, c", ("a", "b", "c"), (), 1 / 3),
    "trace cut short": ("prefix_trace", "a b", ("a", "b", "c", "d"), (), 0.5),
    "trace with extra items is one error": ("prefix_trace", "a b c d e", ("a", "b", "c"), (), 0.75),
    "trace items with spaces": ("prefix_trace", "red fox\nold cat", ("red fox\nold cat",), (), 1.0),
    "trace skips the words of its form": ("prefix_trace", "to b to c to end", ("b", "c"), ("to", "end"), 1.0),
    "trace of one item": ("prefix_trace", "a", ("a",), (), 1.0),
    "trace of nothing": ("prefix_trace", " \n", ("a", "b"), (), 0.0),
    "trace wrong at once": ("prefix_trace", "I think a b", ("a", "b"), (), 0.0),
}


@pytest.mark.parametrize("case", HAND.values(), ids=HAND.keys())
def test_awkward_answers_score_as_derived_by_hand(case: tuple) -> None:
    metric, prediction, references, options, value = case
    assert score(metric, prediction, references, options) == pytest.approx(value, abs=1e-6)


AWKWARD = [
    "",
    " ",
    "\n\n",
    "?!.,;",
    "I'm sorry, I can't help with that.",
    "é\u0301\u200b",
    "\x00\x1f",
    "42 " * 300,
    "```",
]


GOLDS = ("77Q", "88Q")


@pytest.mark.parametrize("metric", sorted(METRICS))
def test_every_awkward_answer_is_graded_within_bounds_by_every_metric(metric: str) -> None:
    numbers = ("math_find", "math_calc", "math_calc_compat", "code_run")
    special = {**dict.fromkeys(numbers, ("8", "7")), "longbench_v2": ("B",)}
    references = special.get(metric, ("B",) if "choice" in metric else GOLDS)
    options = ("B", "C", *GOLDS)
    values = [score(metric, text, references, options) for text in AWKWARD]
    assert values == [0.0] * len(values)  # none of them is right
    if METRICS[metric].binary:
        assert {score(metric, text, references, options) for text in ("B", "77q 7 B", "88Q7")} <= {0.0, 1.0}


NOT_ITSELF = {"f1_zh_chars_compat", "longbench_v2", "math_find", "code_debug_compat", "gsm8k_strict"}
NOT_ITSELF |= {"longgenbench", "longgenbench_compat"}


@pytest.mark.parametrize("metric", sorted(set(METRICS) - NOT_ITSELF))
def test_the_reference_itself_is_a_perfect_answer(metric: str) -> None:
    gold, options = ("C", ("B", "C", "D", "E")) if "choice" in metric else ("12345", ("12345", "67"))
    assert score(metric, gold, (gold,), options) == pytest.approx(1.0, abs=1e-6)


def test_the_first_line_alone_counts_in_triviaqa_and_samsum() -> None:
    for metric in ("qa_f1", "rouge_l"):
        assert score(f"{metric}_line", "\nred fox\nbrown bear", ("red fox",)) == pytest.approx(1.0, abs=1e-6)
        assert score(metric, "\nred fox\nbrown bear", ("red fox",)) < 1.0


def test_a_list_of_steps_scores_its_correct_beginning_with_signs() -> None:
    steps = ("3", "-4", "5", "9")
    assert score("math_calc", "[3, -4, 6, 9]", steps) == 0.5
    assert score("math_calc", "3, 4", steps) == 0.25
    assert score("math_calc_compat", "[3, -4, 5, 9]", steps) == 0.25
    with pytest.raises(SpecError, match="no whole number"):
        score("code_run", "3", ("x",))


def test_rouge_l_scores_long_segments_that_break_the_recursion_of_the_package() -> None:
    words = " ".join(f"w{number}" for number in range(1500))
    assert score("rouge_l", words, (words,)) == pytest.approx(1.0, abs=1e-6)


def test_repoqa_refuses_one_changed_operator_in_ten_tokens() -> None:
    gold = "def mul(left, right):\n    total = left * right\n    return total"
    assert len(gold.split()) == 10
    assert function_bleu(gold.replace("*", "+"), gold) == pytest.approx(0.658, abs=5e-4)
    assert score("repoqa", gold.replace("*", "+"), (gold,)) == 0.0
    assert function_bleu(f"Here is the function: {gold}", gold) == pytest.approx(0.677, abs=5e-4)


@pytest.mark.parametrize(
    ("answer", "cut"),
    [
        (f"```python\n@cached\n{ADD}\n\nprint(add([], 1))\n```", ADD),
        (f"```\nx = 1\n```\ntext\n```py\n{ADD}\n```", ADD),
        (f"```\nno code\n```\n```\n{ADD}\n``", "no code\n"),
        (f"```python\n{ADD}", f"```python\n{ADD}"),
        ("```python\ndef f(x):\n    return return x\n\nprint(1)\n```", "def f(x):\n    return return x"),
    ],
    ids=[
        "decorator and call off",
        "second block has it",
        "open fence does not count",
        "no closed fence",
        "broken code",
    ],
)
def test_the_function_is_cut_out_of_the_answer(answer: str, cut: str) -> None:
    assert cut_function(answer) == cut


@pytest.mark.parametrize(
    ("answer", "letter"),
    [("A, B and C are wrong", "A"), ("U.S.A", None), ("C++ or C#", None), ("A's turn", None), ("a dog", None)],
)
def test_a_standalone_letter_is_told_from_a_word(answer: str, letter: str | None) -> None:
    assert chosen_letter(answer, ()) == letter


def test_the_first_line_is_what_few_shot_sets_grade() -> None:
    assert first_line("\n\nlocation\nType: other") == "location"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (("qaf1", "x", ("x",)), "did you mean qa_f1"),
        (("qa_f1", "x", "x"), "got one string"),
        (("qa_f1", "x", ()), "no reference"),
        (("substring", "x", ("x", " ")), "empty reference"),
        (("passkey_exact", "x", ("the",)), "nothing is left"),
        (("math_find", "3", ("three",)), "not a number"),
        (("classification", "x", ("x",)), "no class names"),
        (("babilong", "x", ("x",)), "no labels"),
        (("choice", "x", ("Rome",)), "none of"),
        (("choice", "x", ("A",), ("x",) * 27), "27 options"),
        (("prefix_trace", "x", ("a", "'.'")), "empty item"),
    ],
)
def test_what_cannot_be_graded_is_an_error_that_says_why(call: tuple, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        score(*call)


def test_importing_the_metrics_loads_nothing_heavy() -> None:
    code = (
        "import sys, kvcheck.tasks.metrics; "
        "print(sorted({'torch', 'jieba', 'tree_sitter', 'rapidfuzz', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_jieba_prints_nothing() -> None:
    code = "from kvcheck.tasks.metrics import score; score('rouge_zh', '他是张三丰', ('张三丰',))"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_every_metric_says_what_it_does_and_where_it_comes_from() -> None:
    assert [
        name for name, metric in METRICS.items() if not (metric.doc and metric.source and metric.name == name)
    ] == []
