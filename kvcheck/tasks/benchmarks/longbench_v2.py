"""LongBench v2: 503 multiple-choice questions about long documents.

Source of the facts: THUDM/LongBench, pred.py and prompts/0shot.txt at the pinned commit.
"""

from __future__ import annotations

from kvcheck.tasks.benchmarks import wording
from kvcheck.tasks.benchmarks.base import DataSet, Draft, Job, Row, Upstream
from kvcheck.tasks.benchmarks.longbench import CODE
from kvcheck.tasks.benchmarks.templates import one_question

PROMPT = Upstream(
    CODE.repository,
    CODE.commit,
    "prompts/0shot.txt",
    "68a162252bc9ff71d5d7abca3d69bb31aac3c35f832d657a2866f2018b8a6950",
    "text",
    "prompts/0shot.txt",
)
_SLOTS = {
    "$DOC$": "context",
    "$Q$": "question",
    "$C_A$": "choice_A",
    "$C_B$": "choice_B",
    "$C_C$": "choice_C",
    "$C_D$": "choice_D",
}
_TEXTS = ("question", "choice_A", "choice_B", "choice_C", "choice_D")


def slots(template: str) -> str:
    """The template with its $SLOTS$ as {slots}; braces of its own are kept."""
    text = template.replace("{", "{{").replace("}", "}}")
    for mark, name in _SLOTS.items():
        text = text.replace(mark, "{" + name + "}")
    return text


def build(row: Row, job: Job) -> Draft:
    """Document and question of a row; every text is stripped first, as upstream does."""
    fields = {name: str(row[name]).strip() for name in _TEXTS}
    letter = str(row["answer"]).strip()
    return one_question(
        job,
        slots(job.template),
        str(row["context"]).strip(),
        fields,
        (letter,),
        subtask=f"{row['difficulty']}/{row['length']}",
        options=tuple(fields[name] for name in _TEXTS[1:]),
        target=f"The correct answer is ({letter})",
    )


DATA_SETS = (
    DataSet(
        "longbench_v2/all",
        "THUDM/LongBench-v2",
        "2b48e494f2c7a2f0af81aae178e05c7e1dde0fe9",
        "data.json",
        {"_id": str, "difficulty": str, "length": str, "context": str, **dict.fromkeys(_TEXTS, str), "answer": str},
        "answer",
        503,
        "Apache-2.0",
        "longbench_v2",
        128,
        "semantic_retrieval",
        True,
        ("single", "multi_request"),
        build,
        wording.LONGBENCH_V2,
        PROMPT,
        chance=0.25,
        lengths=(32768, 120000),
        local=("data.jsonl",),
        doc="LongBench v2, all 503 questions",
    ),
)
