"""Methods whose prompts are fed in chunks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import torch

from kvcheck.cache import checks, scoring
from kvcheck.cache.kv_cache import CacheLayer, KVCache
from kvcheck.cache.method import Method, MethodInfo
from kvcheck.cache.method_runner import MethodRunner
from kvcheck.cache.shape import ModelShape
from kvcheck.core.errors import SpecError
from kvcheck.core.front import option
from kvcheck.methods.fp16 import Fp16
from kvcheck.methods.h2o import H2O, H2OLayer
from kvcheck.methods.mixattention import MixAttention, MixRunner
from kvcheck.methods.snapkv import SnapKV
from kvcheck.methods.streaming_llm import StreamingLLM
from kvcheck.zoo.base import used_by

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


@dataclass(frozen=True)
class ChunkedMix(MixAttention):
    """MixAttention whose prompt comes in chunks of `chunk` tokens; sliding layers are trimmed behind the last one.

    So the early tokens of a chunk find all that their window reaches, and the answers are those of MixAttention.
    """

    info: ClassVar[MethodInfo] = replace(
        MixAttention.info,
        summary=f"{MixAttention.info.summary}, fed in chunks",
        variant=f"prompts are fed in chunks; {MixAttention.info.variant}",
    )

    chunk: int = 256

    def __post_init__(self) -> None:
        """Raise SpecError for values out of range."""
        checks.whole(self.name(), "chunk", self.chunk, 1, 256)

    def runner(self, loaded: LoadedModel) -> MethodRunner:
        """Feeds chunks, as MixAttention's runner on its model."""
        super().runner(loaded)  # refuses what MixAttention refuses
        return ChunkedMixRunner(self, loaded)


class ChunkedMixRunner(MixRunner):
    """Feeds a prompt in chunks."""

    method: ChunkedMix

    def prefill(self, ids: torch.Tensor) -> tuple[KVCache, torch.Tensor]:
        """As MethodRunner.prefill, in several forwards."""
        cache = self.build()
        with cache.prefilling():
            for part in ids.split(self.method.chunk, dim=1):
                logits = self.feed(cache, part)
        return cache, logits[:, -1]


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
