"""Caches of another make, and rows that are kept apart: prompts of unequal length, and caches that know no batch."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers import Cache

from kvcheck.cache.method_runner import MethodRunner
from kvcheck.cache.view import CacheView, FedCache, LayerView, OtherLayer

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.cache_utils import CacheLayerMixin


class RowCache(CacheView):
    """One cache of one sequence for each row. rows: whatever the runner feeds; copied by `select` where it has one."""

    rows: list[Any]  # of the kind that the runner feeds

    def __init__(self, rows: Sequence[FedCache]) -> None:
        self.rows = list(rows)

    def row(self, at: int) -> RowCache:
        """One row by itself, the very one."""
        return RowCache([self.rows[at]])

    def select(self, rows: Sequence[int] | torch.Tensor) -> RowCache:
        """Copies of these rows, in this order; repeats allowed."""
        wanted = [self.rows[int(row)] for row in rows]
        return RowCache([row.select([0]) if hasattr(row, "select") else copy.deepcopy(row) for row in wanted])


class Row(CacheView):
    """A cache of one sequence that is not made of kvcheck's layers.

    cache: a transformers Cache. seen: tokens fed; position: of the next token, which differs where keys were rotated
    anew. press: what compresses it, and its state. masks: by the name of a module, what an attention patch is to hide.
    attention: the attention function that it goes with, by the name under which transformers knows it.
    """

    meta = ("press", "masks")
    opaque = True

    def __init__(self, cache: Cache, model: PreTrainedModel, press: Any = None, attention: str = "sdpa") -> None:
        self.cache, self.model, self.press, self.attention = cache, model, press, attention
        self.seen = self.position = 0
        self.masks: dict[str, object] = {}

    @property
    def inner(self) -> Cache:
        """The transformers Cache."""
        return self.cache

    @property
    def method_layers(self) -> list[LayerView]:
        """All of them. They have seen what the row has, whatever they say.

        Of a cache that keeps nothing in `layers`, each is all of it: it alone knows where it keeps what.
        """
        if self.cache.layers:
            return [OtherLayer(layer, self.seen, _slots(layer)) for layer in self.cache.layers]
        count = self.model.config.get_text_config().num_hidden_layers if self.seen else 0
        return [OtherLayer(self.cache, self.seen, self.length)] * count

    @property
    def length(self) -> int:
        """The tokens that its cache says it has; those seen, where its class never says it and has no layers."""
        says = self.cache.layers or type(self.cache).get_seq_length is not Cache.get_seq_length
        return int(self.cache.get_seq_length()) if says else self.seen

    def select(self, rows: Sequence[int] | torch.Tensor) -> Row:
        """A deep copy; there is one row only."""
        return copy.deepcopy(self)

    def __deepcopy__(self, memo: dict[int, object]) -> Row:
        """A copy of everything but the model and streams of its device."""
        memo.update((id(module), module) for module in self.model.modules())
        stream = getattr(self.cache, "prefetch_stream", None)
        memo.update({id(stream): stream} if stream is not None else {})
        for value in (value for layer in self.cache.layers for value in vars(layer).values()):
            if isinstance(value, torch.Tensor) and hasattr(value, "__tensor_flatten__"):
                memo[id(value)] = _wrapper(value)
        clone = copy.copy(self)
        for name in ("cache", "press", "masks"):
            setattr(clone, name, copy.deepcopy(getattr(self, name), memo))
        return clone


class Batch(Row):
    """Sequences of one length together in one cache of another make, fed as `generate` feeds them.

    The cache changes its rows by its own verbs, and its own length says where the next token stands. mask (R, seen):
    false where a row is padded on the left, None where none is. Raises whatever the cache raises.
    """

    mask: torch.Tensor | None = None

    def select(self, rows: Sequence[int] | torch.Tensor) -> Batch:
        """A deep copy, in which the cache itself selects the rows."""
        clone = copy.deepcopy(self)
        clone.batch_select_indices(torch.as_tensor(rows))
        return clone

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep these rows, in place."""
        self.cache.batch_select_indices(indices)
        self.mask = None if self.mask is None else self.mask[indices]

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row, in place."""
        self.cache.batch_repeat_interleave(repeats)
        self.mask = None if self.mask is None else self.mask.repeat_interleave(repeats, 0)

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Beam search: replace the rows in place."""
        self.cache.reorder_cache(beam_idx)
        self.mask = None if self.mask is None else self.mask[beam_idx]

    def reset(self) -> None:
        """Forget everything."""
        self.cache.reset()
        self.seen, self.mask = 0, None


def _slots(layer: CacheLayerMixin) -> int:
    """Slots per kv head of such a layer: as long as its keys are, else (they may be an empty tail) what it says."""
    keys = getattr(layer, "keys", None)
    plain = isinstance(keys, torch.Tensor) and keys.dim() == 4 and not hasattr(layer, "cumulative_length")
    return (int(keys.shape[2]) if plain and keys is not None else 0) or int(layer.get_seq_length())


def _wrapper(tensor: Any) -> torch.Tensor:
    """A copy of a tensor that is made of others, such as a quantized one; those do not always copy themselves."""
    names, context = tensor.__tensor_flatten__()
    inner = {
        name: _wrapper(part) if hasattr(part, "__tensor_flatten__") else part.clone()
        for name, part in ((name, getattr(tensor, name)) for name in names)
    }
    return type(tensor).__tensor_unflatten__(inner, context, tensor.size(), tensor.stride())


class RowRunner(MethodRunner):
    """Feeds row by row. A subclass says how one row is prefilled and fed."""

    def prefill(self, ids: torch.Tensor) -> tuple[RowCache, torch.Tensor]:
        """As MethodRunner.prefill, every row by itself."""
        parts = [self.prefill_row(row) for row in ids.split(1)]
        return RowCache([cache for cache, _ in parts]), torch.cat([logits for _, logits in parts])

    def feed(self, cache: RowCache, ids: torch.Tensor, keep: int = 1) -> torch.Tensor:
        """As MethodRunner.feed, every row by itself."""
        pairs = zip(cache.rows, ids.split(1), strict=True)
        return torch.cat([self.feed_row(row, fed, keep) for row, fed in pairs])

    def prefill_row(self, ids: torch.Tensor) -> tuple[FedCache, torch.Tensor]:
        """One prompt (1, n) -> its cache, and the logits (1, V) behind it."""
        cache = self.build()
        return cache, self.feed_row(cache, ids, 1)[:, -1]

    def feed_row(self, cache: Any, ids: torch.Tensor, keep: int) -> torch.Tensor:
        """Feed (1, q) into the cache of one row -> (1, keep, V)."""
        return super().feed(cache, ids, keep)
