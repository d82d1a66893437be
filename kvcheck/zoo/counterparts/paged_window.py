"""A sliding window in pages of one slab: a page that has left the window is used again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from kvcheck.cache import checks
from kvcheck.cache.kv_cache import CacheLayer
from kvcheck.cache.method import Method, MethodInfo
from kvcheck.cache.shape import ModelShape
from kvcheck.zoo.base import used_by


@dataclass(frozen=True)
class PagedWindow(Method):
    """After every forward keep the first page of tokens and the newest pages, as many as hold W tokens.

    page: S, tokens per page; page j holds the tokens from j·S to (j + 1)·S - 1. window: W, a share of the prompt (0.5;
    fixed when the prompt is in) or a number of tokens. A page leaves when all of its tokens are older than the newest
    W; the first page never leaves. Keys stay at their original positions. A window of the whole text is the full cache.

    Pages lie in one slab per layer, each with its keys and then its values. A page that has left is cleared when it is
    used again. The slab grows by a page where none is free, and does not shrink.

    Bytes: 2·L·B·G·S·d·2 times the most pages that were in use at once. Errors: SpecError for values out of range.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        summary="keeps the first page and a window of pages, in a slab that is used again",
        stage="compression",
        knob="window",
        formula="2·L·B·G·S·d·2·(most pages in use at once)",
        evicts_in_decode=True,
        variant="whole pages leave; original positions; dense prefill",
        exempt={
            "a_block_is_its_tokens_one_by_one": "a block is attended to whole, then the window moves on",
            "a_block_takes_the_bytes_of_its_tokens": "a block larger than the window adds pages that stay",
            "bytes_stay_as_declared_in_long_decoding": "a block larger than the window adds pages that stay",
        },
    )

    page: int = 16
    window: float | int = 0.5

    def __post_init__(self) -> None:
        """Raise SpecError for values out of range."""
        checks.whole(self.name(), "page", self.page, 1, 16)
        checks.budget(self.name(), "window", self.window)

    def first(self, prompt: int, seen: int) -> int:
        """The oldest page behind the first one that is kept after this many tokens."""
        return max(1, (seen - checks.tokens(self.window, prompt, least=1)) // self.page)

    def slots(self, shape: ModelShape, prompt: int, decoded: int) -> tuple[int, ...]:
        """The tokens of the pages that are kept."""
        seen = prompt + decoded
        return (seen - (self.first(prompt, seen) - 1) * self.page,) * shape.layers

    def kv_bytes(self, shape: ModelShape, batch: int, prompt: int, decoded: int) -> int:
        """The slab."""
        most = self._used(prompt, prompt, prompt)
        for seen in range(prompt + 1, prompt + decoded + 1):
            most = max(most, self._used(prompt, seen - 1, seen))
        return shape.dense_bytes(batch, most * self.page)

    def _used(self, prompt: int, evicted: int, seen: int) -> int:
        """Pages in use with `seen` tokens, when what left did so after `evicted`."""
        return -(-seen // self.page) - (self.first(prompt, evicted) - 1)

    def protected(self, prompt: int) -> frozenset[int]:
        """The first page and the newer ones."""
        return frozenset(range(min(self.page, prompt))) | frozenset(
            range(self.first(prompt, prompt) * self.page, prompt)
        )


@used_by(PagedWindow)
class PagedLayer(CacheLayer):
    """slab (B, P, 2, G, S, d): keys and values of every page. table: where the kept pages lie, in the order of the
    text.

    free: pages of the slab that nothing is in. dropped: pages behind the first one that have left.
    """

    method: PagedWindow
    slab: torch.Tensor | None
    table: list[int]
    free: list[int]
    dropped: int

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self.slab, self.table, self.free, self.dropped = None, [], [], 0

    def compress(self, queries: torch.Tensor) -> None:
        """Move what is kept of the prompt into pages."""
        prompt, size = self.seen, self.method.page
        first = self.method.first(prompt, prompt)
        keys, values = self.keys, self.values
        self.k = self.v = None
        self.dropped = first - 1
        for start in [0, *range(first * size, prompt, size)]:
            span = slice(start, min(start + size, prompt))
            self.fill(self.open(keys), 0, keys[:, :, span], values[:, :, span])

    def write(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Store new tokens: in the open page, then in new ones."""
        if self.slab is None:
            super().write(keys, values)
            return
        size, done = self.method.page, 0
        while done < keys.shape[2]:
            offset = (self.seen + done) % size
            page = self.table[-1] if offset else self.open(keys)
            span = slice(done, min(done + size - offset, keys.shape[2]))
            self.fill(page, offset, keys[:, :, span], values[:, :, span])
            done = span.stop

    def fill(self, page: int, offset: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Write tokens into a page."""
        if self.slab is not None:
            self.slab[:, page, 0, :, offset : offset + keys.shape[2]] = keys
            self.slab[:, page, 1, :, offset : offset + keys.shape[2]] = values

    def open(self, like: torch.Tensor) -> int:
        """A cleared page at the end of the table: a free one, else a new one at the end of the slab."""
        if self.free:
            page = self.free.pop(0)
            self.clear(page)
        else:
            batch, heads, _, dim = like.shape
            more = like.new_zeros(batch, 1, 2, heads, self.method.page, dim)
            self.slab = more if self.slab is None else torch.cat([self.slab, more], dim=1)
            page = self.slab.shape[1] - 1
        self.table.append(page)
        return page

    def clear(self, page: int) -> None:
        """Clear the keys and the values of a page."""
        if self.slab is not None:
            rows = self.slab.view(len(self.slab), -1)
            half = self.slab[0, 0, 0].numel()
            for start in (2 * page * half, (2 * page + 1) * half):
                rows[:, start : start + half] = 0

    def step(self, query: torch.Tensor) -> None:
        """Free the pages that have left the window."""
        first = self.method.first(self.prompt or self.seen, self.seen)
        while self.dropped < first - 1:
            self.free.append(self.table.pop(1))
            self.dropped += 1

    def read(self, rows: slice, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """The tokens of the kept pages, in order."""
        if self.slab is None:
            return super().read(rows, dtype)
        found = self.slab[rows][:, self.table].to(dtype)
        keys, values = (found[:, :, at].transpose(1, 2).flatten(2, 3)[:, :, : self.stored] for at in (0, 1))
        return keys, values

    @property
    def stored(self) -> int:
        """Tokens in the kept pages. While new ones are written and not counted yet, those that are counted."""
        return super().stored if self.slab is None else self.seen - self.dropped * self.method.page

    @property
    def positions(self) -> torch.Tensor:
        """Those of the first page, and of the newer ones."""
        if self.slab is None:
            return super().positions
        size = self.method.page
        tokens = torch.arange(self.seen, dtype=torch.int32, device=self.slab.device)
        if self.dropped:
            tokens = torch.cat([tokens[:size], tokens[(self.dropped + 1) * size :]])
        return tokens.expand(len(self.slab), self.shape.kv_heads, -1)
