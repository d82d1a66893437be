"""Things worth keeping, up to a number of bytes; what was used longest ago goes first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Any


class Memo:
    """A mapping with a byte limit. A value that exceeds the limit by itself is not kept."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0
        self._entries: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()

    def get(self, key: Hashable) -> Any | None:
        """The value, now the most recently used one; None when it is not (or no longer) here."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        self._entries.move_to_end(key)
        return entry[0]

    def put(self, key: Hashable, value: Any, nbytes: int) -> None:
        """Keep a value of nbytes, in place of an older one under the same key."""
        self.drop(key)
        if nbytes > self.limit:
            return
        self._entries[key] = (value, nbytes)
        self.held += nbytes
        while self.held > self.limit:
            _, (_, freed) = self._entries.popitem(last=False)
            self.held -= freed

    def drop(self, key: Hashable) -> None:
        """Forget a value; nothing happens when it is not here."""
        entry = self._entries.pop(key, None)
        if entry is not None:
            self.held -= entry[1]

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()
        self.held = 0
