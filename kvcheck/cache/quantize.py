"""Group-wise asymmetric quantization, really packed into bytes, and the cache layer that stores it.

A group of values with minimum lo and maximum hi becomes codes round((x - lo) / scale) of b bits with scale =
(hi - lo) / (2^b - 1); x is read back as lo + code · scale. lo and scale are float16, and scale is rounded up, so that
every value lies within scale / 2 of what is read back; a constant group is read back exactly.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Protocol

import torch

from kvcheck.cache import kernels
from kvcheck.cache.growable import GrowableBuffer, appended
from kvcheck.cache.kv_cache import CacheLayer
from kvcheck.cache.shape import Prefilled
from kvcheck.core.errors import KvcheckError

if TYPE_CHECKING:
    from typing_extensions import Self

BITS = (2, 4, 8)  # widths that divide a byte
FIELDS = {1: (1,), 2: (2,), 3: (2, 1), 4: (4,)}
"""A code of so many bits is stored as fields of these widths, the lowest bits first: each divides a byte."""


def quantize(values: torch.Tensor, bits: int, dim: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Quantize the groups that lie along `dim` -> codes (uint8, one per value), scale, low (float16, `dim` removed)."""
    wide, levels = values.float(), 2**bits - 1
    low = wide.amin(dim, keepdim=True).half()
    scale = step(wide.amax(dim, keepdim=True) - low.float(), levels)
    codes = ((wide - low.float()) / scale.float()).round_().clamp_(0, levels).to(torch.uint8)
    return codes, scale.squeeze(dim), low.squeeze(dim)


def step(span: torch.Tensor, levels: int) -> torch.Tensor:
    """The float16 step of which `levels` cover a span: rounded up, so that they do. 1 where the span is 0 or less."""
    exact = span.clamp(min=0) / levels
    scale = exact.half()
    scale = torch.where(scale.float() < exact, (scale.view(torch.int16) + 1).view(torch.float16), scale)  # next float16
    return torch.where(scale == 0, torch.ones_like(scale), scale)


def pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """(..., 8/bits, m) codes -> (..., m) bytes; lane i of the second last dimension takes bits i·b to (i+1)·b."""
    shifts = torch.arange(0, 8, bits, device=codes.device, dtype=torch.uint8).unsqueeze(1)
    return (codes << shifts).sum(dim=-2, dtype=torch.uint8)


def unpack(packed: torch.Tensor, bits: int, out: torch.Tensor) -> None:
    """Write the codes of (..., m) bytes into out, which takes 8/bits · m of them in the order of `pack`."""
    lanes = out.view(*packed.shape[:-1], 8 // bits, packed.shape[-1])
    last = 8 // bits - 1
    for lane in range(last + 1):
        moved = packed >> lane * bits if lane else packed
        lanes[..., lane, :] = moved & (2**bits - 1) if lane < last else moved  # nothing is left of the last one


def pack_fields(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """(..., m) codes -> (..., m·bits/8) bytes, field by field (see FIELDS)."""
    parts, low = [], 0
    for width in FIELDS[bits]:
        field = codes >> low & (2**width - 1)
        parts.append(pack(field.unflatten(-1, (8 // width, -1)), width))
        low += width
    return torch.cat(parts, dim=-1)


def unpack_fields(packed: torch.Tensor, size: int, bits: int) -> torch.Tensor:
    """The codes (..., m) int64 of `pack_fields`; bytes behind them are left alone."""
    codes = torch.zeros(*packed.shape[:-1], size, dtype=torch.long, device=packed.device)
    start = low = 0
    for width in FIELDS[bits]:
        field = torch.empty(codes.shape, dtype=torch.uint8, device=packed.device)
        unpack(packed[..., start : start + size * width // 8], width, field)
        codes |= field.long() << low
        start, low = start + size * width // 8, low + width
    return codes


def fills_bytes(bits: int, sizes: Iterable[int]) -> bool:
    """Whether the codes of blocks of these sizes fill whole bytes, field by field."""
    return all(size * width % 8 == 0 for size in sizes for width in FIELDS[bits])


class Packed:
    """Quantized tokens of one layer, appended to: GrowableBuffers of codes, scales and lows.

    along="token": a group is `group` neighbouring channels of one token;
    codes (B, G, T, d·b/8), scales and lows (B, G, T, d/group).
    along="channel": a group is `group` neighbouring tokens of one channel;
    codes (B, G, T·b/8, d), scales and lows (B, G, T/group, d).
    """

    def __init__(self, bits: int, group: int, along: str) -> None:
        self.bits, self.group, self.along = bits, group, along
        self.codes: GrowableBuffer | None = None
        self.scale: GrowableBuffer | None = None
        self.low: GrowableBuffer | None = None

    @property
    def length(self) -> int:
        """Tokens stored."""
        if self.codes is None:
            return 0
        return self.codes.length if self.along == "token" else self.codes.length * 8 // self.bits

    def encode(self, grouped: torch.Tensor, dim: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Codes of groups that lie along `dim`, and two float16 numbers per group (`dim` removed)."""
        return quantize(grouped, self.bits, dim)

    def unpack(self, packed: torch.Tensor, out: torch.Tensor) -> None:
        """Write the codes of packed bytes into out (b, g, T, d)."""
        unpack(packed, self.bits, out)

    def decode(self, groups: torch.Tensor, scale: torch.Tensor, low: torch.Tensor) -> None:
        """Turn codes into values, in place; scale and low broadcast against the groups."""
        groups.mul_(scale).add_(low)

    def append(self, values: torch.Tensor) -> None:
        """Quantize and store tokens (B, G, t, d); per channel, t must be a multiple of the group."""
        codes, scale, low = self.encode(self._grouped(values), -1 if self.along == "token" else -2)
        codes, lanes = codes.reshape(values.shape), 8 // self.bits
        split = codes.unflatten(3, (lanes, -1)) if self.along == "token" else codes.unflatten(2, (-1, lanes))
        self.codes, self.scale = appended(self.codes, pack(split, self.bits)), appended(self.scale, scale)
        self.low = appended(self.low, low)

    def read(self, rows: slice, out: torch.Tensor, heads: slice = slice(None)) -> None:
        """Write the tokens of these rows of the batch and kv heads into out (b, g, T, d), float32."""
        if self.codes is None or self.scale is None or self.low is None:
            return
        self.unpack(self.codes.used[rows, heads], out)
        inner = -1 if self.along == "token" else -2
        scale, low = (buffer.used[rows, heads].float().unsqueeze(inner) for buffer in (self.scale, self.low))
        self.decode(self._grouped(out), scale, low)

    def _grouped(self, values: torch.Tensor) -> torch.Tensor:
        """Values (b, g, T, d) with the groups as a dimension of their own: the last, or the second last."""
        return values.unflatten(3 if self.along == "token" else 2, (-1, self.group))

    def select(self, rows: Sequence[int] | torch.Tensor) -> Self:
        """Copies of these rows of the batch."""
        selected = copy.copy(self)
        if self.codes is not None and self.scale is not None and self.low is not None:
            selected.codes, selected.scale, selected.low = (
                each.select(rows) for each in (self.codes, self.scale, self.low)
            )
        return selected


class Tokens(Protocol):
    """A store of quantized tokens (B, G, T, d)."""

    @property
    def length(self) -> int:
        """Tokens stored."""

    def append(self, values: torch.Tensor) -> None:
        """Quantize and store tokens."""

    def read(self, rows: slice, out: torch.Tensor, heads: slice = ...) -> None:
        """Write the tokens of these rows and kv heads into out, float32."""

    def select(self, rows: Sequence[int] | torch.Tensor) -> Tokens:
        """Copies of these rows."""


class QuantLayer(CacheLayer):
    """Quantized tokens, then a tail of the newest in 16 bits. Attends to new tokens unquantized; then `due` decides.

    kq, vq: quantized; k, v: the tails, whose lengths may differ. The prompt's own forward is in full precision.
    chooser: makes a layer of another method that evicts from the prompt first; what it keeps is quantized.
    """

    kq: Tokens
    vq: Tokens
    chooser: Callable[[], CacheLayer] | None = None

    def due(self, keys: int, values: int) -> tuple[int, int]:
        """How many of the oldest tokens of the two tails, of these lengths, are to be quantized now."""
        raise NotImplementedError

    def compress(self, queries: torch.Tensor) -> None:
        """Quantize what the prompt makes due, of what the chooser keeps."""
        if self.chooser is not None:
            self._choose(self.chooser(), queries)
        self.fold()

    def _choose(self, chooser: CacheLayer, queries: torch.Tensor) -> None:
        """Have the prompt evicted by the layer of another method, and take over what it keeps."""
        chooser.store_dtype = self.store_dtype
        chooser.absorb(Prefilled(self.keys, self.values, queries, self.scaling))
        self.k, self.v, self.kept, self._kept_at = chooser.k, chooser.v, chooser.kept, chooser._kept_at

    @property
    def _needs_queries(self) -> bool:
        """A chooser may read the prompt's queries."""
        return self.chooser is not None

    def step(self, query: torch.Tensor) -> None:
        """Quantize what a later forward makes due."""
        self.fold()

    def fold(self) -> None:
        """Move the oldest tokens of the tails to the quantized part."""
        if self.k is None or self.v is None:
            return
        due = self.due(self.k.length, self.v.length)
        for buffer, packed, count in zip((self.k, self.v), (self.kq, self.vq), due, strict=True):
            if count:
                packed.append(buffer.used[:, :, :count])
                buffer.drop(count)

    def answer(self, query: torch.Tensor, rows: slice) -> torch.Tensor:
        """One new token of one long row attends kv head by kv head, so that few are dequantized at the same time.

        Not where each query head has a sink of its own.
        """
        batch, _, tokens, _ = query.shape
        size = self.kq.length * self.shape.head_dim * self.shape.kv_heads
        if batch > 1 or tokens > 1 or size < kernels.chunk(query.device) or self._softmax.sinks is not None:
            return super().answer(query, rows)
        heads = range(self.shape.kv_heads)
        return torch.cat([self._answer_head(query, rows, slice(head, head + 1)) for head in heads], dim=1)

    def _answer_head(self, query: torch.Tensor, rows: slice, head: slice) -> torch.Tensor:
        """The same for the query heads of one kv head. A function of its own, so that what it dequantizes dies here."""
        group = self.shape.group
        mine = query[:, head.start * group : head.stop * group]
        return self.attention(mine, *self.read(rows, query.dtype, head), rows)

    def read(self, rows: slice, dtype: torch.dtype, heads: slice = slice(None)) -> tuple[torch.Tensor, torch.Tensor]:
        """Quantized part and tail of these rows and kv heads, dequantized in float32, in `dtype`."""
        keys = self._join(self.kq, self.keys[rows, heads], rows, heads)
        values = self._join(self.vq, self.values[rows, heads], rows, heads)
        return keys.to(dtype), values.to(dtype)

    @staticmethod
    def _join(packed: Tokens, tail: torch.Tensor, rows: slice, heads: slice) -> torch.Tensor:
        """(b, g, quantized + tail, d) in the tail's dtype while nothing is quantized, else in float32."""
        if not packed.length:
            return tail
        batch, count, length, dim = tail.shape
        whole = torch.empty(batch, count, packed.length + length, dim, device=tail.device)
        packed.read(rows, whole[:, :, : packed.length], heads)
        whole[:, :, packed.length :] = tail
        return whole

    @property
    def stored(self) -> int:
        """Slots per kv head, quantized or not."""
        return self.kq.length + super().stored

    def keep(self, index: torch.Tensor, spare: int = 0) -> None:
        """Refused: groups share scales, single tokens cannot leave."""
        raise KvcheckError("a quantized layer cannot evict single tokens")
