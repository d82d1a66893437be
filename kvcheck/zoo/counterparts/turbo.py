"""Rotated vectors in a codebook, as TurboQuant (arXiv 2504.19874) stores them, and in layers that are shared."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from kvcheck.cache import checks
from kvcheck.cache.kv_cache import CacheLayer
from kvcheck.cache.method import MethodInfo
from kvcheck.cache.quantize import QuantLayer
from kvcheck.cache.shape import ModelShape
from kvcheck.cache.turned import Turned
from kvcheck.methods.mixattention import MadeLayer, MixAttention, ReadLayer
from kvcheck.methods.turboquant import TurboQuant


@dataclass(frozen=True)
class Turbo(TurboQuant):
    """TurboQuant on blocks of a vector, each with a norm and a rotation of its own.

    bits, sketch, recent: as there. block: channels that are rotated together; the last block of a vector is what is
    left of head_dim.

    Bytes: L·B·G·n·(d·bits/4 + (4 + 2·sketch)·⌈d/block⌉) after n tokens. Errors: SpecError for values out of range,
    MethodUnsupported for blocks whose codes do not fill whole bytes.
    """

    info: ClassVar[MethodInfo] = replace(
        TurboQuant.info,
        summary="stores rotated blocks of vectors in a codebook made for them",
        formula="L·B·G·n·(d·bits/4 + (4 + 2·sketch)·⌈d/block⌉)",
        variant="a norm and a rotation per block of channels",
    )

    block: int = 64

    def __post_init__(self) -> None:
        """Raise SpecError for values out of range."""
        super().__post_init__()
        checks.whole(self.name(), "block", self.block, 4, 64)

    def blocks(self, head_dim: int) -> tuple[int, ...]:
        """Channels of every block of a vector."""
        rest = head_dim % self.block
        return (self.block,) * (head_dim // self.block) + ((rest,) if rest else ())


BITS = 4


@dataclass(frozen=True)
class MixTurbo(MixAttention):
    """MixAttention; what a layer makes is stored as Turbo does in 4 bits, with the rotation of that layer.

    A layer that makes keys and values attends to its own tokens unquantized; its readers read what is stored.

    weights: as in MixAttention. Bytes: 2·B·G·(d/2 + 2)·(F·n + S·min(n, W)) after n tokens.
    """

    info: ClassVar[MethodInfo] = replace(
        MixAttention.info,
        summary="MixAttention whose keys and values are stored rotated in 4 bits",
        formula="2·B·G·(d/2 + 2)·(F·n + S·min(n, W))",
        exempt={
            **MixAttention.info.exempt,
            "a_block_is_its_tokens_one_by_one": "a block is attended to whole, then quantized",
            "a_prompt_and_what_follows_are_one_text": "what is fed again is quantized, a prompt is not",
        },
    )

    def layer(self, shape: ModelShape, index: int) -> CacheLayer:
        """A layer that makes keys and values, or one that reads another's."""
        kind = TurnedMadeLayer if self.layout.makes(index) else TurnedReadLayer
        return kind(shape, index, self)

    def kv_bytes(self, shape: ModelShape, batch: int, prompt: int, decoded: int) -> int:
        """Codes and norms of the layers that make keys and values."""
        slots = self.slots(shape, prompt, decoded)
        made = sum(slots[at] for at in range(shape.layers) if self.layout.makes(at))
        return 2 * batch * shape.kv_heads * made * (shape.head_dim * BITS // 8 + 2)


class TurnedMadeLayer(MadeLayer, QuantLayer):
    """Makes keys and values and stores them turned."""

    method: MixAttention  # type: ignore[assignment]
    kq: Turned
    vq: Turned

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self.kq, self.vq = (Turned(BITS, (self.shape.head_dim,), self.index) for _ in "kv")

    def due(self, keys: int, values: int) -> tuple[int, int]:
        """All."""
        return keys, values

    def compress(self, queries: torch.Tensor) -> None:
        """The prompt is in: quantize, then trim."""
        self.fold()
        super().compress(queries)

    def step(self, query: torch.Tensor) -> None:
        """More has come: quantize, then trim."""
        self.fold()
        super().step(query)

    def keep(self, index: torch.Tensor, spare: int = 0) -> None:
        """Keep these slots; a slot has scales of its own, so single tokens can leave."""
        self.kept = self.positions.gather(2, index)
        for store in (self.kq, self.vq):
            store.keep(index, spare)
        self._kept_at = self.seen


class TurnedReadLayer(ReadLayer):
    """Reads what another layer has stored turned."""

    producer: TurnedMadeLayer
