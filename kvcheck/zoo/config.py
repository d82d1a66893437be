"""Bugs of settings that do not reach the code that they are for, or reach code that they are not for."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from kvcheck.cache import kernels
from kvcheck.cache.kv_cache import CacheLayer, KVCache
from kvcheck.cache.quantize import Packed
from kvcheck.cache.shape import ModelShape
from kvcheck.methods.kivi import KIVI, KIVILayer
from kvcheck.methods.mixattention import MadeLayer, MixAttention, MixLayer, ReadLayer
from kvcheck.methods.snapkv import SnapKV, SnapLayer
from kvcheck.zoo.base import bug, used_by
from kvcheck.zoo.counterparts.long_rope import LongRope


@bug("empty-cache-is-falsy", "https://github.com/NVIDIA/kvpress/pull/152")
class EmptyCacheIsFalsy(SnapKV):
    """The cache has a length, its tokens, and the code that is to compress it takes hold of it by `cache or None`. A
    fresh cache has length 0 and counts as false, so there is nothing to compress, and the full cache stays.

    Found in kvpress after an update of transformers, whose caches came to create their layers late. Shows always.
    """

    def build(self, shape: ModelShape, store_dtype: torch.dtype | None = None) -> KVCache:
        """A fresh, empty cache whose layers are told to compress."""
        cache = SizedCache(super().build(shape, store_dtype).layers, store_dtype)
        found: SizedCache | None = cache or None
        if found is not None:
            found.follow()
        return cache


class SizedCache(KVCache):
    """A cache with a length."""

    def __len__(self) -> int:
        """Tokens fed so far."""
        return self.seen

    def follow(self) -> None:
        """Tell every layer to compress its prompt."""
        for layer in self.layers:
            layer.told = True  # type: ignore[attr-defined]


@used_by(EmptyCacheIsFalsy)
class ToldLayer(SnapLayer):
    """Compresses if told so."""

    told = False

    def compress(self, queries: torch.Tensor) -> None:
        """As SnapKV, or nothing."""
        if self.told:
            super().compress(queries)


@bug("cache-config-dict-mutated", "https://github.com/huggingface/transformers/pull/48700")
class CacheConfigDictMutated(KIVI):
    """The settings of the cache are a dict that lives as long as the method. Making a cache takes the backend out of it
    and puts the number of layers in, so the next cache is made with the default backend, whose keys are quantized per
    token, and a model of another depth with the layers of the first.

    Found in transformers' `generate`. Shows from the second cache on that is made with the same settings.
    """

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What caches are made by."""
        return {"backend": "per_channel"}

    def build(self, shape: ModelShape, store_dtype: torch.dtype | None = None) -> KVCache:
        """A fresh, empty cache by the settings."""
        import kvcheck.cache.attention  # noqa: F401  registers the attention function

        self.check(shape)
        kind = BACKENDS[self.settings.pop("backend", "per_token")]
        count = self.settings.setdefault("layers", shape.layers)
        return KVCache([kind(shape, index, self) for index in range(count)], store_dtype)


class PerTokenLayer(KIVILayer):
    """Keys per token."""

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self.kq = Packed(self.method.bits, self.method.group, "token")


BACKENDS: dict[str, type[KIVILayer]] = {"per_channel": KIVILayer, "per_token": PerTokenLayer}


@bug("group-window-on-global-layers", "https://github.com/vllm-project/vllm/pull/51756")
class GroupWindowOnGlobalLayers(MixAttention):
    """Layers that see a window and layers that see everything share one record of how to attend; attention takes the
    window from there, so all layers see the window only. What is stored is right.

    Found in vLLM's cache groups. Shows in hybrid models, on texts longer than the window.
    """

    def layer(self, shape: ModelShape, index: int) -> CacheLayer:
        """A layer that sees a window."""
        kind = WindowMadeLayer if self.layout.makes(index) else WindowReadLayer
        return kind(shape, index, self)


class WindowLayer(MixLayer):
    """Sees a window, whatever kind it is of."""

    def attention(self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, rows: slice) -> torch.Tensor:
        """Attention over the window."""
        mask = kernels.visible(query.shape[2], keys.shape[2], self.method.layout.window, query.device)
        return scaled_dot_product_attention(query, keys, values, mask, scale=self.scaling, enable_gqa=True)


class WindowMadeLayer(WindowLayer, MadeLayer):
    """Makes keys and values."""


class WindowReadLayer(WindowLayer, ReadLayer):
    """Reads another layer's."""


@bug("rope-regime-from-allocated-size", "https://github.com/ggml-org/llama.cpp/issues/8995")
class RopeRegimeFromAllocatedSize(LongRope):
    """Which rotary frequencies hold is decided by the capacity of the cache, not by the tokens in it, so a short text
    in a large cache is read by those of a long one.

    Found in llama.cpp with models of two sets of frequencies. Shows as soon as the capacity exceeds the native context.
    """

    def extended(self, tokens: int) -> bool:
        """Whether the cache may come to hold a long text."""
        return self.capacity > self.native
