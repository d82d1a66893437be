"""The progress line: on a terminal only, and gone when the case is over."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

import pytest

from kvcheck.plugin.progress import Progress, phrases, wanted
from kvcheck.plugin.timelimit import TimeLimit, time_limit


def config(*, isatty: bool = True, verbosity: int = 0, workers: int | None = None) -> Any:
    """As much of a pytest config as the progress line looks at."""
    writer = SimpleNamespace(fullwidth=80, width_of_current_line=30, _file=io.StringIO())
    plugins = {"terminalreporter": SimpleNamespace(isatty=isatty, _tw=writer), "capturemanager": None}
    return SimpleNamespace(
        pluginmanager=SimpleNamespace(getplugin=plugins.get),
        get_verbosity=lambda: verbosity,
        option=SimpleNamespace(numprocesses=workers),
        writer=writer,
    )


@pytest.fixture(autouse=True)
def _terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv("TERM", "xterm")


def test_it_writes_behind_the_cursor_and_takes_its_text_away() -> None:
    fake = config()
    progress = Progress(fake)
    progress.start(10)
    progress.update("kv single 512 snapkv", 3, 8, "accuracy 1.00")
    assert fake.writer._file.getvalue() == "\x1b7\x1b[K  kv single 512 snapkv 3/8, accuracy 1.00\x1b8"
    progress.stop()
    assert fake.writer._file.getvalue().endswith("\x1b7\x1b[K\x1b8")


def test_it_takes_the_longest_text_that_fits() -> None:
    fake = config()
    fake.writer.width_of_current_line = 60
    progress = Progress(fake)
    progress.update("kv single 512 snapkv", 3, 8, "accuracy 1.00")
    assert "  3/8\x1b8" in fake.writer._file.getvalue() or "3/8, accuracy" in fake.writer._file.getvalue()
    assert phrases("kv", 3, 8, "", 75)[0] == "kv 3/8, 1 min 15 s left"


@pytest.mark.parametrize(
    "quiet", [{"isatty": False}, {"verbosity": -1}, {"workers": 2}], ids=["no terminal", "-q", "-n 2"]
)
def test_it_stays_quiet_where_nobody_looks(quiet: dict[str, Any]) -> None:
    fake = config(**quiet)
    progress = Progress(fake)
    progress.update("kv", 3, 8)
    progress.stop()
    assert not fake.writer._file.getvalue()


def test_it_stays_quiet_in_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    fake = config()
    assert not wanted(fake, fake.pluginmanager.getplugin("terminalreporter"))


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
