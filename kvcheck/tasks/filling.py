"""Building a context of exactly so many tokens, with the evidence at controlled depths. Shared by every generator."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from kvcheck.core.errors import SpecError
from kvcheck.core.front import option
from kvcheck.core.record import MODES
from kvcheck.tasks import lexicon
from kvcheck.tasks.base import Sample, Task, TaskInfo, Tokenizer, Turn

VERSION = 1
ANSWER = " Answer: "
"""What stands before the lead-in of an answer, see Turn.mark."""
MAX_ROUNDS = 60


def sample_rng(task: str, version: int, seed: int, length: int, index: int) -> random.Random:
    """A generator of its own for each sample, so that samples do not depend on each other or on their order."""
    text = f"{task}/v{version}/seed={seed}/len={length}/index={index}"
    return random.Random(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big"))


@dataclass(frozen=True)
class Unit:
    """A piece of context, with its leading space or line break. depth None: anywhere."""

    text: str
    depth: float | None = None


@dataclass(frozen=True)
class Composed:
    """A context and where its units with a depth ended up: unit text -> (start, end) in characters."""

    text: str
    spans: dict[str, tuple[int, int]]

    def depth(self, *units: str) -> float:
        """Mean relative position of the units (0 = start, 1 = end)."""
        return sum(self.spans[unit][0] for unit in units) / len(units) / max(1, len(self.text))

    def evidence(self, *units: str) -> tuple[tuple[int, int], ...]:
        """Character spans of the units."""
        return tuple(self.spans[unit] for unit in units)

    def turn(
        self,
        question: str,
        references: tuple[str, ...],
        max_new_tokens: int,
        metric: str,
        *units: str,
        subtask: str = "",
        options: tuple[str, ...] = (),
        space: str = " ",
        target: str = "",
        **more: Any,
    ) -> Turn:
        """A question whose evidence are these units. more: further fields of Turn; mark is ANSWER unless given."""
        found = self.evidence(*units), self.depth(*units)
        about = (*found, subtask, options, space, target)
        return Turn(question, references, max_new_tokens, metric, *about, **{"mark": ANSWER, **more})


Draft = tuple[Composed, Sequence[Turn]]
"""What is asked about what."""


@dataclass(frozen=True)
class Order:
    """What a generator is asked for. length: tokens of the context; turns: questions."""

    task: str
    seed: int
    index: int
    length: int
    tokenizer: Tokenizer
    turns: int

    def rng(self) -> random.Random:
        """The random numbers of this sample, the same at every call."""
        return sample_rng(self.task, VERSION, self.seed, self.length, self.index)

    def compose(self, header: str, units: list[Unit], others: Iterator[str], rng: random.Random) -> Composed:
        """See `compose`."""
        return compose(header, units, others, self.length, self.tokenizer, rng)


def task(
    name: str,
    capability: str,
    binary: bool,
    chance: float,
    doc: str,
    modes: tuple[str, ...] = MODES,
    lengths: tuple[int, ...] = (512, 1024, 2048),
    turns: int = 4,
) -> Callable[[Callable[[Order], Draft]], Task]:
    """Makes a function a task, see TaskInfo. turns: questions of a sample, where the function looks at that."""

    def made(build: Callable[[Order], Draft]) -> Task:
        def generate(seed: int, index: int, length: int, tokenizer: Tokenizer, turns: int = turns) -> Sample:
            """One sample."""
            context, asked = build(Order(name, seed, index, length, tokenizer, turns))
            return Sample(name, index, context.text, tuple(asked))

        return Task(TaskInfo(name, VERSION, capability, modes, binary, chance, doc, lengths), generate)

    return made


def noise(rng: random.Random, mixed: bool) -> Iterator[str]:
    """Endless filler: `mixed` draws sentences from a grammar (incompressible), else a few sentences repeat."""
    start = rng.randrange(len(lexicon.NOISE))
    count = 0
    while True:
        if mixed:
            a, b = rng.sample(lexicon.NOUNS, 2)
            x, y = rng.choice(lexicon.ADJECTIVES), rng.choice(lexicon.ADJECTIVES)
            tail = f" {rng.choice(lexicon.ADVERBS)}" if rng.random() < 0.5 else ""
            yield f" The {x} {a} {rng.choice(lexicon.VERBS)} the {y} {b}{tail}."
        else:
            yield f" {lexicon.NOISE[(start + count) % len(lexicon.NOISE)]}"
        count += 1


def blend(rng: random.Random, records: Callable[[], str], filler: Iterator[str], share: float) -> Iterator[str]:
    """Endless units: a record with probability `share`, else filler."""
    while True:
        yield records() if rng.random() < share else next(filler)


def strata(rng: random.Random, count: int) -> list[float]:
    """One depth per equal slice of the context, in random order."""
    depths = [(slot + rng.random()) / count for slot in range(count)]
    rng.shuffle(depths)
    return depths


def compose(
    header: str, units: list[Unit], others: Iterator[str], length: int, tokenizer: Tokenizer, rng: random.Random
) -> Composed:
    """Fill a context of exactly `length` tokens: header, the units at their depths, the rest from `others`.

    Raises SpecError when the units alone do not fit.
    """
    count = _counter(tokenizer)
    fixed = count(header) + sum(count(unit.text) for unit in units)
    if fixed > length:
        raise SpecError(
            f"the evidence alone needs {fixed} tokens, the context has {length}",
            f"ask for a longer {option('lengths')}",
        )
    pool: list[str] = []
    room = length - fixed
    while True:
        text = next(others)
        need = count(text)
        if need > room:
            break
        pool.append(text)
        room -= need
    placed = [Unit(unit.text, rng.random() if unit.depth is None else unit.depth) for unit in units]
    return _exact(header, placed, pool, length, tokenizer, room)


def _exact(header: str, placed: list[Unit], pool: list[str], length: int, tokenizer: Tokenizer, room: int) -> Composed:
    """Pad to the exact length; tokenizers that merge across units need a few rounds."""
    for _ in range(MAX_ROUNDS):
        filled = [*pool, *_pads(room, tokenizer)]
        composed = _place(header, placed, filled, tokenizer)
        found = len(tokenizer.encode(composed.text))
        if found == length:
            return composed
        room += length - found
        while room < 0:
            if not pool:
                raise SpecError(f"cannot fill a context of {length} tokens with this tokenizer", "try another length")
            room += len(tokenizer.encode(pool.pop()))
    raise SpecError(f"cannot fill a context to exactly {length} tokens with this tokenizer", "try another length")


def _pads(room: int, tokenizer: Tokenizer) -> list[str]:
    """Short words that fill `room` tokens, spread as single units."""
    count = _counter(tokenizer)
    pads: list[str] = []
    turn = 0
    while room > 0 and turn < 4 * room + 16:
        text = f" {lexicon.PADS[turn % len(lexicon.PADS)]}"
        turn += 1
        if count(text) <= room:
            pads.append(text)
            room -= count(text)
    return pads


def _place(header: str, placed: list[Unit], pool: list[str], tokenizer: Tokenizer) -> Composed:
    """Lay the units out at their depths among the pool, whose order stays."""
    count = _counter(tokenizer)
    sizes = [count(text) for text in pool]
    total = sum(sizes) + sum(count(unit.text) for unit in placed)
    waiting = sorted(placed, key=lambda unit: (unit.depth or 0.0, unit.text))
    parts, spans, done, chars = [header], {}, 0, len(header)

    def put(text: str, size: int, span: bool) -> None:
        nonlocal done, chars
        if span:
            spans[text] = (chars, chars + len(text))
        parts.append(text)
        done += size
        chars += len(text)

    for text, size in zip(pool, sizes, strict=True):
        while waiting and (waiting[0].depth or 0.0) * total <= done:
            unit = waiting.pop(0)
            put(unit.text, count(unit.text), True)
        put(text, size, False)
    for unit in waiting:
        put(unit.text, count(unit.text), True)
    return Composed("".join(parts), spans)


def _counter(tokenizer: Tokenizer) -> Callable[[str], int]:
    _, cache = _COUNTS.setdefault(id(tokenizer), (tokenizer, {}))

    def count(text: str) -> int:
        found = cache.get(text)
        if found is None:
            if len(cache) > 50_000:
                cache.clear()
            found = cache[text] = len(tokenizer.encode(text))
        return found

    return count


_COUNTS: dict[int, tuple[Tokenizer, dict[str, int]]] = {}
"""By id of the tokenizer, held with them: else the next one might get the id, and the counts, of one that is gone."""


def identifiers(rng: random.Random, words: tuple[str, ...] = lexicon.OBJECTS) -> Iterator[str]:
    """Endless distinct identifiers such as otter47."""
    seen: set[str] = set()
    while True:
        name = f"{rng.choice(words)}{rng.randrange(100):02d}"
        if name not in seen:
            seen.add(name)
            yield name


def digits(rng: random.Random, count: int) -> str:
    """So many random digits."""
    return "".join(str(rng.randrange(10)) for _ in range(count))


def unused(draw: Callable[[], str], text: str) -> str:
    """The first draw that does not occur in a text, whatever the case of its letters."""
    low = text.lower()
    while (found := draw()).lower() in low:
        pass
    return found


def grid_depth(index: int, depths: int) -> float:
    """Depth of the index-th sample of a grid, 0 to 1: so many samples have them all, and a few are spread over them.

    depths: 2 or more, no multiple of 13.
    """
    return index * 13 % depths / (depths - 1)
