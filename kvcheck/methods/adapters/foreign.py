"""A foreign method on a model: its rows, and the cache that is fed through transformers' own attention."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from transformers import Cache, PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from kvcheck.cache import checks, forward
from kvcheck.cache.kv_cache import CacheLayer, KVCache
from kvcheck.cache.method import Method, MethodInfo, Stage
from kvcheck.cache.method_runner import MethodRunner
from kvcheck.cache.rows import Batch, Row, RowRunner
from kvcheck.cache.shape import ModelShape
from kvcheck.core.errors import KvcheckError, MethodUnsupported, SpecError
from kvcheck.core.spec import Spec, raised
from kvcheck.methods.adapters.declared import Declared

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from kvcheck.models import LoadedModel

INFO = MethodInfo(
    summary="a method from elsewhere",
    stage=Stage.COMPRESSION,
    frees_memory=False,
    verbatim=False,
    shares_prefill=False,
    foreign=True,
)
"""What is taken for granted of a foreign method: nothing. It claims no memory, and may do anything to the prompt."""

SDPA, EAGER = "sdpa", "eager"
SMOKE = 8
"""Tokens that show whether a method can be fed at all."""
Copied = TypeVar("Copied")
Made = TypeVar("Made")
Kind = TypeVar("Kind", bound=Row)


@dataclass(frozen=True)
class Foreign(Method):
    """A method that is not made of kvcheck's layers.

    given: the spec as typed. info: see INFO; `frees_memory` where the adapter knows that memory must shrink. says: what
    was declared beside that.
    """

    given: Spec
    info: MethodInfo = field(default=INFO, kw_only=True)  # type: ignore[misc]  # one class serves many methods
    says: Declared = field(default=Declared(), kw_only=True)

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

    def kv_bytes(self, shape: ModelShape, batch: int, prompt: int, decoded: int) -> int | None:
        """As declared."""
        return None if self.says.kv_bytes is None else int(self.says.kv_bytes(shape, batch, prompt, decoded))

    def host_bytes(self, shape: ModelShape, batch: int, prompt: int, decoded: int) -> int | None:
        """Not declared."""
        return None

    def reads(self, shape: ModelShape, prompt: int, decoded: int) -> tuple[int, ...] | None:
        """As declared."""
        if self.says.reads is None:
            return None
        many = self.says.reads(shape, prompt, decoded)
        return (many,) * shape.layers if isinstance(many, int) else tuple(many)

    def rounding(self) -> tuple[float, float] | None:
        """As declared."""
        return self.says.rounding


@dataclass(frozen=True)
class Home:
    """What the class or function of a foreign method can be given.

    tokens: of the prompt that the cache is for. layer: the index of a layer, for a class of layers.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    tokens: int = 1
    layer: int = 0

    @classmethod
    def of(cls, loaded: LoadedModel) -> Home:
        """That of a model."""
        return cls(loaded.model, getattr(loaded.tokenizer, "tokenizer", None))


Maker = Callable[[Home], Cache]
"""Makes a fresh cache."""


@dataclass(frozen=True)
class ForeignCache(Foreign):
    """A transformers cache. make: a fresh one."""

    make: Maker = field(default=lambda home: Cache(layers=[]), compare=False)

    @property
    def serves_latents(self) -> bool:
        """It is given whatever the model caches."""
        return True

    def runner(self, loaded: LoadedModel) -> MethodRunner:
        """Makes one cache, so that what cannot be made is refused before anything runs."""
        runner = CacheRunner(self, loaded)
        try:
            made = runner.start(1, Row).cache
        except (KvcheckError, SpecError):
            raise
        except Exception as error:
            raise unsupported(self.given, error) from error
        if not isinstance(made, Cache):
            raise SpecError(f"{self.given} gives a {type(made).__name__}, which is no transformers Cache")
        return runner


class CacheRunner(RowRunner):
    """Feeds a transformers cache by its own attention function, sdpa or eager, through transformers' own masks.

    Keys and values enter in 16 bits whatever the model computes in, as they do in kvcheck's caches. The positions of a
    row are the tokens seen, whatever the cache says that it holds; those of a Batch are what the cache says.
    """

    method: ForeignCache

    def __init__(self, method: ForeignCache, loaded: LoadedModel) -> None:
        super().__init__(method, loaded)
        self.home = Home.of(loaded)
        self.attention = method.says.attention
        if self.attention and self.attention not in (*ALL_ATTENTION_FUNCTIONS, "eager"):
            raise MethodUnsupported(
                f"{method.given} asks for the attention function {self.attention!r}, which transformers does not know",
                f"AttentionInterface.register({self.attention!r}, function) in its module",
            )

    def start(self, tokens: int, kind: type[Kind]) -> Kind:
        """A fresh cache for prompts of so many tokens. What it sets the model to attend by, it is fed with."""
        cache, chosen = set_up(self.model, lambda: self.method.make(replace(self.home, tokens=tokens)))
        if not self.method.says.attention and chosen != SDPA:
            self.attention = chosen
        return kind(cache, self.model, attention=self.attention or kernel_of(self.model))

    def prefill_row(self, ids: torch.Tensor) -> tuple[Row, torch.Tensor]:
        """A fresh cache for a prompt (1, n)."""
        row = self.start(ids.shape[1], Row)
        return row, self.feed_row(row, ids, 1)[:, -1]

    def together(self) -> BatchRunner:
        """The same with several rows in one cache."""
        return BatchRunner(self)

    def feed_row(self, row: Row, ids: torch.Tensor, keep: int) -> torch.Tensor:
        """Feed (1, q) at the positions behind the tokens seen; a Batch (R, q) at those that follow from its length."""
        with self.driving(row):
            return fed_together(row, ids, keep) if isinstance(row, Batch) else fed(row, ids, keep)

    @contextmanager
    def driving(self, row: Row) -> Iterator[None]:
        """The model attends as the cache of this row wants it to."""
        with attending(self.model, row.attention), sixteen_bits(row.cache), own_masks(row):
            yield


class BatchRunner(MethodRunner):
    """Feeds several rows of one length into one foreign cache, as `generate` does."""

    def __init__(self, owner: CacheRunner) -> None:
        super().__init__(owner.method, owner.loaded)
        self.owner = owner

    def prefill(self, ids: torch.Tensor, mask: torch.Tensor | None = None) -> tuple[Row, torch.Tensor]:
        """As MethodRunner.prefill. mask (R, n): false where a row is padded on the left."""
        batch = self.owner.start(ids.shape[1], Batch)
        batch.mask = mask
        return batch, self.feed(batch, ids)[:, -1]

    def feed(self, cache: Row, ids: torch.Tensor, keep: int = 1) -> torch.Tensor:
        """As MethodRunner.feed."""
        return self.owner.feed_row(cache, ids, keep)


def fed(row: Row, ids: torch.Tensor, keep: int) -> torch.Tensor:
    """Feed (R, q) into the cache of a row -> logits (R, keep, V)."""
    size = ids.shape[1]
    places = torch.arange(row.position, row.position + size, device=ids.device).unsqueeze(0)
    out = forward.feed(row.model, ids, row.cache, position_ids=places, logits_to_keep=keep)
    row.seen += size
    row.position += size
    return out.logits


def fed_together(batch: Batch, ids: torch.Tensor, keep: int) -> torch.Tensor:
    """Feed (R, q) as `generate` does: by the cache's own length, or where rows are padded by the mask of all tokens."""
    given: dict[str, Any] = {}
    if batch.mask is not None:
        more = ids.shape[1] - (batch.mask.shape[1] - batch.seen)
        batch.mask = torch.cat([batch.mask, batch.mask.new_ones(ids.shape[0], more)], dim=1)
        places = (batch.mask.long().cumsum(-1) - 1).clamp(min=0)
        given = {"attention_mask": batch.mask.long(), "position_ids": places[:, -ids.shape[1] :]}
    out = forward.feed(batch.model, ids, batch.cache, logits_to_keep=keep, **given)
    batch.seen += ids.shape[1]
    return out.logits


def kernel_of(model: PreTrainedModel) -> str:
    """What a foreign cache attends through: sdpa, but for models with soft caps or sinks, which it would leave out."""
    return SDPA if getattr(model, "_supports_sdpa", True) else EAGER


@contextmanager
def attending(model: PreTrainedModel, name: str) -> Iterator[None]:
    """Let the model attend through another attention function for a while; a tower of images keeps its own.

    Whatever is set meanwhile is put back, too.
    """
    config, whole = model.config.get_text_config(), list(_configs(model.config))
    before = [each._attn_implementation for each in whole]
    config._attn_implementation = name
    try:
        yield
    finally:
        for each, was in zip(whole, before, strict=True):
            each._attn_implementation_internal = was  # the attribute itself would set those of all parts


def _configs(config: Any) -> Iterator[Any]:
    """A configuration and those of its parts."""
    yield config
    for name in getattr(config, "sub_configs", ()):
        if (part := getattr(config, name, None)) is not None:
            yield from _configs(part)


def set_up(model: PreTrainedModel, make: Callable[[], Made]) -> tuple[Made, str]:
    """(what is made, the attention function that the model was set to meanwhile: SDPA where it was not touched).

    The model's own is put back: what other methods of the run attend by does not change.
    """
    with attending(model, SDPA):
        made = make()
        return made, chosen(model)


def chosen(model: PreTrainedModel) -> str:
    """The name of the attention function that the model is set to."""
    return str(model.config.get_text_config()._attn_implementation)


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

    with standing_in(cache, "update", update):
        yield


@contextmanager
def own_masks(row: Row) -> Iterator[None]:
    """Have masks made for the length that a cache says it has, where it keeps nothing in `layers`.

    transformers asks those how long a mask must be: without them, a follow-up is masked as if it were all of the text.
    """
    cache = row.cache
    if cache.layers or type(cache).get_mask_sizes is not Cache.get_mask_sizes:
        yield
        return
    with standing_in(cache, "get_mask_sizes", lambda query_length, *_: (row.length + int(query_length), 0)):
        yield


@contextmanager
def standing_in(owner: object, name: str, value: object) -> Iterator[None]:
    """Have an attribute of this one object be something else for a while."""
    mine = vars(owner)
    before = {name: mine[name]} if name in mine else {}
    mine[name] = value
    try:
        yield
    finally:
        mine.pop(name, None)
        mine.update(before)


def smoke(method: Foreign, loaded: LoadedModel) -> str:
    """Why a method cannot be fed a few tokens of a model and one more; "" where it can."""
    ids = torch.arange(1, SMOKE + 1, device=loaded.device).unsqueeze(0)
    try:
        runner = method.runner(loaded)
        cache, _ = runner.prefill(ids)
        runner.feed(cache, ids[:, :1])
    except KvcheckError as error:
        return error.message
    except Exception as error:
        return f"{method.given} cannot be fed {SMOKE} tokens of the model: {raised(error)}"
    return ""


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
