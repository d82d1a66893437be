"""The cache of a method: a transformers Cache made of CacheLayers."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from transformers.cache_utils import Cache

from kvcheck.cache.layer import CacheLayer, Rows, pending
from kvcheck.cache.shape import Prefilled
from kvcheck.cache.view import CacheView
from kvcheck.core.errors import KvcheckError, MethodUnsupported

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["CacheLayer", "KVCache"]


class KVCache(CacheView, Cache):
    """A cache of CacheLayers for model.generate() and model().

    store_dtype: how keys and values are rounded as they enter. None: as they arrive when that is a 16-bit dtype, else
    float16. float32 keeps them (tests compare with plain transformers so; bytes are then twice those of the formulas).
    """

    def __init__(self, layers: list[CacheLayer], store_dtype: torch.dtype | None = None) -> None:
        super().__init__(layers=layers)
        self.layers: list[CacheLayer]
        for layer in layers:
            layer.store_dtype = store_dtype

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Take in the keys and values of a layer, which kvcheck's attention function then finds in `pending`."""
        if layer_idx >= len(self.layers):
            raise MethodUnsupported(
                f"the model has a layer {layer_idx}, the cache was built for {len(self.layers)} layers",
                "build it with method.build(ModelShape.of(model.config))",
            )
        layer = self.layers[layer_idx]
        key, value = layer.update(key_states, value_states)
        pending.layer, pending.key = layer, key
        return key, value

    @property
    def seen(self) -> int:  # type: ignore[override]
        """Tokens fed so far."""
        return self.layers[0].seen

    @property
    def native(self) -> KVCache:
        """Itself."""
        return self

    @property
    def method_layers(self) -> Sequence[CacheLayer]:
        """All of them."""
        return self.layers

    @contextmanager
    def prefilling(self) -> Iterator[None]:
        """Feed the prompt in several forwards: all attend to everything before; compresses once, on leaving."""
        for layer in self.layers:
            layer.hold()
        yield
        for layer in self.layers:
            layer.release()

    @contextmanager
    def recording(self) -> Iterator[list[Prefilled]]:
        """As `prefilling`; on leaving, the list holds per layer what other methods can `absorb`. For the full cache."""
        taken: list[Prefilled] = []
        for layer in self.layers:
            layer.hold(queries=True)
        yield taken
        for layer in self.layers:
            keys, values = layer.keys, layer.values
            taken.append(Prefilled(keys, values, layer.release(), layer.scaling))

    def absorb(self, prefilled: Sequence[Prefilled]) -> None:
        """Take in a prompt that was prefilled with the full cache, one Prefilled per layer, and compress it."""
        if len(prefilled) != len(self.layers):
            raise KvcheckError(f"{len(prefilled)} prefilled layers do not fit a cache of {len(self.layers)}")
        for layer, part in zip(self.layers, prefilled, strict=True):
            layer.absorb(part)

    def select(self, rows: Rows) -> Self:
        """A new cache with copies of these rows of the batch: [0, 0, 0] forks the first one three times."""
        clone = copy.copy(self)
        clone.layers = [layer.select(rows) for layer in self.layers]
        return clone

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Beam search: replace the rows in place."""
        self.layers = self.select(beam_idx).layers

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep these rows, in place."""
        self.layers = self.select(indices).layers

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row, in place."""
        self.layers = self.select([row for row in range(self.layers[0].rows) for _ in range(repeats)]).layers
