"""SCBench: twelve tasks of several questions about one context.

Source of the facts: microsoft/MInference, scbench/*.py at the pinned commit, and the card on the Hub.
"""

from __future__ import annotations

import re
import string
from dataclasses import dataclass

from kvcheck.core.record import MODES
from kvcheck.tasks.base import Turn
from kvcheck.tasks.benchmarks import wording
from kvcheck.tasks.benchmarks.base import DataSet, Draft, Job, Row, Upstream, changed, space_after
from kvcheck.tasks.benchmarks.rows import no_answer
from kvcheck.tasks.benchmarks.templates import fill, split

HUB = "microsoft/SCBench"
REVISION = "f43226eed3a026f927a67c60739c228390d959c2"  # of 2024-12-24; the later one, 283310b, changed the card only
CODE = Upstream(
    "microsoft/MInference",
    "fb56c917f618e8645f1cfc37535afd7424d78f0d",
    "scbench/eval_utils.py",
    "d777e36d0dd20faaef0c421b3f1bd4ddfdc8cbbb76fff74194c063183f5ec3fc",
    "python",
    "eval_utils.py",
    "multiturn_templates",
)
LENGTHS = (8192, 32768, 131072)
TURNS_COMPAT = 5
"""Questions per row that the official script asks unless told otherwise."""

SUMMARY_LEAD = "This paper"
"""Slip 5: begins every answer but the first of a conversation."""

_GOAL = re.compile(r"The .+ is")
_OPTION = re.compile(r"\(([A-Z])\)\s*([^\n(]*)")


@dataclass(frozen=True)
class Kind:
    """How the turns of one kind are graded: metric, its compat form, and max_new_tokens."""

    metric: str
    compat: str
    new: int


_KINDS = {
    "kv": Kind("substring", "", 150),
    "prefix_suffix": Kind("substring", "", 150),
    "vt": Kind("string_match_all_2dp", "", 30),
    "repoqa": Kind("repoqa", "", 1024),
    "qa_eng": Kind("qa_f1", "any_substring", 40),
    "qa_chn": Kind("f1_zh_chars", "f1_zh_chars_compat", 40),
    "choice_eng": Kind("choice", "choice_compat", 40),
    "many_shot": Kind("choice", "any_substring", 10),
    "mf": Kind("math_find", "", 5),
    "summary": Kind("rouge_lsum", "", 200),
    "passkey": Kind("first_int", "", 15),
}
_MIXED = {
    "summary_with_needles": {"summary": 800, "passkey": 15},
    "repoqa_and_kv": {"repoqa": 1024, "kv": 80},
}

# name: rows, capability, chance
_FACTS = {
    "kv": (100, "string_retrieval", 0.0),
    "prefix_suffix": (100, "string_retrieval", 0.0),
    "vt": (90, "string_retrieval", 0.0),
    "repoqa": (88, "semantic_retrieval", 0.0),
    "qa_eng": (69, "semantic_retrieval", 0.0),
    "qa_chn": (35, "semantic_retrieval", 0.0),
    "choice_eng": (58, "semantic_retrieval", 0.25),
    "many_shot": (54, "global_information", 0.15),
    "mf": (100, "global_information", 0.0),
    "summary": (70, "global_information", 0.0),
    "summary_with_needles": (70, "multi_task", 0.0),
    "repoqa_and_kv": (88, "multi_task", 0.0),
}


def goal(question: str) -> str:
    """The line "What is <goal>?" of a math_find question, made of its "The <goal> is". Raises SpecError without one."""
    found = _GOAL.search(question)
    if found is None:
        raise changed(f'a math_find question without "The ... is": {question[:80]!r}')
    return f"What is {found.group().lower().removesuffix(' is')}?"


def listed_options(question: str, gold: str) -> tuple[str, ...]:
    """The texts of the options (A), (B), ... that a question lists; letters alone where it lists none."""
    found = _OPTION.findall(question)
    letters = string.ascii_uppercase
    if found and [letter for letter, _ in found] == list(letters[: len(found)]):
        return tuple(text.strip() or letter for letter, text in found)
    bare = gold.strip().strip("()").upper()
    last = letters.index(bare) if len(bare) == 1 and bare in letters else 0
    return tuple(letters[: max(last + 1, 7)])  # seven-object tracking has the most options


def kind_of(name: str, turn: Row) -> str:
    """What a turn asks: the task's own kind, in the mixed tasks the turn's `task`. Raises SpecError for another one."""
    if name not in _MIXED:
        return name
    kind = str(turn.get("task") or "").removeprefix("scbench_")
    if kind not in _MIXED[name]:
        raise changed(f"scbench/{name}: a turn of the task {turn.get('task')!r}, known: {', '.join(_MIXED[name])}")
    return kind


def _fields(turn: Row) -> dict[str, str]:
    """Values for the slots behind the context."""
    question = str(turn["input"])
    letters = zip("ABCD", turn.get("options") or (), strict=False)
    return {"input": question, "question": question, **{f"OPTION_{letter}": str(text) for letter, text in letters}}


def _graded(kind: str, turn: Row, row: Row, job: Job) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(references, options) of a turn."""
    answer = turn["answer"]
    gold = str(answer)
    if kind == "vt":
        return tuple(str(name) for name in answer), ()
    if kind == "choice_eng":
        return _chosen(gold, turn, job)
    if kind == "many_shot":
        if job.compat:  # slip 2: the gold text is walked letter by letter
            return tuple(letter for letter in gold if letter.strip()), ()
        return (gold,), listed_options(str(turn["input"]), gold)
    if kind == "repoqa":
        return (gold,), job.pool(str(row.get("repo")))
    return (gold,), ()


def _chosen(gold: str, turn: Row, job: Job) -> tuple[tuple[str, ...], tuple[str, ...]]:
    options = tuple(str(text) for text in turn.get("options") or ())
    if gold not in options:
        raise changed(f"{job.data_set.name}: the answer {gold[:60]!r} is none of the options of its turn")
    return (gold, "ABCD"[options.index(gold)]), options


def _questions(turns: list[Row], job: Job, tail: str, prefixed: bool) -> list[str]:
    """The question of every turn, as it stands behind the context or behind the answer before it."""
    asked = [fill(tail, _fields(turn)) for turn in turns]
    if prefixed:
        goals = [goal(str(turn["input"])) for turn in turns]
        if job.compat and not job.scdq:  # slip 4: a loop variable leaks, every follow-up asks for the last goal
            asked = [asked[0], *(f"\n\n{goals[-1]}{text}" for text in asked[1:])]
        else:
            asked = [f"\n\n{aim}{text}" for aim, text in zip(goals, asked, strict=True)]
    if job.compat and job.scdq:  # upstream puts a question straight behind the context that was encoded alone
        asked = [text.lstrip("\n") for text in asked]
    return asked


def _before(turns: list[Row], job: Job, head: str, prefixed: bool) -> str:
    """What stands before the context; nothing of a question unless a slip puts it there."""
    if not prefixed:
        return head
    rest = head.partition("{prefix}")[2]
    if not job.compat:
        return rest.lstrip("\n")
    # Slip 4: in a conversation the first goal, alone the first question's text.
    return (str(turns[0]["input"]) if job.scdq else goal(str(turns[0]["input"]))) + rest


def build(row: Row, job: Job) -> Draft:
    """Context and turns of a row."""
    name = job.data_set.name.partition("/")[2]
    turns = list(row["multi_turns"])[: job.turns or None]
    if any(turn.get("input") is None for turn in turns):
        raise changed(
            f"{job.data_set.name}: a turn of row {row.get('id')} has no column 'input'; it has {', '.join(turns[0])}"
        )
    head, tail = split(job.template)
    prefixed = "{prefix}" in head
    questions = _questions(turns, job, tail, prefixed)
    before = _before(turns, job, head, prefixed)
    context = (before if prefixed else fill(before, {})) + str(row["input" if name == "vt" else "context"])
    asked = [
        _turn(place, turn, text, row, job) for place, (turn, text) in enumerate(zip(turns, questions, strict=True))
    ]
    return context, tuple(asked)


def _turn(place: int, turn: Row, question: str, row: Row, job: Job) -> Turn:
    name = job.data_set.name.partition("/")[2]
    kind = kind_of(name, turn)
    rule = _KINDS[kind]
    references, options = _graded(kind, turn, row, job)
    if not references or not any(reference.strip() for reference in references):
        raise no_answer(job.data_set, job.data_set.row_id(row, place))
    lead = SUMMARY_LEAD if job.compat and not job.scdq and name == "summary" and place else ""
    return Turn(
        question,
        references,
        _MIXED[name][kind] if name in _MIXED else rule.new,
        (job.compat and rule.compat) or _metric(kind, row, rule),
        subtask=kind if name in _MIXED else "",
        options=options,
        space="" if lead else space_after(question),  # the right answer stands right behind the lead upstream
        target=str(turn["answer"]),
        lead=lead,
    )


def _metric(kind: str, row: Row, rule: Kind) -> str:
    """The metric of a question; that of a function depends on its language."""
    language = str(row.get("lang", "python"))
    return f"{rule.metric}_{language}" if kind == "repoqa" and language != "python" else rule.metric


def _columns(name: str) -> dict[str, type | tuple[type, ...]]:
    if name == "vt":
        return {"input": str, "multi_turns": list}
    found: dict[str, type | tuple[type, ...]] = {"context": list if name == "mf" else str, "multi_turns": list}
    return {**found, "repo": str, "lang": str} if name.startswith("repoqa") else found


def _data_set(name: str) -> DataSet:
    count, capability, chance = _FACTS[name]
    kinds = [_KINDS[kind] for kind in _MIXED.get(name, (name,))]
    slips = any(kind.compat for kind in kinds)
    return DataSet(
        f"scbench/{name}",
        HUB,
        REVISION,
        f"scbench_{name}/*.parquet",
        _columns(name),
        "multi_turns",
        count,
        "MIT tag; novels, papers and code of third parties",
        "+".join(kind.metric for kind in kinds),
        dict(_MIXED[name]) if name in _MIXED else kinds[0].new,
        capability,
        True,
        MODES,
        build,
        wording.SCBENCH[f"scbench_{name}"],
        CODE,
        f"scbench_{name}",
        metric_compat="+".join(kind.compat or kind.metric for kind in kinds) if slips else "",
        chance=chance,
        lengths=LENGTHS,
        local=(f"scbench_{name}.jsonl", f"data/scbench_{name}.jsonl"),
        turns_compat=TURNS_COMPAT,
        doc=f"SCBench {name}",
    )


DATA_SETS = tuple(_data_set(name) for name in _FACTS)
