"""The full cache in 16 bits: what every method is compared with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from kvcheck.methods.base import Method, MethodInfo, ModelShape
from kvcheck.methods.cache import KVLayer


@dataclass(frozen=True)
class Fp16(Method):
    """Full cache: every token stays, keys and values in 16 bits (float16, or bfloat16 when the model computes in it).

    Bytes: 2·L·B·G·n·d·2 after n tokens. Equals plain transformers in the same dtypes; a test holds it to that, and so
    tells a broken harness from a broken method.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        summary="the full cache in 16 bits",
        stage="compression",
        formula="2·L·B·G·n·d·2",
        frees_memory=False,
        whole="",
    )

    def layer(self, shape: ModelShape, index: int) -> KVLayer:
        """A full cache layer."""
        return KVLayer(shape, index, self)

    def slots(self, shape: ModelShape, prompt: int, decoded: int) -> tuple[int, ...]:
        """Every token has a slot."""
        return (prompt + decoded,) * shape.layers

    def protected(self, prompt: int) -> frozenset[int]:
        """All positions."""
        return frozenset(range(prompt))


METHOD = Fp16
