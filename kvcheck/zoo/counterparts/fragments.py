"""Prefetched pieces of text whose caches are joined, with their keys turned to where the pieces come to lie."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from kvcheck.cache import checks
from kvcheck.cache.full import KeepsAll
from kvcheck.cache.kv_cache import CacheLayer, KVCache
from kvcheck.cache.method import MethodInfo
from kvcheck.cache.method_runner import MethodRunner
from kvcheck.cache.rotary import rotate
from kvcheck.cache.shape import ModelShape, Prefilled
from kvcheck.core.errors import MethodUnsupported
from kvcheck.methods.fp16 import Fp16
from kvcheck.zoo.base import used_by


@dataclass(frozen=True)
class Fragments(KeepsAll):
    """Compute pieces of the prompt alone, each from position 0, and join their caches; feed the end of it behind them.

    piece: tokens of a piece. fresh: tokens at the end of the prompt that are computed with everything before them (at
    least 1). The keys of a piece that comes to lie at position s are turned by s. A piece does not see those before it,
    and nothing is recomputed; a prompt of at most piece + fresh tokens is that of the full cache.

    Bytes: 2·L·B·G·n·d·2 after n tokens. Errors: SpecError for values out of range; MethodUnsupported for models whose
    rotation of keys is not known.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        summary="joins the caches of pieces that were computed alone",
        stage="loading",
        formula="2·L·B·G·n·d·2",
        refuses="models whose rotation of keys is not known",
        knob="piece",
        frees_memory=False,
        shares_prefill=False,
        variant="CacheBlend without recomputation",
    )

    piece: int = 128
    fresh: int = 32

    def __post_init__(self) -> None:
        """Raise SpecError for values out of range."""
        checks.whole(self.name(), "piece", self.piece, 1, 128)
        checks.whole(self.name(), "fresh", self.fresh, 1, 32)

    def check(self, shape: ModelShape) -> None:
        """Keys must be rotatable."""
        if shape.rope is None:
            raise MethodUnsupported(
                f"{self.name()}: moves keys to other positions, and how this model rotates them is not known",
                "use a model such as llama, mistral or qwen2 with default, linear or llama3 RoPE",
            )

    def layer(self, shape: ModelShape, index: int) -> CacheLayer:
        """A full cache layer."""
        return CacheLayer(shape, index, self)


@used_by(Fragments)
class FragmentsRunner(MethodRunner):
    """Prefills piece by piece, then joins."""

    method: Fragments

    def prefill(self, ids: torch.Tensor) -> tuple[KVCache, torch.Tensor]:
        """Join the pieces of the prompts (R, n), and feed the end."""
        old = max(0, ids.shape[1] - self.method.fresh)
        cache = self.build()
        if old:
            cache.absorb(self.joined(ids[:, :old].split(self.method.piece, dim=1)))
        return cache, self.feed(cache, ids[:, old:])[:, -1]

    def joined(self, pieces: tuple[torch.Tensor, ...]) -> list[Prefilled]:
        """Per layer the keys and values of all pieces, one behind the other."""
        parts: list[list[Prefilled]] = [[] for _ in range(self.shape.layers)]
        start = 0
        for piece in pieces:
            alone = Fp16().build(self.shape)
            self.feed(alone, piece)
            for layer, found in zip(alone.layers, parts, strict=True):
                found.append(Prefilled(self.moved(layer.keys, start), layer.values, None, layer.scaling))
            start += piece.shape[1]
        return [
            Prefilled(torch.cat([each.keys for each in found], 2), torch.cat([each.values for each in found], 2))
            for found in parts
        ]

    def moved(self, keys: torch.Tensor, start: int) -> torch.Tensor:
        """Keys (R, G, n, d) of a piece that was computed from position 0, as they are from position `start`."""
        if not start:
            return keys
        at = torch.tensor(start, device=keys.device)
        return rotate(keys, at, self.shape.rope or ())  # `check` refuses a model without
