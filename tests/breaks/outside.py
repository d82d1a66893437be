"""Runs from outside: `pytest` as a process of its own in an empty folder, and what is left of it afterwards."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from kvcheck.core.record import Run
from kvcheck.store.run_file import read_run

BROKEN = Path(__file__).with_name("broken.py")
FAKE = Path(__file__).parents[1] / "plugin" / "fake_engine.py"
SUITE = ("--pyargs", "kvcheck.suites.test_string_retrieval")
ONE = ("--kv-tasks=kv", "--kv-lengths=512", "--kv-n=8", "--kv-modes=single")
THREE = ("--kv-tasks=kv", "--kv-lengths=512", "--kv-n=24", "--kv-modes=single,multi_turn,multi_request")
LIMIT = 180.0
"""Seconds after which a run that was to end by itself is taken to hang, on a machine that others use."""

OTHERS = {
    "pytest-cov": ("pytest_cov",),
    "pytest-forked": ("forked",),
    "pytest-html": ("html", "html_fixtures", "metadata"),
    "pytest-randomly": ("randomly",),
    "pytest-repeat": ("repeat",),
    "pytest-rerunfailures": ("rerunfailures",),
    "pytest-socket": ("socket",),
    "pytest-sugar": ("sugar",),
    "pytest-timeout": ("timeout",),
}
"""Other plugins by their distribution, with their names for `-p`; a run has those that it asks for."""


@dataclass(frozen=True)
class Result:
    """How a run ended. status: its exit status, negative for a signal, None where it had to be killed after LIMIT."""

    status: int | None
    out: str
    folder: Path

    @property
    def file(self) -> Run:
        """Its run file."""
        return read_run(self.folder / "run.json")

    def failures(self, method: str) -> str:
        """What the run file says of the cases of a method that failed, "" where none did."""
        found = self.file.failures
        return "\n".join(text for name, text in found.items() if name.partition("|")[2] == method)

    def outcome(self, method: str) -> str:
        """kvcheck's line for a method, such as "1 case: 1 error"."""
        found = re.search(rf"^{re.escape(method)} on \w+: (.*)$", self.out, re.MULTILINE)
        return found[1] if found else ""

    def red(self) -> None:
        """Nothing of it may be taken for a success."""
        assert self.status is not None, f"still running after {LIMIT:g} s\n{self.out}"
        assert self.status != 0, self.out
        last = self.out.rstrip().splitlines()[-1] if self.out.strip() else ""
        assert not re.fullmatch(r"=*\s*\d+ passed( in [^=]*)?\s*=*", last), self.out
        assert "## kvcheck: passed" not in self.text("run.md")
        assert "INTERNALERROR" not in self.out

    def fails(self, method: str, cause: str) -> None:
        """A red run that ended in order, whose summary and run file name the method and the cause (a pattern)."""
        self.red()
        assert self.status == pytest.ExitCode.TESTS_FAILED, self.out
        assert re.search(r"\d+ (fail|error)", self.outcome(method)), f"{method}: {self.outcome(method)!r}\n{self.out}"
        assert re.search(cause, self.failures(method)), f"{method}: {self.failures(method)!r}\n{self.out}"

    def passes(self, method: str, cases: int = 1) -> None:
        """These cases of the method have a record, a verdict, and no failure."""
        records = [one for one in self.file.cases if one.method == method]
        assert len(records) == cases, self.out
        assert all(self.file.verdicts.get(f"{one.case}|{method}") for one in records), self.out
        assert not self.failures(method), self.failures(method)
        assert re.match(rf"{cases} cases?: {cases} pass(, \d+ with something not measured)?$", self.outcome(method)), (
            self.out
        )

    def text(self, name: str) -> str:
        """The text of a file in its folder, "" where there is none."""
        path = self.folder / name
        return path.read_text("utf-8") if path.is_file() else ""


class Foreign:
    """A folder that is no part of kvcheck, and pytest in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.started: list[subprocess.Popen[str]] = []

    def use_fake_engine(self, fp16: str = "") -> None:
        """Put the fake engine here, with this fp16 baseline."""
        self.write("conftest.py", FAKE.read_text("utf-8"))
        (self.path / "stored" / "fake").mkdir(parents=True)
        if fp16:
            self.write("stored/fake/fp16.txt", fp16)

    def write(self, name: str, text: str) -> None:
        """Put a file into the folder."""
        (self.path / name).write_text(text, "utf-8")

    def add(self, name: str, text: str) -> None:
        """Append to a file of the folder."""
        self.write(name, (self.path / name).read_text("utf-8") + "\n" + text)

    def behave(self, **table: Any) -> None:
        """How methods of the fake engine behave, see its docstring; "sleep" and "ledger" likewise."""
        self.write("behaviour.json", json.dumps(table))

    def tried(self) -> list[str]:
        """The cases that the fake engine was asked for, "case|method", in order."""
        path = self.path / "ran.txt"
        return path.read_text().splitlines() if path.exists() else []

    def start(self, *words: str, plugins: tuple[str, ...] = (), env: dict[str, str] | None = None, **how: Any) -> Any:
        """Start `python -m pytest` with these words, in a process group of its own."""
        names = [name for other, found in OTHERS.items() if other not in plugins for name in found]
        off = [word for name in names for word in ("-p", f"no:{name}")]
        command = [*how.pop("before", ()), sys.executable, "-m", "pytest", *off, *words]
        file = (self.path / f"out-{len(self.started)}.txt").open("w+")
        process = subprocess.Popen(
            command, cwd=self.path, stdout=file, stderr=subprocess.STDOUT, text=True, env={**clean(), **(env or {})},
            start_new_session=True, **how,
        )  # fmt: skip
        self.started.append(process)
        return process

    def finish(self, process: Any, limit: float = LIMIT) -> Result:
        """Wait for it, and kill what is left of it after `limit` seconds."""
        try:
            status = process.wait(limit)
        except subprocess.TimeoutExpired:
            status = None
        kill_group(process)
        out = (self.path / f"out-{self.started.index(process)}.txt").read_text("utf-8", "replace")
        return Result(status, out, self.path)

    def run(self, *words: str, limit: float = LIMIT, **how: Any) -> Result:
        """Start and finish."""
        return self.finish(self.start(*words, **how), limit)

    def check(self, *words: str, **how: Any) -> Result:
        """The string retrieval suite with the fake engine, its run kept in run.json and run.md."""
        return self.run(*self.words(*words), **how)

    def words(self, *words: str) -> tuple[str, ...]:
        """What `check` types."""
        size = () if any(word.startswith("--kv-tasks") for word in words) else ONE
        files = ("--kv-json=run.json", "--kv-md=run.md", "--kv-baselines=stored")
        return (*SUITE, *size, *files, *words)


def nightly(*values: Any) -> list[Any]:
    """Parameters that only the nightly run tries."""
    return [pytest.param(value, marks=pytest.mark.nightly) for value in values]


def by_name(table: dict[str, Any], *soon: str) -> list[Any]:
    """The values of a table as parameters; those that are not named here are left to the nightly run."""
    assert set(soon) <= set(table), set(soon) - set(table)
    marks = {name: () if name in soon else (pytest.mark.nightly,) for name in table}
    return [pytest.param(value, id=name, marks=marks[name]) for name, value in table.items()]


def clean() -> dict[str, str]:
    """The environment without what a session of pytest or CI puts there."""
    names = ("CI", "GITHUB_STEP_SUMMARY", "PYTEST_ADDOPTS", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE")
    found = {key: value for key, value in os.environ.items() if key not in names and "PYTEST_" not in key}
    return {**found, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "120"}


def kill_group(process: Any) -> None:
    """kill -9 for a process and all that it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
