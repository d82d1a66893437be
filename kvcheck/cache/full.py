"""The full cache as a method, which the others are compared with and which serves where none acts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from kvcheck.cache.kv_cache import CacheLayer
from kvcheck.cache.method import Lossless, Method, MethodInfo, Stage
from kvcheck.cache.shape import ModelShape


@dataclass(frozen=True)
class KeepsAll(Method):
    """Base of methods that hold every token."""

    def slots(self, shape: ModelShape, prompt: int, decoded: int) -> tuple[int, ...]:
        """Every token has a slot."""
        return (prompt + decoded,) * shape.layers

    def protected(self, prompt: int) -> frozenset[int]:
        """All positions."""
        return frozenset(range(prompt))


@dataclass(frozen=True)
class FullCache(KeepsAll):
    """Every token stays. Bytes: 2·L·B·G·n·d·2 after n tokens."""

    info: ClassVar[MethodInfo] = MethodInfo(
        summary="the full cache in 16 bits",
        stage=Stage.COMPRESSION,
        formula="2·L·B·G·n·d·2",
        frees_memory=False,
        lossless=Lossless.ALWAYS,
        latents="keeps them in 16 bits",
    )

    def layer(self, shape: ModelShape, index: int) -> CacheLayer:
        """A full cache layer."""
        return CacheLayer(shape, index, self)


FULL = FullCache()
