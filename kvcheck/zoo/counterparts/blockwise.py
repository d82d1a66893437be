"""SnapKV inside the prompt: chunks are fed one by one, and the cache is cut to its budget behind each."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from kvcheck.cache import checks, scoring
from kvcheck.cache.kv_cache import CacheLayer, KVCache
from kvcheck.cache.method import MethodInfo
from kvcheck.cache.method_runner import MethodRunner
from kvcheck.core.errors import SpecError
from kvcheck.core.front import option
from kvcheck.methods.snapkv import SnapKV
from kvcheck.zoo.base import used_by


@dataclass(frozen=True)
class Blockwise(SnapKV):
    """Feed the prompt in chunks; behind each chunk keep the C slots that its last queries attend to most.

    budget: C, of the whole prompt, as in SnapKV; window, kernel, pooling: as there, with the window at the end of each
    chunk. chunk: tokens, at least the window; the first chunk takes what is left over. A chunk sees what the ones
    before it left, so that the memory of the prompt never exceeds C and one chunk. Up to C tokens it is the full cache.
    """

    info: ClassVar[MethodInfo] = replace(
        SnapKV.info,
        summary="SnapKV behind every chunk of the prompt",
        shares_prefill=False,
        variant="chunks attend to what earlier ones left; one choice per kv head",
    )

    chunk: int = 128

    def __post_init__(self) -> None:
        """Raise SpecError for values out of range."""
        super().__post_init__()
        checks.whole(self.name(), "chunk", self.chunk, 1, 128)
        if self.chunk < self.window:
            raise SpecError(
                f"{self.name()}: a chunk of {self.chunk} tokens does not hold a window of {self.window}",
                f"type {option('methods')}={self.name()}:chunk={self.window}",
            )

    def ends(self, prompt: int) -> list[int]:
        """Where the chunks of a prompt end."""
        return list(range(prompt % self.chunk or self.chunk, prompt + 1, self.chunk))


@used_by(Blockwise)
class BlockwiseLayer(CacheLayer):
    """Chooses behind every chunk of the prompt. total: tokens of the prompt, None where it comes in one forward."""

    method: Blockwise
    total: int | None

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self.total = None

    def compress(self, queries: torch.Tensor) -> None:
        """Cut behind the first chunk."""
        self.cut(queries)

    def step(self, query: torch.Tensor) -> None:
        """Cut behind a later chunk; what follows the prompt stays."""
        if self.total is not None and self.seen <= self.total:
            self.prompt = self.seen
            self.cut(query)

    def cut(self, queries: torch.Tensor) -> None:
        """Keep C slots."""
        cap = self.method.cap(self.total or self.seen)
        if self.stored > cap:
            self.keep(self.choose(queries, self.keys, cap))

    def choose(self, queries: torch.Tensor, keys: torch.Tensor, cap: int) -> torch.Tensor:
        """The slots of these keys to keep, (B, G, C): the window, and what its queries attend to most before it."""
        method = self.method
        prefix = keys.shape[2] - method.window
        scores = scoring.window_scores(queries[:, :, -method.window :], keys, self.scaling)
        scores = scoring.pool(scores[:, :, :prefix], method.kernel, method.pooling)
        window = self.every_head(torch.arange(prefix, keys.shape[2], device=keys.device))
        return torch.cat([scoring.top(scores, cap - method.window), window], dim=2)


@used_by(Blockwise)
class BlockwiseRunner(MethodRunner):
    """Feeds the chunks of a prompt."""

    method: Blockwise

    def prefill(self, ids: torch.Tensor) -> tuple[KVCache, torch.Tensor]:
        """As MethodRunner.prefill, chunk by chunk."""
        cache = self.build()
        start = 0
        for layer in cache.layers:
            layer.total = ids.shape[1]
        for end in self.method.ends(ids.shape[1]):
            logits = self.feed(cache, ids[:, start:end])
            start = end
        return cache, logits[:, -1]
