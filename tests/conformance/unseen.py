"""Faults that public projects had and kvcheck did not know when it met them, each beside the same without the fault.

Caches of transformers' kind as their users write them, and kvcheck Methods. Imported by name, as a user's module is.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from transformers.cache_utils import CacheLayerMixin, DynamicLayer

from kvcheck import CacheLayer, Method, MethodInfo, MethodUnsupported
from kvcheck.cache import scoring
from kvcheck.cache.rotary import rotate, unrotate
from kvcheck.methods.cacheblend import CHECK, BlendLayer, CacheBlend
from kvcheck.methods.quest import Quest

# -- a ring ------------------------------------------------------------------------------------------------------------


class Ring(CacheLayerMixin):
    """The newest 23 tokens before the one that comes, in a buffer whose oldest row is overwritten."""

    is_sliding = False
    is_compileable = False
    rows = 23

    def __init__(self):
        super().__init__()
        self.seen = 0

    def lazy_initialization(self, key_states, value_states):
        self.keys, self.values = (
            each.new_zeros(*each.shape[:2], self.rows, each.shape[3]) for each in (key_states, value_states)
        )
        self.is_initialized = True

    @property
    def held(self):
        return min(self.seen, self.rows)

    def first(self):
        """The row of the oldest token."""
        return (self.seen - self.held) % self.rows

    def in_order(self):
        """The rows that hold a token, oldest first."""
        return (self.first() + torch.arange(self.held)) % self.rows

    def update(self, key_states, value_states, *args, **kwargs):
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        new, order = (key_states, value_states), self.in_order()
        kept = (self.keys[:, :, order], self.values[:, :, order])
        read = tuple(torch.cat(both, 2) for both in zip(kept, new, strict=True))
        many = min(key_states.shape[2], self.rows)
        self.seen += key_states.shape[2]
        places = torch.arange(self.seen - many, self.seen) % self.rows
        self.keys[:, :, places], self.values[:, :, places] = (each[:, :, -many:] for each in new)
        return read

    def get_mask_sizes(self, query_length):
        return self.held + query_length, self.seen - self.held

    def get_seq_length(self):
        return self.seen

    def get_max_length(self):
        return self.rows + 1

    get_max_cache_shape = get_max_length

    def reset(self):
        self.seen, self.is_initialized = 0, False


class RingReadFromTheHead(Ring):
    """The oldest row is where the next token goes, which is so only once the ring is full. (continuous batching of
    transformers)"""

    def first(self):
        return self.seen % self.rows


class SavedRing(Ring):
    """Saved by the rows in order, and put back where they were."""

    def __getstate__(self):
        saved = dict(vars(self))
        if self.is_initialized:
            order = self.in_order()
            saved |= {"keys": self.keys[:, :, order], "values": self.values[:, :, order]}
        return saved

    def places(self):
        """Where the saved rows go."""
        return self.in_order()

    def __setstate__(self, saved):
        vars(self).update(saved)
        if self.is_initialized:
            keys, values = self.keys, self.values
            self.lazy_initialization(keys, values)
            self.keys[:, :, self.places()], self.values[:, :, self.places()] = keys, values


class SavedRingPutBackInOrder(SavedRing):
    """Put back from row 0 on, though a row is a position modulo the size. (llama.cpp)"""

    def places(self):
        return torch.arange(self.held)


# -- pages -------------------------------------------------------------------------------------------------------------


class Pages(DynamicLayer):
    """A full cache in pages of 16 tokens, one of which is there before it is needed."""

    kvcheck_info: ClassVar = {"exceeds": "a page is there before it is needed"}
    page = 16
    is_croppable = False

    def __init__(self):
        super().__init__()
        self.seen = 0

    def update(self, key_states, value_states, *args, **kwargs):
        new = (key_states, value_states)
        old = (self.keys, self.values) if self.is_initialized else tuple(each[:, :, :0] for each in new)
        first, self.seen = self.seen, self.seen + key_states.shape[2]
        more = (self.seen // self.page + 1) * self.page - old[0].shape[2]
        pages = tuple(torch.nn.functional.pad(each, (0, 0, 0, max(0, more))) for each in old)
        for buffer, states in zip(pages, new, strict=True):
            buffer[:, :, first : self.seen] = states
        self.keys, self.values = pages
        self.is_initialized = True
        return tuple(each[:, :, : self.read(key_states.shape[2])] for each in pages)

    def read(self, new):
        """Rows that attention is given."""
        return self.seen

    def get_seq_length(self):
        return self.seen

    def reset(self):
        self.seen, self.is_initialized = 0, False


class PagesReadTooFar(Pages):
    """Where a single token has filled a page, the next one is read too. (pegainfer)"""

    def read(self, new):
        return self.seen + (self.page if new == 1 and self.seen % self.page == 0 else 0)


# -- keys before RoPE --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PreRope(Method):
    """Keys before RoPE, rotated when they are read. The next place is a counter, for several rows a tensor."""

    info: ClassVar[MethodInfo] = MethodInfo(
        summary="keys before RoPE", stage="compression", frees_memory=False, verbatim=False, shares_prefill=False
    )
    copied: ClassVar[bool] = True

    def check(self, shape):
        if shape.rope is None:
            raise MethodUnsupported("the rotation of keys is not known")

    def layer(self, shape, index):
        return PreRopeLayer(shape, index, self)

    def slots(self, shape, prompt, decoded):
        return (prompt + decoded,) * shape.layers


class PreRopeAdvancedFirst(PreRope):
    """The tensor is advanced in place before it is used. (mlx-lm)"""

    copied = False


class PreRopeLayer(CacheLayer):
    """next: where the next token goes, an int of one row, a tensor of several."""

    method: PreRope
    meta = (*CacheLayer.meta, "next")

    def reset(self):
        super().reset()
        self.next = None

    def write(self, keys, values):
        rows, new = keys.shape[0], keys.shape[2]
        if self.next is None:
            self.next = torch.zeros(rows, dtype=torch.long) if rows > 1 else 0
        start = self.next
        if isinstance(start, int):
            self.next = start + new
        else:
            start = start.clone() if self.method.copied else start
            self.next += new
        places = torch.as_tensor(start).reshape(-1, 1, 1) + torch.arange(new)
        super().write(unrotate(keys, places, self.shape.rope), values)

    def read(self, rows, dtype):
        keys, values = super().read(rows, torch.float32)
        return rotate(keys, torch.arange(keys.shape[2]), self.shape.rope).to(dtype), values.to(dtype)

    def select(self, rows):
        copy = super().select(rows)
        if self.next is not None:
            all_rows = torch.as_tensor(self.next).reshape(-1).expand(self.keys.shape[0])
            copy.next = all_rows[torch.as_tensor(rows)].clone() if len(rows) > 1 else int(all_rows[rows[0]])
        return copy


# -- reused chunks -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BlendBehindAPrefix(CacheBlend):
    """CacheBlend that leaves out the first chunk, which is exact, where it looks for what deviates."""

    counted_from_the_start: ClassVar[bool] = True

    def layer(self, shape, index):
        return BehindAPrefixLayer(shape, index, self)


class BlendAtPlacesBehindThePrefix(BlendBehindAPrefix):
    """Places behind that chunk are taken for places of the prompt. (LMCache)"""

    counted_from_the_start = False


class BehindAPrefixLayer(BlendLayer):
    method: BlendBehindAPrefix

    def write(self, keys, values):
        if self.blend is not None and self.index == CHECK:
            self.blend.choose = partial(self.choose, self.blend)
        super().write(keys, values)

    def choose(self, blend, deviation):
        exact = min(self.method.chunk, blend.reused)
        worst = scoring.top(deviation[:, exact : blend.reused], min(blend.count, blend.reused - exact))
        worst = worst + (exact if self.method.counted_from_the_start else 0)
        fresh = torch.arange(blend.reused, blend.tokens).expand(len(worst), -1)
        blend.chosen = torch.cat([worst, fresh], dim=1)


# -- a budget in pages -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class WidePages(Quest):
    """Quest with pages of 32 tokens."""

    page: int = 32


@dataclass(frozen=True)
class WidePagesCountedAsNarrow(WidePages):
    """The budget is turned into pages of 16 tokens. (imp)"""

    def pages(self, prompt):
        return Quest(budget=self.budget, page=16).pages(prompt)
