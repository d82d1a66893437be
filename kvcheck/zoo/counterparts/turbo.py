"""Rotated vectors in a Gaussian codebook, as TurboQuant (arXiv 2504.19874) stores them."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar

import torch

from kvcheck.cache import checks
from kvcheck.cache.full import KeepsAll
from kvcheck.cache.growable import GrowableBuffer
from kvcheck.cache.kv_cache import CacheLayer
from kvcheck.cache.method import MethodInfo
from kvcheck.cache.quantize import QuantLayer, pack, unpack
from kvcheck.cache.shape import ModelShape
from kvcheck.core.errors import MethodUnsupported
from kvcheck.methods.mixattention import MadeLayer, MixAttention, ReadLayer
from kvcheck.zoo.base import used_by

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True)
class Turbo(KeepsAll):
    """Cut every vector into blocks, store each as its norm and the codes of its rotated direction.

    bits: 2 or 4. block: channels that are rotated together; the last block of a vector is what is left of head_dim.
    A block of m channels is divided by its norm (float16), turned by an orthogonal matrix that depends on the layer and
    m, times sqrt(m): its entries are then nearly standard normal, and each becomes the nearest of 2^bits centroids.
    A forward attends to its own tokens unquantized, so the prompt's logits are those of the full cache.

    Bytes: 2·L·B·G·n·(d·bits/8 + 2·⌈d/block⌉) after n tokens. Errors: SpecError for values out of range,
    MethodUnsupported for a head_dim whose codes do not fill whole bytes.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        summary="stores rotated vectors in a Gaussian codebook",
        stage="compression",
        paper="arXiv 2504.19874",
        formula="2·L·B·G·n·(d·bits/8 + 2·⌈d/block⌉)",
        refuses="models whose codes do not fill whole bytes",
        knob="bits",
        verbatim=False,
        variant="mean squared error only (no residual sign bits); one random rotation per layer",
        exempt={
            "a_block_is_its_tokens_one_by_one": "a block is attended to whole, then quantized",
            "what_was_read_back_is_stored_without_loss": "what is read back has another norm, and other directions",
        },
    )

    bits: int = 4
    block: int = 64

    def __post_init__(self) -> None:
        """Raise SpecError for values out of range."""
        checks.one_of(self.name(), "bits", self.bits, (4, 2))
        checks.whole(self.name(), "block", self.block, 4, 64)

    def check(self, shape: ModelShape) -> None:
        """Every block must fill whole bytes."""
        if any(size % (8 // self.bits) for size in self.blocks(shape.head_dim)):
            raise MethodUnsupported(
                f"{self.name()}: {self.bits}-bit codes of blocks of {self.block} out of {shape.head_dim} channels do "
                "not fill whole bytes",
                "give a block that is a multiple of 4",
            )

    def rounding(self) -> tuple[float, float]:
        """The error of the best codebook for normal numbers (Max 1960), with slack. A large channel of the keys, whose
        error the rotation spreads over its block, takes the others along."""
        return math.inf, 1.3 * {4: 0.0095, 2: 0.1175}[self.bits] ** 0.5

    def blocks(self, head_dim: int) -> tuple[int, ...]:
        """Channels of every block of a vector."""
        rest = head_dim % self.block
        return (self.block,) * (head_dim // self.block) + ((rest,) if rest else ())

    def kv_bytes(self, shape: ModelShape, batch: int, prompt: int, decoded: int) -> int:
        """Codes, and a float16 norm per block."""
        token = shape.head_dim * self.bits // 8 + 2 * -(-shape.head_dim // self.block)
        return 2 * shape.layers * batch * shape.kv_heads * (prompt + decoded) * token


class Turned:
    """Tokens of one layer: codes (B, G, T, d·bits/8) and norms (B, G, T, blocks).

    sizes: channels of every block. seed: what the rotations are drawn from, the index of the layer.
    """

    def __init__(self, bits: int, sizes: tuple[int, ...], seed: int) -> None:
        self.bits, self.sizes, self.seed = bits, sizes, seed
        self.codes: GrowableBuffer | None = None
        self.norms: GrowableBuffer | None = None

    @property
    def length(self) -> int:
        """Tokens stored."""
        return 0 if self.codes is None else self.codes.length

    def centroids(self) -> tuple[float, ...]:
        """What the codes stand for, ascending."""
        return centroids(self.bits)

    def append(self, values: torch.Tensor) -> None:
        """Store tokens (B, G, t, d)."""
        parts = [self._encode(part) for part in values.float().split(self.sizes, dim=-1)]
        codes, norms = (torch.cat([part[which] for part in parts], dim=-1) for which in (0, 1))
        if self.codes is None or self.norms is None:
            self.codes, self.norms = GrowableBuffer(codes), GrowableBuffer(norms)
        else:
            self.codes.append(codes)
            self.norms.append(norms)

    def _encode(self, block: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Bytes (..., m·bits/8) and norms (..., 1) of blocks (..., m)."""
        size = block.shape[-1]
        norms = block.norm(dim=-1, keepdim=True).half()
        turned = block / norms.float().clamp(min=1e-12) @ rotation(size, self.seed, block.device).T * size**0.5
        table = torch.tensor(self.centroids(), device=block.device)
        codes = torch.bucketize(turned, (table[1:] + table[:-1]) / 2).to(torch.uint8)
        return pack(codes.unflatten(-1, (8 // self.bits, -1)), self.bits), norms

    def read(self, rows: slice, out: torch.Tensor, heads: slice = slice(None)) -> None:
        """Write the tokens of these rows of the batch and kv heads into out (b, g, T, d), float32."""
        self.decode(rows, out, heads, self.seed)

    def decode(self, rows: slice, out: torch.Tensor, heads: slice, seed: int) -> None:
        """The same, turned back by the rotations of this seed."""
        if self.codes is None or self.norms is None:
            return
        codes, norms = self.codes.used[rows, heads], self.norms.used[rows, heads].float()
        parts = codes.split([size * self.bits // 8 for size in self.sizes], dim=-1)
        for at, (part, block) in enumerate(zip(parts, out.split(self.sizes, dim=-1), strict=True)):
            block.copy_(self._directions(part, seed) * norms[..., at : at + 1])

    def _directions(self, packed: torch.Tensor, seed: int) -> torch.Tensor:
        """Directions (..., m) of packed codes, of norm about 1."""
        found = torch.empty(*packed.shape[:-1], packed.shape[-1] * 8 // self.bits, device=packed.device)
        unpack(packed, self.bits, found)
        size = found.shape[-1]
        table = torch.tensor(self.centroids(), device=packed.device)
        return table[found.long()] @ rotation(size, seed, packed.device) / size**0.5

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


@used_by(Turbo)
class TurboLayer(QuantLayer):
    """Stores everything turned after every forward."""

    method: Turbo

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self.kq, self.vq = self.store(), self.store()

    def store(self) -> Turned:
        """An empty store of keys or values."""
        return Turned(self.method.bits, self.method.blocks(self.shape.head_dim), self.index)

    def due(self, keys: int, values: int) -> tuple[int, int]:
        """All."""
        return keys, values


@lru_cache(maxsize=64)
def _drawn(size: int, seed: int) -> torch.Tensor:
    source = torch.Generator().manual_seed(1000 * size + seed)
    return torch.linalg.qr(torch.randn(size, size, generator=source))[0]


def rotation(size: int, seed: int, device: torch.device) -> torch.Tensor:
    """An orthogonal matrix (m, m), the same for the same seed."""
    return _drawn(size, seed).to(device)


@lru_cache(maxsize=8)
def centroids(bits: int) -> tuple[float, ...]:
    """The Lloyd-Max centroids of the standard normal distribution, ascending: 2^bits numbers."""
    points = torch.linspace(-6, 6, 24001, dtype=torch.float64)
    weights = (-points.square() / 2).exp()
    count = 2**bits
    table = torch.linspace(-2.5, 2.5, count, dtype=torch.float64)
    for _ in range(400):
        cell = torch.bucketize(points, (table[1:] + table[:-1]) / 2)
        mass = torch.zeros(count, dtype=torch.float64).index_add_(0, cell, weights)
        table = torch.zeros(count, dtype=torch.float64).index_add_(0, cell, weights * points) / mass
    return tuple(table.tolist())


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


class TurnedMadeLayer(MadeLayer, TurboLayer):
    """Makes keys and values and stores them turned."""

    method: MixAttention  # type: ignore[assignment]
    kq: Turned
    vq: Turned

    def store(self) -> Turned:
        """An empty store: one block per vector."""
        return Turned(BITS, (self.shape.head_dim,), self.index)

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
