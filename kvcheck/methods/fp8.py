"""FP8: keys and values as 8-bit floats (e4m3). The format is that of arXiv 2209.05433."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from kvcheck.cache import checks
from kvcheck.cache.full import KeepsAll
from kvcheck.cache.growable import GrowableBuffer, appended
from kvcheck.cache.kv_cache import CacheLayer
from kvcheck.cache.method import Lossless, MethodInfo, Stage
from kvcheck.cache.quantize import QuantLayer
from kvcheck.cache.shape import ModelShape

if TYPE_CHECKING:
    from typing_extensions import Self

FORMAT = torch.float8_e4m3fn
LARGEST = torch.finfo(FORMAT).max


@dataclass(frozen=True)
class FP8(KeepsAll):
    """Store every key and value as an 8-bit float of 4 exponent and 3 mantissa bits, times a scale.

    scale: "head": one float32 per row and kv head, the largest magnitude of the prompt / 448, frozen there; what comes
    later and is larger saturates (the format has no infinity: without that it would turn into NaN). "token": one
    float16 per token and kv head, for whatever comes. A forward attends to its own tokens unquantized.

    A value that does not saturate is read back within 1/16 of itself, or within scale / 1024 where it is tiny.

    Bytes, after n tokens: 2·L·B·G·(n·d + 4) with a scale per head, 2·L·B·G·n·(d + 2) with one per token.
    Errors: SpecError for an unknown scale.
    Differences: transformers' Fp8QuantizedLayer has one scale per tensor, over rows and heads (so rows depend on each
    other), and does not saturate; vLLM takes a calibrated scale per layer, or 1.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        summary="stores keys and values as 8-bit floats",
        stage=Stage.COMPRESSION,
        paper="arXiv 2209.05433",
        formula="2·L·B·G·(n·d + 4) with a scale per head, 2·L·B·G·n·(d + 2) with one per token",
        knob="scale",
        verbatim=False,
        variant="e4m3 with a scale per row and kv head, frozen after the prompt; saturates",
        exempt={"a_block_is_its_tokens_one_by_one": "a block is attended to whole, then rounded"},
        latents="rounds the latent and the rotated part of the keys, each with its own scale",
        nearly=Lossless.ALWAYS,
    )

    scale: str = "head"

    def __post_init__(self) -> None:
        """Raise SpecError for an unknown scale."""
        checks.one_of(self.name(), "scale", self.scale, ("head", "token"))

    def rounding(self) -> tuple[float, float]:
        """Three bits behind the leading one, whatever the size: an error of some 2 percent. With slack."""
        return 0.06, 0.06

    def layer(self, shape: ModelShape, index: int) -> CacheLayer:
        """A layer whose tail is empty between forwards."""
        return FP8Layer(shape, index, self)

    def kv_bytes(self, shape: ModelShape, batch: int, prompt: int, decoded: int) -> int:
        """A byte per value, and the scales."""
        seen = prompt + decoded
        scales = 4 if self.scale == "head" else 2 * seen
        each = sum(seen * width + scales for width in shape.widths)
        return shape.layers * batch * shape.kv_heads * each


class Floats:
    """Tokens of one layer as 8-bit floats: codes (B, G, T, d) uint8; scale (B, G, 1, 1) float32, or (B, G, T, 1)."""

    def __init__(self, per: str) -> None:
        self.per = per
        self.codes: GrowableBuffer | None = None
        self.scale: GrowableBuffer | None = None

    @property
    def length(self) -> int:
        """Tokens stored."""
        return 0 if self.codes is None else self.codes.length

    def append(self, values: torch.Tensor) -> None:
        """Store tokens (B, G, t, d)."""
        wide = values.float()
        dims = (2, 3) if self.per == "head" else (3,)
        if self.per == "token" or self.scale is None:
            scale = (wide.abs().amax(dims, keepdim=True) / LARGEST).clamp(min=torch.finfo(torch.float16).tiny)
            scale = scale if self.per == "head" else scale.half()
        else:
            scale = self.scale.used
        codes = (wide / scale.float()).clamp(-LARGEST, LARGEST).to(FORMAT).view(torch.uint8)
        self.codes = appended(self.codes, codes)
        if self.per == "token" or self.scale is None:
            self.scale = appended(self.scale, scale)

    def read(self, rows: slice, out: torch.Tensor, heads: slice = slice(None)) -> None:
        """Write the tokens of these rows of the batch and kv heads into out (b, g, T, d), float32."""
        if self.codes is not None and self.scale is not None:
            widen(self.codes.used[rows, heads], out)
            out.mul_(self.scale.used[rows, heads].float())

    def select(self, rows: Sequence[int] | torch.Tensor) -> Self:
        """Copies of these rows of the batch."""
        selected = copy.copy(self)
        selected.codes, selected.scale = (
            None if each is None else each.select(rows) for each in (self.codes, self.scale)
        )
        return selected


def widen(codes: torch.Tensor, out: torch.Tensor) -> None:
    """Write the 8-bit floats that codes (uint8) are into out, float32.

    On a CPU by way of float16, which is three times as fast: the same bits, moved to their places there, are the number
    divided by 2^8, since the two formats differ in the offset of their exponents by 8.
    """
    if codes.is_cuda:
        out.copy_(codes.view(FORMAT))
        return
    wide = codes.to(torch.int16)
    out.copy_(((wide & 0x80) << 8 | (wide & 0x7F) << 7).view(torch.float16))
    out.mul_(256.0)


class FP8Layer(QuantLayer):
    """Rounds everything after every forward."""

    method: FP8

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self.kq, self.vq = Floats(self.method.scale), Floats(self.method.scale)

    def due(self, keys: int, values: int) -> tuple[int, int]:
        """All."""
        return keys, values


METHOD = FP8
