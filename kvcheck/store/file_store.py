"""Baselines in a folder on this machine."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from kvcheck.core.errors import BaselineError
from kvcheck.core.files import expect_plain, expect_writable, one_writer, write_atomically
from kvcheck.core.front import option
from kvcheck.core.record import CaseRecord
from kvcheck.store.reader import Changes, Lookup, Reader, Recording
from kvcheck.store.text import StoredFile, difference, encode, read_file, write_file

TRIES = 10
"""How often a recording is merged anew where something else writes the same file without waiting for its turn."""


class FileStore(Reader):
    """A folder on this machine, readable and writable."""

    writable = True

    def __init__(self, root: str | Path) -> None:
        super().__init__(str(Path(root).expanduser()))

    def _text(self, path: str) -> tuple[object, str] | None:
        try:
            stat = expect_plain(path)
            stamp = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
            cached = self._cache.get(path)
            return (stamp, "" if cached is not None and cached[0] == stamp else self._read(path))
        except (FileNotFoundError, NotADirectoryError):
            _expect_absent(path)
            return None
        except (OSError, UnicodeDecodeError) as error:
            raise BaselineError(f"{path} cannot be read: {error}", f"ls -l {path}") from error

    @staticmethod
    def _read(path: str) -> str:
        with open(path, encoding="utf-8", newline="") as file:
            return file.read()

    def _paths(self) -> list[str]:
        return sorted(
            f"{self.root}/{model}/{name}"
            for model in _names(self.root)
            if os.path.isdir(f"{self.root}/{model}") or os.path.islink(f"{self.root}/{model}")
            for name in _names(f"{self.root}/{model}")
            if name.endswith(".txt") and not name.startswith(".")
        )

    def expect_room(self) -> None:
        """Raise BaselineError where nothing can be written."""
        expect_writable(self.root)

    @contextmanager
    def writing(self, path: str, seen: StoredFile | None) -> Iterator[None]:
        """As Reader.writing, while others that write there wait."""
        with one_writer(os.path.dirname(path)), super().writing(path, seen):
            yield

    def write(self, path: str, text: str) -> None:
        """Put a whole file there, for push. Raises BaselineError, with the old file as it was."""
        write_atomically(path, text)
        if not self._reads(path, text):
            raise BaselineError(f"{path} reads back otherwise than it was written", "look at the disk, then push again")

    def _reads(self, path: str, text: str | None) -> bool:
        """Whether a file has this text now; None: whether there is none."""
        self.forget(path)
        found = self._text(path)
        return (None if found is None else found[1]) == text

    def _record(self, recording: Recording) -> Changes:
        """Processes that record at once wait for each other; what something else wrote meanwhile is merged."""
        model, method, ordered, verb, about, lookup = recording
        path = self.path(model, method)
        if not ordered:
            return Changes(path, 0, ())
        with one_writer(os.path.dirname(path)):
            for _ in range(TRIES):
                self.forget(path)
                found = self._text(path)
                seen = None if found is None else found[1]
                old = None if seen is None else self._expect(read_file(seen, path), path, model, method)
                cases = dict(old.cases) if old is not None else {}
                stored = StoredFile(about.get("kvcheck", ""), model, method, about.get("packages", {}), cases)
                written, lines = _merge(stored, path, ordered, verb, lookup)
                if not written or self._replaced(path, seen, write_file(stored)):
                    lines += self.left_behind(model) if written and method == "fp16" else []
                    return Changes(path, written, tuple(lines))
        raise BaselineError(
            f"{path} is written again and again by something else: nothing is lost of it, and nothing was recorded",
            f"let it end, then record again; the run is kept: {option('resume')}=last",
        )

    def _replaced(self, path: str, seen: str | None, text: str) -> bool:
        """Write a file that still has the text that was seen; False where something else wrote before or behind it."""

        def last() -> None:
            if not self._reads(path, seen):
                raise _Overtaken

        try:
            write_atomically(path, text, last)
        except _Overtaken:
            return False
        return self._reads(path, text)


class _Overtaken(Exception):
    """Something else wrote the file."""


def _names(folder: str) -> list[str]:
    """What is in a folder, [] where there is none. Raises BaselineError where that cannot be told."""
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        _expect_absent(folder)
        return []
    except OSError as error:
        raise BaselineError(f"{folder} cannot be listed: {error}", f"ls -ld {folder}") from error


def _expect_absent(path: str) -> None:
    """Raise BaselineError where something else is in the place of a file, or of a folder that it would lie in."""
    for part in (path, *map(str, Path(path).parents)):
        if os.path.isdir(part):
            return
        if os.path.lexists(part):
            what = "a link that leads nowhere" if os.path.islink(part) else "no folder"
            raise BaselineError(f"{part} is {what}: whether there are baselines cannot be told", f"ls -l {part}")


def _merge(
    stored: StoredFile, path: str, records: Iterable[CaseRecord], verb: str, lookup: Lookup
) -> tuple[int, list[str]]:
    """Put records into a file's cases -> how many, and what is to be said. See Store.record."""
    written, lines, cases = 0, list[str](), stored.cases
    for record in records:
        if record.model != stored.model.fingerprint or record.method != stored.method:
            raise BaselineError(f"a record of {record.method} on {record.model} does not belong in {path}")
        if len(record.samples) < record.case.n:
            lines.append(f"not recorded: {record.case} stopped after {len(record.samples)} contexts ({record.stopped})")
            continue
        new, known = encode(record, lookup(record.case)), cases.get(record.case.key)
        if known is not None and verb != "all" and record.case.n < known.case.n:
            lines.append(
                f"not recorded: {record.case} has fewer contexts than the stored {known.case.n}; "
                f"{option('record')}=all replaces it all the same"
            )
            continue
        if known is not None and (verb == "new" or (verb == "changed" and known.same_as(new))):
            continue
        lines += difference(known, new)
        cases[record.case.key] = new
        written += 1
    return written, lines
