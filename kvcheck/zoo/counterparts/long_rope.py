"""The full cache of a model that is served beyond its native context, by turning slow rotary pairs slower."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from kvcheck.cache import checks
from kvcheck.cache.full import KeepsAll
from kvcheck.cache.kv_cache import CacheLayer
from kvcheck.cache.method import Lossless, MethodInfo
from kvcheck.cache.rotary import rotate
from kvcheck.cache.shape import ModelShape
from kvcheck.core.errors import KvcheckError, MethodUnsupported
from kvcheck.zoo.base import used_by


@dataclass(frozen=True)
class LongRope(KeepsAll):
    """The full cache, with two sets of rotary frequencies: the model's own, and others for texts longer than `native`.

    native: tokens up to which the model's own frequencies hold. capacity: tokens that the cache may come to hold. In a
    longer text pair i of d/2 turns at f_i·s^(-2i/(d-2)) with s = capacity / native, for all keys and queries. Stored
    keys stay as the model made them, and are turned when they are read. A text of at most `native` tokens is served
    exactly as by the full cache, whatever the capacity. Memory is allocated as tokens come.

    Bytes: 2·L·B·G·n·d·2. Errors: SpecError for values out of range, MethodUnsupported for a model whose rotation is not
    known, KvcheckError for a text beyond the capacity.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        summary="the full cache, with other rotary frequencies beyond the native context",
        stage="compression",
        formula="2·L·B·G·n·d·2",
        frees_memory=False,
        shares_prefill=False,
        refuses="models whose rotation of keys is not known",
        variant="NTK-aware frequencies, in a layer's reach",
        lossless=Lossless.ALWAYS,
    )

    native: int = 8192
    capacity: int = 65536

    def __post_init__(self) -> None:
        """Raise SpecError for values out of range."""
        checks.whole(self.name(), "native", self.native, 1, 8192)
        checks.whole(self.name(), "capacity", self.capacity, 1, 65536)

    def check(self, shape: ModelShape) -> None:
        """Keys must be rotatable."""
        if shape.rope is None:
            raise MethodUnsupported(
                f"{self.name()}: turns keys, and how this model rotates them is not known",
                "use a model such as llama, mistral or qwen2 with default, linear or llama3 RoPE",
            )

    def extended(self, tokens: int) -> bool:
        """Whether a text of so many tokens needs the other frequencies."""
        return tokens > self.native


@used_by(LongRope)
class LongLayer(CacheLayer):
    """Turns keys and queries where the text is long."""

    method: LongRope

    def write(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """As the full cache. Raises KvcheckError beyond the capacity."""
        if self.stored + keys.shape[2] > self.method.capacity:
            raise KvcheckError(
                f"{self.stored + keys.shape[2]} tokens do not fit a capacity of {self.method.capacity}",
                "give more: capacity=TOKENS",
            )
        super().write(keys, values)

    def answer(self, query: torch.Tensor, rows: slice) -> torch.Tensor:
        """Attention by the frequencies that the text needs."""
        if not self.method.extended(self.seen):
            return super().answer(query, rows)
        keys, values = self.read(rows, query.dtype)
        positions = torch.arange(self.seen, device=query.device)
        turned = rotate(query, positions[-query.shape[2] :], self.change())
        return self.attention(turned, rotate(keys, positions, self.change()), values, rows)

    def change(self) -> tuple[float, ...]:
        """By how much the other frequencies differ from the model's, per pair."""
        rope = self.shape.rope or ()  # `check` refuses a model without
        factor = max(1.0, self.method.capacity / self.method.native)
        last = max(1, len(rope) - 1)
        return tuple(own * (factor ** (-pair / last) - 1) for pair, own in enumerate(rope))
