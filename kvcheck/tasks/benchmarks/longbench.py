"""LongBench: 21 data sets in English, Chinese and code, and the 13 of LongBench-E with even lengths.

Source of the facts: THUDM/LongBench, config/*.json, pred.py, eval.py and task.md at the pinned commit.
"""

from __future__ import annotations

from dataclasses import replace

from kvcheck.tasks.benchmarks import wording
from kvcheck.tasks.benchmarks.base import DataSet, Draft, Job, Row, Upstream
from kvcheck.tasks.benchmarks.templates import one_question

HUB = "THUDM/LongBench"
REVISION = "f72191f71cd6fcd0da8a54f0915078efda579449"  # of 2023-08-29; data.zip is the same in later ones
CODE = Upstream(
    "THUDM/LongBench",
    "2e00731f8d0bff23dc4325161044d0ed8af94c1e",
    "LongBench/config/dataset2prompt.json",
    "56d22ad4f382169c2b8a11ff4c982a4a1bea096c8152b0f0b85b64686b157c30",
    "json",
    "config/dataset2prompt.json",
)
COLUMNS = {"input": str, "context": str, "answers": list, "length": int, "dataset": str, "language": str}
LENGTHS = (3500, 7500, 15500, 31500)
COMPLETION = frozenset({"trec", "triviaqa", "samsum", "lsht", "lcc", "repobench-p"})
"""Asked without a chat template, even of chat models."""

LICENCES = {
    "narrativeqa": "Apache-2.0 (unverified)",
    "qasper": "CC BY 4.0 (unverified)",
    "hotpotqa": "CC BY-SA 4.0 (unverified)",
    "2wikimqa": "Apache-2.0 (unverified)",
    "musique": "CC BY 4.0 (unverified)",
    "qmsum": "MIT (unverified)",
    "samsum": "CC BY-NC-ND 4.0",
    "repobench-p": "CC BY-NC-ND 4.0",
}

_QA, _GLOBAL = "semantic_retrieval", "global_information"

# name: rows, max_new_tokens, metric, capability, chance
_FACTS = {
    "narrativeqa": (200, 128, "qa_f1", _QA, 0.0),
    "qasper": (200, 128, "qa_f1", _QA, 0.0),
    "multifieldqa_en": (150, 64, "qa_f1", _QA, 0.0),
    "multifieldqa_zh": (200, 64, "f1_zh_words", _QA, 0.0),
    "hotpotqa": (200, 32, "qa_f1", _QA, 0.0),
    "2wikimqa": (200, 32, "qa_f1", _QA, 0.0),
    "musique": (200, 32, "qa_f1", _QA, 0.0),
    "dureader": (200, 128, "rouge_zh", _QA, 0.0),
    "gov_report": (200, 512, "rouge_l", _GLOBAL, 0.0),
    "qmsum": (200, 512, "rouge_l", _GLOBAL, 0.0),
    "multi_news": (200, 512, "rouge_l", _GLOBAL, 0.0),
    "vcsum": (200, 512, "rouge_zh", _GLOBAL, 0.0),
    "trec": (200, 64, "classification", _GLOBAL, 0.02),
    "triviaqa": (200, 32, "qa_f1_line", _GLOBAL, 0.0),
    "samsum": (200, 128, "rouge_l_line", _GLOBAL, 0.0),
    "lsht": (200, 64, "classification", _GLOBAL, 1 / 24),
    "passage_count": (200, 32, "retrieval", _GLOBAL, 0.0),
    "passage_retrieval_en": (200, 32, "retrieval", _QA, 1 / 30),
    "passage_retrieval_zh": (200, 32, "retrieval", _QA, 0.0),
    "lcc": (500, 64, "code_sim", "code", 0.0),
    "repobench-p": (500, 64, "code_sim", "code", 0.0),
}

_EVEN = {
    "qasper": 224, "multifieldqa_en": 150, "hotpotqa": 300, "2wikimqa": 300, "gov_report": 300, "multi_news": 294,
    "trec": 300, "triviaqa": 300, "samsum": 300, "passage_count": 300, "passage_retrieval_en": 300, "lcc": 300,
    "repobench-p": 300,
}  # fmt: skip
"""LongBench-E: rows, 100 in each class of length where there are so many (task.md)."""


def bucket(words: int) -> str:
    """The class of length that LongBench-E reports: "0-4k", "4-8k" or "8k+" words."""
    return "0-4k" if words < 4000 else "4-8k" if words < 8000 else "8k+"


def build(row: Row, job: Job) -> Draft:
    """Context and the one question of a row, from the template."""
    return one_question(
        job,
        job.template,
        str(row["context"]),
        {"input": str(row["input"])},
        tuple(str(answer) for answer in row["answers"]),
        subtask=bucket(int(row["length"])) if job.data_set.name.endswith("_e") else "",
        options=tuple(str(name) for name in row.get("all_classes") or ()),
    )


def _data_set(name: str) -> DataSet:
    count, new, metric, capability, chance = _FACTS[name]
    return DataSet(
        f"longbench/{name}",
        HUB,
        REVISION,
        f"data/{name}.jsonl",
        COLUMNS,
        "answers",
        count,
        LICENCES.get(name, "no tag; the sources keep their own"),
        metric,
        new,
        capability,
        name not in COMPLETION,
        ("single", "multi_request"),
        build,
        wording.LONGBENCH[name],
        CODE,
        name,
        metric_compat="classification_compat" if metric == "classification" else "",
        stop=("\n",) if name == "samsum" else (),
        chance=chance,
        lengths=LENGTHS,
        archive="data.zip",
        local=(f"{name}.jsonl",),
        doc=f"LongBench {name}",
    )


def _even(name: str, count: int) -> DataSet:
    local = (f"{name}_e.jsonl",)
    return replace(_data_set(name), name=f"longbench/{name}_e", file=f"data/{name}_e.jsonl", count=count, local=local)


DATA_SETS = (*(_data_set(name) for name in _FACTS), *(_even(name, count) for name, count in _EVEN.items()))
