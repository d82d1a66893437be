"""FlexGen's 4-bit cache: group-wise quantization per token. arXiv 2303.06865, FMInference/FlexLLMGen."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from kvcheck.cache import checks
from kvcheck.cache.full import KeepsAll
from kvcheck.cache.kv_cache import CacheLayer
from kvcheck.cache.method import MethodInfo, Stage
from kvcheck.cache.quantize import BITS, Packed, QuantLayer
from kvcheck.cache.shape import ModelShape


@dataclass(frozen=True)
class FlexGen(KeepsAll):
    """Every token's keys and values in `bits` bits, in groups of `group` neighbouring channels.

    bits: 2, 4 or 8 (official: 4). group: s, channels that share a scale and a minimum; must divide head_dim.
    A forward attends to its own tokens in full precision and to older ones dequantized; then it quantizes its own.
    So the prompt's logits are those of the full cache. Keys are quantized post-RoPE.

    Bytes: 2·L·B·G·n·(d·bits/8 + 4·d/s) after n tokens: 4.5 bits per element for s = 64.
    Errors: SpecError for values out of range, MethodUnsupported for a head_dim that s does not divide.
    Differences from the official code: scale and minimum are stored in float16 (official: the inverse of the scale,
    which overflows for groups that are almost constant; a constant group is 0/0 there and exact here); byte lanes are
    ordered otherwise; kv heads of GQA models, where the official code knows MHA only.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        summary="quantizes every token in groups of channels",
        stage=Stage.COMPRESSION,
        paper="arXiv 2303.06865",
        formula="2·L·B·G·n·(d·bits/8 + 4·d/s)",
        refuses="models whose head_dim the group does not divide",
        knob="bits",
        verbatim=False,
        variant="prompt attends in full precision (official), keys per token and post-RoPE; packed",
        exempt={"a_block_is_its_tokens_one_by_one": "a block is attended to whole, then quantized"},
        latents="quantizes the latent and the rotated part of the keys per token; the group must divide both widths",
    )

    bits: int = 4
    group: int = 64

    def __post_init__(self) -> None:
        """Raise SpecError for values out of range."""
        checks.one_of(self.name(), "bits", self.bits, (4, *(each for each in BITS if each != 4)))
        checks.whole(self.name(), "group", self.group, 8, 64)

    def check(self, shape: ModelShape) -> None:
        """The group must divide head_dim."""
        for width in shape.widths:
            checks.grouped(self.name(), self.group, width)

    def rounding(self) -> tuple[float, float]:
        """As KIVI's for values; a large channel of the keys takes the others of its group along."""
        return math.inf, 3.0 / (2**self.bits - 1)

    def layer(self, shape: ModelShape, index: int) -> CacheLayer:
        """A layer whose tail is empty between forwards."""
        return FlexGenLayer(shape, index, self)

    def kv_bytes(self, shape: ModelShape, batch: int, prompt: int, decoded: int) -> int:
        """Codes, and two float16 numbers per group."""
        token = sum(width * self.bits // 8 + 4 * (width // self.group) for width in shape.widths)
        return shape.layers * batch * shape.kv_heads * (prompt + decoded) * token


class FlexGenLayer(QuantLayer):
    """Quantizes everything after every forward."""

    method: FlexGen

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self.kq, self.vq = (Packed(self.method.bits, self.method.group, "token") for _ in "kv")

    def due(self, keys: int, values: int) -> tuple[int, int]:
        """All."""
        return keys, values


METHOD = FlexGen
