"""What a run has so far, on disk: a line is written and synced before it counts, so that no kill loses what is done.

    run.json.journal/main.jsonl     of the process that prints the summary
    run.json.journal/gw0.jsonl      of each worker of pytest-xdist

One process writes a file, lines are only appended, and a last line that was cut off is ignored. At the end the run file
is written from what the session collected, and the folder goes. Kinds of lines, by their first word:

    header   what must be known to go on with the run
    item     a test item that was selected: every one of them must come to an end
    start    a case begins, with the contexts that an earlier run has already
    block    a block of contexts is finished: the record so far, with the new contexts only
    end      an item is over: what rides on its report
    died     the process of a method was killed in an item
"""

from __future__ import annotations

import os
import shutil
import typing
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from kvcheck.core.errors import BaselineError, KvcheckError
from kvcheck.core.front import option
from kvcheck.core.record import (
    CaseRecord,
    Finding,
    PropertyRecord,
    Run,
    RunHeader,
    SampleRecord,
    Verdict,
    ZooRecord,
    is_scope,
)
from kvcheck.store.run_file import dumps, loads

T = TypeVar("T")
Name = tuple[str, str]
"""(str(case), method): what names a case in a run."""


@dataclass(frozen=True)
class Item:
    """A selected test item. kind: the fixture that it takes. case: str(case), the property, or another name."""

    nodeid: str
    kind: str
    case: str
    method: str

    @property
    def name(self) -> str:
        """What a run file calls it."""
        return f"{self.case}|{self.method}"


@dataclass(frozen=True)
class Ended:
    """What came of an item: the text of its failure, "" where it passed; verdicts and the record of a case.

    skipped: why there was nothing to judge.
    """

    case: str
    method: str
    model: dict[str, str]
    record: CaseRecord | None = None
    verdicts: tuple[Verdict, ...] = ()
    failure: str = ""
    property: PropertyRecord | None = None
    zoo: ZooRecord | None = None
    findings: tuple[Finding, ...] = ()
    skipped: str = ""


@dataclass
class Kept:
    """What journals, a run file or reports hold. records: all cases that were begun, as far as they got, by name."""

    header: RunHeader | None = None
    items: dict[str, Item] = field(default_factory=dict)
    records: dict[Name, CaseRecord] = field(default_factory=dict)
    running: dict[Name, Item] = field(default_factory=dict)
    ended: dict[Name, Ended] = field(default_factory=dict)
    died: dict[str, list[Item]] = field(default_factory=dict)
    properties: dict[Name, PropertyRecord] = field(default_factory=dict)
    zoo: dict[Name, ZooRecord] = field(default_factory=dict)

    @classmethod
    def of_run(cls, run: Run) -> Kept:
        """What a run file holds."""
        kept = cls(header=run.header)
        for record in (*run.cases, *run.partial):
            kept.records[str(record.case), record.method] = record
        for record in run.cases:
            name = f"{record.case}|{record.method}"
            found = Ended(
                str(record.case), record.method, {}, record, run.verdicts.get(name, ()), run.failures.get(name, "")
            )
            kept.ended[found.case, found.method] = found
        for text, failure in run.failures.items():
            case, _, method = text.partition("|")
            if is_scope(case) or not method:  # of several cases, or of the session: found anew
                continue
            kept.ended.setdefault((case, method), Ended(case, method, {}, failure=failure))
        kept.properties = {(one.name, one.method): one for one in run.properties}
        kept.zoo = {(one.name, one.counterpart): one for one in run.zoo}
        return kept

    def end(self, ended: Ended) -> None:
        """An item is over."""
        name = (ended.case, ended.method)
        self.running.pop(name, None)
        if ended.property is not None:
            self.properties[name] = ended.property
            return
        self.ended[name] = ended
        if ended.zoo is not None:
            self.zoo[name] = ended.zoo
        if ended.record is not None and ended.record.samples:
            self.records[name] = ended.record

    def over(self, before: Kept) -> Kept:
        """What another one holds, and this one in its place where both hold the same."""
        return replace(
            self,
            items=before.items | self.items,
            records=before.records | self.records,
            running=before.running | self.running,
            ended=before.ended | self.ended,
            properties=before.properties | self.properties,
            zoo=before.zoo | self.zoo,
        )

    def without(self, methods: Iterable[str]) -> Kept:
        """All but what was measured of these methods."""
        left = set(methods)

        def rest(part: dict[Name, T]) -> dict[Name, T]:
            return {name: one for name, one in part.items() if name[1] not in left}

        return replace(
            self,
            records=rest(self.records),
            ended=rest(self.ended),
            properties=rest(self.properties),
            zoo=rest(self.zoo),
        )

    def renamed(self, name: Callable[[str], str]) -> Kept:
        """With other names for the methods; of two that become one, what was measured under the name itself."""

        def named(part: dict[Name, T]) -> dict[Name, T]:
            found = {(case, name(method)): _under(one, name(method)) for (case, method), one in part.items()}
            return found | {at: one for at, one in part.items() if name(at[1]) == at[1]}

        header = self.header
        if header is not None:
            sources = {name(spec): digest for spec, digest in header.sources.items()}
            kept = {spec: digest for spec, digest in header.sources.items() if name(spec) == spec}
            header = replace(header, sources=sources | kept)
        return replace(
            self,
            header=header,
            records=named(self.records),
            ended=named(self.ended),
            properties=named(self.properties),
        )

    def run(self, header: RunHeader, methods: Sequence[str] = ()) -> Run:
        """As a run: what ended, and what was begun as its partial cases. methods: the order of their cases."""

        def order(name: Name) -> tuple[int, str]:
            return (methods.index(name[1]) if name[1] in methods else len(methods), "|".join(name))

        ended = {name: self.ended[name] for name in sorted(self.ended, key=order)}
        complete = {name: one.record for name, one in ended.items() if one.record is not None}
        rest = sorted(name for name, record in self.records.items() if name not in complete and record.samples)
        return Run(
            header,
            tuple(complete.values()),
            {"|".join(name): one.verdicts for name, one in sorted(ended.items()) if one.verdicts},
            {"|".join(name): one.failure for name, one in sorted(ended.items()) if one.failure},
            tuple(self.properties.values()),
            tuple(self.records[name] for name in rest),
            tuple(self.zoo.values()),
            tuple(finding for one in ended.values() for finding in one.findings),
        )


def _under(one: T, method: str) -> T:
    """A part of a run under another name of its method, with the record that lies in it."""
    changed: dict[str, object] = {"method": method}
    if isinstance(one, Ended) and one.record is not None:
        changed["record"] = replace(one.record, method=method)
    return typing.cast(T, replace(typing.cast(Any, one), **changed))


class Journal:
    """Appends lines to the file of one process. folder: see `folder_of`; writer: "main", or the name of a worker."""

    def __init__(self, folder: Path, writer: str) -> None:
        self.folder = folder
        self.path = folder / f"{writer}.jsonl"
        self._handle: int | None = None

    def item(self, items: Iterable[Item]) -> None:
        """The items that this session must bring to an end."""
        self._write(*(_line("item", one) for one in items))

    def header(self, header: RunHeader) -> None:
        """What the run is measured with."""
        self._write(_line("header", header))

    def start(self, item: Item) -> None:
        """An item begins."""
        self._write(_line("start", item))

    def block(self, record: CaseRecord, new: tuple[SampleRecord, ...]) -> None:
        """Contexts are finished. record: of the case so far."""
        self._write(_line("block", replace(record, samples=new)))

    def end(self, ended: Ended) -> None:
        """An item is over."""
        self._write(_line("end", ended))

    def died(self, item: Item) -> None:
        """The process of a method was killed in this item."""
        self._write(_line("died", item))

    def _write(self, *lines: str) -> None:
        """Append lines, whole or not at all, and sync. Raises BaselineError where the disk takes no more."""
        text = "".join(lines).encode()
        try:
            if self._handle is None:
                self.folder.mkdir(parents=True, exist_ok=True)
                self._handle = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
            before = os.fstat(self._handle).st_size
            try:
                written = 0
                while written < len(text):
                    written += os.write(self._handle, text[written:])
                os.fsync(self._handle)
            except OSError:
                with suppress(OSError):
                    os.ftruncate(self._handle, before)
                raise
        except OSError as error:
            raise _refused(error) from error
        if not self.path.exists():  # whoever ended the run has read it already: what is written now is not in it
            raise BaselineError("the journal of the run is gone", "the run was ended; nothing more is taken")

    def close(self) -> None:
        """No more lines."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


def folder_of(path: Path) -> Path:
    """Where the journal of a run file lies."""
    return path.with_name(path.name + ".journal")


def begin(folder: Path, kept: Kept | None) -> None:
    """Make the folder of a new run, with what an earlier one had.

    A journal that lies there stays beside it as long as the new one holds nothing: see `found`. Raises BaselineError.
    """
    fresh, old = folder.with_name(folder.name + ".new"), _before(folder)
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        fresh.mkdir(parents=True)
        if kept is not None:
            _seed(Journal(fresh, "earlier"), kept)
        if _holds_something(folder):
            shutil.rmtree(old, ignore_errors=True)
            os.replace(folder, old)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(fresh, folder)
    except OSError as error:
        raise _refused(error) from error


def _closed(folder: Path) -> Path:
    """Where a journal lies that was closed."""
    return folder.with_name(folder.name + ".closed")


def _before(folder: Path) -> Path:
    """Where the journal of the run before lies."""
    return folder.with_name(folder.name + ".old")


def _holds_something(folder: Path) -> bool:
    """Whether a run got as far as a finished block."""
    return any(b"\nblock\t" in b"\n" + path.read_bytes() for path in folder.glob("*.jsonl"))


def _refused(error: OSError) -> BaselineError:
    hint = f"free or unlock the disk, or name another place: {option('json')}=PATH"
    return BaselineError(f"the journal of the run cannot be written: {error.strerror or error}", hint)


def _seed(journal: Journal, kept: Kept) -> None:
    """Write what an earlier run had, as the lines that it would have left."""
    if kept.header is not None:
        journal.header(kept.header)
    for record in kept.records.values():
        journal.block(record, record.samples)
    for ended in kept.ended.values():
        journal.end(ended)
    for (name, method), found in kept.properties.items():
        journal.end(Ended(name, method, {}, property=found))
    for (name, method), result in kept.zoo.items():
        if (name, method) not in kept.ended:
            journal.end(Ended(name, method, {}, zoo=result))
    journal.close()


def close(folder: Path) -> Kept:
    """Read a journal to which nothing more can be added, also by a worker that lives on. Raises BaselineError."""
    closed = _closed(folder)
    shutil.rmtree(closed, ignore_errors=True)
    os.replace(folder, closed)
    return read(closed)


def drop(folder: Path) -> None:
    """The run file is whole: its journals go."""
    for each in (folder, _before(folder), _closed(folder)):
        shutil.rmtree(each, ignore_errors=True)


def forget(folder: Path) -> None:
    """A run got nowhere: its journal goes, unless it holds what an earlier run has."""
    if not _holds_something(folder):
        shutil.rmtree(folder, ignore_errors=True)


def found(path: Path) -> Kept | None:
    """What the journal of a run file holds: the last one that got anywhere. None where there is none.

    Raises BaselineError for a damaged one.
    """
    folder = folder_of(path)
    return next((read(place) for place in (folder, _closed(folder), _before(folder)) if _holds_something(place)), None)


def read(folder: Path) -> Kept:
    """All files of a journal as one. Raises BaselineError for a line that is no line of a journal."""
    kept = Kept()
    for path in sorted(folder.glob("*.jsonl"), key=lambda path: (path.stem != "earlier", path.name)):
        read_file(path, kept)
    return kept


def read_file(path: Path, kept: Kept | None = None) -> Kept:
    """One file, into what others held; a file that is not there holds nothing. Raises BaselineError."""
    kept = Kept() if kept is None else kept
    for kind, value in _lines(path) if path.is_file() else ():
        _take(kept, kind, value)
    return kept


def _line(kind: str, value: object) -> str:
    """A line of this kind: the kind, a tab, JSON."""
    return f"{kind}\t{dumps(value)}\n"


Line: TypeAlias = RunHeader | Item | CaseRecord | Ended
KINDS: dict[str, type[Line]] = {
    "header": RunHeader, "item": Item, "start": Item, "block": CaseRecord, "end": Ended, "died": Item
}  # fmt: skip


def _lines(path: Path) -> Iterator[tuple[str, Line]]:
    """(kind, value) of the lines of a file that are whole. Raises BaselineError for one that is damaged."""
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        try:
            kind, _, text = line.decode().partition("\t")
            yield kind, loads(KINDS[kind], text)
        except (KeyError, TypeError, ValueError, RecursionError, KvcheckError) as error:
            raise BaselineError(
                f"{path}, line {number} is damaged: {error}", f"start without {option('resume')}"
            ) from error


def _take(kept: Kept, kind: str, value: Line) -> None:
    """One line."""
    if isinstance(value, RunHeader):
        kept.header = kept.header or value
    elif isinstance(value, CaseRecord):
        name = (str(value.case), value.method)
        before = kept.records[name].samples if name in kept.records else ()
        joined = {sample.index: sample for sample in (*before, *value.samples)}
        kept.records[name] = replace(value, samples=tuple(joined[index] for index in sorted(joined)))
    elif isinstance(value, Ended):
        kept.end(value)
    elif kind == "item":
        kept.items[value.nodeid] = value
    elif kind == "start":
        kept.running[value.case, value.method] = value
    else:
        kept.died.setdefault(value.method, []).append(value)
