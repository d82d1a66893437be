"""Prefix caches with one thing more each: aborted requests, a second tier, a second tenant."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from kvcheck.cache import checks
from kvcheck.cache.kv_cache import KVCache
from kvcheck.cache.method import Lossless, MethodInfo
from kvcheck.cache.method_runner import MethodRunner
from kvcheck.cache.quantize import quantize
from kvcheck.zoo.twins.prefix_store import PrefixStore, StoreRunner

if TYPE_CHECKING:
    from kvcheck.models import LoadedModel


@dataclass(frozen=True)
class RetriedStore(PrefixStore):
    """The prefix store, where the first request of every prompt is aborted halfway and a second one goes on."""

    def runner(self, loaded: LoadedModel) -> MethodRunner:
        """Aborts and retries."""
        return RetryRunner(self, loaded)


class RetryRunner(StoreRunner):
    """Every prompt that is to be computed is tried twice."""

    def fill(self, row: torch.Tensor) -> None:
        """A request that is aborted in the middle, then one that goes on from the blocks that the first published."""
        if len(self.hits(row)) < len(row) // self.method.block:
            self.abort(self.compute(row, len(row) // 2))
        super().fill(row)

    def abort(self, pages: list[int]) -> None:
        """A request ends before its time: of its pages, those that the store refers to stay."""
        known = {entry.page for entry in self.pool.index.values()}
        self.pool.free += [page for page in pages if page not in known]


@dataclass(frozen=True)
class TieredStore(PrefixStore):
    """The prefix store with a second tier: chunks of `far` tokens in 8 bits, for what the first tier does not hold.

    Of a prompt's blocks, the first half is served from the first tier, bit for bit, and the rest from the second, as
    far as whole chunks reach; a chunk whose beginning is served already is read from there on. So tokens that come out
    of the second tier are rounded: by at most half of a 255th of the range of a token's channels.
    """

    info: ClassVar[MethodInfo] = replace(
        PrefixStore.info,
        summary="the full cache, from a store of prefixes in two tiers",
        verbatim=False,
        lossless=Lossless.at("far=1000000"),
    )

    far: int = 64

    def __post_init__(self) -> None:
        """Raise SpecError for values out of range."""
        super().__post_init__()
        checks.whole(self.name(), "far", self.far, 1, 64)

    def runner(self, loaded: LoadedModel) -> MethodRunner:
        """Owns both tiers."""
        return TieredRunner(self, loaded)


class TieredRunner(StoreRunner):
    """The second tier is what the first one held, rounded when it is read."""

    method: TieredStore

    def restored(self, table: torch.Tensor, tokens: int) -> tuple[KVCache, int]:
        """The first half of the blocks as they are, then chunks of the second tier."""
        length = min(table.shape[1] * self.method.block, tokens - 1)
        near = table.shape[1] // 2 * self.method.block
        end = max(near, length // self.method.far * self.method.far)
        if not end:
            return self.filled(None), 0
        states = self.pool.load(table)[..., :end, :].clone()
        start = self.first(near)
        if start < end:
            states[..., start:end, :] = _rounded(states[..., start:end, :])
        return self.filled(states), end

    def first(self, near: int) -> int:
        """The first token that is read from the second tier, where the first one holds `near`."""
        return near


def _rounded(states: torch.Tensor) -> torch.Tensor:
    """What 8 bits leave of keys and values (..., d), in groups of all channels of a token."""
    codes, scale, low = quantize(states, 8, dim=-1)
    return (codes.float() * scale.float().unsqueeze(-1) + low.float().unsqueeze(-1)).to(states.dtype)


@dataclass(frozen=True)
class TenantStore(PrefixStore):
    """The prefix store with a second tenant, who has asked for every prompt before, with an adapter in the model.

    The adapter adds a fixed vector to the embedding of every token, of `strength` times the mean norm of embeddings.
    """

    strength: float = 0.5

    def runner(self, loaded: LoadedModel) -> MethodRunner:
        """Serves both tenants from one store."""
        return TenantRunner(self, loaded)


class TenantRunner(StoreRunner):
    """adapter: the name of the one that is in the model, "" for none."""

    method: TenantStore
    adapter = ""

    def prefill(self, ids: torch.Tensor) -> tuple[KVCache, torch.Tensor]:
        """The other tenant's request, then this one."""
        with self.adapted():
            super().prefill(ids)
        return super().prefill(ids)

    def root(self) -> bytes:
        """Keys and values depend on the adapter, too."""
        return self.adapter.encode()

    @contextmanager
    def adapted(self) -> Iterator[None]:
        """The model with the adapter."""
        embedding = self.model.get_input_embeddings()
        weight = embedding.weight
        source = torch.Generator().manual_seed(0)
        shift = torch.randn(weight.shape[1], generator=source).to(weight)
        shift *= self.method.strength * weight.float().norm(dim=-1).mean().to(weight.dtype) / shift.norm()

        def add(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
            return output + shift

        handle = embedding.register_forward_hook(add)
        self.adapter = "tenant"
        try:
            yield
        finally:
            handle.remove()
            self.adapter = ""
