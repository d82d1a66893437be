"""Needle in a haystack: depth x length grid, 7-digit and 64-digit keys, one and several needles."""

from __future__ import annotations

from kvcheck.core.record import MODES
from kvcheck.tasks import lexicon
from kvcheck.tasks.base import Sample, Task, TaskInfo, Tokenizer, Turn
from kvcheck.tasks.filling import Composed, Unit, compose, digits, identifiers, noise, sample_rng, strata

DEPTHS = 10
TURNS = 4
DECOYS = 3
LENGTHS = (512, 1024, 2048, 4096)


def needle_text(name: str, key: str) -> str:
    """The needle sentence."""
    return f" The code of {name} is {key}."


def needle_turn(name: str, key: str, fact: str, context: Composed) -> Turn:
    """Ask for one code."""
    return Turn(
        f"\nQuestion: What is the code of {name}? Answer: The code of {name} is",
        (key,),
        len(key) // 2 + 6,
        "passkey_exact" if len(key) < 64 else "passkey_partial",
        context.evidence(fact),
        context.depth(fact),
        subtask="needle",
    )


def _single(task: str, size: int, seed: int, index: int, length: int, tokenizer: Tokenizer) -> Sample:
    """One asked needle on the depth grid and three decoys of the same form."""
    rng = sample_rng(task, 1, seed, length, index)
    names = identifiers(rng, lexicon.OBJECTS)
    name, key = next(names), digits(rng, size)
    depth = (index * 3 % DEPTHS) / (DEPTHS - 1)
    fact = needle_text(name, key)
    units = [Unit(fact, depth)] + [Unit(needle_text(next(names), digits(rng, size))) for _ in range(DECOYS)]
    others = noise(rng, index % 2 == 1)
    context = compose("Read the text and answer. Text:", units, others, length, tokenizer, rng)
    return Sample(task, index, context.text, (needle_turn(name, key, fact, context),))


def generate_needle(seed: int, index: int, length: int, tokenizer: Tokenizer, turns: int = 1) -> Sample:
    """One needle with a 7-digit key."""
    return _single("needle", 7, seed, index, length, tokenizer)


def generate_needle_64(seed: int, index: int, length: int, tokenizer: Tokenizer, turns: int = 1) -> Sample:
    """One needle with a 64-digit key; graded by the longest run that is right."""
    return _single("needle_64", 64, seed, index, length, tokenizer)


def generate_needle_multi(seed: int, index: int, length: int, tokenizer: Tokenizer, turns: int = TURNS) -> Sample:
    """Four needles with 7-digit keys, asked one by one."""
    rng = sample_rng("needle_multi", 1, seed, length, index)
    names = identifiers(rng, lexicon.OBJECTS)
    asked = [(next(names), digits(rng, 7)) for _ in range(turns)]
    units = [Unit(needle_text(*pair), depth) for pair, depth in zip(asked, strata(rng, turns), strict=True)]
    units += [Unit(needle_text(next(names), digits(rng, 7))) for _ in range(DECOYS)]
    others = noise(rng, index % 2 == 1)
    context = compose("Read the text and answer. Text:", units, others, length, tokenizer, rng)
    questions = tuple(needle_turn(name, key, needle_text(name, key), context) for name, key in asked)
    return Sample("needle_multi", index, context.text, questions)


TASKS = (
    Task(
        TaskInfo("needle", 1, "needle", ("single", "multi_request"), True, 1e-7, "one 7-digit needle", LENGTHS),
        generate_needle,
    ),
    Task(
        TaskInfo(
            "needle_64", 1, "needle", ("single", "multi_request"), False, 0.05, "one 64-digit needle", LENGTHS[:3]
        ),
        generate_needle_64,
    ),
    Task(
        TaskInfo("needle_multi", 1, "needle", MODES, True, 1e-7, "four 7-digit needles", LENGTHS),
        generate_needle_multi,
    ),
)
