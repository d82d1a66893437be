"""Bugs of what a cache says about itself: how many tokens, how many bytes, which budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from kvcheck.cache.growable import GrowableBuffer
from kvcheck.cache.kv_cache import CacheLayer
from kvcheck.cache.quantize import Packed
from kvcheck.methods.flexgen import FlexGen, FlexGenLayer
from kvcheck.methods.fp16 import Fp16
from kvcheck.zoo.base import bug, used_by
from kvcheck.zoo.counterparts.chain import Chain
from kvcheck.zoo.counterparts.pyramid import Pyramid


@bug("composed-ratios-multiplied-as-removed", "https://github.com/NVIDIA/kvpress/issues/146")
class ComposedRatiosMultipliedAsRemoved(Chain):
    """The shares that two stages remove are multiplied to say what both remove, as if they were shares that are kept:
    two halves make a quarter removed, while three quarters are gone. What is stored is right, what is said of it wrong.

    Found in kvpress's ComposedPress. Shows wherever two stages both remove something.
    """

    def removed(self, prompt: int) -> int:
        """The product of both shares."""
        return min(int(self.votes * self.norms * prompt), max(0, prompt - self.window))


@bug("bit-width-accounting-only", "https://github.com/rajveer43/VeloxQuant-MLX/issues/54")
class BitWidthAccountingOnly(FlexGen):
    """Keys and values are quantized, dequantized at once and kept in 16 bits; the declared bytes are computed from the
    number of bits.

    Found in a library of quantizers for MLX. Shows in the memory of the process alone: the answers are those of a
    quantized cache.
    """


class RoundTrip:
    """Tokens that went through few bits and are stored in 16, (B, G, T, d)."""

    def __init__(self, bits: int, group: int) -> None:
        self.bits, self.group = bits, group
        self.tokens: GrowableBuffer | None = None

    @property
    def length(self) -> int:
        """Tokens stored."""
        return 0 if self.tokens is None else self.tokens.length

    def append(self, values: torch.Tensor) -> None:
        """Store tokens (B, G, t, d)."""
        codes = Packed(self.bits, self.group, "token")
        codes.append(values)
        back = torch.empty(values.shape, device=values.device)
        codes.read(slice(None), back)
        if self.tokens is None:
            self.tokens = GrowableBuffer(back.to(values.dtype))
        else:
            self.tokens.append(back.to(values.dtype))

    def read(self, rows: slice, out: torch.Tensor, heads: slice = slice(None)) -> None:
        """Write the tokens of these rows of the batch and kv heads into out (b, g, T, d), float32."""
        if self.tokens is not None:
            out.copy_(self.tokens.used[rows, heads])

    def select(self, rows: Sequence[int] | torch.Tensor) -> RoundTrip:
        """Copies of these rows of the batch."""
        selected = RoundTrip(self.bits, self.group)
        selected.tokens = None if self.tokens is None else self.tokens.select(rows)
        return selected


@used_by(BitWidthAccountingOnly)
class RoundTripLayer(FlexGenLayer):
    """Stores everything in 16 bits."""

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self.kq, self.vq = (RoundTrip(self.method.bits, self.method.group) for _ in "kv")


@bug("per-layer-budget-guarded-by-global", "https://github.com/Zefan-Cai/KVCache-Factory/issues/6", "budget=352")
class PerLayerBudgetGuardedByGlobal(Pyramid):
    """Every layer has a budget of its own, but the code asks first whether the prompt is shorter than twice the mean
    budget before the window, and if so gives all layers that mean.

    Found in PyramidKV's code, where it was defended. Shows for prompts between one and about two budgets.
    """

    def prefix(self, layers: int, index: int, prompt: int) -> int:
        """The mean for prompts of medium length."""
        mean = self.cap(prompt) - self.window
        return mean if prompt < 2 * mean else super().prefix(layers, index, prompt)


@bug("length-inferred-from-nonzero-values", "https://github.com/huggingface/transformers/issues/30377")
@dataclass(frozen=True)
class LengthInferredFromNonzeroValues(Fp16):
    """The number of tokens, from which the positions of the next ones follow, is the number of slots of the first row
    and head whose keys are not all zero, so a token with a key of zeros is not counted.

    Found in the static cache of transformers. Shows after tokens whose embedding is zero, in models whose keys have no
    bias: those that follow come a position too early.
    """


@used_by(LengthInferredFromNonzeroValues)
class CountedLayer(CacheLayer):
    """Counts keys that are not zero."""

    def get_seq_length(self, *args: object) -> int:
        """Slots with something in them."""
        return int(self.keys[0, 0].any(dim=-1).sum()) if self.seen else 0
