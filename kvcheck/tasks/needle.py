"""Needle in a haystack: depth x length grid, 7-digit and 64-digit keys, one and several needles."""

from __future__ import annotations

from kvcheck.tasks import lexicon
from kvcheck.tasks.base import Turn
from kvcheck.tasks.filling import Composed, Draft, Order, Unit, digits, identifiers, noise, strata, task

DEPTHS = 10
DECOYS = 3
LENGTHS = (512, 1024, 2048, 4096)


def needle_text(name: str, key: str) -> str:
    """The needle sentence."""
    return f" The code of {name} is {key}."


def needle_turn(name: str, key: str, fact: str, context: Composed) -> Turn:
    """Ask for one code."""
    return context.turn(
        f"\nQuestion: What is the code of {name}? Answer: The code of {name} is",
        (key,),
        len(key) // 2 + 6,
        "passkey_exact" if len(key) < 64 else "passkey_partial",
        fact,
        subtask="needle",
    )


def _single(order: Order, size: int) -> Draft:
    """One asked needle on the depth grid and three decoys of the same form."""
    rng = order.rng()
    names = identifiers(rng, lexicon.OBJECTS)
    name, key = next(names), digits(rng, size)
    depth = (order.index * 3 % DEPTHS) / (DEPTHS - 1)
    fact = needle_text(name, key)
    units = [Unit(fact, depth)] + [Unit(needle_text(next(names), digits(rng, size))) for _ in range(DECOYS)]
    others = noise(rng, order.index % 2 == 1)
    context = order.compose("Read the text and answer. Text:", units, others, rng)
    return context, [needle_turn(name, key, fact, context)]


@task("needle", "needle", True, 1e-7, "one 7-digit needle", modes=("single", "multi_request"), lengths=LENGTHS)
def needle(order: Order) -> Draft:
    """One needle with a 7-digit key."""
    return _single(order, 7)


@task("needle_64", "needle", False, 0.05, "one 64-digit needle", modes=("single", "multi_request"), lengths=LENGTHS[:3])
def needle_64(order: Order) -> Draft:
    """One needle with a 64-digit key; graded by the longest run that is right."""
    return _single(order, 64)


@task("needle_multi", "needle", True, 1e-7, "four 7-digit needles", lengths=LENGTHS)
def needle_multi(order: Order) -> Draft:
    """Four needles with 7-digit keys, asked one by one."""
    context, asked = needles(order)
    return context, tuple(needle_turn(name, key, needle_text(name, key), context) for name, key in asked)


def needles(order: Order) -> tuple[Composed, list[tuple[str, str]]]:
    """A context with as many needles as there are questions and three decoys; (name, key) of those to ask."""
    rng = order.rng()
    names = identifiers(rng, lexicon.OBJECTS)
    asked = [(next(names), digits(rng, 7)) for _ in range(order.turns)]
    units = [Unit(needle_text(*pair), depth) for pair, depth in zip(asked, strata(rng, order.turns), strict=True)]
    units += [Unit(needle_text(next(names), digits(rng, 7))) for _ in range(DECOYS)]
    others = noise(rng, order.index % 2 == 1)
    return order.compose("Read the text and answer. Text:", units, others, rng), asked


TASKS = (needle, needle_64, needle_multi)
