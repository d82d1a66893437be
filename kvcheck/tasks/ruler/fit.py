"""Samples that fit a length as RULER counts it: the largest haystack that leaves room for question and answer.

Source of the rule: RULER (github.com/NVIDIA/RULER at c3f5e3b, scripts/data/synthetic), a binary search over the size of
the haystack. No code and no sentence of it is here.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Generic, Protocol, TypeVar

from kvcheck.core.errors import KvcheckError, SpecError
from kvcheck.core.front import option
from kvcheck.tasks.base import Sample, Task, TaskInfo, Tokenizer, Turn
from kvcheck.tasks.filling import sample_rng

VERSION = 1
LENGTHS = (512, 1024, 2048, 4096)
MODES = ("single", "multi_request")
SLOTS = 40
"""Depths that evidence is put at, as many as RULER has."""

PATIENCE = 1000
"""Repeats in a row after which words are taken to be used up."""

T = TypeVar("T")


@dataclass(frozen=True)
class Order:
    """What a generator was asked for; length in tokens, of the whole prompt and the answer."""

    task: str
    seed: int
    index: int
    length: int
    tokenizer: Tokenizer

    def rng(self, part: str = "") -> random.Random:
        """The random numbers of one part of this sample, the same at every call."""
        return sample_rng(self.task + part, VERSION, self.seed, self.length, self.index)

    def tokens(self, *texts: str) -> int:
        """Tokens of the texts, each encoded by itself, as an engine feeds them."""
        return sum(len(self.tokenizer.encode(text)) for text in texts)

    def limit(self, usual: int, expected: str) -> int:
        """Tokens that an answer may have: RULER's number, or what this tokenizer needs to say the right answer."""
        return max(usual, self.tokens(f" {expected}") + 1)


@dataclass(frozen=True)
class Draft:
    """A sample at some size of its haystack."""

    context: str
    turn: Turn

    def cost(self, order: Order) -> int:
        """Tokens of context, question, beginning of the answer and longest answer."""
        return order.tokens(self.context, self.turn.question, self.turn.lead) + self.turn.max_new_tokens


class Page:
    """A text being written, and where its evidence stands: (start, end) in characters."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.chars = 0
        self.spans: list[tuple[int, int]] = []

    def add(self, text: str, evidence: bool = False) -> None:
        """Append a piece."""
        if evidence:
            self.spans.append((self.chars, self.chars + len(text)))
        self.parts.append(text)
        self.chars += len(text)

    @property
    def text(self) -> str:
        """All pieces."""
        return "".join(self.parts)

    @property
    def depth(self) -> float | None:
        """Mean relative position of the evidence, None without any."""
        return sum(start for start, _ in self.spans) / len(self.spans) / max(1, self.chars) if self.spans else None


class Supply(Generic[T]):
    """The beginning of an endless sequence: a larger haystack begins as a smaller one does."""

    def __init__(self, items: Iterator[T]) -> None:
        self._items = items
        self._drawn: list[T] = []

    def first(self, count: int) -> list[T]:
        """The first items."""
        self._drawn += islice(self._items, max(0, count - len(self._drawn)))
        return self._drawn[:count]


def distinct(draw: Callable[[], str]) -> Iterator[str]:
    """Endless draws without repeats. Raises KvcheckError where `draw` seems to have no other values left."""
    seen: set[str] = set()
    while True:
        item = next((item for item in (draw() for _ in range(PATIENCE)) if item not in seen), None)
        if item is None:
            raise KvcheckError(
                f"{len(seen)} different words are drawn, there are no more", f"ask for shorter {option('lengths')}"
            )
        seen.add(item)
        yield item


def slots(order: Order, count: int, rng: random.Random) -> list[int]:
    """So many different slots of SLOTS. The first one visits every slot once in SLOTS successive samples."""
    grid = list(range(SLOTS))
    sample_rng(f"{order.task}/depths", VERSION, order.seed, order.length, 0).shuffle(grid)
    first = grid[order.index % SLOTS]
    return [first, *rng.sample([slot for slot in grid if slot != first], count - 1)]


def spread(order: Order, count: int, rng: random.Random) -> list[float]:
    """So many relative positions in [0, 1), each somewhere in a slot of its own."""
    return [(slot + rng.random()) / SLOTS for slot in slots(order, count, rng)]


def largest(cost: Callable[[int], int], room: int, least: int) -> int | None:
    """The largest size that costs no more than room, None where the least one costs more.

    Doubles, then narrows: by the slope, and every third time by halves, where the cost is no straight line. Looks no
    farther than a tenth beyond where the slope meets the room: a haystack has only so many different keys.
    """
    low, low_cost = least, cost(least)
    if low_cost > room:
        return None
    high, high_cost, step = low, low_cost, low + 1
    while high_cost <= room:
        low, low_cost = high, high_cost
        high = low + step
        high_cost = cost(high)
        left = (room - high_cost) * (high - low) * 11 // max(1, (high_cost - low_cost) * 10)
        step = min(high + 1, max(1, left + 1))
    turn = 0
    while high - low > 1:
        turn += 1
        guess = low + (room - low_cost) * (high - low) // (high_cost - low_cost)
        middle = (low + high) // 2 if turn % 3 == 0 else min(max(guess, low + 1), high - 1)
        middle_cost = cost(middle)
        if middle_cost <= room:
            low, low_cost = middle, middle_cost
        else:
            high, high_cost = middle, middle_cost
    return low


def fit(order: Order, make: Callable[[int], Draft], least: int) -> Draft:
    """The draft with the largest haystack that fits. Raises SpecError where the least one does not."""

    def cost(size: int) -> int:
        return make(size).cost(order)

    size = largest(cost, order.length, least)
    if size is None:
        raise SpecError(
            f"{order.task} needs {cost(least)} tokens for its smallest haystack, question and answer, "
            f"{order.length} were asked for",
            f"ask for a longer {option('lengths')}",
        )
    return make(size)


def check(order: Order, kept: bool, promise: str) -> None:
    """Raise KvcheckError where a generated sample does not keep what its task promises."""
    if not kept:
        raise KvcheckError(f"{order.task}, sample {order.index}: {promise} does not hold", "this is a bug of kvcheck")


class Build(Protocol):
    """Makes the draft of an order."""

    def __call__(self, order: Order) -> Draft:
        """One sample without its frame."""
        ...


def _generate(
    name: str, build: Build, seed: int, index: int, length: int, tokenizer: Tokenizer, turns: int = 1
) -> Sample:
    """One sample of a task; `turns` is not looked at: every sample asks one question."""
    draft = build(Order(name, seed, index, length, tokenizer))
    return Sample(name, index, draft.context, (draft.turn,), chat=True)


def task(name: str, capability: str, binary: bool, chance: float, doc: str, build: Build) -> Task:
    """A task of this package, by its name in RULER."""
    name = f"ruler/{name}"
    info = TaskInfo(name, VERSION, capability, MODES, binary, chance, doc, LENGTHS, exact=False)
    return Task(info, partial(_generate, name, build))
