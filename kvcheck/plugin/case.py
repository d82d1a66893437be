"""The `kv_case` fixture: runs one case with one method, judges it, and keeps what rides on the report."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, NoReturn, TypeAlias

import pytest

from kvcheck.core.errors import BaselineError, KvcheckError
from kvcheck.core.record import CaseId, CaseRecord, Verdict
from kvcheck.judging.pairing import check_record
from kvcheck.plugin import resume, state
from kvcheck.plugin.gate import gate
from kvcheck.plugin.item import KvItem, hangs, said, tail
from kvcheck.plugin.options import COLLECTOR
from kvcheck.plugin.progress import At, Progress
from kvcheck.plugin.state import State
from kvcheck.plugin.timelimit import TimeLimit
from kvcheck.report import explain
from kvcheck.store.journal import Ended

if TYPE_CHECKING:
    from kvcheck.backends.base import Engine

Attempt: TypeAlias = Callable[
    [Callable[[], CaseRecord], Callable[[BaseException], str]], tuple["CaseRecord | None", str]
]
PROGRESS: pytest.StashKey[Progress] = pytest.StashKey()


class KvCase(KvItem):
    """One case with one method.

    `gate()` does everything. Step by step: `expect_baseline()` fails the test where there is nothing to judge by;
    `run()` measures and gives the record; `check(record)` judges it and fails the test where the verdict is fail.
    A test of your own may look at the record in between: `record.accuracy`, `record.samples`, `record.memory`.
    """

    def __init__(self, request: pytest.FixtureRequest, case: CaseId, method: str) -> None:
        request.getfixturevalue("kv_session")  # first: where it cannot be opened, nothing comes of the case
        super().__init__(request, method)
        self.case = case
        self._gate = gate(self._config, self._engine)
        self._progress = progress(self._config)
        self._measuring = Measuring(self._state, self._engine, case, method, self._gate.look, self._progress)
        self.record: CaseRecord | None = None
        self.verdicts: tuple[Verdict, ...] = ()

    def gate(self) -> None:
        """Measure the case and judge it."""
        self.expect_baseline()
        self.check(self.run())

    def expect_baseline(self) -> None:
        """Fail the test where fp16 is needed to judge the case and no record of it is there."""
        try:
            self._gate.expect_baseline(self.case, self.method)
        except KvcheckError as error:
            self._fail(f"{self.case}  {self.method}\n{error}")

    def run(self) -> CaseRecord:
        """Measure the case. A method that raises, hangs or gives nothing to judge fails the test here."""
        self._once()
        record, problem = self._measuring.run(self._attempt)
        if record is None:
            self._fail(problem)
        self.record = record
        return record

    def check(self, record: CaseRecord) -> tuple[Verdict, ...]:
        """Judge the record against fp16 and the method's own stored record; fails the test where a verdict is fail."""
        self.record = record
        try:
            judged = self._gate.judge(record)
        except KvcheckError as error:
            self._fail(f"{self.case}  {self.method}\n{error}")
        self.record, self.verdicts = judged.record, judged.verdicts
        for name, value in explain.properties(judged.record, judged.fp16, judged.verdicts):
            self._node.user_properties.append((f"kvcheck_{name}", value))
        if any(explain.fails_case(one, self.settings.strict) for one in self.verdicts):
            self._fail(self._gate.message(judged))
        if not self.verdicts and self.settings.budget.get("drop", 0) is not None:
            self._fail(f"{self.case}  {self.method}\nthe judge said nothing: a case without a verdict has not passed")
        return self.verdicts

    def close(self) -> None:
        """The test is over: clear the progress line."""
        self._progress.stop()

    def _once(self) -> None:
        """Fail again where the item failed before, or where a process has died of the method."""
        before = self._state.failed.get(self._node.nodeid)
        if before is not None:
            self._fail(f"{before}\n  it failed before in this session: running it again does not make it pass")
        where = self._state.died(self.method)
        if where:
            self._fail(f"{self.method} was not tried in {self.case}: its process died in {where}")

    def _fail(self, message: str) -> NoReturn:
        try:
            super()._fail(message)
        finally:
            self._state.failed.setdefault(self._node.nodeid, self.failure)

    def _ended(self) -> Ended:
        """What rides on the report."""
        return Ended(str(self.case), self.method, self._state.model, self.record, self.verdicts, self.failure)


class Measuring:
    """One case with one method while it is measured: written down block by block, shown, stopped where it is clear.

    look: (verdict so far in words, may the case stop), of the record so far.
    """

    def __init__(
        self,
        state: State,
        engine: Engine,
        case: CaseId,
        method: str,
        look: Callable[[CaseRecord], tuple[str, bool]],
        progress: Progress,
    ) -> None:
        self.state, self.engine, self.case, self.method = state, engine, case, method
        self._look, self._progress = look, progress
        self._so_far = ""
        self._kept = 0

    def run(self, attempt: Attempt) -> tuple[CaseRecord | None, str]:
        """(its record, or None, and what went wrong). attempt: runs code of the method within its limits."""
        record, whole = resume.earlier(self.state, str(self.case), self.method)
        problem = ""
        if record is None or not whole:
            run_case, more = self.engine.run_case, {}
            if record is not None and "so_far" in inspect.signature(run_case).parameters:
                more["so_far"] = record
                self._kept = len(record.samples)
            self._on_progress(self._kept, self.case.n)
            measure = partial(run_case, self.case, self.method, self._on_block, self._on_progress, **more)
            record, problem = attempt(measure, self._problem)
        if record is None:
            return None, problem or f"{self.method} gave no record of {self.case}"
        try:
            check_record(record)
        except KvcheckError as error:
            return None, str(error)
        self.state.records[str(self.case), self.method] = record
        return record, ""

    def _problem(self, error: BaseException) -> str:
        if isinstance(error, TimeLimit):
            limit = self.state.settings.timeout
            return f"{self.method} ran longer than {limit:g} s in {self.case} and was stopped\n  {hangs()}"
        if isinstance(error, BaselineError):  # met while looking after a block: the method is not to blame
            return f"{self.case}  {self.method}\n{error}"
        if isinstance(error, KvcheckError):
            return f"{tail(error.__cause__)}{self.method} failed in {self.case}\n{error}"
        return f"{tail(error)}{self.method} failed in {self.case}\n{said(error)}"

    def _on_block(self, record: CaseRecord) -> bool:
        """After every block of contexts: write it down; is the verdict clear already?"""
        check_record(record)
        if self.state.journal is not None and len(record.samples) > self._kept:
            self.state.journal.block(record, record.samples[self._kept :])
            self._kept = len(record.samples)
        self._so_far, stop = self._look(record)
        return stop

    def _on_progress(self, done: int, total: int) -> None:
        label = f"{self.case.task} {self.case.mode} {self.case.length} {self.method}"
        self._progress.update(At(label, done, total, self._so_far))


def progress(config: pytest.Config) -> Progress:
    """The progress of this process, made once."""
    if PROGRESS not in config.stash:
        collector = config.pluginmanager.getplugin(COLLECTOR)
        journal = state.of(config).journal
        finished = (lambda: 0) if collector is None else (lambda: len(collector.results))
        config.stash[PROGRESS] = Progress(config, finished, None if journal is None else journal.folder)
    return config.stash[PROGRESS]
