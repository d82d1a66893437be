"""Methods whose prompts are fed in chunks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import torch

from kvcheck.cache import checks
from kvcheck.cache.kv_cache import CacheLayer, KVCache
from kvcheck.cache.method import Method, MethodInfo
from kvcheck.cache.method_runner import MethodRunner
from kvcheck.cache.shape import ModelShape
from kvcheck.methods.fp16 import Fp16
from kvcheck.methods.h2o import H2O, H2OLayer
from kvcheck.methods.streaming_llm import StreamingLLM

if TYPE_CHECKING:
    from kvcheck.models import LoadedModel


def _in_chunks(info: MethodInfo) -> MethodInfo:
    """The declarations of a method whose prompt is fed in chunks."""
    variant = f"prompts are fed in chunks; {info.variant}" if info.variant else "prompts are fed in chunks"
    return replace(info, summary=f"{info.summary}, fed in chunks", shares_prefill=False, variant=variant)


@dataclass(frozen=True)
class Chunked(Fp16):
    """The full cache, fed in chunks of `chunk` tokens. Lossless."""

    info: ClassVar[MethodInfo] = _in_chunks(Fp16.info)

    chunk: int = 128

    def __post_init__(self) -> None:
        """Raise SpecError for values out of range."""
        checks.whole(self.name(), "chunk", self.chunk, 1, 128)

    def runner(self, loaded: LoadedModel) -> MethodRunner:
        """Feeds chunks."""
        return ChunkedRunner(self, loaded, self.chunk)


@dataclass(frozen=True)
class ChunkedStreamingLLM(StreamingLLM):
    """StreamingLLM, fed in chunks of `chunk` tokens. Every chunk sees all before it; the prompt is cut at its end."""

    info: ClassVar[MethodInfo] = _in_chunks(StreamingLLM.info)

    chunk: int = 128

    def __post_init__(self) -> None:
        """Raise SpecError for values out of range."""
        super().__post_init__()
        checks.whole(self.name(), "chunk", self.chunk, 1, 128)

    def runner(self, loaded: LoadedModel) -> MethodRunner:
        """Feeds chunks."""
        return ChunkedRunner(self, loaded, self.chunk)


@dataclass(frozen=True)
class ChunkedH2O(H2O):
    """H2O, fed in chunks of `chunk` tokens; scores are those of the whole prompt, which is cut at its end."""

    info: ClassVar[MethodInfo] = _in_chunks(H2O.info)

    chunk: int = 128

    def __post_init__(self) -> None:
        """Raise SpecError for values out of range."""
        super().__post_init__()
        checks.whole(self.name(), "chunk", self.chunk, 1, 128)

    def layer(self, shape: ModelShape, index: int) -> CacheLayer:
        """A layer of H2O."""
        return H2OLayer(shape, index, self)

    def runner(self, loaded: LoadedModel) -> MethodRunner:
        """Feeds chunks."""
        return ChunkedRunner(self, loaded, self.chunk)


class ChunkedRunner(MethodRunner):
    """Feeds a prompt in chunks, which attend to everything before them; the method compresses once, at the end."""

    def __init__(self, method: Method, loaded: LoadedModel, chunk: int) -> None:
        super().__init__(method, loaded)
        self.chunk = chunk

    def prefill(self, ids: torch.Tensor) -> tuple[KVCache, torch.Tensor]:
        """As MethodRunner.prefill, in several forwards."""
        cache = self.build()
        with cache.prefilling():
            logits = self.feed_chunks(cache, ids)
        return cache, logits

    def feed_chunks(self, cache: KVCache, ids: torch.Tensor) -> torch.Tensor:
        """Feed (R, n) chunk by chunk -> the logits (R, V) behind them."""
        for part in ids.split(self.chunk, dim=1):
            logits = self.feed(cache, part)
        return logits[:, -1]
