"""KVQuant: keys per channel before RoPE, a codebook for what is usual, outliers apart. arXiv 2401.18079."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar

import torch

from kvcheck.cache import checks
from kvcheck.cache.full import KeepsAll
from kvcheck.cache.growable import GrowableBuffer, appended
from kvcheck.cache.kv_cache import CacheLayer
from kvcheck.cache.method import Lossless, MethodInfo, Stage
from kvcheck.cache.quantize import QuantLayer, fills_bytes, pack_fields, step, unpack_fields
from kvcheck.cache.rotary import rotate, unrotate
from kvcheck.cache.shape import ModelShape
from kvcheck.core.errors import MethodUnsupported
from kvcheck.core.front import option

if TYPE_CHECKING:
    from typing_extensions import Self

SIGNPOSTS = {
    2: (0.0, 0.359),
    3: (0.0, 0.179, 0.319, 0.441),
    4: (0.0, 0.091, 0.168, 0.236, 0.300, 0.360, 0.416, 0.472),
}
"""The lower half of each codebook, as a share of the way from the smallest number of a group to its largest; the upper
half mirrors it. They are what k-means finds, with both ends held, in groups of 64 normal numbers less the outermost."""


@dataclass(frozen=True)
class KVQuant(KeepsAll):
    """Quantize keys per channel before their rotation and values per token, by a codebook whose steps are uneven, and
    keep the outermost numbers of every group as they are.

    bits: 2, 3 or 4 per number, packed. A group is g consecutive tokens of one channel of the keys, as they were before
    RoPE, or one token's channels of the values, per kv head. group: g. outliers: the share of a group that is kept in
    16 bits, with its place: e(m) = ⌈outliers·m/2⌉ at each end, of a group of m. What is left of a group spans
    from low (float16) to 2^bits - 1 steps above it (float16); each number becomes the nearest of 2^bits signposts
    there, which lie closer to each other in the middle and include both ends.
    sink: S, first tokens, which stay in 16 bits (1). recent: R, the newest tokens, which do too (0: none); keys wait
    there for their group to fill. A forward attends to its own tokens unquantized, so the prompt's logits are those of
    the full cache; keys are rotated to their positions whenever they are read.

    Bytes after n tokens, with r = max(0, n - S - R), qK = r - r mod g, qV = r, and a place of 1 byte in groups of up to
    256, else 2: L·B·G·[ 2·d·(2·n - qK - qV) + (qK + qV)·d·bits/8 + (qK/g)·d·(4 + 2·e(g)·(2 + place)) +
    qV·(4 + 2·e(d)·(2 + place)) ].
    Errors: SpecError for values out of range; MethodUnsupported for models whose rotation of keys is not known, and for
    a head_dim whose codes do not fill whole bytes.
    Differences from the official code: nothing is calibrated on other texts. There, thresholds and range of a key
    channel come from a calibration set and hold for the whole text; here every group has its own, and as many outliers
    as any other. There, signposts are found per layer by k-means weighted by gradients; here they are those of normal
    numbers. Groups of values are of one kv head (there: of all of them). Attention sinks: the first token, as there.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        summary="quantizes keys per channel before RoPE and values per token, and keeps outliers",
        stage=Stage.COMPRESSION,
        paper="arXiv 2401.18079",
        formula="L·B·G·[2·d·(2·n - qK - qV) + (qK + qV)·d·bits/8 + (qK/g)·d·(4 + 2·e(g)·(2 + place)) + "
        "qV·(4 + 2·e(d)·(2 + place))]",
        refuses="models whose rotation of keys is not known, or whose codes do not fill whole bytes",
        knob="bits",
        verbatim=False,
        variant="nuq with dense-and-sparse per vector and the first token exact; groups instead of calibrated ranges",
        lossless=Lossless.at("recent=102400"),
        exempt={"a_block_is_its_tokens_one_by_one": "a block is attended to whole, then quantized"},
    )

    bits: int = 3
    group: int = 64
    outliers: float = 0.01
    sink: int = 1
    recent: int = 0

    def __post_init__(self) -> None:
        """Raise SpecError for values out of range."""
        name = self.name()
        checks.one_of(name, "bits", self.bits, (3, 2, 4))
        checks.whole(name, "group", self.group, 4, 64)
        checks.share(name, "outliers", self.outliers, 0, 0.25, 0.01)
        checks.whole(name, "sink", self.sink, 0, 1)
        checks.whole(name, "recent", self.recent, 0, 128)

    def check(self, shape: ModelShape) -> None:
        """Keys must be un-rotatable, and codes must fill whole bytes."""
        checks.rotation(self.name(), "stores keys without their rotation", shape.rope)
        if not fills_bytes(self.bits, (shape.head_dim,)):
            raise MethodUnsupported(
                f"{self.spec}: the {self.bits} bits of each of {shape.head_dim} channels do not fill whole bytes",
                f"a head_dim that is a multiple of 8 will do, or {option('methods')}={self.name()}:bits=4 for an even "
                "one",
            )

    def ends(self, size: int) -> int:
        """e(m): outliers at each end of a group of this size; at least one number of it is none."""
        return min(math.ceil(self.outliers * size / 2 - 1e-9), (size - 1) // 2)

    def due(self, keys: int, values: int) -> tuple[int, int]:
        """Tokens to be quantized of these numbers of tokens in 16 bits, the first ones among them."""
        old = max(0, keys - self.sink - self.recent)
        return old - old % self.group, max(0, values - self.sink - self.recent)

    def rounding(self) -> tuple[float, float]:
        """A group of normal numbers less its outliers spans some four deviations; the error is less than a uniform
        one within a step. With slack."""
        return 2.2 / (2**self.bits - 1), 2.2 / (2**self.bits - 1)

    def layer(self, shape: ModelShape, index: int) -> CacheLayer:
        """A layer that stores keys un-rotated."""
        return KVQuantLayer(shape, index, self)

    def kv_bytes(self, shape: ModelShape, batch: int, prompt: int, decoded: int) -> int:
        """Codes, two float16 numbers per group, outliers and their places; what is not quantized in 16 bits."""
        seen, dim = prompt + decoded, shape.head_dim
        keys, values = self.due(seen, seen)

        def of_group(size: int) -> int:
            return 4 + 2 * self.ends(size) * (shape.itemsize + place(size).itemsize)

        size = shape.itemsize * dim * (2 * seen - keys - values) + (keys + values) * dim * self.bits // 8
        size += keys // self.group * dim * of_group(self.group) + values * of_group(dim)
        return shape.layers * batch * shape.kv_heads * size


def place(size: int) -> torch.dtype:
    """In what a place in a group of this size is stored."""
    return torch.uint8 if size <= 256 else torch.int16


@lru_cache(maxsize=16)
def signposts(bits: int, device: torch.device) -> torch.Tensor:
    """(2^bits,) ascending, in steps above low."""
    half = SIGNPOSTS[bits]
    with torch.inference_mode(False):
        table = torch.tensor([*half, *(1 - each for each in reversed(half))], device=device)
        return table * (2**bits - 1)


class Split:
    """Tokens of one layer, dense and sparse: GrowableBuffers of codes, scales and lows, outliers and their places.

    A block is `group` tokens, and a group one channel of them, where a group is given; else a block is one token, and a
    group its channels. codes (B, G, T, d·bits/8) uint8; per block scale and low (B, G, T/g, 1, d), or (B, G, T, 1, 1),
    outliers and places (B, G, T/g, 2e, d), or (B, G, T, 1, 2e).
    """

    def __init__(self, method: KVQuant, group: int | None = None) -> None:
        self.method, self.group = method, group
        self.dim = -1 if group is None else -2
        self.buffers: list[GrowableBuffer] = []

    @property
    def length(self) -> int:
        """Tokens stored."""
        return self.buffers[0].length if self.buffers else 0

    def _blocks(self, values: torch.Tensor) -> torch.Tensor:
        """Values (b, g, T, d) as (b, g, blocks, tokens of a block, d)."""
        return values.unflatten(2, (-1, self.group or 1))

    def append(self, values: torch.Tensor, dtype: torch.dtype | None = None) -> None:
        """Store tokens (B, G, t, d), and outliers in this dtype; where there is a group, t is a multiple of it."""
        blocks, bits = self._blocks(values.float()), self.method.bits
        ordered, order = blocks.sort(dim=self.dim)
        size = blocks.shape[self.dim]
        ends = self.method.ends(size)
        low = ordered.narrow(self.dim, ends, 1).half()
        scale = step(ordered.narrow(self.dim, size - 1 - ends, 1) - low.float(), 2**bits - 1)
        table = signposts(bits, values.device)
        codes = torch.bucketize((blocks - low.float()) / scale.float(), (table[1:] + table[:-1]) / 2)
        packed = pack_fields(codes.to(torch.uint8).flatten(2, 3), bits)
        places = torch.cat([order.narrow(self.dim, 0, ends), order.narrow(self.dim, size - ends, ends)], dim=self.dim)
        outliers = blocks.gather(self.dim, places).to(dtype or values.dtype)
        parts = (packed, scale, low, outliers, places.to(place(size)))
        before: list[GrowableBuffer | None] = [*self.buffers] or [None] * len(parts)
        self.buffers = [appended(buffer, part) for buffer, part in zip(before, parts, strict=True)]

    def read(self, rows: slice, out: torch.Tensor, heads: slice = slice(None)) -> None:
        """Write the tokens of these rows of the batch and kv heads into out (b, g, T, d), float32."""
        if not self.buffers:
            return
        packed, scale, low, outliers, places = (buffer.used[rows, heads] for buffer in self.buffers)
        out.copy_(signposts(self.method.bits, out.device)[unpack_fields(packed, out.shape[3], self.method.bits)])
        blocks = self._blocks(out)
        blocks.mul_(scale.float()).add_(low.float())
        blocks.scatter_(self.dim, places.long(), outliers.float())

    def select(self, rows: Sequence[int] | torch.Tensor) -> Self:
        """Copies of these rows of the batch."""
        selected = copy.copy(self)
        selected.buffers = [buffer.select(rows) for buffer in self.buffers]
        return selected


class KVQuantLayer(QuantLayer):
    """k and v hold the first tokens and the newest, kq and vq what lies between: keys without their rotation."""

    method: KVQuant
    kq: Split
    vq: Split

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self.kq, self.vq = Split(self.method, self.method.group), Split(self.method)

    def due(self, keys: int, values: int) -> tuple[int, int]:
        """All but the first and the newest; keys in whole groups."""
        return self.method.due(keys, values)

    def fold(self) -> None:
        """Move what is due from behind the first tokens to the quantized part."""
        if self.k is None or self.v is None:
            return
        sink = self.method.sink
        keys, values = self.due(self.k.length, self.v.length)
        if keys:
            found, done = self.k.used[:, :, sink : sink + keys].float(), sink + self.kq.length
            self.kq.append(unrotate(found, self.places(done, done + keys), self.shape.rope or ()), self.dtype)
            self.k.slide(sink, keys)
        if values:
            self.vq.append(self.v.used[:, :, sink : sink + values])
            self.v.slide(sink, values)

    def places(self, start: int, stop: int, rows: slice = slice(None), heads: slice = slice(None)) -> torch.Tensor:
        """The positions of these slots, (n,) or (b, g, n)."""
        if self.kept is None:
            return torch.arange(start, stop, device=self.keys.device)
        return self.positions[rows, heads, start:stop]

    def read(self, rows: slice, dtype: torch.dtype, heads: slice = slice(None)) -> tuple[torch.Tensor, torch.Tensor]:
        """The first tokens, those between and the newest, of these rows and kv heads; keys rotated."""
        keys, values = self.keys[rows, heads], self.values[rows, heads]
        sink, turned = self.method.sink, self.method.sink + self.kq.length
        if self.kq.length:
            keys = self._whole(self.kq, keys, rows, heads)
            at = self.places(sink, turned, rows, heads)
            keys[:, :, sink:turned] = rotate(keys[:, :, sink:turned], at, self.shape.rope or ())
        if self.vq.length:
            values = self._whole(self.vq, values, rows, heads)
        return keys.to(dtype), values.to(dtype)

    def _whole(self, store: Split, exact: torch.Tensor, rows: slice, heads: slice) -> torch.Tensor:
        """(b, g, all, d) float32: what is stored behind the first of the exact tokens."""
        batch, count, length, dim = exact.shape
        sink = self.method.sink
        end = sink + store.length
        whole = torch.empty(batch, count, store.length + length, dim, device=exact.device)
        whole[:, :, :sink], whole[:, :, end:] = exact[:, :, :sink], exact[:, :, sink:]
        store.read(rows, whole[:, :, sink:end], heads)
        return whole


METHOD = KVQuant
