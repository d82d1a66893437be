"""One layer of a cache. It owns what a method does: take in, attend, compress, account for itself.

`CacheLayer` is the full cache; a method overrides `compress` (after the prompt) and, where tokens leave later too,
`step` (after every later forward). What both need is `keep(index)`. Storage that is not one key and one value per slot
overrides `write` and `read` as well (see kvcheck/cache/quantize.py).

Life of a layer, per forward: update(keys, values) -> write; then, called by kvcheck's attention function,
attend(query) -> read, kernel; then compress (once, when the prompt is in) or step.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from transformers.cache_utils import CacheLayerMixin

from kvcheck.cache import checks, kernels
from kvcheck.cache.growable import GrowableBuffer
from kvcheck.cache.shape import ModelShape, Prefilled, Shared
from kvcheck.cache.view import LayerView
from kvcheck.core.errors import KvcheckError, MethodUnsupported, SpecError

if TYPE_CHECKING:
    from typing_extensions import Self

    from kvcheck.cache.method import Method

Rows: TypeAlias = Sequence[int] | torch.Tensor


class Pending(threading.local):
    """The layer that took in keys last and waits to attend; `key` is the very tensor that its `update` returned."""

    layer: CacheLayer | None = None
    key: torch.Tensor | None = None


pending = Pending()


class CacheLayer(LayerView, CacheLayerMixin):
    """The full cache of one layer. Keys and values are (B, G, slots, d), post-RoPE, in the order of their positions.

    Attributes for methods: shape (ModelShape), index (of the layer), method, scaling (of the scores), seen (tokens fed
    so far), prompt (tokens of the prompt, None until it is in). Every tensor that a subclass keeps (as an attribute, in
    a list or dict, in a GrowableBuffer or Packed) has the batch as its first dimension, so that `select` can copy it.
    """

    is_sliding = False
    is_compileable = False
    is_croppable = False
    supports_early_init = False
    meta: tuple[str, ...] = ("kept",)
    window: int | None = None  # tokens that a token sees, itself included, where the layer looks after that by itself

    k: GrowableBuffer | None
    v: GrowableBuffer | None
    kept: torch.Tensor | None  # (B, G, m) int32, positions of the slots that the last `keep` kept
    seen: int
    _fed: int  # rows of the batch that was fed, 0 before the first token
    prompt: int | None
    scaling: float
    _kept_at: int  # tokens seen at the last `keep`; slots behind it are consecutive
    _held: list[torch.Tensor] | None  # queries of an unfinished prompt, None when the prompt is in or in one forward
    _keeps: bool  # they are kept
    _waiting: bool  # between update and attend

    def __init_subclass__(cls) -> None:
        """Raise SpecError for what no forward calls any more."""
        super().__init_subclass__()
        if "mix" in vars(cls):
            raise SpecError(
                f"{cls.__name__} defines mix(…), which no forward calls: it is attention(…) now", "rename it"
            )

    def __init__(self, shape: ModelShape, index: int, method: Method | None) -> None:
        self.shape, self.index = shape, index
        self.method: Any = method
        self.store_dtype: torch.dtype | None = None
        self.reset()

    # -- what a method overrides ---------------------------------------------------------------------------------------

    def compress(self, queries: torch.Tensor) -> None:
        """The prompt is in: reduce it.

        queries: all of the prompt's, (B, H, n, d), post-RoPE, in the stored dtype; empty unless the method's info.needs
        names "queries".
        """

    def step(self, query: torch.Tensor) -> None:
        """A later forward of q tokens has attended: reduce what it added. query: (B, H, q, d)."""

    def write(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Store new tokens (B, G, q, d), already rounded, before they are attended to."""
        if self.k is None or self.v is None:
            self.k, self.v = GrowableBuffer(keys), GrowableBuffer(values)
        else:
            self.k.append(keys)
            self.v.append(values)

    def read(self, rows: slice, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """All stored keys and values of these rows of the batch, in `dtype`."""
        return self.keys[rows].to(dtype), self.values[rows].to(dtype)

    @property
    def stored(self) -> int:
        """Slots per kv head."""
        return 0 if self.k is None else self.k.length

    @property
    def slots(self) -> float:
        """Slots per row and kv head, on average: fewer than `stored` where heads hold different numbers."""
        return self.stored

    def answer(self, query: torch.Tensor, rows: slice) -> torch.Tensor:
        """Read and attend, some rows of the batch: query (b, H, q, d) -> (b, H, q, d)."""
        return self.attention(query, *checks.pair(self.read(rows, query.dtype), "read"), rows)

    def attention(self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, rows: slice) -> torch.Tensor:
        """Attention of some rows of the batch -> (b, H, q, d). Override to see or change the weights."""
        one = query.shape[2] == 1 and keys.dtype != self.dtype
        kernel = kernels.attend_one if one else kernels.attend_block
        return kernel(query, keys, values, self.scaling)

    # -- what a method calls -------------------------------------------------------------------------------------------

    def keep(self, index: torch.Tensor, spare: int = 0) -> None:
        """Keep these slots only: index (B, G, m) int64, ascending per kv head. Copies into exact-size tensors."""
        index = index.to(self.keys.device)
        self.kept = self.positions.gather(2, index)
        for buffer in self._buffers():
            buffer.keep(index, spare)
        self._kept_at = self.seen

    def without(self, first: int, count: int) -> None:
        """Drop `count` slots behind the first `first`. Copies into tensors with room for one more slot."""
        slots = torch.arange(self.stored, device=self.keys.device)
        self.keep(self.every_head(torch.cat([slots[:first], slots[first + count :]])), spare=1)

    def slide(self, first: int, count: int) -> None:
        """As `without`, in place. The slots behind are the newest tokens: none between them has left.

        A layer with a `keep` of its own keeps the others by that.
        """
        if type(self).keep is not CacheLayer.keep:
            return self.without(first, count)
        if self.kept is None or self.kept.shape[2] != first:
            self.kept = self.positions[:, :, :first].clone()
        for buffer in self._buffers():
            buffer.slide(first, count)
        self._kept_at = self.seen - (self.stored - first)
        return None

    def every_head(self, index: torch.Tensor) -> torch.Tensor:
        """One index (m,) for all rows and kv heads -> (B, G, m)."""
        return index.expand(self.keys.shape[0], self.shape.kv_heads, -1)

    # -- the life of a layer -------------------------------------------------------------------------------------------

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Take in new keys and values (B, G, q, d). Returns them as they came; only kvcheck's attention can go on."""
        if self._waiting:
            raise KvcheckError(
                f"layer {self.index} took in keys twice without attending: the model does not attend through kvcheck",
                "call kvcheck.cache.attention.use(model) first",
            )
        self._fits(key_states)
        dtype = self._rounding(key_states.dtype)
        self.write(key_states.to(dtype), value_states.to(dtype))
        if not self.seen:
            self._fed = key_states.shape[0]
            self._own()
        self.seen += key_states.shape[2]
        self._waiting = self.is_initialized = True
        return key_states, value_states

    def attend(self, query: torch.Tensor, scaling: float | None = None) -> torch.Tensor:
        """Attention of the tokens that `update` took in: query (B, H, q, d) -> (B, q, H, d). Then compress or step."""
        self.scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        self._waiting = False
        batch = query.shape[0]
        size = self.shape.kv_heads * self.stored * self.shape.head_dim
        lazy = self.prompt is not None and self.dtype != query.dtype
        many = max(1, kernels.chunk(query.device) // max(1, size)) if lazy else batch
        chunks = [slice(start, start + many) for start in range(0, batch, many)]
        parts = [checks.tensor(self.answer(query[rows], rows), "answer") for rows in chunks]
        self._settle(query)
        out = parts[0] if len(parts) == 1 else torch.cat(parts)
        return out.transpose(1, 2).contiguous()

    def absorb(self, prefilled: Prefilled) -> None:
        """Take in a whole prompt that was prefilled with the full cache, by `write`, and compress it.

        Equals the direct route: what a method stores otherwise, it stores so here, too.
        """
        if self.seen:
            raise KvcheckError(f"layer {self.index} holds {self.seen} tokens; only an empty cache can absorb a prompt")
        queries = prefilled.queries
        if queries is None and self._needs_queries:
            raise KvcheckError(f"{self.method.name()} compresses by the prompt's queries, and they were not recorded")
        self._fits(prefilled.keys)
        dtype = self._rounding(prefilled.keys.dtype)
        self.write(prefilled.keys.to(dtype), prefilled.values.to(dtype))
        self._fed, self.seen = prefilled.keys.shape[0], prefilled.keys.shape[2]
        self.prompt = self.seen
        self.scaling = self.shape.head_dim**-0.5 if prefilled.scaling is None else prefilled.scaling
        self.is_initialized = True
        self.compress(queries.to(dtype) if queries is not None and self._needs_queries else torch.empty(0))
        self._own()

    def _settle(self, query: torch.Tensor) -> None:
        """After attending: keep the queries of an unfinished prompt, else compress or step."""
        if self._held is not None:
            self._held += [query.to(self.dtype)] if self._keeps else []
        elif self.prompt is None:
            self.prompt = self.seen
            self.compress(query.to(self.dtype) if self._needs_queries else torch.empty(0))
        else:
            self.step(query)

    @property
    def _needs_queries(self) -> bool:
        """Whether the method reads the prompt's queries."""
        return self.method is not None and "queries" in self.method.info.needs

    def hold(self, queries: bool = False) -> None:
        """Suspend compression: more of the prompt is to come. queries: keep them even if the method reads none."""
        if self._held is not None:
            raise KvcheckError("the prompt of this cache is being fed already")
        if self.prompt is not None:
            raise KvcheckError("the prompt of this cache is complete; a chunked prompt starts with an empty cache")
        self._held, self._keeps = [], queries or self._needs_queries

    def release(self) -> torch.Tensor | None:
        """The prompt is complete: compress once. Returns its queries (B, H, n, d); None where none were kept."""
        held, self._held = self._held or [], None
        if not self.seen:
            return None
        queries = torch.cat(held, dim=2) if len(held) > 1 else held[0] if held else None
        self.prompt = self.seen
        self._own()
        self.compress(queries if queries is not None and self._needs_queries else torch.empty(0))
        return queries

    def _buffers(self) -> list[GrowableBuffer]:
        """The buffers of keys and values; none before the first token."""
        return [buffer for buffer in (self.k, self.v) if buffer is not None]

    def _own(self) -> None:
        """Let go of whatever larger tensor keys and values are views of."""
        for buffer in self._buffers():
            buffer.own()

    def _fits(self, keys: torch.Tensor) -> None:
        """Raise MethodUnsupported when the model is not of the shape that this cache was built for."""
        if keys.shape[1] != self.shape.kv_heads or keys.shape[3] != self.shape.head_dim:
            raise MethodUnsupported(
                f"the model has {keys.shape[1]} kv heads of dimension {keys.shape[3]} in layer {self.index}, "
                f"the cache was built for {self.shape.kv_heads} of {self.shape.head_dim}",
                "build it with method.build(ModelShape.of(model.config))",
            )
        if self.rows and keys.shape[0] != self.rows:
            raise KvcheckError(
                f"the cache holds {self.rows} sequences and was given tokens of {keys.shape[0]}", "use select(rows)"
            )

    def _rounding(self, arriving: torch.dtype) -> torch.dtype:
        """The dtype that is stored: as told, else the 16-bit dtype that arrives, else float16."""
        if self.store_dtype is None:
            self.store_dtype = arriving if arriving.itemsize == 2 else torch.float16
        return self.store_dtype

    # -- accounting and copies -----------------------------------------------------------------------------------------

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of stored keys and values."""
        return self.store_dtype or torch.float16

    @property
    def keys(self) -> torch.Tensor:
        """Verbatim keys (B, G, slots, d)."""
        return self.k.used if self.k is not None else torch.empty(0)

    @property
    def values(self) -> torch.Tensor:
        """Verbatim values (B, G, slots, d)."""
        return self.v.used if self.v is not None else torch.empty(0)

    @property
    def rows(self) -> int:
        """Rows of the batch; 0 before the first token."""
        return self._fed if self.k is None else self.k.tensor.shape[0]  # own storage may have no k

    @property
    def positions(self) -> torch.Tensor:
        """True position of every slot, (B, G, slots) int32, ascending per kv head."""
        tail = torch.arange(self._kept_at, self.seen, dtype=torch.int32, device=self.keys.device)
        tail = tail.expand(self.rows, self.shape.kv_heads, -1)
        return tail if self.kept is None else torch.cat([self.kept, tail], dim=2)

    @property
    def valid(self) -> torch.Tensor:
        """(B, G, slots) bool: which slots hold a token, and are no padding."""
        return torch.ones_like(self.positions, dtype=torch.bool)

    @property
    def known(self) -> CacheLayer:
        """Each slot is known by its position."""
        return self

    def select(self, rows: Rows) -> Self:
        """A new layer with copies of these rows of the batch, in this order; repeats allowed."""
        if self._held is not None or self._waiting:
            raise KvcheckError("a cache cannot be split or forked in the middle of its prompt or of a forward")
        clone = copy.copy(self)
        for name, value in vars(self).items():
            setattr(clone, name, value if isinstance(value, Shared) else _rows_of(value, rows))
        clone._fed = len(rows)
        return clone

    def reset(self) -> None:
        """Forget everything."""
        self.k = self.v = self.kept = self.prompt = self._held = None
        self.seen = self._fed = self._kept_at = 0
        self.scaling = self.shape.head_dim**-0.5
        self._waiting = self._keeps = self.is_initialized = False

    # -- what transformers asks ----------------------------------------------------------------------------------------

    def lazy_initialization(self, *args: object, **kwargs: object) -> None:
        """Nothing to prepare: the first tokens bring shapes and dtypes."""

    def get_seq_length(self, *args: object) -> int:
        """Tokens seen, not slots stored: transformers derives the positions of new tokens from it."""
        return self.seen

    def get_mask_sizes(self, query_length: int | torch.Tensor, *args: object) -> tuple[int, int]:
        """(columns, offset) of a mask, which kvcheck's attention function builds itself. 5.2 passes cache positions."""
        new = (
            query_length.shape[0] if isinstance(query_length, torch.Tensor) and query_length.ndim else int(query_length)
        )
        return self.stored + new, self.seen - self.stored

    def get_max_length(self) -> int:
        """No maximum."""
        return -1

    def get_max_cache_shape(self) -> int:
        """No maximum (the name in transformers 5.2)."""
        return -1

    def crop(self, tokens: int = 0) -> None:
        """Refused: an evicted or quantized token cannot be taken back."""
        raise MethodUnsupported("a kvcheck cache cannot be cropped", "assisted decoding is not served")


def _rows_of(value: Any, rows: Rows) -> Any:
    """Copies of these rows of a tensor, of what has `select`, and of what lists and dicts hold; the rest as it is."""
    if isinstance(value, torch.Tensor):
        return value.index_select(0, torch.as_tensor(rows, dtype=torch.long, device=value.device))
    if isinstance(value, list):
        return [_rows_of(part, rows) for part in value]
    if isinstance(value, dict):
        return {key: _rows_of(part, rows) for key, part in value.items()}
    return value.select(rows) if hasattr(value, "select") else value
