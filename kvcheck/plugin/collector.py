"""Gathers what rides on the reports, in the one process that prints the summary, and writes the files."""

from __future__ import annotations

import os
import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from kvcheck.conformance import NAMES
from kvcheck.errors import KvcheckError
from kvcheck.escape import plain
from kvcheck.plugin import options, payload, scheduling, state
from kvcheck.plugin.conformance import PROPERTY
from kvcheck.record import CaseRecord, PropertyRecord, Run, RunHeader, Verdict
from kvcheck.report.text import plural
from kvcheck.runfile import property_from_json

if TYPE_CHECKING:
    from kvcheck.baseline import ModelId

EVERY = 1.0
"""Seconds between two writes of the run file while cases finish; the last one is written in any case."""


class Collector:
    """Registered on the controller of pytest-xdist, or in the only process; never on a worker."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.settings = state.settings(config)
        self.records: dict[str, CaseRecord] = {}
        self.verdicts: dict[str, tuple[Verdict, ...]] = {}
        self.failures: dict[str, str] = {}
        self.model = {"fingerprint": "", "name": self.settings.model}
        self.properties: list[PropertyRecord] = []
        self.seen = 0
        self.resumed = state.activate(config).resumed
        self.notes: list[str] = []
        self._header: RunHeader | None = None
        self._written = 0.0
        self._interrupted = False

    @property
    def path(self) -> Path | None:
        """Where the run is kept: --kv-json, else pytest's cache."""
        return Path(self.settings.json) if self.settings.json else options.last_run(self.config)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A report came in, from this process or from a worker."""
        text = getattr(report, "kvcheck", None)
        if report.when == "call":
            self.properties += [
                property_from_json(str(text)) for name, text in report.user_properties if name == PROPERTY
            ]
        if text is None:
            self._without_result(report)
            return
        done = payload.read(text)
        name = f"{done.case}|{done.method}"
        self.seen += 1
        if done.model["fingerprint"]:
            self.model = done.model
        if done.record is not None:
            self.records[name] = done.record
        if done.verdicts:
            self.verdicts[name] = done.verdicts
        if done.failure:
            self.failures[name] = done.failure
        if done.record is not None:
            self.config.hook.pytest_kvcheck_record(
                config=self.config, record=done.record, verdicts=done.verdicts, failure=done.failure
            )
        if time.monotonic() - self._written > EVERY:
            self.write()

    def _without_result(self, report: pytest.TestReport) -> None:
        """A case that left no result is a failure all the same: its worker died, or the model could not be opened."""
        name = scheduling.case_name(report.nodeid) if report.failed else ""
        if name:
            self.seen += 1
            self.failures[name] = str(report.longrepr)

    def pytest_keyboard_interrupt(self) -> None:
        """Ctrl-C: what was measured is kept, nothing is recorded as a baseline."""
        self._interrupted = True

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Write the files and, where it was asked for, the baselines."""
        if not self.seen and not self.properties:
            return
        self.write()
        if not self._record() and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        self._markdown()

    @pytest.hookimpl(tryfirst=True)
    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Print the summary."""
        if not self.seen and not self.properties:
            self._idle(terminalreporter)
            return
        from kvcheck.report import terminal

        terminalreporter.section("kvcheck", sep="=")
        for line in terminal.lines(self.run(), self._references()):
            terminalreporter.write_line(line, **colour(line))
        for note in [*self._resumed(), *self.notes]:
            terminalreporter.write_line(plain(note))

    def _idle(self, terminalreporter: Any) -> None:
        """A session that was given methods and found no test that takes them: say where there are some."""
        option = self.config.option
        elsewhere = getattr(option, "dist", "no") != "no"  # workers collected, not this process
        if elsewhere or option.collectonly or self.config.stash.get(options.USED, False) or not option.kv_methods:
            return
        words = shlex.join(["pytest", "--pyargs", "kvcheck.suites", *options.words(options.given(self.config))])
        terminalreporter.write_line(f"kvcheck: no test here takes a case, nothing was measured; type: {plain(words)}")

    def run(self) -> Run:
        """What was gathered so far, in a fixed order."""
        cases = tuple(self.records[name] for name in sorted(self.records, key=self._order))
        verdicts, failures = dict(sorted(self.verdicts.items())), dict(sorted(self.failures.items()))
        known = self.settings.methods
        properties = sorted(self.properties, key=lambda one: (known.index(one.method), NAMES.index(one.name)))
        return Run(self._head(), cases, verdicts, failures, tuple(properties))

    def whole(self) -> Run:
        """The same and, in a resumed run, the cases that were not reached yet: a second Ctrl-C loses nothing."""
        run, before = self.run(), self.resumed
        if before is None:
            return run
        known = {f"{one.case}|{one.method}" for one in run.cases} | set(run.failures)
        rest = tuple(one for one in before.cases if f"{one.case}|{one.method}" not in known)
        verdicts = {name: found for name, found in before.verdicts.items() if name not in known}
        failures = {name: text for name, text in before.failures.items() if name not in known}
        return Run(
            run.header, run.cases + rest, {**verdicts, **run.verdicts}, {**failures, **run.failures}, run.properties
        )

    def _resumed(self) -> list[str]:
        before = self.resumed.cases if self.resumed is not None else ()
        count = sum(f"{one.case}|{one.method}" in self.records for one in before)
        return [f"{plural(count, 'case')} taken from {self.settings.resume}, not measured again"] if count else []

    def _order(self, name: str) -> tuple[int, str]:
        method = name.partition("|")[2]
        known = self.settings.methods
        return (known.index(method) if method in known else len(known), name)

    def _head(self) -> RunHeader:
        if self._header is None:
            self._header = header(self.config, self.model)
        return self._header

    def _references(self) -> dict[str, CaseRecord]:
        """fp16 records by case key, for the tables."""
        from kvcheck.plugin import gate

        try:
            return gate.stored_fp16(self.config, self._model_id(), self.records.values())
        except (KvcheckError, OSError) as error:
            self.notes.append(f"no fp16 records to show: {error}")
            return {}

    def _model_id(self) -> ModelId:
        from kvcheck.baseline import ModelId

        return ModelId.of(self.model["name"], self.model["fingerprint"])

    def write(self) -> None:
        """Write the run file, whole and at once. A disk that is full or read-only costs a note, not the results."""
        from kvcheck.runfile import write_run

        self._written = time.monotonic()
        path = self.path
        if path is None:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_run(path, self.whole())
        except (KvcheckError, OSError) as error:
            note = f"the run file could not be written: {error}"
            self.notes += [] if note in self.notes else [note]
            return
        if self._interrupted:
            kept = plural(len(self.whole().cases), "case")
            self.notes.append(f"interrupted: {kept} kept in {path}; continue with --kv-resume={path}")

    def _markdown(self) -> None:
        paths = [self.settings.md, os.environ.get("GITHUB_STEP_SUMMARY")]
        if not any(paths):
            return
        from kvcheck.report import markdown

        text = "\n".join(markdown.lines(self.run(), self._references())) + "\n"
        for path, how in zip(paths, ("w", "a"), strict=True):
            if not path:
                continue
            try:
                Path(path).parent.mkdir(parents=True, exist_ok=True)
                with open(path, how, encoding="utf-8") as file:
                    file.write(text)
            except OSError as error:
                self.notes.append(f"the Markdown summary could not be written: {error}")

    def _record(self) -> bool:
        """Write the baselines that were asked for, and say what changed. False where that was not possible."""
        if not self.settings.record:
            return True
        if self._interrupted:
            self.notes.append("interrupted: no baseline was recorded")
            return False
        from kvcheck.plugin import gate

        try:
            for line in gate.record(self.config, self.run()):
                self.notes.append(line)
        except (KvcheckError, OSError) as error:
            self.notes.append(f"baselines could not be recorded: {error}")
            if self.path is not None:
                self.notes.append(f"  the run is kept: --kv-resume={self.path} records it without measuring it again")
            return False
        return True


def header(config: pytest.Config, model: dict[str, str]) -> RunHeader:
    """What must be known to judge the run years later."""
    import kvcheck
    from kvcheck import env

    machine = env.machine(state.settings(config).device)
    for found in reversed(config.hook.pytest_kvcheck_machine_info(config=config, machine=machine)):
        machine.update({str(key): str(value) for key, value in (found or {}).items()})
    commit, dirty = env.git_state(config.rootpath)
    return RunHeader(
        kvcheck=kvcheck.__version__,
        git=commit,
        dirty=dirty,
        packages=env.packages(),
        machine=machine,
        model=model["fingerprint"],
        model_name=model["name"],
        settings=state.settings(config).texts(),
    )


def colour(line: str) -> dict[str, bool]:
    """Colour repeats what the words say."""
    words = line.replace(",", " ").split()
    if "fail" in words or "error" in words:
        return {"red": True}
    return {"yellow": True} if "unclear" in words or "inconclusive" in words else {}
