"""Offloading that fetches ahead, in a stack where only every second layer is offloaded."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from kvcheck.cache.kv_cache import CacheLayer, KVCache
from kvcheck.cache.method import MethodInfo
from kvcheck.cache.shape import ModelShape
from kvcheck.methods.offload import Offload, OffloadedLayer
from kvcheck.zoo.base import used_by

Fetched = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Prefetch(Offload):
    """Layers 0, 2, 4, … are in host memory, the others where the model is; while one attends, the next is fetched.

    There is room for one fetched layer. A layer that was not fetched is read from the host when it attends.

    Bytes: 2·floor(L/2)·B·G·n·d·2 on the device, 2·ceil(L/2)·B·G·n·d·2 in host memory.
    """

    info: ClassVar[MethodInfo] = replace(
        Offload.info,
        summary="keeps every second layer in host memory and fetches it ahead",
        formula="2·floor(L/2)·B·G·n·d·2 on the device, 2·ceil(L/2)·B·G·n·d·2 in host memory",
        variant="every second layer; one is fetched ahead",
    )

    def layer(self, shape: ModelShape, index: int) -> CacheLayer:
        """A layer in host memory, or one that is not."""
        return CacheLayer(shape, index, self) if index % 2 else FetchedLayer(shape, index, self)

    def kv_bytes(self, shape: ModelShape, batch: int, prompt: int, decoded: int) -> int:
        """The layers that stay."""
        return shape.layers // 2 * (prompt + decoded) * shape.token_bytes(batch)

    def host_bytes(self, shape: ModelShape, batch: int, prompt: int, decoded: int) -> int:
        """The others."""
        return (shape.layers + 1) // 2 * (prompt + decoded) * shape.token_bytes(batch)


class FetchedLayer(OffloadedLayer):
    """In host memory. ahead: keys and values that have been fetched for it, without the newest tokens."""

    ahead: Fetched | None = None

    def read(self, rows: slice, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """What was fetched ahead, and the newest tokens behind it."""
        if self.ahead is None:
            return super().read(rows, dtype)
        old = self.ahead[0].shape[2]
        parts = zip(self.ahead, (self.keys, self.values), strict=True)
        keys, values = (torch.cat([there[rows], here[rows, :, old:].to(self.home)], dim=2) for there, here in parts)
        return keys.to(dtype), values.to(dtype)

    def attend(self, query: torch.Tensor, scaling: float | None = None) -> torch.Tensor:
        """Attend, and let go of what was fetched."""
        out = super().attend(query, scaling)
        self.ahead = None
        return out


@used_by(Prefetch)
class PrefetchCache(KVCache):
    """slot: what has been fetched, keys and values."""

    slot: Fetched | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Hand over what was fetched for this layer, then fetch the next one."""
        layer = self.layers[layer_idx] if layer_idx < len(self.layers) else None
        if isinstance(layer, FetchedLayer):
            layer.ahead, self.slot = self.slot, None
        out = super().update(key_states, value_states, layer_idx)
        self.fetch(layer_idx + 1, layer_idx, key_states.device)
        if layer_idx + 1 == len(self.layers):
            self.slot = None
        return out

    def fetch(self, wanted: int, now: int, device: torch.device) -> None:
        """Copy a layer to the device, if it is in host memory and the prompt is in. now: the layer that attends."""
        layer = self.layers[wanted] if wanted < len(self.layers) else None
        if isinstance(layer, FetchedLayer) and layer.prompt is not None:
            self.slot = (layer.keys.to(device).clone(), layer.values.to(device).clone())
