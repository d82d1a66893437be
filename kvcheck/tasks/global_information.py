"""Global information: the whole context counts (many-shot, few-shot, extremes of an array, summaries)."""

from __future__ import annotations

import random
from collections.abc import Iterator

from kvcheck.core.record import MODES
from kvcheck.tasks import lexicon
from kvcheck.tasks.base import Sample, Task, TaskInfo, Tokenizer, Turn
from kvcheck.tasks.filling import Composed, Unit, blend, compose, identifiers, noise, sample_rng, strata

TURNS = 4
POINTS = 3
MARGIN = 4


def generate_many_shot(seed: int, index: int, length: int, tokenizer: Tokenizer, turns: int = TURNS) -> Sample:
    """In-context classification: the animal decides the type, by a mapping drawn for this context."""
    rng = sample_rng("many_shot", 1, seed, length, index)
    labels = rng.sample(lexicon.LABELS, 6)
    cues = rng.sample(lexicon.ANIMALS, 12)
    types = {cue: labels[place % len(labels)] for place, cue in enumerate(cues)}

    def record(cue: str | None = None) -> str:
        cue = cue or rng.choice(cues)
        return f" {rng.randrange(100):02d} {rng.choice(lexicon.COLORS)} {cue} type {types[cue]};"

    others = blend(rng, record, noise(rng, index % 4 > 1), 1.0 if index % 2 else 0.5)
    shots = [Unit(record(cue)) for cue in cues for _ in range(2)]
    context = compose("Read the text and answer. Cases:", shots, others, length, tokenizer, rng)
    questions = tuple(
        Turn(
            f"\nQuestion: Which type is the {cue}? Answer: {rng.choice(lexicon.COLORS)} {cue} type",
            (types[cue],),
            4,
            "exact",
        )
        for cue in rng.sample(cues, min(turns, len(cues)))
    )
    return Sample("many_shot", index, context.text, questions)


def generate_few_shot(seed: int, index: int, length: int, tokenizer: Tokenizer, turns: int = TURNS) -> Sample:
    """The kind of thing (animal, plant, tool, food) decides the group; the asked things are new."""
    rng = sample_rng("few_shot", 1, seed, length, index)
    labels = rng.sample(lexicon.LABELS, len(lexicon.CATEGORIES))
    held: list[tuple[str, str]] = []
    shots: list[Unit] = []
    for label, things in zip(labels, lexicon.CATEGORIES, strict=True):
        drawn = rng.sample(things, 6 + -(-turns // len(labels)))
        held += [(thing, label) for thing in drawn[6:]]
        shots += [Unit(f" {thing} group {label};") for thing in drawn[:6]]
    rng.shuffle(held)
    asked = held[:turns]
    context = compose("Read the text and answer. Groups:", shots, noise(rng, index % 2 == 1), length, tokenizer, rng)
    questions = tuple(
        Turn(f"\nQuestion: Which group is the {thing}? Answer: {thing} group", (label,), 4, "exact")
        for thing, label in asked
    )
    return Sample("few_shot", index, context.text, questions)


def generate_math_find(seed: int, index: int, length: int, tokenizer: Tokenizer, turns: int = 2) -> Sample:
    """The largest and the smallest of a long array; each is planted once, at least MARGIN from the rest."""
    rng = sample_rng("math_find", 1, seed, length, index)
    low = rng.randrange(10, 45)
    high = rng.randrange(low + 25, 100)
    facts = {"largest": f" reading={high};", "smallest": f" reading={low};"}
    units = [
        Unit(facts[kind], depth) for kind, depth in zip(facts, strata(rng, 2), strict=True)
    ]  # both planted, whatever is asked

    def record() -> str:
        return f" reading={rng.randrange(low + MARGIN, high - MARGIN + 1)};"

    others = blend(rng, record, noise(rng, index % 4 > 1), 1.0 if index % 2 else 0.4)
    context = compose("Read the text and answer. Numbers:", units, others, length, tokenizer, rng)
    questions = tuple(
        Turn(
            f"\nQuestion: What is the {kind} reading? Answer: {kind}=",
            (str(value),),
            3,
            "math_find",
            context.evidence(facts[kind]),
            context.depth(facts[kind]),
            space="",
        )
        for kind, value in (("largest", high), ("smallest", low))[:turns]
    )
    return Sample("math_find", index, context.text, questions)


def report(rng: random.Random, name: str) -> list[str]:
    """The points of one report, in order."""
    return [
        f" {name} {ordinal} {rng.choice(lexicon.COLORS)} {rng.choice(lexicon.OBJECTS)};"
        for ordinal in lexicon.ORDINALS[:POINTS]
    ]


def summary_turn(name: str, points: list[str], context: Composed) -> Turn:
    """Ask for all points of one report."""
    text = "".join(points).strip().removeprefix(f"{name} ").removesuffix(";")
    return Turn(
        f"\nQuestion: What is in the report {name}? Summary: {name}",
        (text,),
        30,
        "rouge_lsum",
        context.evidence(*points),
        context.depth(*points),
        subtask="summary",
    )


def reports(rng: random.Random, names: Iterator[str], count: int) -> tuple[list[tuple[str, list[str]]], list[Unit]]:
    """So many reports with their points spread in order over the context."""
    asked, units = [], []
    for _ in range(count):
        name = next(names)
        points = report(rng, name)
        asked.append((name, points))
        units += [Unit(point, depth) for point, depth in zip(points, sorted(strata(rng, POINTS)), strict=True)]
    return asked, units


def generate_summary(seed: int, index: int, length: int, tokenizer: Tokenizer, turns: int = TURNS) -> Sample:
    """Reports whose points are scattered over the text; a summary lists the points of one of them in order."""
    rng = sample_rng("summary", 1, seed, length, index)
    names = identifiers(rng, lexicon.TOOLS)
    asked, units = reports(rng, names, turns)
    waiting: list[str] = []

    def record() -> str:
        if not waiting:
            waiting.extend(report(rng, next(names)))
        return waiting.pop(0)

    others = blend(rng, record, noise(rng, index % 2 == 1), 0.3)
    context = compose("Read the text and answer. Notes:", units, others, length, tokenizer, rng)
    questions = tuple(summary_turn(name, points, context) for name, points in asked)
    return Sample("summary", index, context.text, questions)


def _info(name: str, binary: bool, chance: float, doc: str) -> TaskInfo:
    return TaskInfo(name, 1, "global_information", MODES, binary, chance, doc)


TASKS = (
    Task(_info("many_shot", True, 1 / 6, "in-context classification by a known cue"), generate_many_shot),
    Task(_info("few_shot", True, 1 / 4, "in-context classification of a new thing"), generate_few_shot),
    Task(_info("math_find", True, 0.03, "the largest and smallest of an array"), generate_math_find),
    Task(_info("summary", False, 0.29, "all points of one report, in order"), generate_summary),
)
