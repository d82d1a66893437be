"""The full cache in 16 bits: what every method is compared with."""

from __future__ import annotations

from dataclasses import dataclass

from kvcheck.cache.full import FullCache


@dataclass(frozen=True)
class Fp16(FullCache):
    """Full cache: every token stays, keys and values in 16 bits (float16, or bfloat16 when the model computes in it).

    Bytes: 2·L·B·G·n·d·2 after n tokens. Equals plain transformers in the same dtypes; a test holds it to that, and so
    tells a broken harness from a broken method.
    """


METHOD = Fp16
