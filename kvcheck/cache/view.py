"""What is looked at in a cache, the same for every kind: nothing outside asks a cache for its class.

Each kind of cache derives from CacheView, each of our layers from LayerView, and overrides what differs; a cache of
another make (of an own runner, or of transformers) is looked at through `view(cache)`. A new kind of cache is one file.
Bytes are not asked here: `measure.held` counts whatever can be reached from `storage`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

if TYPE_CHECKING:
    from kvcheck.cache.kv_cache import KVCache
    from kvcheck.cache.layer import CacheLayer


class ForeignLayer(Protocol):
    """A layer of another make, as far as it is looked at."""

    def get_seq_length(self) -> int:
        """Tokens that it says it has seen."""


class ForeignCache(Protocol):
    """A cache of another make, as far as it is looked at."""

    layers: Sequence[ForeignLayer | LayerView]

    def select(self, rows: Sequence[int]) -> ForeignCache:
        """Copies of these rows."""


class Holder:
    """What holds bytes, and says of its attributes what they are; those that it does not name are keys and values."""

    meta: tuple[str, ...] = ()  # bookkeeping, not keys and values
    host: tuple[str, ...] = ()  # in host memory, whatever device the model is on


class LayerView(Holder):
    """A layer: `seen` tokens were fed to it, `slots` are held per row and kv head, on average over them."""

    seen: int
    uneven = False
    """Its kv heads may hold different numbers of slots."""

    @property
    def slots(self) -> float:
        """Slots per row and kv head, on average."""
        raise NotImplementedError(f"{type(self).__name__} must say how many slots it holds")

    def get_seq_length(self, *args: object) -> int:
        """The length that it tells transformers, from which positions follow."""
        return self.seen

    @property
    def storage(self) -> object:
        """From where all that it holds can be reached."""
        return self

    @property
    def known(self) -> CacheLayer | None:
        """Itself, where each slot is known: `positions`, `valid`, and what is `read` of it. None where it is not."""
        return None


class CacheView(Holder):
    """A cache, as kvcheck looks at it: `seen` tokens were fed to it, where its rows are not kept apart."""

    seen: int

    rows: Sequence[FedCache] | None = None
    """The caches of its sequences, where they are kept apart. None: they are together, in the same layers."""
    opaque = False
    """Nothing was declared of it, neither slots nor bytes: it is not made of kvcheck's layers."""
    depth: int | None = None
    """Layers of its model, where it holds what that carries beside full attention, too."""

    @property
    def native(self) -> KVCache | None:
        """Itself, where it is one of kvcheck's own: built, reset, saved and attended to as those are."""
        return None

    @property
    def inner(self) -> Any:
        """The cache that the model's forward takes."""
        return self

    @property
    def storage(self) -> object:
        """From where all that its method holds can be reached."""
        return self

    @property
    def method_layers(self) -> Sequence[LayerView]:
        """The layers that the method acts on, in order."""
        raise NotImplementedError(f"{type(self).__name__} must name its method_layers, or keep its rows apart")

    @property
    def attending(self) -> Sequence[LayerView]:
        """All layers that hold keys and values: these, and the model's own."""
        return self.method_layers

    def row(self, at: int) -> FedCache:
        """One sequence by itself: a copy where rows are together."""
        return self.select([at])

    def select(self, rows: Sequence[int]) -> FedCache:
        """Copies of these rows, in this order; repeats allowed."""
        raise NotImplementedError(f"{type(self).__name__} must have select(rows)")


FedCache: TypeAlias = CacheView | ForeignCache
"""What a runner may feed."""


class OtherLayer(LayerView):
    """A layer that is not kvcheck's: it is told how many tokens it has seen, and how many slots it has."""

    def __init__(self, layer: object, seen: int, slots: float) -> None:
        self.layer, self.seen, self._slots = layer, seen, slots

    @property
    def slots(self) -> float:
        """As told."""
        return self._slots

    @property
    def storage(self) -> object:
        """What is looked at."""
        return self.layer


class OtherCache(CacheView):
    """A cache with `layers` of any make, that an own runner feeds."""

    def __init__(self, cache: ForeignCache) -> None:
        self.cache = cache

    @property
    def inner(self) -> ForeignCache:
        """What is looked at."""
        return self.cache

    @property
    def storage(self) -> object:
        """What is looked at."""
        return self.cache

    @property
    def method_layers(self) -> list[LayerView]:
        """Kvcheck's layers as they are, others with as many slots as tokens seen."""
        return [layer if isinstance(layer, LayerView) else _seen(layer) for layer in self.cache.layers]

    def select(self, rows: Sequence[int]) -> ForeignCache:
        """Its own copies."""
        return self.cache.select(rows)


def _seen(layer: ForeignLayer) -> OtherLayer:
    seen = int(layer.get_seq_length())
    return OtherLayer(layer, seen, seen)


def view(cache: FedCache) -> CacheView:
    """How to look at a cache."""
    return cache if isinstance(cache, CacheView) else OtherCache(cache)


def parts(cache: FedCache) -> list[CacheView]:
    """The views of its sequences where they are kept apart, else the one of all of them."""
    whole = view(cache)
    return [whole] if whole.rows is None else [view(row) for row in whole.rows]
