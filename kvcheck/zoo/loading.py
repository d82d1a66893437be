"""Bugs of saving, loading and offloading: what comes back is not what went away."""

from __future__ import annotations

import torch

from kvcheck.cache.growable import GrowableBuffer
from kvcheck.methods.offload import Offload, OffloadedLayer
from kvcheck.methods.save_load import SaveLoad, SaveLoadLayer
from kvcheck.zoo.base import bug, used_by
from kvcheck.zoo.counterparts.prefetch import FetchedLayer, Prefetch, PrefetchCache
from kvcheck.zoo.counterparts.prefix_store import Entry, Full, Pool, PrefixStore, StoreRunner
from kvcheck.zoo.counterparts.quests import StoredQuest, StoredQuestLayer
from kvcheck.zoo.counterparts.ring import Ring, RingLayer
from kvcheck.zoo.counterparts.rotated_store import RotatedLayer, RotatedStore


@bug("index-keys-not-transferred", "https://github.com/ROCm/ATOM/pull/1368")
class IndexKeysNotTransferred(StoredQuest):
    """Only keys and values are saved; the bounds of the pages come back as zeros, so every page of the prompt looks
    alike and the oldest are chosen.

    From an engine that moved caches between machines and left the index of its sparse attention behind. Shows after
    loading, as soon as the text is longer than the pages that are attended to in any case.
    """


@used_by(IndexKeysNotTransferred)
class _WithoutIndex(StoredQuestLayer):
    def state(self) -> dict[str, torch.Tensor]:
        """Keys and values."""
        return {"keys": self.keys, "values": self.values}

    def restore(self, state: dict[str, torch.Tensor]) -> None:
        """Room for the bounds is made anew, and nothing is written to it."""
        pages = -(-self.seen // self.method.page)
        keys = state["keys"]
        empty = keys.new_zeros(*keys.shape[:2], pages, keys.shape[3])
        super().restore({**state, "low": empty, "high": empty.clone()})


@bug("packed-layout-read-as-split", "https://github.com/LMCache/LMCache/issues/4463")
class PackedLayoutReadAsSplit(SaveLoad):
    """Keys and values lie side by side in the last dimension; the transfer cuts that memory in two as if it were a
    plane of keys and a plane of values, and so both come back as mixtures of the two.

    From an offloading layer that was written for separate planes when its engine changed to the packed layout. Shows
    for every prompt that comes back from the file.
    """


@used_by(PackedLayoutReadAsSplit)
class _Packed(SaveLoadLayer):
    def compress(self, queries: torch.Tensor) -> None:
        """The memory of (B, G, n, 2·d) is taken for that of (2, B, G, n, d)."""
        packed = torch.cat([self.keys, self.values], dim=-1)
        keys, values = packed.view(2, *self.keys.shape)
        self.k, self.v = GrowableBuffer(keys.clone()), GrowableBuffer(values.clone())
        super().compress(queries)


@bug("restore-without-rotation-metadata", "https://github.com/ggml-org/llama.cpp/pull/28498", "reader=4")
class RestoreWithoutRotationMetadata(RotatedStore):
    """The file does not say how the stored keys were rotated; whoever loads it rotates them back by its own setting.

    From an engine that had just learnt to rotate before quantizing. Shows when the process that loads is set up
    otherwise than the one that saved; with equal settings everything is right.
    """


@used_by(RestoreWithoutRotationMetadata)
class _Unlabelled(RotatedLayer):
    def about(self) -> dict[str, str]:
        """Nothing."""
        return {}

    def rotation(self, about: dict[str, str]) -> int:
        """The setting of this process."""
        return self.method.reader


@bug("boolean-saved-as-string", "https://github.com/ml-explore/mlx-lm/issues/1250", "window=4096")
class BooleanSavedAsString(Ring):
    """Whether the ring is full is saved as the text of a boolean and read back as the truth of that text, which is
    true for "False", too. A ring that is not full is then read from its head on, where nothing has been written.

    From a sliding window cache with string metadata. Shows when a cache is loaded whose prompt did not fill the ring.
    """


@used_by(BooleanSavedAsString)
class _TextFlag(RingLayer):
    loaded = 0  # entries that the ring held when it was loaded; the flag decides their order, not their number

    @property
    def entries(self) -> int:
        """Counted apart from the flag."""
        return min(self.loaded, self.method.size) if self.rk is not None else super().entries

    def push(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Count."""
        sinks = min(self.method.sink - self.sunk, keys.shape[2])
        super().push(keys, values)
        self.loaded = min(self.loaded + keys.shape[2] - sinks, self.method.size)

    def roll_back(self, count: int) -> None:
        """Count."""
        left = self.loaded - count
        super().roll_back(count)
        self.loaded = max(0, left)

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self.loaded = 0

    def about(self) -> dict[str, str]:
        """The flag as text."""
        return {**super().about(), "wrapped": str(self.wrapped)}

    def restore(self, tensors: dict[str, torch.Tensor], about: dict[str, str]) -> None:
        """The text as a flag."""
        super().restore(tensors, about)
        self.wrapped = bool(about["wrapped"])


@bug("position-delta-not-saved", "https://github.com/ml-explore/mlx-swift-lm/issues/443")
class PositionDeltaNotSaved(Ring):
    """Keys and values are saved, the number of tokens that were evicted is not: what is loaded takes the number of its
    rows for that of the tokens seen, and new tokens get positions that are too small by what was evicted.

    From a session file that held the tensors alone. Shows after loading, for prompts that are longer than the ring.
    """


@used_by(PositionDeltaNotSaved)
class _Rows(RingLayer):
    def restore(self, tensors: dict[str, torch.Tensor], about: dict[str, str]) -> None:
        """The offset starts at the number of rows."""
        super().restore(tensors, about)
        self.seen = self.prompt = self.sunk + self.entries


@bug("failed-store-stays-visible", "https://github.com/LMCache/LMCache/issues/4991")
class FailedStoreStaysVisible(PrefixStore):
    """A block is listed in the index before it is written, and stays there when writing it fails; who looks it up gets
    an empty page.

    From a store whose writer only logged the failure. Shows for prompts with more blocks than can be staged, from the
    first block on that could not be written.
    """


class _ListedFirst(Pool):
    def put(self, key: bytes, prefix: bytes, block: torch.Tensor) -> int | None:
        """List, then write."""
        if key in self.index:
            return None
        page = self.take()
        self.index[key] = Entry(page, prefix)
        try:
            self.copy(page, block)
        except Full:
            return None
        return page


@used_by(FailedStoreStaysVisible)
class _Careless(StoreRunner):
    def new_pool(self) -> Pool:
        """An empty store."""
        return _ListedFirst(self.method.capacity, self.method.staging)


@bug("offload-copy-not-ordered", "https://github.com/LMCache/LMCache/issues/4870")
class OffloadCopyNotOrdered(Offload):
    """Prompts leave through a staging buffer of two slots; the host copies a slot at once, although the transfer that
    fills it may still be under way. Of three large transfers in a row the third is late, and what is stored then is
    the chunk that the slot held before, of whatever layer or prompt that was.

    From an offloading layer that fell back to a plain copy, which nothing orders behind the transfer. The race is
    played here by counting; the count goes on from prompt to prompt, so that the chunks that are hit differ between
    equal requests. Shows for prompts with whole chunks of 64 tokens.
    """


CHUNK = 64
"""Tokens of a transfer that takes long enough to be late."""

_SLOTS: dict[int, torch.Tensor] = {}  # of the process, as pinned memory is; not part of any cache
_ISSUED = [0]


def _transfer(chunk: torch.Tensor) -> torch.Tensor:
    """What the host copies out of the slot that a chunk (2, B, G, t, d) is being transferred to."""
    _ISSUED[0] += 1
    number = _ISSUED[0]
    held = _SLOTS.get(number % 2)
    _SLOTS[number % 2] = chunk
    late = number % 3 == 0 and held is not None and held.shape == chunk.shape and held.dtype == chunk.dtype
    return held.clone() if late and held is not None else chunk.clone()


@used_by(OffloadCopyNotOrdered)
class _Staged(OffloadedLayer):
    def compress(self, queries: torch.Tensor) -> None:
        """Send the prompt to the runner, chunk by chunk; an incomplete chunk is small enough to be in time."""
        super().compress(queries)
        chunks = torch.stack([self.keys, self.values]).split(CHUNK, dim=3)
        sent = [_transfer(chunk) if chunk.shape[3] == CHUNK else chunk for chunk in chunks]
        keys, values = torch.cat(sent, dim=3)
        self.k, self.v = GrowableBuffer(keys.clone()), GrowableBuffer(values.clone())


@bug("prefetch-targets-wrong-layer", "https://github.com/huggingface/transformers/pull/46748")
class PrefetchTargetsWrongLayer(Prefetch):
    """While an offloaded layer attends, the layer behind it is fetched, whatever it is; the next offloaded layer then
    finds that one in the slot and reads it as its own.

    From an offloaded cache in a stack of mixed layers, where the layer that was needed next had not been fetched; there
    the first decoded token ended in an error about devices, here the slot's content is taken for the right one. Shows
    from the first token behind the prompt on.
    """


@used_by(PrefetchTargetsWrongLayer)
class _NextIndex(PrefetchCache):
    def fetch(self, wanted: int, now: int, device: torch.device) -> None:
        """Behind an offloaded layer, the next index is fetched without a look at what is there."""
        layer = self.layers[wanted] if wanted < len(self.layers) else None
        if layer is not None and isinstance(self.layers[now], FetchedLayer) and layer.prompt is not None:
            self.slot = (layer.keys.to(device).clone(), layer.values.to(device).clone())
