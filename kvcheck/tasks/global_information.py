"""Global information: the whole context counts (many-shot, few-shot, extremes of an array, summaries)."""

from __future__ import annotations

import random
from collections.abc import Iterator

from kvcheck.tasks import lexicon
from kvcheck.tasks.base import Turn
from kvcheck.tasks.filling import ANSWER, Composed, Draft, Order, Unit, blend, identifiers, noise, strata, task

POINTS = 3
MARGIN = 4


@task("many_shot", "global_information", True, 1 / 6, "in-context classification by a known cue")
def many_shot(order: Order) -> Draft:
    """In-context classification: the animal decides the type, by a mapping drawn for this context."""
    context, asked = shots(order)
    return context, tuple(
        Turn(
            f"\nQuestion: Which type is the {cue}? Answer: {colour} {cue} type",
            (label,),
            4,
            "exact",
            mark=ANSWER,
        )
        for colour, cue, label in asked
    )


def shots(order: Order) -> tuple[Composed, list[tuple[str, str, str]]]:
    """The context of `many_shot`; (colour, animal, its type) of those to ask."""
    rng = order.rng()
    labels = rng.sample(lexicon.LABELS, 6)
    cues = rng.sample(lexicon.ANIMALS, 12)
    types = {cue: labels[place % len(labels)] for place, cue in enumerate(cues)}

    def record(cue: str | None = None) -> str:
        cue = cue or rng.choice(cues)
        return f" {rng.randrange(100):02d} {rng.choice(lexicon.COLORS)} {cue} type {types[cue]};"

    others = blend(rng, record, noise(rng, order.index % 4 > 1), 1.0 if order.index % 2 else 0.5)
    shown = [Unit(record(cue)) for cue in cues for _ in range(2)]
    context = order.compose("Read the text and answer. Cases:", shown, others, rng)
    asked = rng.sample(cues, min(order.turns, len(cues)))
    return context, [(rng.choice(lexicon.COLORS), cue, types[cue]) for cue in asked]


@task("few_shot", "global_information", True, 1 / 4, "in-context classification of a new thing")
def few_shot(order: Order) -> Draft:
    """The kind of thing (animal, plant, tool, food) decides the group; the asked things are new."""
    rng = order.rng()
    labels = rng.sample(lexicon.LABELS, len(lexicon.CATEGORIES))
    held: list[tuple[str, str]] = []
    shots: list[Unit] = []
    for label, things in zip(labels, lexicon.CATEGORIES, strict=True):
        drawn = rng.sample(things, 6 + -(-order.turns // len(labels)))
        held += [(thing, label) for thing in drawn[6:]]
        shots += [Unit(f" {thing} group {label};") for thing in drawn[:6]]
    rng.shuffle(held)
    asked = held[: order.turns]
    context = order.compose("Read the text and answer. Groups:", shots, noise(rng, order.index % 2 == 1), rng)
    return context, tuple(
        Turn(f"\nQuestion: Which group is the {thing}? Answer: {thing} group", (label,), 4, "exact", mark=ANSWER)
        for thing, label in asked
    )


@task("math_find", "global_information", True, 0.03, "the largest and smallest of an array", turns=2)
def math_find(order: Order) -> Draft:
    """The largest and the smallest of a long array; each is planted once, at least MARGIN from the rest."""
    rng = order.rng()
    low = rng.randrange(10, 45)
    high = rng.randrange(low + 25, 100)
    facts = {"largest": f" reading={high};", "smallest": f" reading={low};"}
    units = [
        Unit(facts[kind], depth) for kind, depth in zip(facts, strata(rng, 2), strict=True)
    ]  # both planted, whatever is asked

    def record() -> str:
        return f" reading={rng.randrange(low + MARGIN, high - MARGIN + 1)};"

    others = blend(rng, record, noise(rng, order.index % 4 > 1), 1.0 if order.index % 2 else 0.4)
    context = order.compose("Read the text and answer. Numbers:", units, others, rng)
    return context, tuple(
        context.turn(
            f"\nQuestion: What is the {kind} reading? Answer: {kind}=",
            (str(value),),
            3,
            "math_find",
            facts[kind],
            space="",
        )
        for kind, value in (("largest", high), ("smallest", low))[: order.turns]
    )


def report(rng: random.Random, name: str) -> list[str]:
    """The points of one report, in order."""
    return [
        f" {name} {ordinal} {rng.choice(lexicon.COLORS)} {rng.choice(lexicon.OBJECTS)};"
        for ordinal in lexicon.ORDINALS[:POINTS]
    ]


def summary_turn(name: str, points: list[str], context: Composed) -> Turn:
    """Ask for all points of one report."""
    text = "".join(points).strip().removeprefix(f"{name} ").removesuffix(";")
    return context.turn(
        f"\nQuestion: What is in the report {name}? Summary: {name}",
        (text,),
        30,
        "rouge_lsum",
        *points,
        subtask="summary",
        mark=" Summary: ",
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


@task("summary", "global_information", False, 0.29, "all points of one report, in order")
def summary(order: Order) -> Draft:
    """Reports whose points are scattered over the text; a summary lists the points of one of them in order."""
    rng = order.rng()
    names = identifiers(rng, lexicon.TOOLS)
    asked, units = reports(rng, names, order.turns)
    waiting: list[str] = []

    def record() -> str:
        if not waiting:
            waiting.extend(report(rng, next(names)))
        return waiting.pop(0)

    others = blend(rng, record, noise(rng, order.index % 2 == 1), 0.3)
    context = order.compose("Read the text and answer. Notes:", units, others, rng)
    return context, tuple(summary_turn(name, points, context) for name, points in asked)


TASKS = (many_shot, few_shot, math_find, summary)
