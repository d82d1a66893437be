"""A store of prompt blocks in two tiers: some on the device, the rest in host memory."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import torch

from kvcheck.cache import checks
from kvcheck.cache.kv_cache import KVCache
from kvcheck.cache.method import MethodInfo
from kvcheck.cache.method_runner import MethodRunner
from kvcheck.methods.fp16 import Fp16
from kvcheck.zoo.base import used_by

if TYPE_CHECKING:
    from kvcheck.models import LoadedModel

Block = list[tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class Tiered(Fp16):
    """The full cache, whose prompts go through a store of blocks and come back out of it. Lossless.

    block: tokens per stored block. room: blocks that the store holds on the device; older ones move to host memory.
    Every prefill starts with an empty store (`reset`), so that it holds one batch of prompts: it computes the prompt
    and stores its whole blocks, row by row, then loads them and computes what is left, the last token at the least.
    """

    info: ClassVar[MethodInfo] = replace(
        Fp16.info,
        summary="the full cache, through a store of prompt blocks in two tiers",
        stage="loading",
        exceeds="the store keeps the last prompts",
        shares_prefill=False,
        variant="a block is found by all tokens up to its end",
    )

    block: int = 64
    room: int = 8

    def __post_init__(self) -> None:
        """Raise SpecError for values out of range."""
        checks.whole(self.name(), "block", self.block, 1, 64)
        checks.whole(self.name(), "room", self.room, 0, 8)


@used_by(Tiered)
class TieredRunner(MethodRunner):
    """near, far: what each tier stores, by the tokens up to the end of a block. hits: blocks loaded by the last
    serving, per row.
    """

    method: Tiered

    def __init__(self, method: Tiered, loaded: LoadedModel) -> None:
        super().__init__(method, loaded)
        self.near: dict[bytes, Block] = {}
        self.far: dict[bytes, Block] = {}
        self.hits = 0

    def reset(self) -> None:
        """Forget all blocks."""
        self.near.clear()
        self.far.clear()

    def prefill(self, ids: torch.Tensor) -> tuple[KVCache, torch.Tensor]:
        """As MethodRunner.prefill: once to store the blocks, once to load them."""
        self.reset()
        self.serve(ids)
        return self.serve(ids)

    def serve(self, ids: torch.Tensor) -> tuple[KVCache, torch.Tensor]:
        """Load the blocks that are stored of prompts (R, n), compute the rest, store the blocks of that."""
        cache, size = self.build(), self.method.block
        self.hits = self.known(ids)
        with cache.prefilling():
            for number in range(self.hits):
                self.load(cache, [self.key(row, number) for row in ids])
            logits = self.feed(cache, ids[:, self.hits * size :])[:, -1]
        for number in range(self.hits, ids.shape[1] // size):
            for at, row in enumerate(ids):
                self.save(self.key(row, number), cache, at, slice(number * size, (number + 1) * size))
        return cache, logits

    def known(self, ids: torch.Tensor) -> int:
        """How many blocks are stored of every row; the last token is not asked for."""
        most = (ids.shape[1] - 1) // self.method.block
        for number in range(most):
            if any(self.find(self.key(row, number)) is None for row in ids):
                return number
        return most

    def key(self, row: torch.Tensor, number: int) -> bytes:
        """What block `number` of a row (n,) is found by."""
        return row[: (number + 1) * self.method.block].cpu().numpy().tobytes()

    def find(self, key: bytes) -> Block | None:
        """A block, from whichever tier has it."""
        return self.near.get(key) or self.far.get(key)

    def load(self, cache: KVCache, keys: list[bytes]) -> None:
        """Append one block per row."""
        found = [block for block in map(self.find, keys) if block is not None]
        for layer, parts in zip(cache.layers, zip(*found, strict=True), strict=True):
            device = self.loaded.device
            states = [torch.cat([part[at] for part in parts]).to(device) for at in (0, 1)]
            layer.store_dtype = states[0].dtype
            layer.write(*states)
            layer.seen += states[0].shape[2]
            layer.is_initialized = True

    def save(self, key: bytes, cache: KVCache, row: int, span: slice) -> None:
        """Store a block on the device; the oldest one there makes room."""
        rows = slice(row, row + 1)
        self.near[key] = [
            (each.keys[rows, :, span].clone(), each.values[rows, :, span].clone()) for each in cache.layers
        ]
        while len(self.near) > self.method.room:
            oldest = next(iter(self.near))
            self.far[oldest] = [(keys.cpu(), values.cpu()) for keys, values in self.near.pop(oldest)]
