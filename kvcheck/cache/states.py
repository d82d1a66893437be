"""Models that carry more than a full KV cache from token to token: recurrent ones, hybrids, sliding windows.

What such a model carries is its own: the caches of transformers, a list of tensors, attributes of its modules. Methods
act on the layers with full attention, where it has some. Sequences run one by one, so that a row is copied as a whole,
whatever it is made of.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from kvcheck.cache import forward
from kvcheck.cache.full import FULL, FullCache
from kvcheck.cache.kv_cache import CacheLayer, KVCache
from kvcheck.cache.method import Method
from kvcheck.cache.rows import RowRunner
from kvcheck.cache.shape import CHUNKED, ModelShape
from kvcheck.cache.view import CacheView, view
from kvcheck.cache.window import ChunkLayer, WindowLayer
from kvcheck.core.errors import KvcheckError, MethodUnsupported
from kvcheck.core.front import option

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

    from kvcheck.models import LoadedModel


@dataclass(frozen=True)
class Place:
    """Where a module keeps a tensor of the text that it runs: its name, the attribute, what a new text finds there."""

    module: str
    attribute: str
    fresh: torch.Tensor | None


@dataclass(frozen=True, eq=False)
class States:
    """How a model carries a sequence (see kvcheck/models/probing.py, which finds out).

    shape: of the layers with full attention; none of a recurrent model. keyed: keys and values are in the cache that
    forward takes, so kvcheck makes it; else the model does, or its modules hold all. places: where modules hold some.
    blocks: a follow-up of several tokens may be fed in one forward; else the class forgets its state over it, and is
    fed token by token. windows: there is no state, only sliding windows or chunks, which to a text that fits into them
    are full attention.
    """

    shape: ModelShape
    keyed: bool = False
    places: tuple[Place, ...] = ()
    blocks: bool = True
    windows: bool = False

    def serves(self, method: Method) -> bool:
        """Whether a method acts on the layers with full attention, beside what the others carry.

        What cannot do that runs on all layers of a model with windows, as long as the text fits into them.
        """
        acts = self.shape.layers > 0 and type(method).runner is Method.runner
        return acts or not self.windows or isinstance(method, FullCache)

    def runner(self, method: Method, loaded: LoadedModel) -> StateRunner:
        """What runs a method on such a model."""
        return StateRunner(method, loaded)

    def cache(self, method: Method, config: PreTrainedConfig) -> MixedCache | None:
        """What a new sequence is given: the method's layers beside those of the model; None where it makes its own."""
        return MixedCache(method, self.shape, config) if self.keyed else None


def kinds(config: PreTrainedConfig) -> list[type]:
    """The cache layers that transformers gives a model, by class."""
    return [type(layer) for layer in DynamicCache(config=config).layers]


class MixedCache(KVCache):
    """The method's layers where the model has full attention, windows where it slides, its own states elsewhere."""

    def __init__(self, method: Method, shape: ModelShape, config: PreTrainedConfig) -> None:
        Cache.__init__(self, layers=DynamicCache(config=config).layers)
        self.acting, self.sliding = set[int](), set[int]()  # which layers are the method's, and which are windows
        types = getattr(config.get_text_config(decoder=True), "layer_types", None) or [""] * len(self.layers)
        for index, layer in enumerate(self.layers):
            if type(layer) is DynamicLayer:
                self.layers[index] = method.layer(shape, len(self.acting))
                self.acting.add(index)
            elif type(layer) is DynamicSlidingWindowLayer:
                kind = ChunkLayer if types[index] == CHUNKED else WindowLayer
                self.layers[index] = kind(shape, index, FULL, layer.sliding_window)
                self.sliding.add(index)

    @property
    def method_layers(self) -> list[CacheLayer]:
        """Where the model has full attention."""
        return [layer for index, layer in enumerate(self.layers) if index in self.acting]

    @property
    def attending(self) -> list[CacheLayer]:
        """These, and the windows."""
        return [layer for index, layer in enumerate(self.layers) if index in self.acting | self.sliding]

    def select(self, rows: Sequence[int] | torch.Tensor) -> MixedCache:
        """A copy of the only sequence; states know no rows."""
        clone, ours = copy.copy(self), self.acting | self.sliding
        clone.layers = [
            layer.select(rows) if index in ours else copy.deepcopy(layer) for index, layer in enumerate(self.layers)
        ]
        return clone


class Carried(CacheView):
    """All that one sequence carries.

    cache: what forward takes. modules: what lies in `places`. depth: layers of the model. seen: tokens fed.
    """

    modules: list[torch.Tensor | None]

    def __init__(self, cache: Any, places: Sequence[Place], depth: int) -> None:
        self.cache = cache  # a MixedCache, or what the model makes
        self.depth: int = depth
        self.modules = [None if place.fresh is None else place.fresh.clone() for place in places]
        self.seen = 0

    @property
    def inner(self) -> Any:
        """What forward takes."""
        return self.cache

    @property
    def storage(self) -> object:
        """The method's layers alone."""
        return self.method_layers

    @property
    def method_layers(self) -> list[CacheLayer]:
        """The method's layers, in order; none where the model makes its cache."""
        return getattr(self.cache, "method_layers", [])

    @property
    def attending(self) -> list[CacheLayer]:
        """These, and the model's windows."""
        return getattr(self.cache, "attending", [])

    def select(self, rows: Sequence[int] | torch.Tensor) -> Carried:
        """A copy; there is one row only."""
        clone = copy.copy(self)
        clone.cache = copy.deepcopy(self.cache) if view(self.cache).native is None else self.cache.select(rows)
        clone.modules = [None if part is None else part.clone() for part in self.modules]
        return clone

    @contextmanager
    def lent(self, model: PreTrainedModel, places: Sequence[Place]) -> Iterator[None]:
        """Put the parts that live in modules there for one forward; what it leaves there is this sequence's alone."""
        spots = [(model.get_submodule(place.module), place.attribute) for place in places]
        before = [getattr(*spot) for spot in spots]
        for spot, part in zip(spots, self.modules, strict=True):
            setattr(*spot, part)
        try:
            yield
        finally:
            self.modules = [getattr(*spot) for spot in spots]
            for spot, part in zip(spots, before, strict=True):
                setattr(*spot, part)


class StateRunner(RowRunner):
    """Runs a method on such a model, every sequence by itself."""

    def __init__(self, method: Method, loaded: LoadedModel) -> None:
        if loaded.states is None:
            raise KvcheckError(f"{loaded.name} carries nothing but a KV cache", "use method.runner(loaded)")
        super().__init__(_by_itself(method), loaded)
        self.states, self.shape = loaded.states, loaded.states.shape
        method.check(self.shape)

    def build(self) -> Carried:  # type: ignore[override]  # of one row: fed by `feed_row` alone
        """What a new sequence carries."""
        made = self.states.cache(self.method, self.model.config)
        return Carried(made, self.states.places, int(self.model.config.get_text_config().num_hidden_layers))

    def feed_row(self, cache: Carried, ids: torch.Tensor, keep: int) -> torch.Tensor:
        """Feed (1, q) behind what was fed, at once or token by token -> (1, keep, V)."""
        if self.states.blocks or not cache.seen:
            return self._forward(cache, ids, keep)
        newest: deque[torch.Tensor] = deque(maxlen=keep)
        newest.extend(self._forward(cache, token, 1) for token in ids.split(1, dim=1))
        return torch.cat(list(newest), dim=1)

    def _forward(self, row: Carried, ids: torch.Tensor, keep: int) -> torch.Tensor:
        """One forward of (1, q) -> (1, keep, V)."""
        places = torch.arange(row.seen, row.seen + ids.shape[1], device=ids.device)
        given = {"position_ids": places.unsqueeze(0), "logits_to_keep": keep, "use_cache": True}
        takes = forward.of(self.model)
        given |= {"cache_position": places if row.seen else None, takes.carries: row.cache}  # 5.2 asks for it
        with row.lent(self.model, self.states.places):
            out = self.model(ids, **{name: value for name, value in given.items() if name in takes.takes})
        made = forward.carried(self.model, out)
        row.cache = row.cache if made is None else made
        row.seen += ids.shape[1]
        return out.logits[:, -keep:]


def serve(method: Method, loaded: LoadedModel) -> None:
    """Raise MethodUnsupported for a method that cannot act on a model which carries more than a full KV cache.

    Nor on one of whose heads this process has some, where it treats them jointly, nor on one that caches latents, where
    it needs keys and values.
    """
    if loaded.team is not None and (why := method.cross_head()):
        raise MethodUnsupported(
            f"{method.spec} cannot have its heads in {loaded.team.size} processes: {why}",
            f"run pytest without torchrun; {option('device')}=spread puts whole layers on several GPUs",
        )
    method.expect_served(loaded.shape)
    if loaded.states is None or isinstance(method, FullCache) or not loaded.states.serves(method):
        return
    kind = type(loaded.model).__name__
    if not loaded.states.shape.layers:
        raise MethodUnsupported(
            f"{method.spec} acts on the keys and values of all tokens; {kind} has no layer that keeps them: what it "
            "carries from token to token has a fixed size",
            f"{option('methods')}=fp16 runs it as it is",
        )
    if type(method).runner is not Method.runner:
        raise MethodUnsupported(
            f"{method.spec} feeds the model in its own way, which would leave out what the other layers of {kind} "
            "carry from token to token",
            "methods that are a cache only, such as snapkv or kivi, act on its layers with full attention",
        )


def _by_itself(method: Method) -> Method:
    """The method, with a prefill of its own: a state cannot be cut where the context ends, as keys and values can."""
    clone = copy.copy(method)
    object.__setattr__(clone, "info", replace(method.info, shares_prefill=False))
    return clone
