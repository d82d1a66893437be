"""GSM8K, MATH-500, AIME, LongGenBench and LongMemEval: their prompts, which rows they take, and how they grade."""

from __future__ import annotations

import json
import re

import pytest
from benchmark_help import prompt

from kvcheck.core.errors import SpecError
from kvcheck.tasks.benchmarks import DATA_SETS, benchmark_tasks, wording
from kvcheck.tasks.benchmarks.templates import literal
from kvcheck.tasks.metrics import score

LONG = 10**6
RUN = """
raise SystemExit("this file must not be executed")
def prepare(step):
    if step:
        template = 'In steps. {}\\n\\nDate: {}\\nQuestion: {}\\nAnswer (step by step):'
    else:
        template = 'Chats: {}\\n\\nDate: {}\\nQuestion: {}\\nAnswer:'
    return template + 'and {}\\nQuestion: {}\\nAnswer:'
"""


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("gsm8k/all", "Q: A mill grinds 40 sacks a day. How many sacks does it grind in 27 days?\nA: Let's think step"),
        ("math500/all", "Problem: What is one half of $\\frac{3}{2}$?\nAnswer:"),
        ("aime24/all", "Question: Find the largest three-digit multiple of 37.\nAnswer:"),
        ("aime25/all", "Question: Find the sum of the integers from 1 to 30.\nAnswer:"),
    ],
)
def test_a_problem_stands_in_the_few_words_of_the_harness(name, asked, fixed, tokenizer):
    assert prompt(fixed.get(name).generate(0, 0, LONG, tokenizer)).startswith(asked)


def test_the_answer_of_math500_is_the_box_of_its_solution_and_a_solution_without_one_is_refused(folder, tokenizer):
    path = folder / "math500" / "test.jsonl"
    row = json.loads(path.read_text("utf-8").splitlines()[0])
    path.write_text(json.dumps({**row, "answer": "another"}) + "\n", "utf-8")
    (turn,) = benchmark_tasks(str(folder)).get("math500/all").generate(0, 0, LONG, tokenizer).turns
    assert turn.references == ("\\frac{3}{4}",)
    path.write_text(json.dumps({**row, "solution": "It is obvious."}) + "\n", "utf-8")
    with pytest.raises(SpecError, match="without"):
        benchmark_tasks(str(folder)).get("math500/all").generate(0, 0, LONG, tokenizer)


def test_the_gold_answer_is_perfect_by_the_official_rules_too(slips, tokenizer):
    for name in ("math500/all", "aime24/all", "aime25/all", "longgenbench/gsm8k", "gsm8k/all"):
        for turn in slips.get(name).generate(0, 1, LONG, tokenizer).turns:
            assert score(turn.metric, turn.expected, turn.references, turn.options) == pytest.approx(1.0, abs=1e-6)


# -- longgenbench ------------------------------------------------------------------------------------------------------


def test_thirty_five_questions_make_one_prompt_and_the_rest_another(fixed, tokenizer):
    task = fixed.get("longgenbench/gsm8k")
    first, second = (task.generate(0, index, LONG, tokenizer) for index in (0, 1))
    assert [len(sample.turns[0].references) for sample in (first, second)] == [35, 4]
    assert re.findall(r"\nQuestion_(\d+):\nA", first.context)[-35:] == [str(at) for at in range(9, 44)]
    with pytest.raises(SpecError, match=r"39 rows for 2 prompts.*sample 2"):
        task.generate(0, 2, LONG, tokenizer)


def test_its_prompt_has_the_examples_and_then_the_questions(fixed, tokenizer):
    sample = fixed.get("longgenbench/gsm8k").generate(0, 1, LONG, tokenizer)
    head = (
        f"{wording.LONGGENBENCH}\n\nExamples: \n{wording.LONGGENBENCH_EXAMPLES}\n\nFollowing Question: \nQuestion_9:\n"
    )
    assert prompt(sample).startswith(head)
    assert prompt(sample).endswith("?\n\n")
    assert sample.turns[0].expected.startswith(
        "Answer_9:\nThere are 36 + 39 = 75 nails.\nThe answer is 75.\n\nAnswer_10:"
    )


def test_a_question_without_an_answer_counts_and_numbers_say_which_is_whose():
    said, golds = "Answer_9:\nThe answer is 7.\n\nAnswer_11:\nThe answer is 1080.", ("7", "8", "1,080")
    assert score("longgenbench", said, golds) == pytest.approx(2 / 3, abs=1e-6)
    assert score("longgenbench_compat", said, golds) == pytest.approx(1 / 2, abs=1e-6)  # 7 of 7; 1080 stands for 8


def test_the_official_rule_keeps_the_commas_of_the_gold_answer_alone():
    assert score("longgenbench", "Answer_9:\nThe answer is 1,080.", ("1,080",)) == 1.0
    assert score("longgenbench_compat", "Answer_9:\nThe answer is 1,080.", ("1,080",)) == 0.0


def test_the_official_rule_takes_the_place_of_a_question_for_a_number():
    assert score("longgenbench_compat", "Answer_9:\nNobody knows.", ("0",)) == 1.0
    assert score("longgenbench", "Answer_9:\nNobody knows.", ("0",)) == 0.0


# -- maths -------------------------------------------------------------------------------------------------------------


def test_a_number_of_aime_may_be_filled_in_with_leading_zeros():
    assert score("aime", "So it is $\\boxed{073}$.", ("73",)) == 1.0
    assert score("math_equal", "So it is $\\boxed{073}$.", ("73",)) == 0.0
    assert score("aime", "So it is $\\boxed{74}$.", ("73",)) == 0.0


def test_the_official_rule_of_math500_does_not_look_for_boxes():
    said = "Since $x = 2$, we get $$\\boxed{\\frac34}$$"
    assert score("math_equal", said, ("\\frac{3}{4}",)) == 1.0
    assert score("math_dollars_compat", said, ("\\frac{3}{4}",)) == 0.0
    assert score("math_dollars_compat", "It is $\\frac34$", ("\\frac{3}{4}",)) == 1.0


# -- longmemeval -------------------------------------------------------------------------------------------------------


def test_sessions_stand_in_the_order_of_their_dates_without_the_mark_of_the_evidence(fixed, tokenizer):
    sample = fixed.get("longmemeval/oracle_single_session_user").generate(0, 0, LONG, tokenizer)
    first = json.dumps([{"role": "user", "content": "What is 1 plus 1? {n}"}, {"role": "assistant", "content": "2"}])
    assert f"\n### Session 1:\nSession Date: 2023/05/20 (Sat) 02:21\nSession Content:\n\n{first}\n" in sample.context
    assert "\n### Session 2:\nSession Date: 2023/05/21 (Sun) 09:00\nSession Content:\n\n[{" in sample.context
    assert "has_answer" not in sample.context
    assert sample.turns[0].question.endswith("2023/05/30 (Tue) 10:00\nQuestion: Which boat did I buy?\nAnswer:")


def test_questions_that_only_a_judge_can_grade_are_left_out(fixed):
    for kind in ("single_session_user", "multi_session", "knowledge_update"):
        for file in ("oracle", "s"):
            found = [row["question_id"] for _, row in fixed.get(f"longmemeval/{file}_{kind}").loader.rows.all()]
            assert found == [f"{kind[:2]}1", f"{kind[:2]}2"]


def test_an_answer_may_be_a_number_where_others_are_texts(fixed, tokenizer):
    (turn,) = fixed.get("longmemeval/oracle_multi_session").generate(0, 0, LONG, tokenizer).turns
    assert turn.references == ("7",)


def test_a_file_that_is_no_list_of_rows_is_refused_by_name(folder, tokenizer):
    (folder / "longmemeval" / "longmemeval_oracle.json").write_text('{"rows": []}', "utf-8")
    with pytest.raises(SpecError, match="longmemeval/oracle_multi_session"):
        benchmark_tasks(str(folder)).get("longmemeval/oracle_multi_session").generate(0, 0, LONG, tokenizer)


def test_the_template_is_the_first_text_of_the_file_with_its_ending_and_nothing_is_executed(folder, tokenizer):
    one = DATA_SETS["longmemeval/oracle_multi_session"]
    path = folder / "longmemeval" / one.upstream.local
    path.parent.mkdir(parents=True)
    path.write_text(RUN, "utf-8")
    task = benchmark_tasks(str(folder)).get(one.name)
    assert task.template.name == f"local:{one.upstream.local}"
    assert task.template.text == "Chats: {context}\n\nDate: {date}\nQuestion: {question}\nAnswer:"
    assert prompt(task.generate(0, 0, LONG, tokenizer)).startswith("Chats: \n### Session 1:")


def test_a_file_without_such_a_text_is_refused():
    with pytest.raises(SpecError, match="no text with 3 slots"):
        literal("x = 'Question: {}'", "Answer:", ["a", "b", "c"], "file.py")
    with pytest.raises(SpecError, match="no Python file"):
        literal("x = (", "Answer:", ["a"], "file.py")
