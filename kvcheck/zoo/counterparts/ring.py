"""A ring buffer: the first tokens, and the newest ones in a buffer whose oldest entry is overwritten."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from kvcheck.cache import checks
from kvcheck.cache.kv_cache import CacheLayer
from kvcheck.cache.method import Method, MethodInfo
from kvcheck.cache.method_runner import MethodRunner
from kvcheck.cache.shape import ModelShape
from kvcheck.zoo.base import used_by
from kvcheck.zoo.counterparts._files import through
from kvcheck.zoo.counterparts.drafted import DraftRunner, length_after

if TYPE_CHECKING:
    from kvcheck.models import LoadedModel


@dataclass(frozen=True)
class Ring(Method):
    """Keep the first `sink` tokens and the newest, in a ring of `window` + `draft` entries.

    sink: S, tokens at the start that always stay (4). window: W, tokens (512). draft: D, guessed tokens that every
    later forward carries and that are rolled back (4); they have room of their own in the ring, so that W are left.
    Once the prompt is in, the ring goes to a file and comes back. Prompt and follow-up blocks attend densely to what is
    stored and to themselves. Positions are the original ones. As streaming_llm, but for the form of the storage.

    Bytes: 2·L·B·G·(S + W + D)·d·2, allocated at once. Errors: SpecError for values out of range.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        summary="keeps the first tokens, and the newest in a ring buffer",
        stage="compression",
        formula="2·L·B·G·(S + W + D)·d·2",
        knob="window",
        exceeds="the ring is there at once, also for shorter prompts",
        evicts_in_decode=True,
        variant="a ring of fixed size that is saved and loaded after the prompt; guessed tokens are rolled back",
        exempt={
            "a_block_is_its_tokens_one_by_one": "a block is attended to whole, then the window moves on",
            "what_is_taken_back_was_never_there": "what a full ring has overwritten is gone",
        },
    )

    sink: int = 4
    window: int = 512
    draft: int = 4

    def __post_init__(self) -> None:
        """Raise SpecError for values out of range."""
        checks.whole(self.name(), "sink", self.sink, 0, 4)
        checks.whole(self.name(), "window", self.window, 1, 512)
        checks.whole(self.name(), "draft", self.draft, 0, 4)

    @property
    def size(self) -> int:
        """Entries of the ring."""
        return self.window + self.draft

    def runner(self, loaded: LoadedModel) -> MethodRunner:
        """Feeds guesses."""
        return DraftRunner(self, loaded)

    def kv_bytes(self, shape: ModelShape, batch: int, prompt: int, decoded: int) -> int:
        """The whole buffer, used or not."""
        return shape.dense_bytes(batch, self.sink + self.size)

    def protected(self, prompt: int) -> frozenset[int]:
        """The sinks and the window."""
        return frozenset(range(min(self.sink, prompt))) | frozenset(range(max(0, prompt - self.window), prompt))


@used_by(Ring)
class RingLayer(CacheLayer):
    """rk, rv (B, G, S + C, d): sinks, then a ring of C entries; fresh: what a forward brings, until it has attended.

    head: the entry that is written next. wrapped: the ring is full, and its oldest entry is at the head; else its
    entries are those before the head. sunk: sinks that are there.
    """

    method: Ring
    is_croppable = True
    rk: torch.Tensor | None
    rv: torch.Tensor | None
    fresh: list[torch.Tensor]

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self.rk = self.rv = None
        self.fresh = []
        self.head = self.sunk = 0
        self.wrapped = False

    # -- storage -------------------------------------------------------------------------------------------------------

    @property
    def entries(self) -> int:
        """Entries of the ring that hold a token."""
        return self.method.size if self.wrapped else self.head

    @property
    def stored(self) -> int:
        """Slots per kv head."""
        if self.rk is None:
            return super().stored
        return self.sunk + self.entries + (self.fresh[0].shape[2] if self.fresh else 0)

    @property
    def positions(self) -> torch.Tensor:
        """Sinks, and the newest behind them."""
        if self.rk is None:
            return super().positions
        newest = self.stored - self.sunk
        where = torch.cat([torch.arange(self.sunk), torch.arange(self.seen - newest, self.seen)])
        return where.int().to(self.rk.device).expand(self.rk.shape[0], self.shape.kv_heads, -1)

    def order(self) -> torch.Tensor:
        """The slots of rk and rv that hold a token, oldest first."""
        size = self.method.size
        ring = torch.arange(self.entries)
        if self.wrapped:
            ring = (ring + self.head) % size
        return torch.cat([torch.arange(self.sunk), ring + self.method.sink])

    def write(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Behind the prompt, new tokens wait until they have attended."""
        if self.rk is None:
            super().write(keys, values)
        else:
            self.fresh = [keys, values]

    def read(self, rows: slice, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """Sinks, ring from its oldest entry on, new tokens."""
        if self.rk is None or self.rv is None:
            return super().read(rows, dtype)
        order = self.order().to(self.rk.device)
        stored = [each[rows].index_select(2, order) for each in (self.rk, self.rv)]
        if self.fresh:
            stored = [torch.cat([old, new[rows]], dim=2) for old, new in zip(stored, self.fresh, strict=True)]
        return stored[0].to(dtype), stored[1].to(dtype)

    # -- life ----------------------------------------------------------------------------------------------------------

    def compress(self, queries: torch.Tensor) -> None:
        """Put the prompt into the ring, save it, load it."""
        keys, values = self.keys, self.values
        kept = max(self.method.sink, self.seen - self.method.window)
        slots = torch.arange(self.seen, device=keys.device)
        slots = torch.cat([slots[: self.method.sink], slots[kept:]])
        shape = (*keys.shape[:2], self.method.sink + self.method.size, keys.shape[3])
        self.rk, self.rv = keys.new_zeros(shape), keys.new_zeros(shape)
        self.k = self.v = None
        self.push(keys.index_select(2, slots), values.index_select(2, slots))
        self.restore(*through({"keys": self.rk, "values": self.rv}, self.about()))

    def step(self, query: torch.Tensor) -> None:
        """What has attended goes into the ring."""
        keys, values = self.fresh
        self.fresh = []
        self.push(keys, values)

    def push(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Write tokens (B, G, q, d): sinks first, then over the oldest entries of the ring."""
        if self.rk is None or self.rv is None:
            return
        sink, size = self.method.sink, self.method.size
        sinks = min(sink - self.sunk, keys.shape[2])
        late = keys.shape[2] - sinks
        kept = min(late, size)
        ring = (torch.arange(late - kept, late) + self.head) % size + sink
        slots = torch.cat([torch.arange(self.sunk, self.sunk + sinks), ring]).to(keys.device)
        for buffer, block in ((self.rk, keys), (self.rv, values)):
            buffer[:, :, slots] = torch.cat([block[:, :, :sinks], block[:, :, block.shape[2] - kept :]], dim=2)
        self.sunk += sinks
        self.wrapped = self.wrapped or self.head + late >= size
        self.head = (self.head + late) % size

    def crop(self, tokens: int = 0) -> None:
        """Leave the tokens before position `tokens`; negative: take back so many. What was overwritten is gone."""
        gone = self.seen - length_after(self.seen, tokens)
        if gone and self.rk is not None and self.rv is not None:
            self.roll_back(gone)
            self.seen -= gone

    def roll_back(self, count: int) -> None:
        """Take back the newest `count` tokens: the ring is laid out anew from its oldest entry, without them."""
        if self.rk is None or self.rv is None:
            return
        order = self.order().to(self.rk.device)
        for buffer in (self.rk, self.rv):
            buffer[:, :, self.method.sink : self.method.sink + self.entries] = buffer[:, :, order[self.sunk :]]
        left = self.sunk + self.entries - count
        self.sunk, self.head, self.wrapped = max(0, min(self.sunk, left)), max(0, left - self.sunk), False

    # -- file ----------------------------------------------------------------------------------------------------------

    def about(self) -> dict[str, str]:
        """What is saved beside keys and values."""
        return {
            "head": str(self.head),
            "sunk": str(self.sunk),
            "wrapped": "yes" if self.wrapped else "no",
            "seen": str(self.seen),
        }

    def restore(self, tensors: dict[str, torch.Tensor], about: dict[str, str]) -> None:
        """Take in what was loaded."""
        self.rk, self.rv = tensors["keys"], tensors["values"]
        self.head, self.sunk, self.seen = (int(about[name]) for name in ("head", "sunk", "seen"))
        self.wrapped = about["wrapped"] == "yes"
