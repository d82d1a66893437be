"""What a store of baselines is, and what all do that can list and read texts: read, check, say what is in them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import NamedTuple, TypedDict

from kvcheck.core.errors import BaselineError, SpecError, did_you_mean
from kvcheck.core.files import safe_name
from kvcheck.core.front import command, option
from kvcheck.core.record import CaseId, CaseRecord
from kvcheck.store.text import ModelId, StoredCase, StoredFile, base_digest, decode, encode, read_file

VERBS = ("new", "changed", "all")
Lookup = Callable[[CaseId], "CaseRecord | None"]
Base = Callable[[ModelId, CaseId, str], "CaseRecord | None"]
"""The fp16 record of a case that has this digest, or another one where none has."""


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


@dataclass(frozen=True)
class Reading:
    """A stored case as it is read, or why it, or all of its file, cannot be used as it is."""

    path: str
    model: ModelId | None = None
    record: CaseRecord | None = None
    problem: str = ""


class About(TypedDict, total=False):
    """What a recording was made with: the version of kvcheck, and those of packages."""

    kvcheck: str
    packages: dict[str, str]


class Recording(NamedTuple):
    """What is to be recorded, see `Store.record`."""

    model: ModelId
    method: str
    records: list[CaseRecord]
    verb: str
    about: About
    lookup: Lookup


class Store(ABC):
    """Records by model, method and case. A store is read-only unless it says otherwise. root: how messages name it."""

    writable = False
    root: str

    @abstractmethod
    def path(self, model: ModelId, method: str) -> str:
        """The file that holds, or would hold, the records of that method."""

    @abstractmethod
    def source(self, model: ModelId, method: str, case: CaseId) -> str:
        """The file that `get` reads this case from; "" when there is none."""

    @abstractmethod
    def raw(self, model: ModelId, method: str, case: CaseId) -> StoredCase | None:
        """The case as it stands in the file, not yet decoded."""

    @abstractmethod
    def base(self, model: ModelId, case: CaseId, digest: str) -> CaseRecord | None:
        """The fp16 record of a case, that of this digest where there are several. Raises BaselineError."""

    @abstractmethod
    def entries(self) -> list[Entry]:
        """Every readable file, sorted."""

    @abstractmethod
    def readings(self, base: Base | None = None) -> Iterator[Reading]:
        """Every case of every file, checked: its fields, how it is written, and that its fp16 record is there.

        base: finds the fp16 record that it was written against, by default in this store.
        """

    def get(self, model: ModelId, method: str, case: CaseId) -> CaseRecord | None:
        """The stored record of that case (any n); None when there is none. Raises BaselineError for a bad file."""
        stored = self.raw(model, method, case)
        if stored is None:
            return None
        fp16 = self.base(model, case, stored.base) if stored.base else None
        return decode(stored, method, model, fp16, self.source(model, method, case))

    def verify(self, base: Base | None = None) -> list[tuple[str, str]]:
        """(file, problem) for every file that cannot be used as it is, see `readings`."""
        return problems(self.readings(base))

    def record(
        self,
        model: ModelId,
        method: str,
        records: Iterable[CaseRecord],
        verb: str,
        about: About,
        lookup: Lookup | None = None,
    ) -> Changes:
        """Merge records into the file of a method; cases that are not among them stay as they are.

        verb: "new" adds missing cases; "changed" also replaces those that differ; "all" replaces all of them.
        lookup: finds the fp16 record to write against, by default in this store. Records that stopped early are not
        written. Raises BaselineError, with the old file as it was, where the store is read-only or cannot be written.
        """
        if verb not in VERBS:
            raise SpecError(f"unknown {option('record')} {verb!r}", did_you_mean(verb, VERBS))
        ordered = sorted(records, key=lambda record: record.case)
        lookup = lookup or (lambda case: self.get(model, "fp16", case))
        return self._record(Recording(model, method, ordered, verb, about, lookup))

    def _record(self, recording: Recording) -> Changes:
        raise self._read_only()

    def expect_room(self) -> None:
        """Raise BaselineError where nothing can be recorded, before anything is measured."""
        raise self._read_only()

    def _read_only(self) -> BaselineError:
        """The refusal of a store that takes no records, with the way in."""
        return BaselineError(
            f"{self.root} is read-only: nothing is recorded there",
            f"record into a folder above it, {option('baselines')}=FOLDER,{self.root}, then publish: "
            f"kvcheck baselines push --from FOLDER --to {self.root}",
        )


class Reader(Store):
    """Reading, for any place that can list and give texts."""

    def __init__(self, root: str) -> None:
        self.root = root
        self._cache: dict[str, tuple[object, StoredFile]] = {}

    def _text(self, path: str) -> tuple[object, str] | None:
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

    @contextmanager
    def writing(self, path: str, seen: StoredFile | None) -> Iterator[None]:
        """Inside, `write` may be called. seen: the file as it was when it was decided what to write.

        Raises BaselineError where another file stands there by now.
        """
        self.forget(path)
        if self._load(path) != seen:
            raise BaselineError(f"{path} was changed by another process meanwhile: it is left as it is", "push again")
        yield

    def forget(self, path: str) -> None:
        """Read a file anew when it is asked for again."""
        self._cache.pop(path, None)

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
        return None if stored is None else self._expect(stored, path, model, method)

    @staticmethod
    def _expect(stored: StoredFile, path: str, model: ModelId, method: str) -> StoredFile:
        """The file, if it is of that method and model. Raises BaselineError."""
        if stored.method != method:
            raise BaselineError(f"{path} holds records of {stored.method}, not of {method}", f"mv {path} {path}.bad")
        if stored.model.fingerprint != model.fingerprint:
            raise BaselineError(
                f"{path} is of another model: {stored.model.fingerprint} there, {model.fingerprint} here",
                f"move it away and record again: mv {path} {path}.bad; {command(method, record='new')}",
            )
        return stored

    def source(self, model: ModelId, method: str, case: CaseId) -> str:
        """The file that `get` reads this case from; "" when there is none."""
        return "" if self.raw(model, method, case) is None else self.path(model, method)

    def raw(self, model: ModelId, method: str, case: CaseId) -> StoredCase | None:
        """The case as it stands in the file, not yet decoded."""
        stored = self.load(model, method)
        return None if stored is None else stored.cases.get(case.key)

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

    def readings(self, base: Base | None = None) -> Iterator[Reading]:
        """See Store.readings."""
        base, known = base or self.base, dict[tuple[ModelId, CaseId, str], CaseRecord | None]()
        for path in self._paths():
            try:
                stored = self._load(path)
                if stored is None:  # taken away since it was listed
                    continue
                if self.path(stored.model, stored.method) != path:
                    raise BaselineError(f"holds {stored.method} on {stored.model.name}; its name says otherwise")
            except BaselineError as error:
                yield Reading(path, problem=error.message)
                continue
            for one in stored.cases.values():
                key = (stored.model, one.case, one.base)
                try:
                    if one.base and key not in known:
                        known[key] = base(*key)
                    fp16 = known.get(key)
                    record = decode(one, stored.method, stored.model, fp16, path)
                    if not encode(record, fp16).same_as(one):
                        raise BaselineError(f"{path}: {one.case} is not written as kvcheck writes it")
                    yield Reading(path, stored.model, record)
                except BaselineError as error:
                    yield Reading(path, stored.model, problem=error.message)

    def base(self, model: ModelId, case: CaseId, digest: str) -> CaseRecord | None:
        """Its own fp16 record, of any digest. Raises BaselineError for a bad file."""
        return self.get(model, "fp16", case)

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
                lines.append(f"stale now: {stale} cases in {path}; {command(stored.method, record='changed')}")
        return lines


def problems(readings: Iterable[Reading]) -> list[tuple[str, str]]:
    """(file, its first problem, and how many more) of what was read."""
    found: dict[str, list[str]] = {}
    for one in readings:
        if one.problem:
            found.setdefault(one.path, []).append(one.problem)
    return [(path, few[0] + (f" (and {len(few) - 1} more)" if len(few) > 1 else "")) for path, few in found.items()]
