"""Collects what rides on the reports, in the one process that prints the summary, and writes the files."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import pytest

from kvcheck.backends.engines import specs
from kvcheck.core import files, kept
from kvcheck.core.errors import KvcheckError
from kvcheck.core.escape import plain
from kvcheck.core.record import RUN, CaseRecord, Run, RunHeader, Verdict
from kvcheck.judging import pooled
from kvcheck.plugin import (
    commands,
    engines,
    gate,
    guardian,
    harmless,
    opening,
    options,
    reconcile,
    referee,
    resume,
    state,
)
from kvcheck.plugin.case import progress
from kvcheck.plugin.more import More, undecided
from kvcheck.plugin.progress import LOG, Watch
from kvcheck.plugin.reconcile import Result
from kvcheck.report import explain, rows, verdict
from kvcheck.report.text import WIDTH, colour, columns, plural
from kvcheck.store import journal
from kvcheck.store.baselines import ModelId, stored_fp16
from kvcheck.store.journal import Ended, Kept
from kvcheck.store.run_file import loads, write_run

if TYPE_CHECKING:
    from xdist.workermanage import WorkerController

Pooled: TypeAlias = dict[str, tuple[Verdict, ...]]
OPEN, JUDGE = "pytest_kvcheck_open", "pytest_kvcheck_judge"
"""Hooks of which kvcheck's own implementation is the only one, unless a plugin has another."""
COUNTED = "kvcheck_counted"
"""An attribute of reports on several cases: the word under which pytest counts them, "" for none."""


class Collector:
    """Registered on the controller of pytest-xdist, or in the only process; never on a worker."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.state = state.of(config)
        self.settings = self.state.settings
        before = None if self.state.kept is None else self.state.kept.header
        self.model = {"fingerprint": "", "name": self.settings.model}
        if before is not None:
            self.model = {"fingerprint": before.model, "name": before.model_name}
        self.found = Kept()
        self.failures: dict[str, str] = {}
        self.pooled: dict[str, tuple[Verdict, ...]] = {}
        self.results: dict[str, Result] = {}
        self.written = Kept()
        self.notes: list[str] = []
        self.folder: Path | None = None
        self._header: RunHeader | None = None
        self._interrupted = False

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionstart(self) -> None:
        """Before workers start: where all of them write what they have finished."""
        if not self.config.option.collectonly:
            try:
                self.folder = resume.begin(self.config)
            except KvcheckError as error:
                raise pytest.UsageError(f"kvcheck: {plain(error)}") from None

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: WorkerController) -> None:
        """Tell a worker of pytest-xdist where that is."""
        node.workerinput[resume.FOLDER] = str(self.folder or "")

    @pytest.hookimpl(optionalhook=True)
    def pytest_handlecrashitem(self, crashitem: str) -> None:
        """A worker died: tell the others of which method."""
        item = self._written().items.get(crashitem)
        if item is not None and item.method and self.state.journal is not None:
            with suppress(KvcheckError):  # that the journal is gone is said at the end
                self.state.journal.died(item)

    def pytest_report_header(self) -> list[str]:
        """Say where prefills are kept; another engine makes its own."""
        if self.settings.prefill_cache is None:
            return []
        other = len(self.config.hook.pytest_kvcheck_open.get_hookimpls()) > 1 or specs.chosen(self.settings) is not None
        where = (
            "not by this engine" if other else kept.said(self.settings.prefill_cache, self.settings.prefill_cache_size)
        )
        return [plain(f"kvcheck: prefills are kept: {where}")]

    @pytest.hookimpl(wrapper=True)
    def pytest_runtestloop(self, session: pytest.Session) -> Generator[None, object, object]:
        """While tests run, show how far they are. Those of workers are known when a worker has collected them."""
        shown = progress(self.config)
        shown.items = len(getattr(session, "items", ()))
        workers = getattr(self.config.option, "numprocesses", None)
        with Watch(shown, self.folder) if workers and self.folder is not None else nullcontext():
            return (yield)

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: list[str]) -> None:
        """How many tests the workers have."""
        progress(self.config).items = len(ids)

    @property
    def seen(self) -> bool:
        """Whether anything of kvcheck came to an end."""
        return any(result.ended is not None for result in self.results.values())

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A report came in, from this process or from a worker. A model that cannot be opened is said once, here."""
        if refusal := getattr(report, options.REFUSAL, ""):
            raise pytest.UsageError(plain(refusal))
        text = getattr(report, options.ENDED, None)
        ended = None if text is None else loads(Ended, text)
        result = self.results.setdefault(report.nodeid, Result())
        result.take(report, ended)
        if (shown := progress(self.config)).where == LOG:
            shown.show(())
        if ended is None or result.ended is None:
            return
        self.found.end(result.ended)
        if ended.model.get("fingerprint"):
            self.model = ended.model
        if ended.record is not None:
            self.config.hook.pytest_kvcheck_record(
                config=self.config, record=ended.record, verdicts=ended.verdicts, failure=ended.failure
            )

    def pytest_keyboard_interrupt(self) -> None:
        """Ctrl-C: what was measured is kept, nothing is recorded as a baseline."""
        self._interrupted = True

    @pytest.hookimpl(wrapper=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> Generator[None, None, None]:
        """Reconcile what was selected with what came of it; then write the files and what is to be recorded.

        First, so that whoever reports failures hears of all of them; the status last, so that nobody changes it.
        """
        if self.folder is not None and session.exitstatus != pytest.ExitCode.USAGE_ERROR:
            self._reconcile(session)
        result = yield
        if self.folder is None:
            return result
        if self.seen or self.failures:
            whole = self.write() & self._record() & self._markdown() & self._html()
        else:
            whole = session.exitstatus != pytest.ExitCode.OK or not self._nothing()
            journal.forget(self.folder)
        fine = session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)
        if not whole:
            self._fail("kvcheck::the run", "nothing was measured" if self._nothing() else "\n".join(self.notes))
        if fine and (self.failures or not whole):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        return result

    def _reconcile(self, session: pytest.Session) -> None:
        """Name every selected item that failed or has no verdict. Of a session that was stopped, some never ran."""
        self.written = self._written()
        stopped = self._interrupted or bool(session.shouldstop or session.shouldfail)
        wrong = dict(reconcile.problems(self.written.items.values(), self.results, self.settings))
        never = [item for item in self.written.items.values() if stopped and wrong.get(item.name) == reconcile.NEVER]
        for item in never:
            wrong.pop(item.name, None)
        if never:
            whose = ", ".join(sorted({item.method or item.case for item in never}))
            self.notes.append(f"{plural(len(never), 'selected item')} of {whose} did not run: the session was stopped")
        self._pool(stopped)
        wrong = self._again() | wrong
        for name, text in wrong.items():
            self.failures.setdefault(name, text)
        for item in self.written.items.values():
            if item.name in wrong and self.results.get(item.nodeid, Result()).outcome != "failed":
                self._fail(item.nodeid, wrong[item.name])
        self._tell()

    def _pool(self, stopped: bool) -> None:
        """Judge what the cases of each method show together. What fails is a failure of pytest, too."""
        model = ModelId.of(self.model["name"], self.model["fingerprint"])
        records = {(str(one.case), one.method): one for one in self.run().cases}
        judge = partial(self.config.hook.pytest_kvcheck_judge, config=self.config)
        mine = gate.Gate(self.settings, self.config.rootpath, model, records, judge)
        found = {method: self._together(mine, method) for method in dict.fromkeys(name for _, name in records)}
        if self.settings.times > 1 and not stopped:
            found = self._settle(mine, found)
        settings, complete = self.settings.texts(), commands.completer(self.config)
        for method, scopes in found.items():
            for scope, verdicts in scopes.items():
                self.pooled[f"{scope}|{method}"] = verdicts
                quiet = (one for one in verdicts if one.question == "acted" and one.outcome == "pass")
                self.notes += [f"notice: {method} {one.reason}" for one in quiet]
                strict = self.settings.strict and scope == RUN  # smaller scopes hold what they can show
                if any(explain.fails(one, strict) for one in verdicts):
                    text = "\n".join(explain.pooled(scope, method, scopes, settings, strict))
                    self.failures[f"{scope}|{method}"] = complete(text)

    def _tell(self) -> None:
        """Give pytest what the cases of each method show together as results like any other."""
        run = self.run()
        for method in verdict.judged(run):
            whole = verdict.standing(run, method).outcome
            if not rows.judged(run, method):
                continue
            for scope, verdicts in {RUN: (), **verdict.pooled(run, method)}.items():
                text = self.failures.get(f"{scope}|{method}")
                found = [one.outcome for one in verdicts] + [whole] * (scope == RUN)
                outcome = "fail" if text else "inconclusive" if "inconclusive" in found else "pass"
                if verdicts or outcome != "pass":  # cases alone have results of their own
                    self._result(scope, method, outcome, text or self._said(run, scope, method, verdicts))
                    stands = whole if scope == RUN else outcome
                    told = explain.scope_properties(scope, method, stands, verdicts)
                    self._log(f"kvcheck::{scope}[{method}]", "passed", None, when="teardown", user_properties=told)

    def _said(self, run: Run, scope: str, method: str, verdicts: Sequence[Verdict]) -> str:
        """The numbers of a scope that did not fail."""
        if scope == RUN:
            return verdict.said(run, verdict.standing(run, method))[0][1]
        texts = [(verdict.number(one, run.header.settings), verdict.needed(one)) for one in verdicts]
        return "; ".join(text for both in texts for text in both if text)

    def _result(self, scope: str, method: str, outcome: str, text: str) -> None:
        """Report a verdict on several cases. Only a failure and a run that is inconclusive are counted by pytest."""
        nodeid = f"kvcheck::{scope}[{method}]"
        if session := self.config.pluginmanager.get_plugin("session"):
            session.testscollected += 1  # else the progress ends beyond 100 %
        if outcome == "fail":
            self._fail(nodeid, text)
        else:
            counted = "inconclusive" if outcome == "inconclusive" and scope == RUN else ""
            why = ("kvcheck", 0, plain(f"inconclusive: {text}")) if outcome == "inconclusive" else None
            self._log(nodeid, "skipped" if why else "passed", why, **{COUNTED: counted})

    @pytest.hookimpl(tryfirst=True)
    def pytest_report_teststatus(self, report: pytest.TestReport) -> tuple[str, str, str] | None:
        """As what pytest counts a verdict on several cases that is no failure: never as a test that has passed."""
        counted = getattr(report, COUNTED, None)
        return None if counted is None else (counted, "", "")

    def _log(self, nodeid: str, outcome: str, why: object, when: str = "call", **more: object) -> None:
        place = (nodeid.partition("::")[0], None, nodeid.partition("::")[2])
        report = pytest.TestReport(nodeid, place, {}, outcome, why, when, **more)  # type: ignore[arg-type]
        self.config.hook.pytest_runtest_logreport(report=report)

    def _together(self, mine: gate.Gate, method: str) -> Pooled:
        """Verdicts by scope on all cases of a method."""
        try:
            return mine.pooled(one for one in mine.records.values() if one.method == method)
        except KvcheckError as error:
            said = any(one.method == method and one.failure for one in self.found.ended.values())
            why = f"{method} was not judged as a whole: {error.message}"
            if said:
                self.notes.append(why)
            else:
                self.failures[f"{RUN}|{method}"] = why
            return {}

    def _settle(self, mine: gate.Gate, found: dict[str, Pooled]) -> dict[str, Pooled]:
        """--kv-n=auto: more contexts of what is open, judged again, until nothing is or the ceiling is reached."""
        taken = Counter[str]()
        try:
            self._further(mine, found, taken)
        except KeyboardInterrupt:
            self._interrupted = True
        except (KvcheckError, pytest.fail.Exception) as error:
            why = f"more contexts could not be measured: {error}"
            self.failures |= {f"{RUN}|{method}": why for method, verdicts in found.items() if undecided(verdicts)}
        for method, count in taken.items():
            self.notes.append(f"{method}: {plural(count, 'more context')} measured (--kv-n={self.settings.n})")
        return found

    def _further(self, mine: gate.Gate, found: dict[str, Pooled], taken: Counter[str]) -> None:
        further, red = More(self.config, mine), {one.method for one in self.found.ended.values() if one.failure}
        for _ in range(pooled.looks(self.settings.times) - 1):
            plan = further.plan({method: one for method, one in found.items() if method not in red})
            if not plan:
                return
            for ended in further.take(plan):
                self.found.end(ended)
                taken[ended.method] += 0 if ended.record is None else len(ended.record.samples)
                if ended.failure:
                    red.add(ended.method)
                    self._fail(f"kvcheck::{ended.case}[{ended.method}]", ended.failure)
            found |= {method: self._together(mine, method) for method in plan}

    def _fail(self, nodeid: str, text: str) -> None:
        """Let pytest count a failure that it does not know of: in its last line, JUnit XML, and for --lf."""
        self._log(nodeid, "failed", harmless.failure(text))

    def _again(self) -> dict[str, str]:
        """What a process in which no method ran grades or judges otherwise, by name; see kvcheck/plugin/referee.py."""
        hook = self.config.hook
        own = {name: len(getattr(hook, name).get_hookimpls()) == 1 for name in (OPEN, JUDGE)}
        engine = not own[OPEN] and guardian.guarded(self.config)
        if not self.run().cases or self._interrupted or not (engine or referee.foreign(self.settings)):
            return {}
        rejudge = own[JUDGE] and not self.settings.record
        asked = referee.Asked(str(self.config.rootpath), everything=engine, rejudge=rejudge, rescore=own[OPEN])
        try:
            return referee.problems(self.run(), self.settings, asked)
        except (KvcheckError, OSError, subprocess.SubprocessError) as error:
            return {"the run|": f"the answers could not be graded anew: {error}"}

    def _written(self) -> Kept:
        """What is in the journals so far."""
        try:
            if self.folder is not None and not self.folder.is_dir():
                raise KvcheckError(f"{self.folder} is gone", "leave it alone while a run goes on")
            return Kept() if self.folder is None else journal.read(self.folder)
        except (KvcheckError, OSError) as error:
            self.failures.setdefault("the journal|", str(error))
            return Kept()

    @pytest.hookimpl(tryfirst=True)
    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print the summary."""
        if not self.seen and not self.failures:
            self._idle(terminalreporter)
            return
        from kvcheck.report import terminal

        there = terminalreporter.isatty
        width = columns(terminalreporter._tw.fullwidth) if there else WIDTH
        terminalreporter.section("kvcheck", sep="=")
        verbose = self.config.option.verbose > 0
        for line in terminal.lines(self.run(), self._references(), verbose=verbose, width=width):
            terminalreporter.write_line(line, **{name: True for name in [colour(line)] if name})
        for note in [*self._resumed(), *self.notes]:
            terminalreporter.write_line(plain(note))
        if not os.environ.get("CI"):  # where pytest cuts the lines of its short summary
            self._numbers_first(terminalreporter)

    def _numbers_first(self, terminalreporter: pytest.TerminalReporter) -> None:
        """What failed of kvcheck stands in pytest's short summary with its numbers, also on a narrow terminal."""
        width, failed = terminalreporter._tw.fullwidth, terminalreporter.stats.get("failed", [])
        failed[:] = [harmless.numbered(one, width) if hasattr(one, options.ENDED) else one for one in failed]

    def _nothing(self) -> bool:
        """Whether the command line names methods, and no selected test takes a case, a property or anything else."""
        option = self.config.option
        return bool(option.kv_methods) and not option.collectonly and not self.seen and not self.written.items

    def _idle(self, terminalreporter: pytest.TerminalReporter) -> None:
        """A session that was given methods and found no test that takes them: say where there are some."""
        if self._nothing() and not self.config.stash.get(options.USED, False):
            typed = [str(word) for word in self.config.option.file_or_dir or ()]
            there = any(word.startswith("kvcheck.suites") for word in typed)
            usual = ["-opython_files=test_*.py", "-opython_functions=test_*"] if there else []
            suites = typed if there else ["kvcheck.suites"]
            options_typed = options.words(options.given(self.config))
            words = shlex.join(["pytest", "--pyargs", *suites, *usual, *options_typed])
            terminalreporter.write_line(f"kvcheck: no test here takes a case, nothing was measured; type: {words}")

    def run(self) -> Run:
        """What was reported so far, in a fixed order."""
        return self._as_run(self.found)

    def whole(self) -> Run:
        """The same, and what a session did not come to that was stopped: cases of an earlier run, and begun ones."""
        return self._as_run(self.found.over(self.written))

    def _as_run(self, kept: Kept) -> Run:
        if self._header is None:
            self._header = opening.header(self.config, self.model)
        known, order = self.settings.methods, engines.property_names(self.settings)
        run = kept.run(self._header, known)
        properties = sorted(run.properties, key=lambda one: (known.index(one.method), order.index(one.name)))
        failures = sorted({**run.failures, **self.failures}.items())
        verdicts = {**self.pooled, **run.verdicts}
        return replace(run, properties=tuple(properties), failures=dict(failures), verdicts=verdicts)

    def _resumed(self) -> list[str]:
        kept = self.state.kept
        if kept is None:
            return []
        count = sum(name in self.found.records and resume.earlier(self.state, *name)[1] for name in kept.ended)
        taken = f"{plural(count, 'case')} taken from {self.settings.resume}, not measured again"
        changed = [
            f"{one} is measured anew: its code has changed since {self.settings.resume}" for one in self.state.anew
        ]
        return [taken] * bool(count) + changed

    def _references(self) -> dict[str, CaseRecord]:
        """fp16 records by case key, for the tables."""
        try:
            model = ModelId.of(self.model["name"], self.model["fingerprint"])
            return stored_fp16(gate.store(self.config), model, self.run().cases)
        except (KvcheckError, OSError) as error:
            self.notes.append(f"no fp16 records to show: {error}")
            return {}

    def write(self) -> bool:
        """Write the run file, whole and at once; then its journal goes. False where that is not possible."""
        path, run = self.state.run_file, self.whole()
        try:
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                write_run(path, run)
            if self.folder is not None:
                journal.drop(self.folder)
        except (KvcheckError, OSError) as error:
            self.notes.append(f"the run file could not be written: {error}")
            self.notes.append(f"  what was measured is in {self.folder}: --kv-resume={path} takes it from there")
            return False
        if self._interrupted:
            where = self.settings.json or path
            kept = plural(len(run.cases), "case")
            self.notes.append(f"interrupted: {kept} kept in {where}; continue with --kv-resume={where}")
        return True

    def _markdown(self) -> bool:
        """Write --kv-md, whole or not at all, and append to the summary of the job. False where --kv-md has failed."""
        job = os.environ.get("GITHUB_STEP_SUMMARY")
        if not self.state.md_file and not job:
            return True
        from kvcheck.report import markdown

        text = "\n".join(markdown.lines(self.run(), self._references(), finished=not self._interrupted)) + "\n"
        written = True
        try:
            if self.state.md_file:
                files.write_atomically(str(self.state.md_file), text)
        except (KvcheckError, OSError) as error:
            written = False
            self.notes.append(f"the Markdown summary could not be written: {error}")
        try:
            if job:
                with open(job, "a", encoding="utf-8") as file:
                    file.write(text)
        except OSError as error:
            self.notes.append(f"the summary of the job could not be written: {error}")
        return written

    def _html(self) -> bool:
        """Write --kv-html, whole or not at all. Prompts of failed cases are generated anew. False where that failed."""
        if not self.state.html_file:
            return True
        from kvcheck.judging.rescoring import Prompts
        from kvcheck.report.html.page import page

        run, model = self.run(), ModelId.of(self.model["name"], self.model["fingerprint"])
        prompts = Prompts(model, self.settings, [self.settings.model])
        known = rows.references(run, self._references())
        try:
            text = page([(run, known)], prompts=prompts, finished=not self._interrupted)
            files.write_atomically(str(self.state.html_file), text)
        except (KvcheckError, OSError) as error:
            self.notes.append(f"the page could not be written: {error}")
            return False
        return True

    def _record(self) -> bool:
        """Write the baselines that were asked for, and say what changed. False where that was not possible."""
        if not self.settings.record:
            return True
        if self._interrupted:
            self.notes.append("interrupted: no baseline was recorded")
            return False
        try:
            for line in gate.record(self.config, self.run()):
                self.notes.append(line)
        except (KvcheckError, OSError) as error:
            self.notes.append(f"baselines could not be recorded: {error}")
            where = self.settings.json or self.state.run_file
            if where is not None:
                self.notes.append(f"  the run is kept: --kv-resume={where} records it without measuring it again")
            return False
        return True
