"""RULER as rows that others have generated: the schema of simonjegou/ruler. Our own generator is `tasks/ruler`.

Those rows were made with the Llama-3.1-8B tokenizer: with another model their length is not the nominal one.
"""

from __future__ import annotations

from kvcheck.tasks.base import Turn
from kvcheck.tasks.benchmarks.base import DataSet, Draft, Job, Row
from kvcheck.tasks.benchmarks.templates import ROWS

SIZES = (4096, 8192, 16384)
COLUMNS = {"context": str, "question": str, "answer_prefix": str, "answer": list, "task": str, "max_new_tokens": int}
_ROOM = 2048  # a row may take more tokens with another tokenizer: it is cut only when it is far longer

# name: max_new_tokens, metric, capability
_FACTS = {
    **{f"niah_single_{i}": (128, "string_match_all", "needle") for i in (1, 2, 3)},
    **{f"niah_multikey_{i}": (128, "string_match_all", "needle") for i in (1, 2, 3)},
    "niah_multivalue": (128, "string_match_all", "needle"),
    "niah_multiquery": (128, "string_match_all", "needle"),
    "vt": (30, "string_match_all", "string_retrieval"),
    "cwe": (120, "string_match_all", "global_information"),
    "fwe": (50, "string_match_all", "global_information"),
    "qa_1": (32, "string_match_part", "semantic_retrieval"),
    "qa_2": (32, "string_match_part", "semantic_retrieval"),
}


def build(row: Row, job: Job) -> Draft:
    """Context and question of a row; its answer prefix stands behind the assistant's header."""
    golds = tuple(str(answer) for answer in row["answer"])
    turn = Turn(
        str(row["question"]),
        golds,
        int(str(job.data_set.max_new_tokens)),
        job.metric,
        target=" ".join(golds) if job.metric == "string_match_all" else "",
        lead=str(row["answer_prefix"]),
    )
    return str(row["context"]), (turn,)


def _data_set(size: int, name: str) -> DataSet:
    new, metric, capability = _FACTS[name]
    return DataSet(
        f"ruler_{size}/{name}",
        "simonjegou/ruler",
        "",
        f"{size}/*.parquet",
        COLUMNS,
        "answer",
        500,
        "no tag; generated with Apache-2.0 code, holds SQuAD and HotpotQA text (CC BY-SA 4.0)",
        metric,
        new,
        capability,
        True,
        ("single", "multi_request"),
        build,
        ROWS,
        lengths=(size + _ROOM,),
        local=(f"ruler/{size}.jsonl", f"ruler/{size}/*.parquet"),
        id_columns=(),
        where=("task", name),
        doc=f"RULER {name}, rows of about {size} tokens",
    )


DATA_SETS = tuple(_data_set(size, name) for size in SIZES for name in _FACTS)
