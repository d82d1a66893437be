"""Baselines in a folder on this machine, and what every store does that can list and read texts."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvcheck.baseline_text import (
    ModelId,
    StoredCase,
    StoredFile,
    base_digest,
    decode,
    difference,
    encode,
    read_file,
    write_file,
)
from kvcheck.errors import BaselineError, SpecError, did_you_mean
from kvcheck.files import expect_writable, one_writer, safe_name, write_atomically
from kvcheck.record import CaseId, CaseRecord

VERBS = ("new", "changed", "all")
Lookup = Callable[[CaseId], "CaseRecord | None"]
Get = Callable[[ModelId, str, CaseId], "CaseRecord | None"]


@dataclass(frozen=True)
class Changes:
    """What recording did: the file, how many cases were written, and a line for every number that changed."""

    path: str
    written: int
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Entry:
    """One stored file, as `kvcheck baselines list` shows it."""

    path: str
    model: ModelId
    method: str
    cases: tuple[CaseId, ...]


def read_only(place: str) -> BaselineError:
    """The refusal of a store that takes no records, with the way in."""
    return BaselineError(
        f"{place} is read-only: nothing is recorded there",
        f"record into a folder above it, --kv-baselines=FOLDER,{place}, then publish: "
        f"kvcheck baselines push --from FOLDER --to {place}",
    )


class Reader:
    """Reading, for any place that can list and give texts."""

    writable = False

    def __init__(self, root: str) -> None:
        self.root = root
        self._cache: dict[str, tuple[Any, StoredFile]] = {}

    def _text(self, path: str) -> tuple[Any, str] | None:
        """(a stamp that changes when the file does, its text), or None when there is no such file."""
        raise NotImplementedError

    def _paths(self) -> list[str]:
        raise NotImplementedError

    def write(self, path: str, text: str) -> None:
        """Put a whole file there, for push. Raises BaselineError, with the old file as it was."""
        raise NotImplementedError

    def path(self, model: ModelId, method: str) -> str:
        """The file that holds, or would hold, the records of that method."""
        return f"{self.root}/{safe_name(model.name)}/{safe_name(method)}.txt"

    def _load(self, path: str) -> StoredFile | None:
        found = self._text(path)
        if found is None:
            return None
        stamp, text = found
        cached = self._cache.get(path)
        if cached is None or cached[0] != stamp:
            self._cache[path] = cached = (stamp, read_file(text, path))
        return cached[1]

    def load(self, model: ModelId, method: str) -> StoredFile | None:
        """The whole file of a method. Raises BaselineError: damaged, of another model, or of another method."""
        path = self.path(model, method)
        stored = self._load(path)
        if stored is None:
            return None
        if stored.method != method:
            raise BaselineError(f"{path} holds records of {stored.method}, not of {method}", f"mv {path} {path}.bad")
        if stored.model.fingerprint != model.fingerprint:
            raise BaselineError(
                f"{path} is of another model: {stored.model.fingerprint} there, {model.fingerprint} here",
                f"move it away and record again: mv {path} {path}.bad; pytest --kv-method={method} --kv-record=new",
            )
        return stored

    def get(self, model: ModelId, method: str, case: CaseId) -> CaseRecord | None:
        """The stored record of that case (any n); None when there is none. Raises BaselineError for a bad file."""
        stored = self.raw(model, method, case)
        if stored is None:
            return None
        fp16 = self.get(model, "fp16", case) if stored.base else None
        return decode(stored, method, model, fp16, self.path(model, method))

    def source(self, model: ModelId, method: str, case: CaseId) -> str:
        """The file that `get` reads this case from; "" when there is none."""
        return "" if self.raw(model, method, case) is None else self.path(model, method)

    def raw(self, model: ModelId, method: str, case: CaseId) -> StoredCase | None:
        """The case as it stands in the file, not yet decoded."""
        stored = self.load(model, method)
        return None if stored is None else stored.cases.get(case.key)

    def record(
        self,
        model: ModelId,
        method: str,
        records: Iterable[CaseRecord],
        verb: str,
        about: dict[str, Any],
        lookup: Lookup | None = None,
    ) -> Changes:
        """Refuse: this place is read-only."""
        raise read_only(self.root)

    def expect_room(self) -> None:
        """Raise BaselineError where nothing can be recorded, before anything is measured."""
        raise read_only(self.root)

    def entries(self) -> list[Entry]:
        """Every readable file, sorted."""
        return [
            Entry(path, stored.model, stored.method, tuple(sorted(one.case for one in stored.cases.values())))
            for path, stored in self._readable()
        ]

    def _readable(self) -> Iterator[tuple[str, StoredFile]]:
        for path in self._paths():
            with suppress(BaselineError):
                stored = self._load(path)
                if stored is not None:
                    yield path, stored

    def verify(self, get: Get | None = None) -> list[tuple[str, str]]:
        """(file, problem) for every file that cannot be used as it is. get: reads a case, else this store does."""
        get, problems = get or self.get, []
        for path in self._paths():
            try:
                stored = self._load(path)
                if stored is not None and self.path(stored.model, stored.method) != path:
                    raise BaselineError(f"holds {stored.method} on {stored.model.name}; its name says otherwise")
                if stored is not None:
                    for one in stored.cases.values():
                        get(stored.model, stored.method, one.case)
            except BaselineError as error:
                problems.append((path, error.message))
        return problems

    def orphans(self, known: Callable[[str, CaseId], bool]) -> list[tuple[str, CaseId]]:
        """(file, case) that no test would run any more. known(method, case) says whether one would."""
        return [(e.path, case) for e in self.entries() for case in e.cases if not known(e.method, case)]

    def left_behind(self, model: ModelId) -> list[str]:
        """A line for each method whose records were written against an fp16 record that is no longer there."""
        lines = []
        for path, stored in self._readable():
            if stored.model != model or stored.method == "fp16":
                continue
            stale = 0
            for one in stored.cases.values():
                fp16 = self.get(model, "fp16", one.case) if one.base else None
                stale += fp16 is not None and base_digest(fp16) != one.base
            if stale:
                lines.append(
                    f"stale now: {stale} cases in {path}; pytest --kv-method={stored.method} --kv-record=changed"
                )
        return lines


class FileStore(Reader):
    """A folder on this machine, readable and writable."""

    writable = True

    def __init__(self, root: str | Path) -> None:
        super().__init__(str(Path(root).expanduser()))

    def _text(self, path: str) -> tuple[Any, str] | None:
        try:
            with open(path, encoding="utf-8", newline="") as file:
                stat = os.fstat(file.fileno())
                stamp = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
                cached = self._cache.get(path)
                return (stamp, "") if cached is not None and cached[0] == stamp else (stamp, file.read())
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, UnicodeDecodeError) as error:
            raise BaselineError(f"{path} cannot be read: {error}", f"ls -l {path}") from error

    def _paths(self) -> list[str]:
        found = Path(self.root).glob("*/*.txt")
        return sorted(f"{self.root}/{path.parent.name}/{path.name}" for path in found)

    def expect_room(self) -> None:
        """Raise BaselineError where nothing can be recorded, before anything is measured."""
        expect_writable(self.root)

    def write(self, path: str, text: str) -> None:
        """Put a whole file there, for push. Raises BaselineError, with the old file as it was."""
        write_atomically(path, text)
        self._cache.pop(path, None)
        found = self._text(path)
        if found is None or found[1] != text:
            raise BaselineError(f"{path} reads back otherwise than it was written", "look at the disk, then push again")

    def record(
        self,
        model: ModelId,
        method: str,
        records: Iterable[CaseRecord],
        verb: str,
        about: dict[str, Any],
        lookup: Lookup | None = None,
    ) -> Changes:
        """Merge records into the file of a method; cases that are not among them stay as they are.

        verb: "new" adds missing cases; "changed" also replaces those that differ; "all" replaces all of them.
        about: {"kvcheck": version, "packages": {...}}. lookup: finds the fp16 record to write against.
        Records that stopped early are not written. Two processes that record at once wait for each other. Raises
        BaselineError, with the old file as it was.
        """
        if verb not in VERBS:
            raise SpecError(f"unknown --kv-record {verb!r}", did_you_mean(verb, VERBS))
        lookup = lookup or (lambda case: self.get(model, "fp16", case))
        path, ordered = self.path(model, method), sorted(records, key=lambda record: record.case)
        if not ordered:
            return Changes(path, 0, ())
        with one_writer(os.path.dirname(path)):
            old = self.load(model, method)
            cases = dict(old.cases) if old is not None else {}
            stored = StoredFile(about.get("kvcheck", ""), model, method, about.get("packages", {}), cases)
            written, lines = _merge(stored, path, ordered, verb, lookup)
            if written:
                write_atomically(path, write_file(stored))
                lines += self.left_behind(model) if method == "fp16" else []
            return Changes(path, written, tuple(lines))


def _merge(
    stored: StoredFile, path: str, records: Iterable[CaseRecord], verb: str, lookup: Lookup
) -> tuple[int, list[str]]:
    """Put records into a file's cases -> how many, and what is to be said. See FileStore.record."""
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
                "--kv-record=all replaces it all the same"
            )
            continue
        if known is not None and (verb == "new" or (verb == "changed" and known.same_as(new))):
            continue
        lines += difference(known, new)
        cases[record.case.key] = new
        written += 1
    return written, lines
