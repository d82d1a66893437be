"""A method at home on a model: how prompts get into its cache, and how tokens are fed to it afterwards.

The runner of most methods is this one. A method that acts outside of the cache (on the prompt, on how a prompt is
computed, on the model itself) returns a runner of its own from `Method.runner`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import torch

from kvcheck.cache import forward

if TYPE_CHECKING:
    from kvcheck.cache.kv_cache import KVCache
    from kvcheck.cache.method import Method
    from kvcheck.models import LoadedModel

MODELS: WeakSet[torch.nn.Module] = WeakSet()
"""The models under test: a cache that refers to one, or to a module of it, is not charged its weights."""


class MethodRunner:
    """Runs one method on one model.

    A cache is whatever its own `feed` takes, so `Any` here: a FedCache, whose tensors `measure.held` must reach.
    """

    def __init__(self, method: Method, loaded: LoadedModel) -> None:
        self.method = method
        self.loaded = loaded
        self.model = loaded.model
        MODELS.add(loaded.model)
        self.shape = loaded.shape

    def build(self) -> KVCache:
        """A fresh, empty cache."""
        return self.method.build(self.shape)

    def prefill(self, ids: torch.Tensor) -> tuple[Any, torch.Tensor]:
        """The method's own prefill of prompts (R, n) -> its cache, and the logits (R, V) behind them."""
        cache = self.build()
        return cache, self.feed(cache, ids)[:, -1]

    def feed(self, cache: Any, ids: torch.Tensor, keep: int = 1) -> torch.Tensor:
        """Feed token ids (R, q) into a cache -> logits (R, keep, V) of the last `keep` positions."""
        return forward.feed(self.model, ids, cache, logits_to_keep=keep).logits
