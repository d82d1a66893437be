"""Code: find the function described (SCBench Code.RepoQA), complete a call (LongBench RepoBench-P)."""

from __future__ import annotations

import random
from collections.abc import Iterator

from kvcheck.tasks import lexicon
from kvcheck.tasks.base import Turn
from kvcheck.tasks.filling import Composed, Draft, Order, Unit, blend, identifiers, noise, strata, task

ARGUMENTS = lexicon.TOOLS[:20]


def comments(rng: random.Random, mixed: bool) -> Iterator[str]:
    """Endless filler as comment lines."""
    for sentence in noise(rng, mixed):
        yield f"\n#{sentence}"


def function(rng: random.Random, name: str) -> tuple[tuple[str, str, str], str]:
    """A function with a comment that describes it: (what is asked for, the source after `def`, the unit)."""
    first, second = rng.sample(lexicon.FOODS, 2)
    number = rng.randrange(100)
    argument = f"{rng.choice(ARGUMENTS)}{rng.randrange(100):02d}"
    source = f"{name}({argument}): return {argument} * {first} + {second}{number:02d}"
    described = f"plus {first} then times {second}{number:02d}"
    return (described, source, second), f"\n# adds {first} then scales {second}{number:02d}\ndef {source}"


def function_turn(described: str, source: str, unit: str, context: Composed, pool: tuple[str, ...]) -> Turn:
    """Ask for the function that does what is described; `pool` are the functions that it is graded among."""
    return context.turn(
        f"\nRepeat the function described as: {described}\ndef",
        (source,),
        30,
        "repoqa",
        unit,
        options=pool,
        subtask="function",
        mark="\n",
    )


def functions(rng: random.Random, names: Iterator[str], count: int) -> tuple[list[tuple[str, str, str]], list[Unit]]:
    """So many functions to ask for, (description, source, unit) each, with a near twin for every one."""
    asked, units, seen = [], [], set()
    for depth in strata(rng, count):
        (described, source, second), unit = function(rng, next(names))
        while described.split("times ")[1] in seen:
            (described, source, second), unit = function(rng, next(names))
        seen.add(described.split("times ")[1])
        asked.append((described, source, unit))
        units.append(Unit(unit, depth))
        (_, _, _), twin = function(rng, next(names))
        word = twin.split("scales ")[1].split("\n")[0]
        other = f"{second}{rng.randrange(100):02d}"
        if other not in seen:
            seen.add(other)
            units.append(Unit(twin.replace(f"scales {word}", f"scales {other}")))
    return asked, units


@task("code_function", "semantic_retrieval", True, 0.0, "find the function described")
def code_function(order: Order) -> Draft:
    """A file of small functions; the one whose comment says the same in other words must be repeated."""
    rng = order.rng()
    names = identifiers(rng, lexicon.PLANTS)
    asked, units = functions(rng, names, order.turns)
    keys = {described.split("times ")[1] for described, _, _ in asked}

    def record() -> str:
        while True:
            (described, _, _), unit = function(rng, next(names))
            if described.split("times ")[1] not in keys:
                return unit

    others = blend(rng, record, comments(rng, order.index % 2 == 1), 0.5)
    context = order.compose("# Read the functions", units, others, rng)
    pool = tuple(source for _, source, _ in asked)
    return context, tuple(function_turn(described, source, unit, context, pool) for described, source, unit in asked)


@task("code_completion", "code", False, 0.46, "complete a call from its signature")
def code_completion(order: Order) -> Draft:
    """Complete a call with the arguments of a signature that stands far above; overloads differ in a number."""
    rng = order.rng()
    names = identifiers(rng, lexicon.PLANTS)
    asked, units = [], []

    def signature(name: str) -> tuple[str, str]:
        first, second = rng.sample(ARGUMENTS, 2)
        rest = f"{first}, {second})"
        return rest, f"\ndef {name}({rest}:\n    return {rng.choice(lexicon.FOODS)}({first})"

    for depth in strata(rng, order.turns):
        name = next(names)
        rest, unit = signature(name)
        asked.append((name, rest, unit))
        units.append(Unit(unit, depth))
        units.append(Unit(signature(next(other for other in names if other[:3] != name[:3] or other != name))[1]))

    def record() -> str:
        return signature(next(names))[1]

    others = blend(rng, record, comments(rng, order.index % 2 == 1), 0.5)
    context = order.compose("# Read the functions", units, others, rng)
    return context, tuple(
        context.turn(f"\n# Complete the call\n{name}(", (rest,), 8, "code_sim", unit, space="", mark="\n")
        for name, rest, unit in asked
    )


TASKS = (code_function, code_completion)
