"""MixAttention, fed in chunks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import torch

from kvcheck.cache import checks
from kvcheck.cache.kv_cache import KVCache
from kvcheck.cache.method import MethodInfo
from kvcheck.cache.method_runner import MethodRunner
from kvcheck.methods.mixattention import MixAttention, MixRunner

if TYPE_CHECKING:
    from kvcheck.models import LoadedModel


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
