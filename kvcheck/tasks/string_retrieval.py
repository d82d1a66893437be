"""String retrieval: exact look-ups of random strings (SCBench Retr.KV, Retr.Prefix-Suffix, Retr.MultiHop)."""

from __future__ import annotations

from itertools import pairwise

from kvcheck.tasks import lexicon
from kvcheck.tasks.filling import Composed, Draft, Order, Unit, blend, digits, identifiers, noise, strata, task

DECOYS = 3


@task("kv", "string_retrieval", True, 1e-8, "random key-value pairs", lengths=(512, 1024, 2048, 4096))
def kv(order: Order) -> Draft:
    """Random pairs `otter47 maple12=83056190;`; every asked key has three decoys that share half of it."""
    context, asked = pairs(order)
    return context, tuple(
        context.turn(
            f"\nQuestion: What is the value of {key}? Answer: {key}=", (value,), 8, "substring", fact, space=""
        )
        for key, value, fact in asked
    )


def pairs(order: Order) -> tuple[Composed, list[tuple[str, str, str]]]:
    """The context of `kv`; (key, value, how it stands there) of the pairs to ask."""
    rng = order.rng()
    names = identifiers(rng)
    asked, units = [], []
    for depth in strata(rng, order.turns):
        first, second = next(names), next(names)
        value = digits(rng, 8)
        fact = f" {first} {second}={value};"
        asked.append((f"{first} {second}", value, fact))
        units.append(Unit(fact, depth))
        for turn in range(DECOYS):
            pair = f"{next(names)} {second}" if turn % 2 else f"{first} {next(names)}"
            units.append(Unit(f" {pair}={digits(rng, 8)};"))

    def record() -> str:
        return f" {next(names)} {next(names)}={digits(rng, 8)};"

    others = blend(rng, record, noise(rng, order.index % 4 > 1), 1.0 if order.index % 2 else 0.5)
    return order.compose("Read the text and answer. Numbers:", units, others, rng), asked


@task(
    "prefix_suffix",
    "string_retrieval",
    True,
    1 / (len(lexicon.OBJECTS) * 100),
    "the string with this prefix and suffix",
)
def prefix_suffix(order: Order) -> Draft:
    """Random strings `otter47 maple83 anvil19;` asked by prefix and suffix; three others share only one of them."""
    rng = order.rng()
    names = identifiers(rng)
    asked, units = [], []
    for depth in strata(rng, order.turns):
        start, middle, end = next(names), next(names), next(names)
        fact = f" {start} {middle} {end};"
        asked.append((start, middle, end, fact))
        units.append(Unit(fact, depth))
        for _ in range(DECOYS):
            units.append(Unit(f" {start} {next(names)} {next(names)};"))
            units.append(Unit(f" {next(names)} {next(names)} {end};"))

    def record() -> str:
        return f" {next(names)} {next(names)} {next(names)};"

    others = blend(rng, record, noise(rng, order.index % 4 > 1), 1.0 if order.index % 2 else 0.5)
    context = order.compose("Read the text and answer. Names:", units, others, rng)
    return context, tuple(
        context.turn(
            f"\nQuestion: Which string starts with {start} and ends in {end}? Answer: {end}: {start}",
            (f"{middle} {end}",),
            8,
            "substring",
            fact,
        )
        for start, middle, end, fact in asked
    )


@task("multi_hop", "string_retrieval", False, 0.0, "variable tracing over two hops")
def multi_hop(order: Order) -> Draft:
    """Variable tracing: chains of two hops, their statements interleaved; the answer names every variable in turn."""
    rng = order.rng()
    names = identifiers(rng)
    asked, units = [], []

    def chain() -> tuple[str, list[str], list[str]]:
        value, links = digits(rng, 4), [next(names) for _ in range(3)]
        facts = [f" put {value} in {links[0]};"]
        facts += [f" copy {a} to {b};" for a, b in pairwise(links)]
        return value, links, facts

    for _ in range(order.turns):
        value, links, facts = chain()
        asked.append((value, links, facts))
        units += [Unit(fact, depth) for fact, depth in zip(facts, sorted(strata(rng, len(facts))), strict=True)]
    waiting: list[str] = []

    def record() -> str:
        if not waiting:
            waiting.extend(chain()[2])
        return waiting.pop(0)

    others = blend(rng, record, noise(rng, order.index % 2 == 1), 0.4)
    context = order.compose("Read the text and answer. Variables:", units, others, rng)
    return context, tuple(
        context.turn(
            f"\nQuestion: Which variables hold {value}? Answer: put {value} in",
            tuple(links),
            10,
            "string_match_all",
            *facts,
            target=" to ".join(links),
        )
        for value, links, facts in asked
    )


TASKS = (kv, prefix_suffix, multi_hop)
