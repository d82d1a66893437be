"""KIVI: 2 or 4 bits, keys per channel, values per token, the newest in 16 bits. arXiv 2402.02750, jy-yuan/KIVI."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from kvcheck.cache import checks
from kvcheck.cache.full import KeepsAll
from kvcheck.cache.kv_cache import CacheLayer
from kvcheck.cache.method import Lossless, MethodInfo, Stage
from kvcheck.cache.quantize import Packed, QuantLayer
from kvcheck.cache.shape import ModelShape
from kvcheck.core.errors import SpecError
from kvcheck.core.front import option


@dataclass(frozen=True)
class KIVI(KeepsAll):
    """Quantize keys per channel, in groups of tokens, and values per token, in groups of channels.

    bits: 2 or 4. group: g, tokens (keys) or channels (values) that share a scale and a zero; must divide head_dim.
    residual: R, a multiple of g. Of n tokens, the newest n mod R keys and the newest min(n, R) values stay in 16 bits.
    While decoding, the key tail is quantized as a whole each time it reaches R, and the value tail loses its oldest
    token to the quantized part as soon as it exceeds R. A forward attends to its own tokens unquantized, so the
    prompt's logits are those of the full cache. A block of tokens leaves the state that token by token would leave.

    Bytes, with rK = n mod R, rV = min(n, R), qK = n - rK, qV = n - rV:
    L·B·G·d·[ (qK + qV)·bits/8 + 4·(qK + qV)/g + 2·(rK + rV) ].
    Errors: SpecError for values out of range, MethodUnsupported for a head_dim that g does not divide.
    Differences from the official code: a constant group is exact (0/0 there); bytes instead of int32 words, with the
    lanes in another order; keys are not stored transposed. Keys are quantized post-RoPE, as there.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        summary="quantizes keys per channel and values per token",
        stage=Stage.COMPRESSION,
        paper="arXiv 2402.02750",
        formula="L·B·G·d·[(qK + qV)·bits/8 + 4·(qK + qV)/g + 2·(rK + rV)]",
        refuses="models whose head_dim the group does not divide",
        knob="bits",
        verbatim=False,
        variant="generated tokens are quantized too (official; SCBench leaves them in 16 bits); packed",
        lossless=Lossless.at("residual=102400"),
        nearly=Lossless.at("bits=4"),
        exempt={"a_block_is_its_tokens_one_by_one": "a block is attended to whole, then quantized"},
        latents="quantizes the latent as it does keys, their rotated part as values; the group must divide both widths",
    )

    bits: int = 2
    group: int = 32
    residual: int = 128

    def __post_init__(self) -> None:
        """Raise SpecError for values out of range."""
        name = self.name()
        checks.one_of(name, "bits", self.bits, (2, 4))
        checks.whole(name, "group", self.group, 4, 32)
        checks.whole(name, "residual", self.residual, 1, 128)
        if self.group % (8 // self.bits):
            raise SpecError(
                f"{name}: group={self.group} codes of {self.bits} bits do not fill whole bytes",
                f"type {option('methods')}={name}:group=32",
            )
        if self.residual % self.group:
            raise SpecError(
                f"{name}: residual={self.residual} is not a multiple of group={self.group}",
                f"type {option('methods')}={name}:residual={self.group * max(1, self.residual // self.group)}",
            )

    def check(self, shape: ModelShape) -> None:
        """The group must divide head_dim."""
        for width in shape.widths:
            checks.grouped(self.name(), self.group, width)

    def tails(self, seen: int) -> tuple[int, int]:
        """rK, rV: tokens whose keys, and whose values, are in 16 bits after `seen` tokens."""
        return seen % self.residual, min(seen, self.residual)

    def rounding(self) -> tuple[float, float]:
        """A group of normal numbers spans some five deviations; its error is uniform within a step. With slack."""
        return 2.2 / (2**self.bits - 1), 2.2 / (2**self.bits - 1)

    def layer(self, shape: ModelShape, index: int) -> CacheLayer:
        """A layer with two tails."""
        return KIVILayer(shape, index, self)

    def kv_bytes(self, shape: ModelShape, batch: int, prompt: int, decoded: int) -> int:
        """Codes, two float16 numbers per group, and the tails."""
        seen, size = prompt + decoded, 0
        for width, tail in zip(shape.widths, self.tails(seen), strict=True):
            packed = (seen - tail) * width
            size += packed * self.bits // 8 + 4 * packed // self.group + tail * width * shape.itemsize
        return shape.layers * batch * shape.kv_heads * size


class KIVILayer(QuantLayer):
    """Quantizes by the residual rules."""

    method: KIVI

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        bits, group = self.method.bits, self.method.group
        self.kq, self.vq = Packed(bits, group, "channel"), Packed(bits, group, "token")

    def due(self, keys: int, values: int) -> tuple[int, int]:
        """Whole residuals of keys; values in excess of one residual."""
        return keys - keys % self.method.residual, max(0, values - self.method.residual)


METHOD = KIVI
