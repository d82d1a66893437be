"""Offload: keys and values live in host memory and visit the device layer by layer (FlexGen, 2303.06865)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from kvcheck.cache.full import KeepsAll
from kvcheck.cache.growable import GrowableBuffer
from kvcheck.cache.kv_cache import CacheLayer
from kvcheck.cache.method import Lossless, MethodInfo, Stage
from kvcheck.cache.shape import ModelShape


@dataclass(frozen=True)
class Offload(KeepsAll):
    """The full cache in the memory of the host; keys and values of a layer are on the device only while it attends.

    Lossless: answers are those of the full cache. On a CPU machine host and device are the same memory.

    Bytes on the device between forwards: 0; in host memory (`host_bytes`): 2·L·B·G·n·d·2 after n tokens. While a layer
    attends, its own are on the device. Nothing is fetched ahead.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        summary="keeps keys and values in host memory and fetches them layer by layer",
        stage=Stage.LOADING,
        paper="arXiv 2303.06865",
        formula="0 on the device, 2·L·B·G·n·d·2 in host memory",
        variant="whole layers, fetched when they attend and not ahead",
        lossless=Lossless.ALWAYS,
        latents="keeps them in host memory",
    )

    def layer(self, shape: ModelShape, index: int) -> CacheLayer:
        """A layer whose keys and values are on the CPU."""
        return OffloadedLayer(shape, index, self)

    def kv_bytes(self, shape: ModelShape, batch: int, prompt: int, decoded: int) -> int:
        """None on the device."""
        return 0

    def host_bytes(self, shape: ModelShape, batch: int, prompt: int, decoded: int) -> int:
        """All of it."""
        return shape.dense_bytes(batch, prompt + decoded)


class OffloadedLayer(CacheLayer):
    """Buffers in host memory. home: the device that the model computes on."""

    host = ("k", "v")
    home: torch.device = torch.device("cpu")

    def write(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Store them in host memory."""
        self.home = keys.device
        super().write(keys.cpu(), values.cpu())

    def compress(self, queries: torch.Tensor) -> None:
        """A prompt that was prefilled elsewhere moves to host memory."""
        if self.keys.device.type != "cpu":
            self.home = self.keys.device
            self.k, self.v = GrowableBuffer(self.keys.cpu()), GrowableBuffer(self.values.cpu())

    def read(self, rows: slice, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """Fetched to the device."""
        return self.keys[rows].to(self.home, dtype), self.values[rows].to(self.home, dtype)


METHOD = Offload
