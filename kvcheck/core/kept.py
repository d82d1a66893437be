"""A folder of files that may be lost at any time: bounded, and what was used longest ago goes first.

A file is named after its key and the SHA-256 of its content, so a damaged one is noticed before anything is read out of
it. It is written under another name and renamed once it is known to be good, so a process that is killed leaves no half
of one. Any number of processes may use the folder at the same time: what one of them removes, another one makes again.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from kvcheck.core import files
from kvcheck.core.errors import BaselineError, SpecError
from kvcheck.core.front import option

GB = 10**9
KEY = 32
"""Hex digits of a key."""
NAME = re.compile(rf"[0-9a-f]{{{KEY}}}\.[0-9a-f]{{64}}\.safetensors")
PENDING = "kvcheck-pending-"
"""How files begin that are being written."""
FORGOTTEN = 24 * 3600.0
"""Seconds after which one of them belongs to a process that was killed."""


@dataclass
class KeptFiles:
    """A folder of kept files. limit: bytes that they take together. damaged: how many were found so, and removed.

    Other files in the folder are left alone.
    """

    folder: Path
    limit: int
    damaged: int = 0
    pending: list[tuple[str, Path]] = field(default_factory=list)

    def open(self) -> None:
        """Make the folder, for this user alone, and remove what killed processes have left in it. Raises OSError."""
        os.makedirs(self.folder, mode=0o700, exist_ok=True)
        for path, found in self._entries():
            if path.name.startswith(PENDING) and found.st_mtime < time.time() - FORGOTTEN:
                _remove(path)

    def read(self, key: str) -> bytes | None:
        """The content under a key, now the most recently used one; None where it is not here, or was damaged."""
        for path, _ in self._entries():
            if _key(path) != key:
                continue
            with suppress(OSError):  # another process may have removed it
                files.expect_plain(path)
                content = path.read_bytes()
                if path.name.split(".")[1] == hashlib.sha256(content).hexdigest():
                    os.utime(path)
                    return content
                self.damaged += 1
                _remove(path)
        return None

    def write(self, key: str, content: bytes) -> None:
        """Keep a content under a key, in place of another one, as soon as `keep` says so; one beyond the limit is not
        kept. Raises OSError."""
        if len(content) > self.limit:
            return
        place = self.folder / f"{key}.{hashlib.sha256(content).hexdigest()}.safetensors"
        handle, temporary = tempfile.mkstemp(dir=self.folder, prefix=PENDING)
        self.pending.append((temporary, place))
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        self._bound()

    def keep(self) -> None:
        """What was written since is good. Raises OSError."""
        places = set()
        while self.pending:
            temporary, place = self.pending.pop()
            places.add(place)
            with suppress(FileNotFoundError):  # it went first, as it was written longest ago
                os.replace(temporary, place)
        keys = {_key(place) for place in places}
        for path, _ in self._entries():
            if _key(path) in keys and path not in places:
                _remove(path)

    def drop(self) -> None:
        """What was written since may not be good."""
        while self.pending:
            _remove(Path(self.pending.pop()[0]))

    def remove(self, key: str) -> None:
        """What is under a key is of no use."""
        self.damaged += 1
        for path, _ in self._entries():
            if _key(path) == key:
                _remove(path)

    def size(self) -> tuple[int, int]:
        """(files, bytes)."""
        sizes = [found.st_size for _, found in self._entries()]
        return len(sizes), sum(sizes)

    def _bound(self) -> None:
        """Remove what was used longest ago until the rest fits."""
        entries = sorted(self._entries(), key=lambda entry: entry[1].st_mtime_ns)
        held = sum(found.st_size for _, found in entries)
        for path, found in entries:
            if held <= self.limit:
                return
            _remove(path)
            held -= found.st_size

    def _entries(self) -> Iterator[tuple[Path, os.stat_result]]:
        """Our files, with what the file system says of them."""
        with suppress(OSError), os.scandir(self.folder) as entries:
            for entry in entries:
                if NAME.fullmatch(entry.name) or entry.name.startswith(PENDING):
                    with suppress(OSError):
                        yield Path(entry.path), entry.stat(follow_symlinks=False)


def said(folder: str, size: float) -> str:
    """A folder with what it holds, in words. size: GB that it may hold."""
    count, held = KeptFiles(Path(folder), 0).size()
    return f"{folder} ({count} {'file' if count == 1 else 'files'}, {held / GB:.2f} of {size:g} GB)"


def hint() -> str:
    """What to do where a folder will not do."""
    return f"name a folder that can be written: {option('prefill_cache', '.kvcheck/prefills')}"


def expect_folder(folder: Path) -> None:
    """Raise SpecError where files cannot be kept in a folder, which need not be there yet."""
    if folder.exists() and not folder.is_dir():
        raise SpecError(f"{option('prefill_cache')}: {folder} is a file", hint())
    try:
        files.expect_writable(str(folder))
    except BaselineError as error:
        raise SpecError(f"{option('prefill_cache')}: {error.message}", hint()) from error


def _key(path: Path) -> str:
    """The key that a file is kept under, "" for one that is being written."""
    return path.name.partition(".")[0] if NAME.fullmatch(path.name) else ""


def _remove(path: Path) -> None:
    with suppress(OSError):
        os.unlink(path)
