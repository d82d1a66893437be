"""A foreign method on a model: its rows, and the cache that is fed through transformers' own attention."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from transformers import Cache, PreTrainedModel

from kvcheck.cache import checks, forward
from kvcheck.cache.kv_cache import CacheLayer, KVCache
from kvcheck.cache.method import Method, MethodInfo, Stage
from kvcheck.cache.method_runner import MethodRunner
from kvcheck.cache.rows import Row, RowRunner
from kvcheck.cache.shape import ModelShape
from kvcheck.core.errors import KvcheckError, MethodUnsupported, SpecError
from kvcheck.core.spec import Spec

if TYPE_CHECKING:
    from kvcheck.models import LoadedModel

INFO = MethodInfo(
    summary="a method from elsewhere", stage=Stage.COMPRESSION, frees_memory=False, verbatim=False, shares_prefill=False
)
"""What is taken for granted of a foreign method: nothing. It claims no memory, and may do anything to the prompt."""

SDPA, EAGER = "sdpa", "eager"
Copied = TypeVar("Copied")


@dataclass(frozen=True)
class Foreign(Method):
    """A method that is not made of kvcheck's layers.

    given: the spec as typed. info: see INFO; `frees_memory` where the adapter knows that memory must shrink.
    """

    given: Spec
    info: MethodInfo = field(default=INFO, kw_only=True)  # type: ignore[misc]  # one class serves many methods

    def name(self) -> str:  # type: ignore[override]
        """The name as typed."""
        return self.given.name

    @property
    def spec(self) -> Spec:
        """The spec as typed."""
        return self.given

    def layer(self, shape: ModelShape, index: int) -> CacheLayer:
        """Refused: it has no layer of kvcheck's, which composing (a+b) would need."""
        raise SpecError(f"{self.given.name} cannot be combined with another method", "methods of kvcheck's own can")

    def build(self, shape: ModelShape, store_dtype: torch.dtype | None = None) -> KVCache:
        """Refused: a foreign cache needs its model."""
        raise KvcheckError(f"{self.given} is made on a model", "use method.runner(loaded).prefill(ids)")

    def cross_head(self) -> str:
        """Taken for granted, as everything else."""
        return "what a foreign method does between heads is out of sight"

    def host_bytes(self, shape: ModelShape, batch: int, prompt: int, decoded: int) -> int | None:
        """Not declared."""
        return None


@dataclass(frozen=True)
class ForeignCache(Foreign):
    """A transformers cache. make(model, tokens): a fresh one for a prompt of that many tokens."""

    make: Callable[[PreTrainedModel, int], Cache] = field(default=lambda model, tokens: Cache(layers=[]), compare=False)

    @property
    def serves_latents(self) -> bool:
        """It is given whatever the model caches."""
        return True

    def runner(self, loaded: LoadedModel) -> MethodRunner:
        """Makes one cache, so that what cannot be made is refused before anything runs."""
        try:
            made = self.make(loaded.model, 1)
        except (KvcheckError, SpecError):
            raise
        except Exception as error:
            raise unsupported(self.given, error) from error
        if not isinstance(made, Cache):
            raise SpecError(f"{self.given} gives a {type(made).__name__}, which is no transformers Cache")
        return CacheRunner(self, loaded)


class CacheRunner(RowRunner):
    """Feeds a transformers cache through sdpa, or eager attention where that would not do, and transformers' own masks.

    Keys and values enter in 16 bits whatever the model computes in, as they do in kvcheck's caches; positions are the
    tokens seen, whatever the cache says that it holds.
    """

    method: ForeignCache

    def prefill_row(self, ids: torch.Tensor) -> tuple[Row, torch.Tensor]:
        """A fresh cache for a prompt (1, n)."""
        row = Row(self.method.make(self.model, ids.shape[1]), self.model)
        return row, self.feed_row(row, ids, 1)[:, -1]

    def feed_row(self, row: Row, ids: torch.Tensor, keep: int) -> torch.Tensor:
        """Feed (1, q) at the positions behind the tokens seen."""
        with attending(self.model, kernel_of(self.model)), sixteen_bits(row.cache):
            return fed(row, ids, keep)


def fed(row: Row, ids: torch.Tensor, keep: int) -> torch.Tensor:
    """Feed (1, q) into the cache of a row -> logits (1, keep, V)."""
    size = ids.shape[1]
    places = torch.arange(row.position, row.position + size, device=ids.device).unsqueeze(0)
    out = forward.feed(row.model, ids, row.cache, position_ids=places, logits_to_keep=keep)
    row.seen += size
    row.position += size
    return out.logits


def kernel_of(model: PreTrainedModel) -> str:
    """What a foreign cache attends through: sdpa, but for models with soft caps or sinks, which it would leave out."""
    return SDPA if getattr(model, "_supports_sdpa", True) else EAGER


@contextmanager
def attending(model: PreTrainedModel, name: str) -> Iterator[None]:
    """Let the model attend through another attention function for a while; a tower of images keeps its own."""
    config = model.config.get_text_config()
    before = config._attn_implementation
    config._attn_implementation = name
    try:
        yield
    finally:
        config._attn_implementation = before


def at_rest(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which keys and values rest where a model computes in `dtype`: never more than 16 bits."""
    return torch.float16 if dtype.itemsize > 2 else dtype


@contextmanager
def sixteen_bits(cache: Cache) -> Iterator[None]:
    """Hand keys and values to the cache in float16 where the model computes in more bits, and back in those."""
    inner = cache.update

    def update(
        key: torch.Tensor, value: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        stored = at_rest(key.dtype)
        keys, values = checks.pair(inner(key.to(stored), value.to(stored), *args, **kwargs), "update")
        return keys.to(key.dtype), values.to(value.dtype)

    cache.update = update  # type: ignore[method-assign]
    try:
        yield
    finally:
        del cache.update


def unsupported(spec: Spec, error: BaseException) -> MethodUnsupported:
    """The refusal of what could not be set up on a model."""
    reason = next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason given")
    what = f"{type(error).__name__}: {reason}"
    missing = isinstance(error, ImportError) or "pip install" in str(error)
    hint = "install what it asks for" if missing else "its own words are above; kvcheck only passed them on"
    return MethodUnsupported(f"{spec} cannot be set up on this model: {what}", hint)


def info(**changes: Any) -> MethodInfo:
    """INFO with what the adapter knows."""
    return replace(INFO, **changes)


def copied(value: Copied, model: PreTrainedModel) -> Copied:
    """A deep copy of something that may refer to the model, which is not copied."""
    return copy.deepcopy(value, {id(module): module for module in model.modules()})
