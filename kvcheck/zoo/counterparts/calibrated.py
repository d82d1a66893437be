"""An 8-bit cache with scales that come with the model, and its switched-off form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from kvcheck.cache import forward
from kvcheck.cache.full import KeepsAll
from kvcheck.cache.growable import GrowableBuffer
from kvcheck.cache.kv_cache import CacheLayer, KVCache
from kvcheck.cache.method import MethodInfo
from kvcheck.cache.method_runner import MethodRunner
from kvcheck.cache.quantize import QuantLayer
from kvcheck.cache.shape import ModelShape
from kvcheck.methods.fp8 import FORMAT, LARGEST, Floats
from kvcheck.methods.fp16 import Fp16
from kvcheck.zoo.base import used_by

if TYPE_CHECKING:
    from kvcheck.models import LoadedModel

TEXT = 256
"""Tokens of the random text that scales are measured on."""


@dataclass(frozen=True)
class Calibrated(KeepsAll):
    """8-bit floats with one scale per layer for keys and one for values, measured once on the model.

    quantized: False stores 16 bits, and the scales are of no use: that is the full cache. The scales are the largest
    magnitude on a seeded random text of 256 tokens, divided by 448; what is larger saturates. They belong to the model,
    not to the cache. A cache that is built without a runner has scales of 1.

    Bytes: 2·L·B·G·n·d after n tokens, twice that where quantized is False.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        summary="8-bit floats with scales measured once on the model",
        stage="compression",
        formula="2·L·B·G·n·d, twice that in 16 bits",
        knob="quantized",
        verbatim=False,
        variant="a scale per layer for keys and one for values",
    )

    quantized: bool = True

    def layer(self, shape: ModelShape, index: int) -> CacheLayer:
        """A layer with scales."""
        return ScaledLayer(shape, index, self) if self.quantized else PlainLayer(shape, index, self)

    def kv_bytes(self, shape: ModelShape, batch: int, prompt: int, decoded: int) -> int:
        """A byte per value, or as many as the full cache has."""
        full = shape.dense_bytes(batch, prompt + decoded)
        return full // shape.itemsize if self.quantized else full


class Fixed(Floats):
    """8-bit floats with a scale that is given and counted nowhere."""

    def __init__(self, factor: float) -> None:
        super().__init__("head")
        self.factor = factor

    def append(self, values: torch.Tensor) -> None:
        """Store tokens (B, G, t, d)."""
        codes = (values.float() / self.factor).clamp(-LARGEST, LARGEST).to(FORMAT).view(torch.uint8)
        if self.codes is None:
            self.codes = GrowableBuffer(codes)
        else:
            self.codes.append(codes)

    def read(self, rows: slice, out: torch.Tensor, heads: slice = slice(None)) -> None:
        """Write the tokens of these rows of the batch and kv heads into out (b, g, T, d), float32."""
        if self.codes is not None:
            out.copy_(self.codes.used[rows, heads].view(FORMAT)).mul_(self.factor)


class ScaledLayer(QuantLayer):
    """Rounds everything after every forward."""

    method: Calibrated

    def reset(self) -> None:
        """Forget everything but the scales, which belong to the model."""
        super().reset()
        self.calibrate(*getattr(self, "scales", (1.0, 1.0)))

    def calibrate(self, k_scale: float, v_scale: float) -> None:
        """Take the scales of keys and values; before the first token."""
        self.scales = k_scale, v_scale
        self.kq, self.vq = Fixed(k_scale), Fixed(v_scale)

    def due(self, keys: int, values: int) -> tuple[int, int]:
        """All."""
        return keys, values


class PlainLayer(CacheLayer):
    """16 bits. Knows the scales and does not use them."""

    scales = (1.0, 1.0)

    def calibrate(self, k_scale: float, v_scale: float) -> None:
        """Take the scales of keys and values."""
        self.scales = k_scale, v_scale


@used_by(Calibrated)
class CalibratedRunner(MethodRunner):
    """Measures the scales, and hands them to every layer that it builds."""

    def __init__(self, method: Calibrated, loaded: LoadedModel) -> None:
        super().__init__(method, loaded)
        self.scales = scales_of(loaded)

    def build(self) -> KVCache:
        """A fresh, empty cache with the model's scales."""
        cache = self.method.build(self.shape)
        for layer, pair in zip(cache.layers, self.scales, strict=True):
            layer.calibrate(*pair)  # type: ignore[attr-defined]
        return cache


def scales_of(loaded: LoadedModel) -> list[tuple[float, float]]:
    """Per layer the scales of keys and values on a seeded random text."""
    vocabulary = loaded.model.get_input_embeddings().num_embeddings
    tokens = min(TEXT, loaded.max_length or TEXT)
    text = torch.randint(vocabulary, (1, tokens), generator=torch.Generator().manual_seed(0)).to(loaded.device)
    cache = Fp16().build(ModelShape.of(loaded.model.config))
    forward.feed(loaded.model, text, cache, logits_to_keep=1)
    sizes = ((float(layer.keys.abs().max()), float(layer.values.abs().max())) for layer in cache.layers)
    return [(max(keys, 1e-4) / LARGEST, max(values, 1e-4) / LARGEST) for keys, values in sizes]
