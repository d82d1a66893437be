"""Progress: behind the dots of a terminal, and gone when the case is over; elsewhere a line every minute."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kvcheck.plugin import progress
from kvcheck.plugin.progress import SUFFIX, At, Progress, at_work, of_case
from kvcheck.plugin.timelimit import TimeLimit, time_limit


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def config(*, isatty: bool = True, verbosity: int = 0, worker: bool = False) -> Any:
    """As much of a pytest config as progress looks at."""
    writer = SimpleNamespace(fullwidth=80, width_of_current_line=30, _file=io.StringIO())
    lines: list[str] = []
    reporter = SimpleNamespace(isatty=isatty, _tw=writer, write_line=lines.append, flush=lambda: None)
    plugins = {"terminalreporter": reporter, "capturemanager": None}
    fake = SimpleNamespace(
        pluginmanager=SimpleNamespace(getplugin=plugins.get),
        get_verbosity=lambda: verbosity,
        option=SimpleNamespace(),
        writer=writer,
        lines=lines,
    )
    if worker:
        fake.workerinput = {}
    return fake


def made(fake: Any, **how: Any) -> Progress:
    return Progress(fake, lambda: 0, **how)


AT = At("kv single 512 snapkv", 3, 8, "accuracy 1.00")


@pytest.fixture(autouse=True)
def _terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv("TERM", "xterm")


def test_it_writes_behind_the_cursor_and_takes_its_text_away() -> None:
    fake = config()
    progress = made(fake)
    progress.update(AT)
    assert fake.writer._file.getvalue() == "\x1b7\x1b[K  kv single 512 snapkv 3/8, accuracy 1.00\x1b8"
    progress.stop()
    assert fake.writer._file.getvalue().endswith("\x1b7\x1b[K\x1b8")


def test_it_takes_the_longest_text_that_fits() -> None:
    fake = config()
    fake.writer.width_of_current_line = 50
    made(fake).update(AT)
    assert "  3/8, accuracy 1.00\x1b8" in fake.writer._file.getvalue()
    assert of_case(At("kv", 3, 8), 75)[0] == "kv 3/8, 1 min 15 s left"


def test_on_a_terminal_it_is_written_a_few_times_a_second_at_most() -> None:
    fake, clock = config(), Clock()
    progress = made(fake, clock=clock)
    for done in range(8):
        progress.update(At("kv", done, 8))
        clock.now += 0.1
    assert fake.writer._file.getvalue().count("kv ") == 3


@pytest.mark.parametrize("quiet", [{"verbosity": -1}, {"worker": True}], ids=["-q", "a worker without a journal"])
def test_it_stays_quiet_where_nobody_looks(quiet: dict[str, Any]) -> None:
    fake = config(**quiet)
    progress = made(fake)
    progress.update(At("kv", 3, 8))
    progress.stop()
    assert not fake.writer._file.getvalue()
    assert not fake.lines


@pytest.mark.parametrize("where", ["CI", "no terminal", "a dumb terminal"])
def test_elsewhere_it_is_a_line_every_minute(monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    monkeypatch.setenv(
        *(("CI", "true") if where == "CI" else ("TERM", "dumb" if where == "a dumb terminal" else "xterm"))
    )
    fake, clock = config(isatty=where != "no terminal"), Clock()
    progress = Progress(fake, lambda: 2, clock=clock)
    progress.items = 10
    for done in range(8):
        progress.update(At("kv single 512 snapkv", done, 8, "accuracy 1.00"))
        clock.now += 25
    assert fake.lines == [
        "kvcheck: 2 of 10 tests done; kv single 512 snapkv 3/8, accuracy 1.00, 4 min 0 s left",
        "kvcheck: 2 of 10 tests done; kv single 512 snapkv 6/8, accuracy 1.00, 6 min 35 s left",
    ]
    assert not fake.writer._file.getvalue()


def test_the_controller_shows_what_its_workers_are_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workers = []
    for name, at in (("gw0", AT), ("gw1", At("needle single 512 snapkv", 1, 4))):
        monkeypatch.setenv("PYTEST_XDIST_WORKER", name)
        workers.append(made(config(worker=True), folder=tmp_path))
        workers[-1].update(at)
    monkeypatch.delenv("PYTEST_XDIST_WORKER")
    fake = config()
    fake.writer.width_of_current_line, fake.writer.fullwidth = 0, 120
    shown = Progress(fake, lambda: 1)
    shown.items = 6
    shown.show(at_work(tmp_path))
    said = "1 of 6 tests done; kv single 512 snapkv 3/8, accuracy 1.00; needle single 512 snapkv 1/4"
    assert f"  {said}\x1b8" in fake.writer._file.getvalue()
    for one in workers:
        one.stop()
    assert at_work(tmp_path) == []


def test_a_file_that_is_being_written_is_looked_at_later(tmp_path: Path) -> None:
    (tmp_path / f"gw0{SUFFIX}").write_text('{"label": "k')
    assert at_work(tmp_path) == []


def test_a_run_with_workers_shows_its_progress_on_the_controller(
    run: Any, behave: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "MINUTE", 0.0)
    monkeypatch.setattr(progress, "POLLED", 0.02)
    behave({"sleep": 0.2})
    result = run("--kv-method=fp16", "--kv-record=new", "-n", "2")
    result.assert_outcomes(passed=3)
    result.stdout.re_match_lines([r"kvcheck: \d of 3 tests done; kv \w+ 512 fp16 \d/8.*"])


def swallow() -> None:
    """Code that catches every Exception and goes on for ever."""
    while True:
        try:
            sum(range(1000))
        except Exception:
            continue


def test_a_time_limit_interrupts_even_code_that_swallows_exceptions() -> None:
    with pytest.raises(TimeLimit), time_limit(0.05):
        swallow()


def test_no_time_limit_is_set_for_zero() -> None:
    with time_limit(0):
        pass
