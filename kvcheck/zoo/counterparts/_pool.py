"""Pages of keys and values by the hash of the tokens that led to them."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass

import torch


class Full(OSError):
    """A page could not be written."""


@dataclass(frozen=True)
class Entry:
    """A page, and the tokens up to its end, by which a hit is verified."""

    page: int
    prefix: bytes


class Pool:
    """At most `capacity` pages, each of one block of tokens: `data` (pages, L, 2, G, block, d).

    index: entries by key, least recently used first. free: pages that no one uses, the next one last. staged: pages
    written since the last flush, of which there may be `staging`.
    """

    def __init__(self, capacity: int, staging: int) -> None:
        self.capacity, self.staging, self.staged = capacity, staging, 0
        self.data: torch.Tensor | None = None
        self.index: OrderedDict[bytes, Entry] = OrderedDict()
        self.free = list(range(capacity - 1, -1, -1))

    def key(self, parent: bytes, tokens: bytes) -> bytes:
        """The key of a block behind the block of key `parent`."""
        return hashlib.blake2b(parent + tokens, digest_size=16).digest()

    def find(self, key: bytes, prefix: bytes) -> int | None:
        """The page of a key, if it is that of these tokens; None for a miss."""
        entry = self.index.get(key)
        if entry is None or not self.verified(entry, prefix):
            return None
        self.index.move_to_end(key)
        return entry.page

    def verified(self, entry: Entry, prefix: bytes) -> bool:
        """Whether an entry that was found by its key is of these tokens."""
        return entry.prefix == prefix

    def put(self, key: bytes, prefix: bytes, block: torch.Tensor) -> int | None:
        """Store a block (L, 2, G, block, d) -> its page. None where the key is taken or the page cannot be written."""
        if key in self.index:
            return None
        page = self.take()
        try:
            self.copy(page, block)
        except Full:
            self.free.append(page)
            return None
        self.index[key] = Entry(page, prefix)
        return page

    def take(self) -> int:
        """A free page; the least recently used one is given up for it where there is none."""
        if not self.free:
            _, entry = self.index.popitem(last=False)
            self.free.append(entry.page)
        return self.free.pop()

    def copy(self, page: int, block: torch.Tensor) -> None:
        """Write a page. Raises Full where too many wait to be flushed."""
        if self.data is None or page >= len(self.data):
            count = min(self.capacity, max(64, 2 * page))
            grown = block.new_zeros(count, *block.shape)
            if self.data is not None:
                grown[: len(self.data)] = self.data
            self.data = grown
        if self.staged >= self.staging:
            raise Full("the staging buffer is full")
        self.data[page] = block
        self.staged += 1

    def flush(self) -> None:
        """What was staged is written."""
        self.staged = 0

    def load(self, table: torch.Tensor) -> torch.Tensor:
        """The pages of a table (R, m), in order -> (L, 2, R, G, m·block, d)."""
        if self.data is None:
            raise Full("nothing has been stored")
        pages = self.data[table.to(self.data.device)]  # (R, m, L, 2, G, block, d)
        return pages.permute(2, 3, 0, 4, 1, 5, 6).flatten(4, 5)
