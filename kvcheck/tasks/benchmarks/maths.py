"""Long answers: GSM8K, MATH-500, AIME 2024 and 2025, and LongGenBench, which asks many questions of GSM8K at once.

Source of the facts: EleutherAI/lm-evaluation-harness at 4e7e0d47f33b, lm_eval/tasks (gsm8k-cot-zeroshot.yaml,
hendrycks_math500.yaml, aime24.yaml, aime25.yaml), whose prompts are a word or two around the problem; and
Dominic789654/LongGenBench at the pinned commit. What a model may write is longer than the 256 tokens that the harness
gives where a task says nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from kvcheck.tasks.base import Turn
from kvcheck.tasks.benchmarks import wording
from kvcheck.tasks.benchmarks.base import DataSet, Draft, Job, Row, Upstream, changed
from kvcheck.tasks.benchmarks.templates import one_question
from kvcheck.tasks.metrics.maths import FIRST, boxed

EXAMPLES = Upstream(
    "Dominic789654/LongGenBench",
    "98458646ced747ca81a2d3023213a00a70cd7694",
    "data/LongGenBench_GSM8K_prompt/LongGenBench_prompt.txt",
    "93073b0264ee3bee516f1014460de3569d155a2a7647a8d3b2c5788f90717977",
    "text",
    "data/LongGenBench_GSM8K_prompt/LongGenBench_prompt.txt",
)
TOGETHER, ASKED = 35, 700
"""Questions of a prompt, and of all (run_longgenbench_GSM8K.sh)."""
_CALCULATED = re.compile(r"<<[^>]*>>")
_QUESTION, _PROBLEM = "Question: {context}\nAnswer:", "Problem: {context}\nAnswer:"
_GSM8K: tuple[str, str, Mapping[str, type]] = (
    "openai/gsm8k",
    "main/test-00000-of-00001.parquet",
    {"question": str, "answer": str},
)


def _solved(row: Row) -> tuple[str, str]:
    """(the steps of a worked solution of GSM8K, its number)."""
    steps, mark, number = str(row["answer"]).rpartition("####")
    if not mark:
        raise changed(f"an answer of GSM8K without ####: {str(row['answer'])[:80]!r}")
    return _CALCULATED.sub("", steps).strip(), number.strip()


def gsm8k(row: Row, job: Job) -> Draft:
    """One problem, whose answer ends in a number."""
    steps, number = _solved(row)
    return one_question(
        job, job.template, str(row["question"]), {}, (number,), target=f"{steps}\nThe answer is {number}."
    )


def contest(row: Row, job: Job) -> Draft:
    """One problem, whose answer stands in a box. That of MATH-500 is the box of the worked solution."""
    found = {name.lower(): str(value) for name, value in row.items()}
    answer = boxed(found["solution"]) if job.data_set.suite == "math500" else found["answer"]
    if not answer:
        raise changed(f"{job.data_set.name}: a solution without \\boxed{{...}}: {found['solution'][:80]!r}")
    target = f"${answer}$" if job.metric.endswith("_compat") else f"\\boxed{{{answer}}}"
    return one_question(job, job.template, found["problem"], {}, (answer,), target=target)


def together(row: Row, job: Job) -> Draft:
    """Many problems in one prompt, behind worked examples; one long answer has all solutions.

    What upstream says in a system message stands before them.
    """
    problems = [str(one["question"]) for one in row["rows"]]
    solved = [_solved(one) for one in row["rows"]]
    asked = "".join(f"Question_{at}:\n{text}\n" for at, text in enumerate(problems, FIRST))
    context = f"{wording.LONGGENBENCH}\n\nExamples: \n{job.template}\n\nFollowing Question: \n{asked.rstrip()}"
    target = "\n\n".join(
        f"Answer_{at}:\n{steps}\nThe answer is {number}." for at, (steps, number) in enumerate(solved, FIRST)
    )
    numbers = tuple(number for _, number in solved)
    return context, (Turn("\n\n", numbers, int(str(job.data_set.max_new_tokens)), job.metric, space="", target=target),)


DATA_SETS = (
    DataSet(
        "gsm8k/all", _GSM8K[0], "", _GSM8K[1], _GSM8K[2], "answer", 1319, "MIT",
        "gsm8k", 512, "long_generation", False, ("single",), gsm8k, wording.GSM8K,
        metric_compat="gsm8k_strict", stop=("Q:",), lengths=(1024,), local=("test.jsonl",), id_columns=(),
        doc="GSM8K, worked without examples",
    ),
    DataSet(
        "math500/all", "HuggingFaceH4/MATH-500", "", "test.jsonl",
        {"problem": str, "solution": str, "answer": str, "unique_id": str}, "solution", 500, "MIT (unverified)",
        "math_equal", 2048, "long_generation", False, ("single",), contest, _PROBLEM,
        metric_compat="math_dollars_compat", stop=("Problem:",), lengths=(1024,), id_columns=("unique_id",),
        doc="MATH-500",
    ),
    DataSet(
        "aime24/all", "Maxwell-Jia/AIME_2024", "", "*.parquet",
        {"ID": str, "Problem": str, "Solution": str, "Answer": (int, str)}, "Answer", 30, "MIT tag; the MAA's problems",
        "aime", 32768, "long_generation", False, ("single",), contest, _QUESTION,
        metric_compat="math_equal", stop=("Question:",), lengths=(1024,), local=("test.jsonl",), id_columns=("ID",),
        doc="AIME 2024",
    ),
    DataSet(
        "aime25/all", "math-ai/aime25", "", "test.jsonl",
        {"id": str, "problem": str, "answer": str}, "answer", 30, "Apache-2.0 tag (unverified); the MAA's problems",
        "aime", 32768, "long_generation", False, ("single",), contest, _QUESTION,
        metric_compat="math_equal", stop=("Question:",), lengths=(1024,), doc="AIME 2025",
    ),
    DataSet(
        "longgenbench/gsm8k", _GSM8K[0], "", _GSM8K[1], _GSM8K[2], "answer", ASKED // TOGETHER, "MIT",
        "longgenbench", 4096, "long_generation", True, ("single",), together, wording.LONGGENBENCH_EXAMPLES,
        EXAMPLES, metric_compat="longgenbench_compat", lengths=(4096,), local=("test.jsonl", "gsm8k/test.jsonl"),
        id_columns=(), together=TOGETHER, doc="LongGenBench, 35 questions of GSM8K in one answer",
    ),
)  # fmt: skip
