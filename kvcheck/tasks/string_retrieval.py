"""String retrieval: exact look-ups of random strings (SCBench Retr.KV, Retr.Prefix-Suffix, Retr.MultiHop)."""

from __future__ import annotations

from itertools import pairwise

from kvcheck.core.record import MODES
from kvcheck.tasks import lexicon
from kvcheck.tasks.base import Sample, Task, TaskInfo, Tokenizer, Turn
from kvcheck.tasks.filling import Unit, blend, compose, digits, identifiers, noise, sample_rng, strata

TURNS = 4
DECOYS = 3


def generate_kv(seed: int, index: int, length: int, tokenizer: Tokenizer, turns: int = TURNS) -> Sample:
    """Random pairs `otter47 maple12=83056190;`; every asked key has three decoys that share half of it."""
    rng = sample_rng("kv", 1, seed, length, index)
    names = identifiers(rng)
    asked, units = [], []
    for depth in strata(rng, turns):
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

    others = blend(rng, record, noise(rng, index % 4 > 1), 1.0 if index % 2 else 0.5)
    context = compose("Read the text and answer. Numbers:", units, others, length, tokenizer, rng)
    questions = tuple(
        Turn(
            f"\nQuestion: What is the value of {key}? Answer: {key}=",
            (value,),
            8,
            "substring",
            context.evidence(fact),
            context.depth(fact),
            space="",
        )
        for key, value, fact in asked
    )
    return Sample("kv", index, context.text, questions)


def generate_prefix_suffix(seed: int, index: int, length: int, tokenizer: Tokenizer, turns: int = TURNS) -> Sample:
    """Random strings `otter47 maple83 anvil19;` asked by prefix and suffix; three others share only one of them."""
    rng = sample_rng("prefix_suffix", 1, seed, length, index)
    names = identifiers(rng)
    asked, units = [], []
    for depth in strata(rng, turns):
        start, middle, end = next(names), next(names), next(names)
        fact = f" {start} {middle} {end};"
        asked.append((start, middle, end, fact))
        units.append(Unit(fact, depth))
        for _ in range(DECOYS):
            units.append(Unit(f" {start} {next(names)} {next(names)};"))
            units.append(Unit(f" {next(names)} {next(names)} {end};"))

    def record() -> str:
        return f" {next(names)} {next(names)} {next(names)};"

    others = blend(rng, record, noise(rng, index % 4 > 1), 1.0 if index % 2 else 0.5)
    context = compose("Read the text and answer. Names:", units, others, length, tokenizer, rng)
    questions = tuple(
        Turn(
            f"\nQuestion: Which string starts with {start} and ends in {end}? Answer: {end}: {start}",
            (f"{middle} {end}",),
            8,
            "substring",
            context.evidence(fact),
            context.depth(fact),
        )
        for start, middle, end, fact in asked
    )
    return Sample("prefix_suffix", index, context.text, questions)


def generate_multi_hop(seed: int, index: int, length: int, tokenizer: Tokenizer, turns: int = TURNS) -> Sample:
    """Variable tracing: chains of two hops, their statements interleaved; the answer names every variable in turn."""
    rng = sample_rng("multi_hop", 1, seed, length, index)
    names = identifiers(rng)
    asked, units = [], []

    def chain() -> tuple[str, list[str], list[str]]:
        value, links = digits(rng, 4), [next(names) for _ in range(3)]
        facts = [f" put {value} in {links[0]};"]
        facts += [f" copy {a} to {b};" for a, b in pairwise(links)]
        return value, links, facts

    for _ in range(turns):
        value, links, facts = chain()
        asked.append((value, links, facts))
        units += [Unit(fact, depth) for fact, depth in zip(facts, sorted(strata(rng, len(facts))), strict=True)]
    waiting: list[str] = []

    def record() -> str:
        if not waiting:
            waiting.extend(chain()[2])
        return waiting.pop(0)

    others = blend(rng, record, noise(rng, index % 2 == 1), 0.4)
    context = compose("Read the text and answer. Variables:", units, others, length, tokenizer, rng)
    questions = tuple(
        Turn(
            f"\nQuestion: Which variables hold {value}? Answer: put {value} in",
            tuple(links),
            10,
            "string_match_all",
            context.evidence(*facts),
            context.depth(*facts),
            target=" to ".join(links),
        )
        for value, links, facts in asked
    )
    return Sample("multi_hop", index, context.text, questions)


def _info(name: str, binary: bool, chance: float, doc: str, lengths: tuple[int, ...] = (512, 1024, 2048)) -> TaskInfo:
    return TaskInfo(name, 1, "string_retrieval", MODES, binary, chance, doc, lengths)


TASKS = (
    Task(_info("kv", True, 1e-8, "random key-value pairs", (512, 1024, 2048, 4096)), generate_kv),
    Task(
        _info("prefix_suffix", True, 1 / (len(lexicon.OBJECTS) * 100), "the string with this prefix and suffix"),
        generate_prefix_suffix,
    ),
    Task(_info("multi_hop", False, 0.0, "variable tracing over two hops"), generate_multi_hop),
)
