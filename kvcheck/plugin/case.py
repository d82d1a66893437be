"""The `kv_case` fixture: runs one case with one method, judges it, and keeps what rides on the report."""

from __future__ import annotations

import inspect
import os
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import pytest

from kvcheck.core.errors import BaselineError, KvcheckError
from kvcheck.core.record import CaseId, CaseRecord, Verdict
from kvcheck.judging.pairing import check_record
from kvcheck.plugin import commands, items, options, resume, state
from kvcheck.plugin.gate import Judged, gate
from kvcheck.plugin.progress import Progress
from kvcheck.plugin.timelimit import TimeLimit, time_limit
from kvcheck.report import explain
from kvcheck.store.journal import Ended

FRAMES = 4
"""Frames of the traceback of a method that raised; the innermost ones."""

PROGRESS: pytest.StashKey[Progress] = pytest.StashKey()


class KvCase:
    """One case with one method.

    `gate()` does everything. Step by step: `expect_baseline()` fails the test where there is nothing to judge by;
    `run()` measures and gives the record; `check(record)` judges it and fails the test where the verdict is fail.
    A test of your own may look at the record in between: `record.accuracy`, `record.samples`, `record.memory`.
    """

    def __init__(self, request: pytest.FixtureRequest, session: Any, case: CaseId, method: str) -> None:
        self.case = case
        self.method = method
        self.settings = state.settings(request.config)
        self._state = state.of(request.config)
        self._session = session
        self._node = request.node
        self._config = request.config
        self._gate = gate(request.config, session)
        self._progress = _progress(request.config, len(request.session.items))
        self._again = commands.completer(request.config)
        self._so_far = ""
        self.record: CaseRecord | None = None
        self.verdicts: tuple[Verdict, ...] = ()
        self.failure = ""
        self._kept = 0
        self._node.stash[options.RESULT] = self._ended

    def gate(self) -> None:
        """Measure the case and judge it."""
        self.expect_baseline()
        self.check(self.run())

    def expect_baseline(self) -> None:
        """Fail the test where fp16 is needed to judge the case and no record of it is there."""
        problem = ""
        try:
            self._gate.expect_baseline(self.case, self.method)
        except KvcheckError as error:
            problem = f"{self.case}  {self.method}\n{error}"
        if problem:
            self._fail(problem)

    def run(self) -> CaseRecord:
        """Measure the case. A method that raises, hangs or gives nothing to judge fails the test here."""
        self._once()
        so_far, whole = resume.earlier(self._state, str(self.case), self.method)
        record = so_far if so_far is not None and whole else self._measure(so_far)
        problem = ""
        try:
            check_record(record)
        except KvcheckError as error:
            problem = str(error)
        if problem:
            self._fail(problem)
        self.record = record
        self._state.records[str(self.case), self.method] = record
        return record

    def check(self, record: CaseRecord) -> tuple[Verdict, ...]:
        """Judge the record against fp16 and the method's own stored record; fails the test where a verdict is fail."""
        self.record = record
        judged, problem = None, ""
        try:
            judged = self._gate.judge(record)
        except KvcheckError as error:
            problem = f"{self.case}  {self.method}\n{error}"
        if judged is None:
            self._fail(problem)
        self.record, self.verdicts = judged.record, judged.verdicts
        self._properties(judged)
        bad = [one for one in self.verdicts if explain.fails(one, self.settings.strict)]
        if bad:
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

    def _measure(self, so_far: CaseRecord | None) -> CaseRecord:
        run_case, options = self._session.run_case, {}
        if so_far is not None and "so_far" in inspect.signature(run_case).parameters:
            options["so_far"] = so_far
        self._kept = len(so_far.samples) if options and so_far is not None else 0
        try:
            self._state.start(items.of(self._node))
            with time_limit(self.settings.timeout), in_place(), threads_fail():
                return run_case(self.case, self.method, self._on_block, self._on_progress, **options)
        except TimeLimit:
            problem = (
                f"{self.method} ran longer than {self.settings.timeout:g} s in {self.case} and was stopped\n"
                "  does it hang? A slow one gets more time with --kv-timeout=SECONDS (0: no limit)"
            )
        except BaselineError as error:  # met while looking after a block: the method is not to blame
            problem = f"{self.case}  {self.method}\n{error}"
        except KvcheckError as error:
            problem = f"{tail(error.__cause__)}{self.method} failed in {self.case}\n{error}"
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # also what pytest raises to skip: a method that does so has not passed
            problem = f"{tail(error)}{self.method} failed in {self.case}\n{said(error)}"
        self._fail(problem)  # outside of the block: pytest would print the exception once more, above the message

    def _on_block(self, record: CaseRecord) -> bool:
        """After every block of contexts: write it down; is the verdict clear already?"""
        check_record(record)
        if self._state.journal is not None and len(record.samples) > self._kept:
            self._state.journal.block(record, record.samples[self._kept :])
            self._kept = len(record.samples)
        self._so_far, stop = self._gate.look(record)
        return stop

    def _on_progress(self, done: int, total: int) -> None:
        label = f"{self.case.task} {self.case.mode} {self.case.length} {self.method}"
        self._progress.update(label, done, total, self._so_far)

    def _fail(self, message: str) -> NoReturn:
        message = self._again(message)
        self.failure = message
        self._state.failed.setdefault(self._node.nodeid, message)
        pytest.fail(message, pytrace=False)

    def _properties(self, judged: Judged) -> None:
        for name, value in explain.properties(judged.record, judged.fp16, judged.verdicts):
            self._node.user_properties.append((f"kvcheck_{name}", value))

    def _ended(self) -> Ended:
        """What rides on the report."""
        model = {"fingerprint": self._session.fingerprint, "name": self._session.model_name}
        return Ended(str(self.case), self.method, model, self.record, self.verdicts, self.failure)


@contextmanager
def in_place() -> Iterator[None]:
    """Come back to the folder that pytest works in."""
    before = os.getcwd()
    try:
        yield
    finally:
        os.chdir(before)


@contextmanager
def threads_fail() -> Iterator[None]:
    """Raise at the end what a thread raised meanwhile: nobody else would hear of it."""
    raised: list[BaseException] = []
    before = threading.excepthook

    def hear(found: threading.ExceptHookArgs) -> None:
        if found.exc_value is not None:
            raised.append(found.exc_value)

    threading.excepthook = hear
    try:
        yield
    finally:
        threading.excepthook = before
    if raised:
        raise raised[0]


def tail(error: BaseException | None) -> str:
    """The innermost frames of what a method raised, for its author."""
    if error is None or error.__traceback__ is None:
        return ""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename != __file__][-FRAMES:]
    return "".join(traceback.format_list(frames))


def said(error: BaseException) -> str:
    """What was raised, in one line; what pytest raises to skip or to expect a failure, with what that means."""
    what = f"{type(error).__name__}: {error}".rstrip(": ")
    if isinstance(error, (pytest.skip.Exception, pytest.xfail.Exception, pytest.exit.Exception)):
        what += "\n  a method cannot skip, expect or end its own test: what it cannot serve, it refuses in `check`"
    return what


def _progress(config: pytest.Config, items: int) -> Progress:
    if PROGRESS not in config.stash:
        config.stash[PROGRESS] = Progress(config)
    progress = config.stash[PROGRESS]
    progress.start(items)
    return progress
