"""LongMemEval: questions about what was said in many earlier chats of a user with an assistant.

Source of the facts: xiaowu0162/LongMemEval, src/generation/run_generation.py at the pinned commit (all sessions in the
order of their dates, as JSON, no chain of thought), and its README. It is graded by GPT-4o there, which nothing here
can: see docs/reference/benchmarks.md.
"""

from __future__ import annotations

import json

from kvcheck.tasks.benchmarks import wording
from kvcheck.tasks.benchmarks.base import DataSet, Draft, Job, Row, Upstream
from kvcheck.tasks.benchmarks.templates import one_question

CODE = Upstream(
    "xiaowu0162/LongMemEval",
    "9e0b455f4ef0e2ab8f2e582289761153549043fc",
    "src/generation/run_generation.py",
    "4f1eb3c69d7ad40f04065b9c0bc86f6582441018fc6ff751d162d66c95baf672",
    "literal",
    "src/generation/run_generation.py",
    "context date question",
)
FILES = {
    "oracle": ("longmemeval_oracle.json", (8192, 32768)),
    "s": ("longmemeval_s_cleaned.json", (131072,)),
}
"""The sessions with the evidence alone, and those among some forty others (115,000 tokens)."""
KINDS = {
    "single-session-user": 64,
    "single-session-assistant": 56,
    "multi-session": 121,
    "temporal-reasoning": 127,
    "knowledge-update": 72,
}
"""Rows of each kind whose answer is a fact. Left out: preferences, whose answer is a rubric for a judge, and questions
without an answer ("_abs" in their ids)."""


def is_of(kind: str, row: Row) -> bool:
    """Whether a row is of a kind, and has an answer."""
    return row.get("question_type") == kind and "_abs" not in str(row.get("question_id"))


def build(row: Row, job: Job) -> Draft:
    """All sessions and the question. The turns come without their mark of where the evidence is."""
    sessions = sorted(zip(row["haystack_dates"], row["haystack_sessions"], strict=True), key=lambda pair: str(pair[0]))
    history = "".join(
        f"\n### Session {at}:\nSession Date: {date}\nSession Content:\n\n{_turns(turns)}\n"
        for at, (date, turns) in enumerate(sessions, 1)
    )
    fields = {"date": str(row["question_date"]), "question": str(row["question"])}
    return one_question(job, job.template, history, fields, (str(row["answer"]),))


def _turns(turns: list[dict[str, str]]) -> str:
    return json.dumps([{name: value for name, value in turn.items() if name != "has_answer"} for turn in turns])


def _data_set(file: str, kind: str) -> DataSet:
    path, lengths = FILES[file]
    return DataSet(
        f"longmemeval/{file}_{kind.replace('-', '_')}",
        "xiaowu0162/longmemeval-cleaned",
        "",
        path,
        {"question_id": str, "question_type": str, "question": str, "question_date": str, "answer": (str, int, float),
         "haystack_dates": list, "haystack_sessions": list},
        "answer",
        KINDS[kind],
        "MIT (unverified)",
        "fact_recall",
        500,
        "semantic_retrieval",
        True,
        ("single", "multi_request"),
        build,
        wording.LONGMEMEVAL,
        CODE,
        "Question: {}\nAnswer:",
        lengths=lengths,
        id_columns=("question_id",),
        where=lambda row: is_of(kind, row),
        plain=True,
        doc=f"LongMemEval, {kind.replace('-', ' ')}, {'evidence alone' if file == 'oracle' else 'some 40 sessions'}",
    )  # fmt: skip


DATA_SETS = tuple(_data_set(file, kind) for file in FILES for kind in KINDS)
