"""Two methods on one cache, `snapkv+kivi:bits=4`: the first evicts from the prompt, the second quantizes the rest."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

from kvcheck.cache.kv_cache import CacheLayer
from kvcheck.cache.method import Method, MethodInfo, Stage
from kvcheck.cache.shape import ModelShape
from kvcheck.core.errors import SpecError
from kvcheck.core.spec import Spec

EVICTS = "snapkv, pyramidkv or another method that evicts from the prompt once and keeps what it keeps as it is"
QUANTIZES = "kivi or flexgen"


@dataclass(frozen=True)
class Composed(Method):
    """Evict, then quantize. Tokens that come after the prompt are all kept and quantized by the second method's rules.

    first: evicts once, after the prompt, and declares its slots. second: stores tokens in a QuantLayer.
    Bytes: those of the second method for as many tokens as the first one keeps, layer by layer; so what both save is
    counted once. Errors: SpecError for methods that do not fit together.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        summary="evicts from the prompt by one method, quantizes what is left by another",
        stage=Stage.COMPRESSION,
        needs=("queries",),
        verbatim=False,
        formula="those of the second method for the slots that the first one keeps",
        refuses="what either of them cannot serve",
        exempt={"a_block_is_its_tokens_one_by_one": "a block is attended to whole, then quantized"},
    )

    first: Method
    second: Method

    def __post_init__(self) -> None:
        """Raise SpecError for methods that do not fit together."""
        one, other = self.first.info, self.second.info
        if one.stage != Stage.COMPRESSION or not one.verbatim or not one.frees_memory or one.evicts_in_decode:
            raise SpecError(f"{self.spec}: {self.first.name()} cannot come first", f"put {EVICTS} before the +")
        if not self._quantizes(self.second.layer(_ANY, 0)):
            raise SpecError(f"{self.spec}: {self.second.name()} cannot come second", f"put {QUANTIZES} after the +")
        if not other.shares_prefill or self.first.slots(_ANY, 1, 0) is None:
            raise SpecError(f"{self.spec} cannot be combined", f"write {EVICTS}, a +, and {QUANTIZES}")

    @staticmethod
    def _quantizes(layer: CacheLayer) -> bool:
        from kvcheck.cache.quantize import QuantLayer

        return isinstance(layer, QuantLayer)

    @property
    def spec(self) -> Spec:
        """Both specs, joined by a +."""
        return replace(self.first.spec, then=self.second.spec)

    def check(self, shape: ModelShape) -> None:
        """Both must be able to serve the model."""
        self.first.check(shape)
        self.second.check(shape)

    def layer(self, shape: ModelShape, index: int) -> CacheLayer:
        """A layer of the second method, with one of the first to choose."""
        layer = self.second.layer(shape, index)
        layer.chooser = partial(self.first.layer, shape, index)  # type: ignore[attr-defined]
        return layer

    def slots(self, shape: ModelShape, prompt: int, decoded: int) -> tuple[int, ...] | None:
        """What the first keeps of the prompt, and everything decoded."""
        return self.first.slots(shape, prompt, decoded)

    def kv_bytes(self, shape: ModelShape, batch: int, prompt: int, decoded: int) -> int | None:
        """The second method's bytes for the slots that the first one keeps."""
        one = replace(shape, layers=1)
        parts = [self.second.kv_bytes(one, batch, kept, decoded) for kept in self.slots(shape, prompt, 0) or ()]
        known = [part for part in parts if part is not None]
        return sum(known) if parts and len(known) == len(parts) else None

    def cross_head(self) -> str | None:
        """What either of them says."""
        return self.first.cross_head() or self.second.cross_head()

    def rounding(self) -> tuple[float, float] | None:
        """What the second promises."""
        return self.second.rounding()

    def protected(self, prompt: int) -> frozenset[int] | None:
        """What the first promises."""
        return self.first.protected(prompt)


_ANY = ModelShape(layers=4, heads=4, kv_heads=4, head_dim=64)
