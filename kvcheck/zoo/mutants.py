"""Mutation testing of a method of your own: generic faults, put around it from outside.

Each wraps the method's runner, whatever it is made of, and does one thing wrong: `kvcheck zoo
--method=your.module.Class` tells which of them your gate would notice on your model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from kvcheck.cache.kv_cache import CacheLayer, KVCache
from kvcheck.cache.method import Method, MethodInfo
from kvcheck.cache.method_runner import MethodRunner
from kvcheck.cache.shape import ModelShape
from kvcheck.cache.view import FedCache, view
from kvcheck.core.errors import MethodUnsupported
from kvcheck.core.spec import Spec
from kvcheck.methods import make
from kvcheck.models.rotary import moved

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
        """The correct method's; but a prompt goes through the fault, never around it by way of the full cache."""
        return replace(self.inner.info, shares_prefill=False)

    def check(self, shape: ModelShape) -> None:
        """As the correct method."""
        self.inner.check(shape)

    def layer(self, shape: ModelShape, index: int) -> CacheLayer:
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

    def lossless(self) -> Spec | None:
        """The same fault around the correct method's."""
        inner = self.inner.lossless()
        return None if inner is None else Spec(self.name(), (("of", str(inner)),))

    def rounding(self) -> tuple[float, float] | None:
        """As the correct method."""
        return self.inner.rounding()

    def runner(self, loaded: LoadedModel) -> MethodRunner:
        """The correct method's runner behind the fault. Raises MethodUnsupported where it has no place."""
        return MutantRunner(self, self.inner.runner(loaded))

    def prefill(self, runner: MethodRunner, ids: torch.Tensor) -> tuple[FedCache, torch.Tensor]:
        """The prompt. Overridden by faults of it."""
        return runner.prefill(ids)

    def feed(self, runner: MethodRunner, cache: FedCache, ids: torch.Tensor, keep: int) -> torch.Tensor:
        """Later tokens. Overridden by faults of them."""
        return runner.feed(cache, ids, keep)


class MutantRunner(MethodRunner):
    """Goes through the fault of a Mutant."""

    def __init__(self, mutant: Mutant, inner: MethodRunner) -> None:
        super().__init__(mutant, inner.loaded)
        self.mutant, self.inner, self.model = mutant, inner, inner.model

    def build(self) -> KVCache:
        """The correct method's cache."""
        return self.inner.build()

    def prefill(self, ids: torch.Tensor) -> tuple[FedCache, torch.Tensor]:
        """With the fault."""
        return self.mutant.prefill(self.inner, ids)

    def feed(self, cache: FedCache, ids: torch.Tensor, keep: int = 1) -> torch.Tensor:
        """With the fault."""
        return self.mutant.feed(self.inner, cache, ids, keep)


@dataclass(frozen=True)
class LostTail(Mutant):
    """The last token of the prompt is not stored."""

    def prefill(self, runner: MethodRunner, ids: torch.Tensor) -> tuple[FedCache, torch.Tensor]:
        """Logits of the whole prompt, the cache of all but its last token."""
        return (runner.prefill(ids[:, :-1])[0] if ids.shape[1] > 1 else runner.prefill(ids)[0]), runner.prefill(ids)[1]


@dataclass(frozen=True)
class LostHead(Mutant):
    """The first token of the prompt is another one: what lies there was overwritten."""

    def prefill(self, runner: MethodRunner, ids: torch.Tensor) -> tuple[FedCache, torch.Tensor]:
        """With the last token in the first place."""
        return runner.prefill(torch.cat([ids[:, -1:], ids[:, 1:]], dim=1))


@dataclass(frozen=True)
class SkippedSample(Mutant):
    """The second row of a batch is given the cache of the first."""

    def prefill(self, runner: MethodRunner, ids: torch.Tensor) -> tuple[FedCache, torch.Tensor]:
        """Rows 0, 0, 2, 3, …"""
        cache, logits = runner.prefill(ids)
        return cache.select([0, *range(min(1, len(ids) - 1))][: len(ids)] + list(range(2, len(ids)))), logits


@dataclass(frozen=True)
class StaleState(Mutant):
    """A prompt as long as the one before it is given that one's cache."""

    @cached_property
    def before(self) -> dict[tuple[int, ...], FedCache]:
        """Caches by shape of the prompts."""
        return {}

    def prefill(self, runner: MethodRunner, ids: torch.Tensor) -> tuple[FedCache, torch.Tensor]:
        """The cache of the last prompt of this shape."""
        cache, logits = runner.prefill(ids)
        stale = self.before.get(tuple(ids.shape), cache)
        self.before[tuple(ids.shape)] = cache
        return stale.select(range(len(ids))), logits


@dataclass(frozen=True)
class WrongPosition(Mutant):
    """Every token behind the prompt is fed one position too early."""

    def feed(self, runner: MethodRunner, cache: FedCache, ids: torch.Tensor, keep: int) -> torch.Tensor:
        """With the model's rotation one step behind."""
        with moved(runner.model, -1):
            return runner.feed(cache, ids, keep)


@dataclass(frozen=True)
class ForgottenAnswer(Mutant):
    """What is fed behind the prompt is attended to and not stored."""

    def feed(self, runner: MethodRunner, cache: FedCache, ids: torch.Tensor, keep: int) -> torch.Tensor:
        """Into a copy."""
        return runner.feed(cache.select(range(len(ids))), ids, keep)


@dataclass(frozen=True)
class RepeatedToken(Mutant):
    """The first token behind the prompt is stored twice."""

    def feed(self, runner: MethodRunner, cache: FedCache, ids: torch.Tensor, keep: int) -> torch.Tensor:
        """Its copy goes in before it, where a block is fed."""
        if ids.shape[1] > 1:
            runner.feed(cache, ids[:, :1])
        return runner.feed(cache, ids, keep)


@dataclass(frozen=True)
class Values(Mutant):
    """A fault of the values that the model computes for a prompt."""

    def runner(self, loaded: LoadedModel) -> MethodRunner:
        """As Mutant. Raises MethodUnsupported for a model that does not compute values by themselves."""
        if not projections(loaded.model):
            raise MethodUnsupported(f"{self.name()}: the model has no v_proj", "try it on a model such as llama")
        return super().runner(loaded)

    def prefill(self, runner: MethodRunner, ids: torch.Tensor) -> tuple[FedCache, torch.Tensor]:
        """With hooks on all projections to values."""
        heads = runner.shape.kv_heads

        def change(module: torch.nn.Module, args: object, output: torch.Tensor) -> torch.Tensor:
            return self.changed(output.unflatten(-1, (heads, -1))).flatten(-2)

        with ExitStack() as hooks:
            for each in projections(runner.model):
                hooks.enter_context(each.register_forward_hook(change))
            return runner.prefill(ids)

    def changed(self, values: torch.Tensor) -> torch.Tensor:
        """Values (R, n, G, d) with the fault."""
        raise NotImplementedError


def projections(model: torch.nn.Module) -> list[torch.nn.Module]:
    """The modules that compute values."""
    return [module for name, module in model.named_modules() if name.endswith("v_proj")]


@dataclass(frozen=True)
class SwappedHeads(Values):
    """The values of the prompt lie under the wrong kv heads."""

    def changed(self, values: torch.Tensor) -> torch.Tensor:
        """Heads in reverse order."""
        return values.flip(2)


@dataclass(frozen=True)
class NoisyValues(Values):
    """The values of the prompt are off by a tenth."""

    def changed(self, values: torch.Tensor) -> torch.Tensor:
        """With noise of a fixed seed."""
        noise = torch.randn(values.shape[1:], generator=torch.Generator().manual_seed(0)).to(values)
        return values + 0.1 * values.float().std().to(values.dtype) * noise


@dataclass(frozen=True)
class OffByOneMask(Mutant):
    """What comes behind the prompt does not see the token right before it."""

    def runner(self, loaded: LoadedModel) -> MethodRunner:
        """As Mutant. Raises MethodUnsupported for caches that attend in a way of their own."""
        runner = self.inner.runner(loaded)
        if not attends_as_the_full_cache(runner.prefill(torch.zeros(1, 2, dtype=torch.long, device=loaded.device))[0]):
            raise MethodUnsupported(f"{self.name()}: {self.of} attends in a way of its own", "try the other faults")
        return MutantRunner(self, runner)

    def feed(self, runner: MethodRunner, cache: FedCache, ids: torch.Tensor, keep: int) -> torch.Tensor:
        """Without the newest slot of the past."""
        attention = CacheLayer.attention

        def masked(
            layer: CacheLayer, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, rows: slice
        ) -> torch.Tensor:
            past = keys.shape[2] - query.shape[2]
            if past > 1:
                keys, values = (torch.cat([each[:, :, : past - 1], each[:, :, past:]], 2) for each in (keys, values))
            return attention(layer, query, keys, values, rows)

        CacheLayer.attention = masked  # type: ignore[method-assign, assignment]
        try:
            return runner.feed(cache, ids, keep)
        finally:
            CacheLayer.attention = attention  # type: ignore[method-assign]


def attends_as_the_full_cache(cache: FedCache) -> bool:
    """Whether what comes behind the prompt goes through CacheLayer.attention, in every layer."""
    native = view(cache).native
    layers = [] if native is None else native.layers
    kinds = {type(layer) for layer in layers}
    own = any(kind.answer is not CacheLayer.answer or kind.attend is not CacheLayer.attend for kind in kinds)
    return bool(layers) and not own and not any(layer.uneven for layer in layers)


@dataclass(frozen=True)
class NeverActs(Mutant):
    """The method is not called at all: the full cache answers in its place."""

    def layer(self, shape: ModelShape, index: int) -> CacheLayer:
        """The full cache's."""
        return make("fp16").layer(shape, index)

    def build(self, shape: ModelShape, store_dtype: torch.dtype | None = None) -> KVCache:
        """The full cache."""
        return make("fp16").build(shape, store_dtype)

    def runner(self, loaded: LoadedModel) -> MethodRunner:
        """The full cache's."""
        return MutantRunner(self, make("fp16").runner(loaded))


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
    OffByOneMask,
    NeverActs,
)


def mutants(method: str) -> Iterator[tuple[str, str]]:
    """(name of the fault, spec of the mutant) of a method. NeverActs only where memory is to be freed."""
    frees = make(method).info.frees_memory
    for fault in FAULTS:
        if fault is not NeverActs or frees:
            yield fault.__name__, str(Spec(fault.name(), (("of", method),)))
