"""Code: find the function described (SCBench Code.RepoQA), complete a call (LongBench RepoBench-P)."""

from __future__ import annotations

import random
from collections.abc import Iterator

from kvcheck.core.record import MODES
from kvcheck.tasks import lexicon
from kvcheck.tasks.base import Sample, Task, TaskInfo, Tokenizer, Turn
from kvcheck.tasks.filling import Composed, Unit, blend, compose, identifiers, noise, sample_rng, strata

TURNS = 4
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
    return Turn(
        f"\nRepeat the function described as: {described}\ndef",
        (source,),
        30,
        "repoqa",
        context.evidence(unit),
        context.depth(unit),
        options=pool,
        subtask="function",
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


def generate_code_function(seed: int, index: int, length: int, tokenizer: Tokenizer, turns: int = TURNS) -> Sample:
    """A file of small functions; the one whose comment says the same in other words must be repeated."""
    rng = sample_rng("code_function", 1, seed, length, index)
    names = identifiers(rng, lexicon.PLANTS)
    asked, units = functions(rng, names, turns)
    keys = {described.split("times ")[1] for described, _, _ in asked}

    def record() -> str:
        while True:
            (described, _, _), unit = function(rng, next(names))
            if described.split("times ")[1] not in keys:
                return unit

    others = blend(rng, record, comments(rng, index % 2 == 1), 0.5)
    context = compose("# Read the functions", units, others, length, tokenizer, rng)
    pool = tuple(source for _, source, _ in asked)
    questions = tuple(function_turn(described, source, unit, context, pool) for described, source, unit in asked)
    return Sample("code_function", index, context.text, questions)


def generate_code_completion(seed: int, index: int, length: int, tokenizer: Tokenizer, turns: int = TURNS) -> Sample:
    """Complete a call with the arguments of a signature that stands far above; overloads differ in a number."""
    rng = sample_rng("code_completion", 1, seed, length, index)
    names = identifiers(rng, lexicon.PLANTS)
    asked, units = [], []

    def signature(name: str) -> tuple[str, str]:
        first, second = rng.sample(ARGUMENTS, 2)
        rest = f"{first}, {second})"
        return rest, f"\ndef {name}({rest}:\n    return {rng.choice(lexicon.FOODS)}({first})"

    for depth in strata(rng, turns):
        name = next(names)
        rest, unit = signature(name)
        asked.append((name, rest, unit))
        units.append(Unit(unit, depth))
        units.append(Unit(signature(next(other for other in names if other[:3] != name[:3] or other != name))[1]))

    def record() -> str:
        return signature(next(names))[1]

    others = blend(rng, record, comments(rng, index % 2 == 1), 0.5)
    context = compose("# Read the functions", units, others, length, tokenizer, rng)
    questions = tuple(
        Turn(
            f"\n# Complete the call\n{name}(",
            (rest,),
            8,
            "code_sim",
            context.evidence(unit),
            context.depth(unit),
            space="",
        )
        for name, rest, unit in asked
    )
    return Sample("code_completion", index, context.text, questions)


TASKS = (
    Task(
        TaskInfo("code_function", 1, "semantic_retrieval", MODES, True, 0.0, "find the function described"),
        generate_code_function,
    ),
    Task(
        TaskInfo("code_completion", 1, "code", MODES, False, 0.46, "complete a call from its signature"),
        generate_code_completion,
    ),
)
