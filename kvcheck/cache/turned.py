"""Vectors stored as their norm and the codes of their randomly rotated direction (TurboQuant, arXiv 2504.19874).

A rotation drawn at random makes the entries of any direction alike: each is distributed as one coordinate of a point
drawn uniformly from the sphere, whatever the vector was. So one codebook, the best for that distribution, serves all.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import pad

from kvcheck.cache.growable import GrowableBuffer, appended
from kvcheck.cache.quantize import pack_fields, unpack_fields

if TYPE_CHECKING:
    from typing_extensions import Self


class Turned:
    """Tokens of one layer: codes (B, G, T, d·bits/8) uint8 and norms (B, G, T, blocks) float16.

    sizes: channels of every block of a vector; a block has a norm and a rotation of its own. seed: what rotations are
    drawn from, the index of the layer. A block of m channels is divided by its norm, turned by an orthogonal matrix and
    times sqrt(m); each entry becomes the nearest of 2^bits centroids. A norm beyond the largest float16 becomes that.
    sketch: one of the bits is the sign of a Gaussian projection of what the other bits leave over, whose norm, as a
    share of the block's, is stored behind the norms (QJL). What is read back is then right on average over projections,
    in every inner product; without it is nearer, and a little short.
    """

    def __init__(self, bits: int, sizes: tuple[int, ...], seed: int, sketch: bool = False) -> None:
        self.bits, self.sizes, self.seed, self.sketch = bits - sketch, sizes, seed, sketch
        self.codes: GrowableBuffer | None = None
        self.norms: GrowableBuffer | None = None

    @property
    def length(self) -> int:
        """Tokens stored."""
        return 0 if self.codes is None else self.codes.length

    def centroids(self, size: int) -> tuple[float, ...]:
        """What the codes of a block of this many channels stand for, ascending."""
        return centroids(self.bits, size)

    def append(self, values: torch.Tensor) -> None:
        """Store tokens (B, G, t, d)."""
        parts = [self._encode(part) for part in values.float().split(self.sizes, dim=-1)]
        codes, norms, left = (torch.cat(each, dim=-1) for each in zip(*parts, strict=True))
        self.codes = appended(self.codes, codes)
        self.norms = appended(self.norms, torch.cat([norms, left], dim=-1))

    def _encode(self, block: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Bytes (..., m·bits/8), norms (..., 1), and norms of what is left over (..., 1 or 0) of blocks (..., m)."""
        size, device = block.shape[-1], block.device
        norms = block.norm(dim=-1, keepdim=True).clamp(max=torch.finfo(torch.float16).max).half()
        turned = block / norms.float().clamp(min=1e-12) @ rotation(size, self.seed, device).T * size**0.5
        table = on_device(self.centroids(size), device)
        codes = torch.bucketize(turned, (table[1:] + table[:-1]) / 2)
        packed = pack_fields(codes.to(torch.uint8), self.bits)
        if not self.sketch:
            return packed, norms, norms[..., :0]
        left = (turned - table[codes]) / size**0.5
        signs = left @ projection(size, self.seed, device).T >= 0
        left_norms = left.norm(dim=-1, keepdim=True).half()
        return torch.cat([packed, pack_fields(signs.to(torch.uint8), 1)], dim=-1), norms, left_norms

    def read(self, rows: slice, out: torch.Tensor, heads: slice = slice(None)) -> None:
        """Write the tokens of these rows of the batch and kv heads into out (b, g, T, d), float32."""
        self.decode(rows, out, heads, self.seed)

    def decode(self, rows: slice, out: torch.Tensor, heads: slice, seed: int) -> None:
        """The same, turned back by the rotations of this seed."""
        if self.codes is None or self.norms is None:
            return
        codes, norms = self.codes.used[rows, heads], self.norms.used[rows, heads].float()
        parts = codes.split([size * (self.bits + self.sketch) // 8 for size in self.sizes], dim=-1)
        blocks = out.split(self.sizes, dim=-1)
        for at, (part, block) in enumerate(zip(parts, blocks, strict=True)):
            left = norms[..., len(blocks) + at].unsqueeze(-1) if self.sketch else None
            block.copy_(self._directions(part, block.shape[-1], left, seed) * norms[..., at : at + 1])

    def _directions(self, packed: torch.Tensor, size: int, left: torch.Tensor | None, seed: int) -> torch.Tensor:
        """Directions (..., m) of packed codes, of norm about 1. left: norms of what the codes leave over."""
        device = packed.device
        table = on_device(self.centroids(size), device)
        found = table[unpack_fields(packed, size, self.bits)] / size**0.5
        if left is not None:
            signs = unpack_fields(packed[..., size * self.bits // 8 :], size, 1).float() * 2 - 1
            found += signs @ projection(size, seed, device) * left * (math.sqrt(math.pi / 2) / size)
        return found @ rotation(size, seed, device)

    def keep(self, index: torch.Tensor, spare: int = 0) -> None:
        """Keep these slots, as GrowableBuffer.keep."""
        for buffer in (self.codes, self.norms):
            if buffer is not None:
                buffer.keep(index, spare)

    def select(self, rows: Sequence[int] | torch.Tensor) -> Self:
        """Copies of these rows of the batch."""
        selected = copy.copy(self)
        if self.codes is not None and self.norms is not None:
            selected.codes, selected.norms = self.codes.select(rows), self.norms.select(rows)
        return selected


@lru_cache(maxsize=512)
def rotation(size: int, seed: int, device: torch.device) -> torch.Tensor:
    """An orthogonal matrix (m, m), uniformly drawn; the same for the same seed. No part of a cache: all share it."""
    with torch.inference_mode(False):
        source = torch.Generator().manual_seed(1000 * size + seed)
        matrix, upper = torch.linalg.qr(torch.randn(size, size, generator=source))
        return (matrix * upper.diagonal().sign()).to(device)


@lru_cache(maxsize=512)
def projection(size: int, seed: int, device: torch.device) -> torch.Tensor:
    """A matrix (m, m) of standard normal numbers, independent of `rotation`; the same for the same seed."""
    with torch.inference_mode(False):
        source = torch.Generator().manual_seed(1000 * size + seed + 1_000_000_007)
        return torch.randn(size, size, generator=source).to(device)


@lru_cache(maxsize=64)
def on_device(table: tuple[float, ...], device: torch.device) -> torch.Tensor:
    """The table (2^bits,) where it is looked up: once, since a copy to the device in every step is waited for."""
    with torch.inference_mode(False):
        return torch.tensor(table, device=device)


@lru_cache(maxsize=64)
def centroids(bits: int, size: int) -> tuple[float, ...]:
    """The Lloyd-Max centroids of sqrt(m) times a coordinate of the unit sphere in m dimensions: 2^bits, ascending.

    Its density is proportional to (1 - x²/m)^((m - 3)/2), and the standard normal one for large m.
    """
    edge = min(math.sqrt(size), 8.0)
    points = torch.linspace(-edge, edge, 400_001, dtype=torch.float64)
    weights = (1 - points.square() / size).clamp(min=1e-12).pow((size - 3) / 2)
    thinned = weights.pow(1 / 3).cumsum(0)  # where the best codebook of many bits has its centroids (Panter and Dite)
    shares = (torch.arange(2**bits, dtype=torch.float64) + 0.5) / 2**bits
    table = points[torch.searchsorted(thinned, shares * thinned[-1])]
    mass, moment = (pad(each.cumsum(0), (1, 0)) for each in (weights, weights * points))
    for _ in range(2000):
        cuts = torch.searchsorted(points, (table[1:] + table[:-1]) / 2)
        cuts = pad(pad(cuts, (1, 0)), (0, 1), value=len(points))
        table, before = moment[cuts].diff() / mass[cuts].diff(), table
        if torch.equal(table, before):
            break
    return tuple(((table - table.flip(0)) / 2).tolist())
