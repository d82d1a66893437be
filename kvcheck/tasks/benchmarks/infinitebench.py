"""InfiniteBench: twelve tasks of about 100,000 tokens and more.

Source of the facts: OpenBMB/InfiniteBench, src/*.py at the pinned commit (prompts of the open models, YaRN-Mistral and
Yi), and the card on the Hub.
"""

from __future__ import annotations

import re

from kvcheck.tasks.benchmarks import wording
from kvcheck.tasks.benchmarks.base import DataSet, Draft, Job, Row, Upstream, changed
from kvcheck.tasks.benchmarks.templates import one_question

HUB = "xinrongzhang2022/InfiniteBench"
REVISION = "90f0394333616266d9fe85824ceaf505093cbaa5"  # of 2024-10-08
CODE = Upstream(
    "OpenBMB/InfiniteBench",
    "88b3daa6989da2fbe0077170d7a3c84c25d5ae58",
    "src/prompt.py",
    "d49a6891d6bc61522bb428d66a07b092a6bb6bc195aa0fe103eddd6bb39c7f10",
    "python",
    "src/prompt.py",
    "yarn_mistral_templates",
)
COLUMNS: dict[str, type | tuple[type, ...]] = {
    "id": int,
    "context": str,
    "input": str,
    "answer": list,
    "options": (list, type(None)),
}
STRINGS = ("context", "input", "*answer", "*options")  # answers are numbers in some files, texts in others
LENGTHS = (32768, 131072)

_CALL = re.compile(r"func_\d+\(-?\d+\)")
_GOAL = re.compile(r"The .+ of")

# name: rows, max_new_tokens, metric, compat, capability, chance
_FACTS = {
    "passkey": (590, 6, "first_int", "", "needle", 0.0),
    "number_string": (590, 12, "first_int", "", "needle", 0.0),
    "kv_retrieval": (500, 50, "kv_words", "", "string_retrieval", 0.0),
    "longbook_sum_eng": (103, 1200, "rouge_lsum", "", "global_information", 0.0),
    "longbook_qa_eng": (351, 40, "qa_f1", "", "semantic_retrieval", 0.0),
    "longbook_choice_eng": (229, 40, "choice", "choice_compat", "semantic_retrieval", 0.25),
    "longbook_qa_chn": (175, 40, "f1_zh_chars", "", "semantic_retrieval", 0.0),
    "longdialogue_qa_eng": (200, 40, "any_substring", "first_word_compat", "semantic_retrieval", 0.0),
    "code_debug": (394, 5, "choice", "code_debug_compat", "code", 0.25),
    "code_run": (400, 5, "code_run", "", "code", 0.0),
    "math_find": (350, 3, "math_find", "", "global_information", 0.0),
    "math_calc": (50, 30000, "math_calc", "math_calc_compat", "long_generation", 0.0),
}
_ASKS_FIRST = ("math_find", "code_run")
"""The question's own words stand before the context, too: encoding it alone would not hide the question."""


def _search(pattern: re.Pattern[str], text: str, job: Job) -> str:
    found = pattern.search(text)
    if found is None:
        raise changed(f"{job.data_set.name}: a question without {pattern.pattern!r}: {text[:80]!r}")
    return found.group()


def _fields(row: Row, job: Job) -> dict[str, str]:
    """Values of the slots beside the context."""
    name, question = job.data_set.name.partition("/")[2], str(row["input"])
    fields = {"input": question, "question": question}
    fields |= {f"OPTION_{letter}": str(text) for letter, text in zip("ABCD", row["options"] or (), strict=False)}
    if name == "code_run":
        call = _search(_CALL, question, job)
        fields |= {"func_call": call, "func": call.partition("(")[0]}
    if name == "math_find":
        aim = _search(_GOAL, question, job).lower().removesuffix(" of")
        fields["prefix"] = f"What is {aim} in the following list?"
    return fields


def _references(row: Row, job: Job) -> tuple[str, ...]:
    """The gold answers; those of the choices are the option's text and its letter."""
    golds = tuple(str(answer) for answer in row["answer"])
    if job.data_set.metric != "choice" or len(golds) > 1:
        return golds
    options = [str(text) for text in row["options"] or ()]
    if golds[0] not in options:
        raise changed(f"{job.data_set.name}: the answer {golds[0][:60]!r} is none of the options of its row")
    return (golds[0], "ABCD"[options.index(golds[0])])


def build(row: Row, job: Job) -> Draft:
    """Context and the one question of a row."""
    references = _references(row, job)
    options = tuple(str(text) for text in row["options"] or ())
    return one_question(
        job, job.template, str(row["context"]), _fields(row, job), references,
        options=options, target=_target(references, job),
    )  # fmt: skip


def _target(references: tuple[str, ...], job: Job) -> str:
    """The answer as a model would write it."""
    if job.data_set.name.endswith("/math_calc"):
        return f"[{', '.join(references)}]"
    if job.data_set.metric == "choice":
        return f"{references[-1]}. {references[0]}"
    return ""


def _data_set(name: str) -> DataSet:
    count, new, metric, compat, capability, chance = _FACTS[name]
    return DataSet(
        f"infinitebench/{name}",
        HUB,
        REVISION,
        f"{name}.jsonl",
        COLUMNS,
        "answer",
        count,
        "Apache-2.0 tag; novels, scripts and code of third parties",
        metric,
        new,
        capability,
        False,
        ("single",) if name in _ASKS_FIRST else ("single", "multi_request"),
        build,
        wording.INFINITEBENCH[name],
        CODE,
        name,
        metric_compat=compat,
        chance=chance,
        lengths=LENGTHS,
        local=(f"data/{name}.jsonl",),
        strings=STRINGS,
        doc=f"InfiniteBench {name}",
    )


DATA_SETS = tuple(_data_set(name) for name in _FACTS)
