"""A paged cache: pages in a pool, and a table that says which page holds which part of a sequence."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from kvcheck.cache import checks
from kvcheck.cache.kv_cache import CacheLayer, KVCache
from kvcheck.cache.layer import Rows, _rows_of
from kvcheck.cache.method import Method, MethodInfo
from kvcheck.cache.method_runner import MethodRunner
from kvcheck.cache.shape import ModelShape
from kvcheck.methods.fp16 import Fp16
from kvcheck.methods.quest import Quest, QuestLayer
from kvcheck.zoo.base import used_by

if TYPE_CHECKING:
    from typing_extensions import Self

    from kvcheck.models import LoadedModel


@dataclass(frozen=True)
class Paged(Fp16):
    """The full cache in pages of `page` tokens.

    page: S, tokens per page (16). chunk: tokens of the prompt that are computed at a time (64). One worker prefills all
    prompts, in a pool that it uses again and again; what a prompt left is then handed over as a pool of its own.

    Bytes: 2·L·B·G·ceil(n/S)·S·d·2 after n tokens; the worker's pool is not part of it.
    """

    info: ClassVar[MethodInfo] = replace(
        Fp16.info,
        summary="the full cache in pages of a pool",
        stage="loading",
        formula="2·L·B·G·ceil(n/S)·S·d·2",
        exceeds="whole pages are given out",
        shares_prefill=False,
    )

    page: int = 16
    chunk: int = 64

    def __post_init__(self) -> None:
        """Raise SpecError for values out of range."""
        for name, example in (("page", 16), ("chunk", 64)):
            checks.whole(self.name(), name, getattr(self, name), 1, example)

    def kv_bytes(self, shape: ModelShape, batch: int, prompt: int, decoded: int) -> int:
        """Whole pages."""
        return shape.dense_bytes(batch, -(-(prompt + decoded) // self.page) * self.page)


@used_by(Paged)
class PagedCache(KVCache):
    """Beams move between rows without a new pool."""

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Beam search: row i becomes a copy of row beam_idx[i]."""
        if len(beam_idx) != self.layers[0].positions.shape[0]:
            return super().reorder_cache(beam_idx)
        for layer in self.layers:
            if isinstance(layer, PagedLayer):
                layer.reorder(beam_idx)
        return None


@used_by(Paged)
class PagedLayer(CacheLayer):
    """pk, pv (pages, G, S, d): the pool. table (B, m): the pages of every row, -1 for none. free: pages of no row.

    batch: rows; written: tokens that are, as many as `seen` says once a forward is through.
    """

    method: Any  # has `page`
    meta = ("kept", "table")
    pool = ("pk", "pv", "table", "free")
    pk: torch.Tensor | None = None
    pv: torch.Tensor | None = None
    table: torch.Tensor
    free: list[int]
    batch: int
    written: int

    def reset(self) -> None:
        """Forget everything, and let the pool go."""
        super().reset()
        self.pk = self.pv = None
        self.table = torch.empty(0, 0, dtype=torch.long)
        self.free = []
        self.batch = self.written = 0

    def recycle(self) -> None:
        """Forget everything, and keep the pool: all of its pages are free, the first row's first page is next."""
        held = {name: getattr(self, name) for name in self.pool}
        self.reset()
        for name, value in held.items():
            setattr(self, name, value)
        pages = self.table[self.table >= 0].tolist()  # row by row
        self.free += [page for page in reversed(pages) if page not in set(self.free)]
        self.forget()

    def forget(self) -> None:
        """No row has a page."""
        self.table = torch.full_like(self.table, -1)

    # -- pages ---------------------------------------------------------------------------------------------------------

    def allot(self, batch: int, last: int, like: torch.Tensor) -> None:
        """See to it that every row has pages for its tokens up to `last`, which come behind those seen."""
        page = self.method.page
        first, count = -(-self.seen // page), -(-last // page)
        if self.pk is None or self.pv is None:
            self.pk, self.pv = (like.new_zeros(0, self.shape.kv_heads, page, self.shape.head_dim) for _ in "kv")
        rows, width = max(batch, self.table.shape[0]), max(count, self.table.shape[1])
        table = torch.full((rows, width), -1, dtype=torch.long)
        table[: self.table.shape[0], : self.table.shape[1]] = self.table
        start = self.seen == 0
        wanted = [(row, at) for row in range(batch) for at in range(first, count) if start or table[row, at] < 0]
        self.grow(len(wanted) - len(self.free))
        for row, at in wanted:
            table[row, at] = self.free.pop()
        self.table = table

    def grow(self, count: int) -> None:
        """Add so many pages to the pool."""
        if count > 0 and self.pk is not None and self.pv is not None:
            old = len(self.pk)
            self.pk, self.pv = (
                torch.cat([each, each.new_zeros(count, *each.shape[1:])]) for each in (self.pk, self.pv)
            )
            self.free = list(range(old + count - 1, old - 1, -1)) + self.free

    def used(self, rows: Rows | slice = slice(None)) -> torch.Tensor:
        """The pages of the tokens seen, of these rows (b, m)."""
        return self.table[: self.batch, : -(-self.written // self.method.page)][rows]

    def write(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Write new tokens to their pages."""
        page, count = self.method.page, keys.shape[2]
        self.allot(keys.shape[0], self.seen + count, keys)
        if self.pk is None or self.pv is None:
            return
        self.batch, self.written = keys.shape[0], self.seen + count
        tokens = torch.arange(self.seen, self.seen + count)
        pages = self.table[: self.batch][:, tokens // page]  # (B, q)
        for pool, block in ((self.pk, keys), (self.pv, values)):
            pool[pages, :, tokens % page] = block.transpose(1, 2)

    def gathered(self, pool: torch.Tensor | None, rows: Rows | slice = slice(None)) -> torch.Tensor:
        """The tokens of these rows in their order (b, G, n, d)."""
        if pool is None:
            return torch.empty(0)
        return pool[self.used(rows)].transpose(1, 2).flatten(2, 3)[:, :, : self.written]

    @property
    def keys(self) -> torch.Tensor:
        """Keys (B, G, n, d), a copy."""
        return super().keys if self.k is not None else self.gathered(self.pk)

    @property
    def values(self) -> torch.Tensor:
        """Values (B, G, n, d), a copy."""
        return super().values if self.v is not None else self.gathered(self.pv)

    @property
    def stored(self) -> int:
        """Slots per kv head."""
        return super().stored if self.k is not None else self.written if self.pk is not None else 0

    @property
    def positions(self) -> torch.Tensor:
        """All of them."""
        where, batch = (self.pk, self.batch) if self.k is None else (self.k.tensor, len(self.k.tensor))
        device = None if where is None else where.device
        return torch.arange(self.stored, dtype=torch.int32, device=device).expand(batch, self.shape.kv_heads, -1)

    def read(self, rows: slice, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """The pages of these rows, in their order."""
        if self.k is not None:
            return super().read(rows, dtype)
        return self.gathered(self.pk, rows).to(dtype), self.gathered(self.pv, rows).to(dtype)

    def compress(self, queries: torch.Tensor) -> None:
        """A prompt that was prefilled elsewhere moves to pages."""
        if self.k is not None and self.v is not None:
            keys, values, seen = self.k.used, self.v.used, self.seen
            self.k = self.v = None
            self.seen = 0
            self.write(keys, values)
            self.seen = seen

    # -- copies --------------------------------------------------------------------------------------------------------

    def select(self, rows: Rows) -> Self:
        """A layer with copies of these rows, in a pool of their pages alone, which lie in it in the same order."""
        pools = {name: getattr(self, name) for name in self.pool}
        try:
            for name in self.pool:
                setattr(self, name, None)
            selected = super().select(rows)
        finally:
            for name, value in pools.items():
                setattr(self, name, value)
        at = torch.as_tensor(rows, dtype=torch.long, device="cpu")
        pages = self.used(at)
        order = pages.flatten().argsort(stable=True)
        selected.table = order.argsort().view(pages.shape)
        selected.batch, selected.free = len(at), []
        if self.pk is not None and self.pv is not None:
            selected.pk, selected.pv = (pool[pages.flatten()[order]] for pool in (self.pk, self.pv))
        return selected

    def reorder(self, beam_idx: torch.Tensor) -> None:
        """Row i becomes row beam_idx[i]: the content of its pages is overwritten."""
        beams = beam_idx.cpu()
        moved = (beams != torch.arange(len(beams))).nonzero()[:, 0]
        self.take_over(self.used(moved), self.used(beams[moved]))
        for name, value in vars(self).items():
            if name not in self.pool and not isinstance(value, Method):
                setattr(self, name, _rows_of(value, beam_idx))

    def take_over(self, pages: torch.Tensor, origins: torch.Tensor) -> None:
        """Copy pages (b, m) of other rows over these pages."""
        for pool in (self.pk, self.pv):
            if pool is not None:
                pool[pages] = pool[origins]


@used_by(Paged)
class WorkerRunner(MethodRunner):
    """Prefills in one cache that is used again and again, and hands over a copy."""

    worker: KVCache | None = None

    def prefill(self, ids: torch.Tensor) -> tuple[KVCache, torch.Tensor]:
        """Prompts (R, n), a chunk at a time."""
        worker = self.worker = self.worker or self.build()
        for layer in worker.layers:
            if isinstance(layer, PagedLayer):
                layer.recycle()
        with worker.prefilling():
            for chunk in ids.split(self.method.chunk, dim=1):  # type: ignore[attr-defined]
                logits = self.feed(worker, chunk)[:, -1]
        return worker.select(range(len(ids))), logits


@dataclass(frozen=True)
class PagedQuest(Quest):
    """Quest over a paged cache; `chunk` as in Paged. Quest's pages are those of the pool."""

    info: ClassVar[MethodInfo] = replace(
        Quest.info,
        summary="Quest over the pages of a pool",
        formula="2·L·B·G·(ceil(n/S)·S + ceil(n/S))·d·2",
        shares_prefill=False,
    )

    chunk: int = 64

    def runner(self, loaded: LoadedModel) -> MethodRunner:
        """Has a worker that prefills."""
        return WorkerRunner(self, loaded)

    def kv_bytes(self, shape: ModelShape, batch: int, prompt: int, decoded: int) -> int:
        """Whole pages, and two bounds for each."""
        pages = -(-(prompt + decoded) // self.page)
        return shape.dense_bytes(batch, pages * self.page) + shape.dense_bytes(batch, pages)


@used_by(PagedQuest)
class PagedQuestLayer(QuestLayer, PagedLayer):
    """Quest's pages are those of the pool."""

    method: Quest

    def compress(self, queries: torch.Tensor) -> None:
        """Move to pages, bound them."""
        PagedLayer.compress(self, queries)
        super().compress(queries)
