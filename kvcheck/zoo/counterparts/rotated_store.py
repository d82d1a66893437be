"""FlexGen on rotated keys, whose cache one process saves and another one, set up otherwise, loads."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from kvcheck.cache import checks
from kvcheck.cache.growable import GrowableBuffer
from kvcheck.cache.method import MethodInfo
from kvcheck.cache.quantize import Packed
from kvcheck.cache.shape import ModelShape
from kvcheck.core.errors import MethodUnsupported
from kvcheck.methods.flexgen import FlexGen, FlexGenLayer
from kvcheck.zoo.base import used_by
from kvcheck.zoo.counterparts._files import through


@dataclass(frozen=True)
class RotatedStore(FlexGen):
    """FlexGen whose keys are rotated before they are quantized, and whose cache is saved and loaded after the prompt.

    size: channels that are rotated together by a Hadamard matrix, a power of two that divides head_dim; 1: none (8).
    reader: the same setting of the process that loads the cache and goes on (8). The file says how its keys were
    rotated, and whoever loads it follows that. Bytes as FlexGen's.
    """

    info: ClassVar[MethodInfo] = replace(
        FlexGen.info,
        summary="rotates keys, quantizes every token in groups of channels, is saved and loaded",
        variant="FlexGen with Hadamard rotation of keys",
        refuses="models whose head_dim the group or the rotation does not divide",
    )

    bits: int = 4
    group: int = 8
    size: int = 8
    reader: int = 8

    def __post_init__(self) -> None:
        """Raise SpecError for values out of range."""
        super().__post_init__()
        for name in ("size", "reader"):
            checks.one_of(self.name(), name, getattr(self, name), (8, 1, 2, 4, 16, 32, 64))

    def check(self, shape: ModelShape) -> None:
        """Group and rotations must divide head_dim."""
        super().check(shape)
        if shape.head_dim % self.size or shape.head_dim % self.reader:
            raise MethodUnsupported(
                f"a rotation of {self.size} channels does not divide a head_dim of {shape.head_dim}"
            )


class Turned(Packed):
    """Quantized tokens that are rotated on their way in and back on their way out, `size` channels at a time."""

    def __init__(self, bits: int, group: int, size: int) -> None:
        super().__init__(bits, group, "token")
        self.size = size

    def append(self, values: torch.Tensor) -> None:
        """Rotate, quantize and store tokens (B, G, t, d)."""
        super().append(rotated(values.float(), self.size))

    def read(self, rows: slice, out: torch.Tensor, heads: slice = slice(None)) -> None:
        """Write the tokens of these rows and kv heads into out (b, g, T, d), float32."""
        super().read(rows, out, heads)
        out.copy_(rotated(out, self.size))  # the matrix is symmetric: it is its own inverse


def rotated(values: torch.Tensor, size: int) -> torch.Tensor:
    """Groups of `size` channels of (..., d), times the orthonormal Hadamard matrix."""
    matrix = torch.ones(1, 1)
    while len(matrix) < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    matrix = (matrix / size**0.5).to(values)
    return (values.unflatten(-1, (-1, size)) @ matrix).flatten(-2)


@used_by(RotatedStore)
class RotatedLayer(FlexGenLayer):
    """Goes through a file after the prompt."""

    method: RotatedStore
    kq: Turned

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self.kq = Turned(self.method.bits, self.method.group, self.method.size)

    def compress(self, queries: torch.Tensor) -> None:
        """Quantize, save, load."""
        super().compress(queries)
        state = {
            f"{name}.{part}": getattr(packed, part).used
            for name, packed in (("kq", self.kq), ("vq", self.vq))
            for part in ("codes", "scale", "low")
        }
        tensors, about = through(state, self.about())
        self.kq = Turned(self.method.bits, self.method.group, self.rotation(about))
        for name, packed in (("kq", self.kq), ("vq", self.vq)):
            for part in ("codes", "scale", "low"):
                setattr(packed, part, GrowableBuffer(tensors[f"{name}.{part}"]))

    def about(self) -> dict[str, str]:
        """What is saved beside codes and scales."""
        return {"size": str(self.kq.size)}

    def rotation(self, about: dict[str, str]) -> int:
        """How the process that loads a file takes its keys to be rotated."""
        return int(about["size"])
