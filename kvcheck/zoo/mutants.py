"""Mutation testing of a method of your own: generic faults, put around it from outside.

Each wraps the method's host, whatever it is made of, and does one thing wrong: `kvcheck zoo --method=your.module.Class`
tells which of them your gate would notice on your model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from kvcheck.errors import KvcheckError
from kvcheck.methods import make
from kvcheck.methods.base import Method, MethodInfo, ModelShape
from kvcheck.methods.cache import KVCache, KVLayer
from kvcheck.methods.host import Host
from kvcheck.methods.rows import RowCache
from kvcheck.models.rotary import moved
from kvcheck.spec import Spec

if TYPE_CHECKING:
    from kvcheck.models import LoadedModel


@dataclass(frozen=True)
class Mutant(Method):
    """A method with a fault around it. of: the spec of the correct one, whose declarations it goes on making."""

    of: str = "fp16"

    @cached_property
    def inner(self) -> Method:
        """The correct method."""
        return make(self.of)

    @property
    def info(self) -> MethodInfo:  # type: ignore[override]
        """The correct method's."""
        return self.inner.info

    def check(self, shape: ModelShape) -> None:
        """As the correct method."""
        self.inner.check(shape)

    def layer(self, shape: ModelShape, index: int) -> KVLayer:
        """As the correct method."""
        return self.inner.layer(shape, index)

    def build(self, shape: ModelShape, store_dtype: torch.dtype | None = None) -> KVCache:
        """As the correct method."""
        return self.inner.build(shape, store_dtype)

    def slots(self, shape: ModelShape, prompt: int, decoded: int) -> tuple[int, ...] | None:
        """As the correct method."""
        return self.inner.slots(shape, prompt, decoded)

    def kv_bytes(self, shape: ModelShape, batch: int, prompt: int, decoded: int) -> int | None:
        """As the correct method."""
        return self.inner.kv_bytes(shape, batch, prompt, decoded)

    def host_bytes(self, shape: ModelShape, batch: int, prompt: int, decoded: int) -> int | None:
        """As the correct method."""
        return self.inner.host_bytes(shape, batch, prompt, decoded)

    def protected(self, prompt: int) -> frozenset[int] | None:
        """As the correct method."""
        return self.inner.protected(prompt)

    def whole(self) -> Spec | None:
        """The same fault around the correct method's."""
        inner = self.inner.whole()
        return None if inner is None else Spec(self.name(), (("of", str(inner)),))

    def rounding(self) -> tuple[float, float] | None:
        """As the correct method."""
        return self.inner.rounding()

    def host(self, loaded: LoadedModel) -> Host:
        """The correct method's host, with the fault in front of it."""
        return MutantHost(self, self.inner.host(loaded))

    def prefill(self, host: Host, ids: torch.Tensor) -> tuple[Any, torch.Tensor]:
        """The prompt. Overridden by faults of it."""
        return host.prefill(ids)

    def feed(self, host: Host, cache: Any, ids: torch.Tensor, keep: int) -> torch.Tensor:
        """Later tokens. Overridden by faults of them."""
        return host.feed(cache, ids, keep)


class MutantHost(Host):
    """Goes through the fault of a Mutant."""

    def __init__(self, mutant: Mutant, inner: Host) -> None:
        super().__init__(mutant, inner.loaded)
        self.mutant, self.inner, self.model = mutant, inner, inner.model

    def build(self) -> Any:
        """The correct method's cache."""
        return self.inner.build()

    def prefill(self, ids: torch.Tensor) -> tuple[Any, torch.Tensor]:
        """With the fault."""
        return self.mutant.prefill(self.inner, ids)

    def feed(self, cache: Any, ids: torch.Tensor, keep: int = 1) -> torch.Tensor:
        """With the fault."""
        return self.mutant.feed(self.inner, cache, ids, keep)


@dataclass(frozen=True)
class LostTail(Mutant):
    """The last token of the prompt is not stored."""

    def prefill(self, host: Host, ids: torch.Tensor) -> tuple[Any, torch.Tensor]:
        """Logits of the whole prompt, the cache of all but its last token."""
        return (host.prefill(ids[:, :-1])[0] if ids.shape[1] > 1 else host.prefill(ids)[0]), host.prefill(ids)[1]


@dataclass(frozen=True)
class LostHead(Mutant):
    """The first token of the prompt is another one: what lies there was overwritten."""

    def prefill(self, host: Host, ids: torch.Tensor) -> tuple[Any, torch.Tensor]:
        """With the last token in the first place."""
        return host.prefill(torch.cat([ids[:, -1:], ids[:, 1:]], dim=1))


@dataclass(frozen=True)
class SkippedSample(Mutant):
    """The second row of a batch is given the cache of the first."""

    def prefill(self, host: Host, ids: torch.Tensor) -> tuple[Any, torch.Tensor]:
        """Rows 0, 0, 2, 3, …"""
        cache, logits = host.prefill(ids)
        return cache.select([0, *range(min(1, len(ids) - 1))][: len(ids)] + list(range(2, len(ids)))), logits


@dataclass(frozen=True)
class StaleState(Mutant):
    """A prompt as long as the one before it is given that one's cache."""

    @cached_property
    def before(self) -> dict[tuple[int, ...], Any]:
        """Caches by shape of the prompts."""
        return {}

    def prefill(self, host: Host, ids: torch.Tensor) -> tuple[Any, torch.Tensor]:
        """The cache of the last prompt of this shape."""
        cache, logits = host.prefill(ids)
        stale = self.before.get(tuple(ids.shape), cache)
        self.before[tuple(ids.shape)] = cache
        return stale.select(range(len(ids))), logits


@dataclass(frozen=True)
class WrongPosition(Mutant):
    """Every token behind the prompt is fed one position too early."""

    def feed(self, host: Host, cache: Any, ids: torch.Tensor, keep: int) -> torch.Tensor:
        """With the model's rotation one step behind."""
        with moved(host.model, -1):
            return host.feed(cache, ids, keep)


@dataclass(frozen=True)
class ForgottenAnswer(Mutant):
    """What is fed behind the prompt is attended to and not stored."""

    def feed(self, host: Host, cache: Any, ids: torch.Tensor, keep: int) -> torch.Tensor:
        """Into a copy."""
        rows = len(cache.rows) if isinstance(cache, RowCache) else len(ids)
        return host.feed(cache.select(range(rows)), ids, keep)


@dataclass(frozen=True)
class RepeatedToken(Mutant):
    """The first token behind the prompt is stored twice."""

    def feed(self, host: Host, cache: Any, ids: torch.Tensor, keep: int) -> torch.Tensor:
        """Its copy goes in before it, where a block is fed."""
        if ids.shape[1] > 1:
            host.feed(cache, ids[:, :1])
        return host.feed(cache, ids, keep)


@dataclass(frozen=True)
class SwappedHeads(Mutant):
    """The values of the prompt lie under the wrong kv heads."""

    def prefill(self, host: Host, ids: torch.Tensor) -> tuple[Any, torch.Tensor]:
        """Behind the prompt, the heads of all values are reversed in place."""
        cache, logits = host.prefill(ids)
        for values in values_of(cache):
            values.copy_(values.flip(1))
        return cache, logits


@dataclass(frozen=True)
class NoisyValues(Mutant):
    """The values of the prompt are off by a tenth."""

    def prefill(self, host: Host, ids: torch.Tensor) -> tuple[Any, torch.Tensor]:
        """In place, with a fixed seed."""
        cache, logits = host.prefill(ids)
        for values in values_of(cache):
            noise = torch.randn(values.shape, generator=torch.Generator().manual_seed(0)).to(values)
            values.add_(0.1 * values.float().std().to(values.dtype) * noise)
        return cache, logits


@dataclass(frozen=True)
class NeverActs(Mutant):
    """The method is not called at all: the full cache answers in its place."""

    def layer(self, shape: ModelShape, index: int) -> KVLayer:
        """The full cache's."""
        return make("fp16").layer(shape, index)

    def build(self, shape: ModelShape, store_dtype: torch.dtype | None = None) -> KVCache:
        """The full cache."""
        return make("fp16").build(shape, store_dtype)

    def host(self, loaded: LoadedModel) -> Host:
        """The full cache's."""
        return MutantHost(self, make("fp16").host(loaded))


def values_of(cache: Any) -> Iterator[torch.Tensor]:
    """The values that a cache holds as they are. Raises KvcheckError where it holds none of them so."""
    caches = [getattr(row, "cache", row) for row in cache.rows] if isinstance(cache, RowCache) else [cache]
    found = []
    for layer in (layer for each in caches for layer in each.layers):
        values = layer.values
        if isinstance(values, torch.Tensor) and values.numel() and values.dim() == 4 and values.is_floating_point():
            found.append(values)
    if not found:
        raise KvcheckError("no values are stored as they are, so this fault cannot be put in")
    yield from found


FAULTS: Sequence[type[Mutant]] = (
    LostTail,
    LostHead,
    SkippedSample,
    StaleState,
    WrongPosition,
    ForgottenAnswer,
    RepeatedToken,
    SwappedHeads,
    NoisyValues,
    NeverActs,
)


def mutants(method: str) -> Iterator[tuple[str, str]]:
    """(name of the fault, spec of the mutant) of a method. NeverActs only where memory is to be freed."""
    frees = make(method).info.frees_memory
    for fault in FAULTS:
        if fault is not NeverActs or frees:
            yield fault.__name__, str(Spec(fault.name(), (("of", method),)))
