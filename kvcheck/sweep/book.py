"""The run file of one model of a sweep: what is there already, what comes in, and the verdicts on it at the end.

Everything is written to the journal of the run file as it comes (kvcheck/store/journal.py) and, once a minute, to the
run file itself, so that `kvcheck report` shows what is there. What an earlier sweep has is valid by the rule of
--kv-resume (kvcheck/plugin/resume.py).
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path

from kvcheck.core import env
from kvcheck.core.errors import KvcheckError, SpecError
from kvcheck.core.record import CaseId, CaseRecord, Run, RunHeader, Verdict
from kvcheck.core.settings import Settings
from kvcheck.plugin import resume
from kvcheck.store import journal, run_file
from kvcheck.store.journal import Ended, Item, Journal, Kept
from kvcheck.sweep.worker import Code, Done

EVERY, SHARE = 60.0, 100
"""Seconds between two states of the run file, which is written whole each time: as many, and times as long as that
takes, at least."""
GRID = "grid"
"""The setting in a header that says which grid a run file is of, as the options of `kvcheck sweep`."""


@dataclass
class Book:
    """One model's part of a sweep. cases: of every method. grid: see GRID. json: the file that was named, see `path`.
    kept: what is there so far.

    notes: what is to be said at the end. refused: why a worker could not open the model, which ends this part.
    """

    settings: Settings
    path: Path
    cases: Sequence[CaseId]
    grid: str
    json: str = ""
    kept: Kept = field(default_factory=Kept)
    notes: list[str] = field(default_factory=list)
    refused: KvcheckError | None = None
    _began: str = field(default_factory=env.now)
    _due: float = field(default_factory=lambda: time.monotonic() + EVERY)

    def __post_init__(self) -> None:
        self._code = Code.here(self.settings)
        self._journal = Journal(journal.folder_of(self.path), "main")

    def check(self, go_on: bool) -> None:
        """Read what is there, to `go_on` behind it; changes nothing. Raises SpecError where that is of another sweep,
        and where it is not to go on but there is something."""
        found = resume.at(self.path)
        if found is not None and not go_on:
            raise SpecError(
                f"{self.path} holds a run already",
                f"name another file, or go on with it: {self._typed(self.grid)}",
            )
        if found is not None and found.header is not None:
            resume.expect_same(
                replace(self.settings, resume=str(self.path)), found.header, Path.cwd(), self._code.sources
            )
            before = found.header.settings.get(GRID, "")
            if before != self.grid:
                raise SpecError(
                    f"--resume: {self.path} is of another grid; this one is {self.grid}",
                    f"to go on with it: {self._typed(before)}" if before else "it was written by pytest, no sweep",
                )
            self.kept, anew = resume.renewed(found, self.settings.methods)
            self.kept = self.kept.without(anew)
            self.notes += [f"{one} is measured anew: its code has changed" for one in anew]

    def _typed(self, grid: str) -> str:
        """The command that goes on with a grid."""
        return f"kvcheck sweep {grid} {shlex.quote(f'--json={self.json or self.path}')} --resume"

    def begin(self) -> None:
        """Begin the journal, behind what is there. Raises BaselineError where it cannot be written."""
        journal.begin(journal.folder_of(self.path), self.kept if self.kept.header is not None else None)
        self._journal.item(Item(f"{case}|{method}", "kv_case", str(case), method) for case, method in self._pairs())

    def left(self) -> list[tuple[CaseId, str]]:
        """(case, method) that are not measured whole: those that failed are tried again."""
        return [(case, method) for case, method in self._pairs() if self.done(case, method) < case.n]

    def _pairs(self) -> Iterator[tuple[CaseId, str]]:
        """Every case with every method."""
        yield from product(self.cases, self.settings.methods)

    def failed_before(self, case: CaseId, method: str) -> bool:
        """Whether nothing but a failure came of it in an earlier sweep."""
        ended = self.kept.ended.get((str(case), method))
        return ended is not None and bool(ended.failure)

    def so_far(self, case: CaseId, method: str) -> CaseRecord | None:
        """What is there of a case."""
        return self.kept.records.get((str(case), method))

    def done(self, case: CaseId, method: str) -> int:
        """Contexts of it."""
        record = self.so_far(case, method)
        return 0 if record is None else len(record.samples)

    def take(self, case: CaseId, method: str, done: Done) -> bool:
        """Write down what a worker has done; is the case over? Raises SpecError for a worker of another state."""
        self._expect_ours(done)
        if done.record is None:
            self.failed(case, method, done.failure or "nothing came of it")
            return True
        before = self.done(case, method)
        self._journal.block(done.record, done.record.samples[before:])
        self.kept.records[str(case), method] = done.record
        whole = len(done.record.samples) >= case.n
        if whole:
            self._end(Ended(str(case), method, {}, done.record))
        if time.monotonic() > self._due:
            began = time.monotonic()
            self.write()
            self._due = time.monotonic() + max(EVERY, SHARE * (time.monotonic() - began))
        return whole

    def failed(self, case: CaseId, method: str, why: str) -> None:
        """The case is over, and nothing came of it but this."""
        self._end(Ended(str(case), method, {}, failure=why))

    def refuse(self, why: KvcheckError) -> list[tuple[CaseId, str]]:
        """The model cannot be opened: what is left of it fails. Returns that."""
        self.refused = why
        left = self.left()
        for case, method in left:
            self.failed(case, method, str(why))
        return left

    def _end(self, ended: Ended) -> None:
        self._journal.end(ended)
        self.kept.end(ended)

    def _expect_ours(self, done: Done) -> None:
        """A sweep is of one state: the first worker's model and machine go into the header, the others must agree."""
        if done.code != self._code:
            raise SpecError(
                f"a worker measures with other code than this: {_differs(self._code, done.code)}",
                "install the same kvcheck, packages and methods on all machines, then go on with --resume",
            )
        header = self.kept.header
        if header is None:
            header = self.kept.header = self._header(done)
            self._journal.header(header)
        if done.fingerprint != header.model:
            raise SpecError(
                f"{self.settings.model} is another model on a worker than in {self.path}: {done.fingerprint}, not "
                f"{header.model}",
                "give all machines the same files",
            )
        kinds = [found.get("gpu", found.get("cpu", "")) for found in (header.machine, done.machine)]
        note = f"measured on several kinds of machines, answers may differ between them: {kinds[0]}, {kinds[1]}"
        if kinds[0] != kinds[1] and note not in self.notes:
            self.notes.append(note)

    def _header(self, done: Done) -> RunHeader:
        settings = {**self.settings.texts(), GRID: self.grid}
        return run_file.header(
            Path.cwd(), done.model_name, done.fingerprint, done.machine, settings, self._code.sources, self._began
        )

    def run(self) -> Run | None:
        """What is there, as a run; None before the first block."""
        header = self.kept.header
        return None if header is None else self.kept.run(header, self.settings.methods)

    def write(self, run: Run | None = None) -> None:
        """Write the run file, whole or not at all."""
        run = run or self.run()
        if run is not None:
            run_file.write_run(self.path, run)

    def close(self) -> Run | None:
        """Judge what is there and write the run file; then the journal goes. None where nothing was measured."""
        run = self.run()
        if run is None:
            journal.forget(journal.folder_of(self.path))
            return None
        run = self._judged(run)
        self.write(run)
        self._journal.close()
        journal.drop(journal.folder_of(self.path))
        return run

    def _judged(self, run: Run) -> Run:
        """With the gate's verdicts, on cases and on all cases of a method, where there is something to judge by."""
        from kvcheck.plugin.gate import Gate

        gate = Gate.of_run(run, self.settings, Path.cwd())
        verdicts, judged, why = dict[str, tuple[Verdict, ...]](), [], dict[str, str]()
        for one in run.cases:
            try:
                found = gate.judge(one)
                judged.append(found.record)
                verdicts[f"{one.case}|{one.method}"] = found.verdicts
            except KvcheckError as error:
                judged.append(one)
                why.setdefault(one.method, f"{one.method} is not judged: {error}")
        for method in dict.fromkeys(one.method for one in run.cases if one.method not in why):
            try:
                pooled = gate.pooled(one for one in run.cases if one.method == method)
                verdicts |= {f"{scope}|{method}": found for scope, found in pooled.items()}
            except KvcheckError as error:
                why[method] = f"{method} is not judged as a whole: {error}"
        why.pop("fp16", None)  # without a record of its own it is what the others are judged by
        self.notes += why.values()
        return replace(run, cases=tuple(judged), verdicts=verdicts)


def _differs(ours: Code, theirs: Code | None) -> str:
    """The first thing in which two differ, in words."""
    if theirs is None or ours.kvcheck != theirs.kvcheck:
        return f"kvcheck {ours.kvcheck} here, {theirs and theirs.kvcheck} there"
    for mine, other in ((ours.packages, theirs.packages), (ours.sources, theirs.sources)):
        for name in sorted({*mine, *other}):
            if mine.get(name) != other.get(name):
                return f"{name} {mine.get(name, 'missing')} here, {other.get(name, 'missing')} there"
    return "nothing that can be named"
