"""The reference for models that carry more than a full KV cache: fp16 run row by row, its cache kept and forked.

A state cannot be cut out of a longer text as keys and values can, so what is shared is the cache behind the context;
a method prefills by itself.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from kvcheck.backends.transformers.prefill import Dense, Memo, Prefiller
from kvcheck.cache.kv_cache import CacheLayer
from kvcheck.cache.rows import RowCache
from kvcheck.cache.shape import Prefilled
from kvcheck.cache.view import CacheView, parts
from kvcheck.core.errors import KvcheckError
from kvcheck.measure.memory import tensors
from kvcheck.methods.fp16 import Fp16
from kvcheck.models import LoadedModel


@dataclass(frozen=True, kw_only=True, eq=False)
class Carrying(Dense):
    """cache: what every row carries behind its context. layers: copies of its full attention, where there is some."""

    cache: RowCache

    def tensors(self) -> Iterator[torch.Tensor]:
        """What is carried, and the copies."""
        yield from super().tensors()
        yield from tensors(self.cache)


class StatePrefiller(Prefiller):
    """Prefiller of such a model. Queries are not recorded: no method compresses by what another run has seen."""

    goes_on: ClassVar[bool] = False

    def __init__(self, loaded: LoadedModel, memo: Memo[Dense]) -> None:
        super().__init__(loaded, memo, queries=False)
        self.runner = Fp16().runner(loaded)

    def context(self, key: Hashable, ids: torch.Tensor, queries: bool) -> Dense:
        """The full cache of contexts (B, n), from the memo where it is there."""
        key = ("carried", key)  # beside the full KV cache of the same contexts, which windows may have too
        found = self.known(key)
        if found is None:
            cache, _ = self.runner.prefill(ids)
            self.forwards += len(ids)
            rows = [self.layers(cache, row) for row in range(len(ids))]
            layers = [_stacked([layer for layer, _ in each]) for each in zip(*rows, strict=True)]
            found = Carrying(key, layers, ids.shape[1], cache=cache)
            self.memo.put(key, found, found.nbytes)
        self.used.add(found)
        return found

    def started(self, dense: Dense, rows: Sequence[int]) -> RowCache:
        """A fork of what these rows carry."""
        if not isinstance(dense, Carrying):
            raise KvcheckError(f"a {type(dense).__name__} holds keys and values only", "use StatePrefiller.context")
        return dense.cache.select(rows)

    def layers(self, cache: CacheView, row: int) -> list[tuple[CacheLayer, int]]:
        """The layers with full attention of one row, and where it is in them."""
        return super().layers(parts(cache)[row], 0)


def _stacked(layers: Sequence[CacheLayer]) -> Prefilled:
    """One layer of several rows as one."""
    keys, values = (torch.cat([getattr(layer, name) for layer in layers]) for name in ("keys", "values"))
    return Prefilled(keys, values, None, layers[0].scaling)
