"""What a test report prints: the text of methods, models and files made harmless, and its headline in one line.

pytest shows a failure whole in its own section, and once more in the short summary at the end: cut to the line on a
terminal, whole in CI. There the headline is enough.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import pytest

from kvcheck.core.escape import plain
from kvcheck.report.rows import reason
from kvcheck.report.text import short

if TYPE_CHECKING:
    from _pytest._code.code import TerminalRepr

FAILED = "Failed: "
"""What pytest puts before the text of `pytest.fail`."""
LABEL = 24
"""Columns that a short summary leaves for what failed, at least."""


def report(found: pytest.TestReport) -> None:
    """Rewrite a failure or a skip that holds what must not be in a log, and let the headline of a failure of kvcheck
    stand for it; any other stays as pytest made it."""
    text = found.longrepr
    if isinstance(text, tuple):
        path, line, why = text
        found.longrepr = (path, line, plain(why))
    elif text is not None and plain(text) != str(text):
        found.longrepr = failure(plain(text))
    elif (crash := getattr(text, "reprcrash", None)) is not None and crash.message.startswith(FAILED):
        crash.message = headline(crash.message)


def failure(text: str) -> TerminalRepr:
    """What pytest shows of a failure with this text, as if a test had failed with it."""
    try:
        pytest.fail(plain(text), pytrace=False)
    except pytest.fail.Exception:
        shown = pytest.ExceptionInfo.from_current().getrepr(style="value")
        if shown.reprcrash is not None:
            shown.reprcrash.message = headline(plain(text))  # without the name of the exception: the numbers come first
    return shown


def headline(text: str) -> str:
    """The numbers of a failure, or why there are none."""
    return reason(text.removeprefix(FAILED)) or text.partition("\n")[0]


def numbered(found: pytest.TestReport, width: int) -> pytest.TestReport:
    """A report as the short summary shows it: where its line is too long for the numbers, what failed in few words
    stands in the place of the node id."""
    crash = getattr(found.longrepr, "reprcrash", None)
    if crash is None or len(f"FAILED {found.nodeid} - {crash.message}") <= width:
        return found
    room = max(LABEL, width - len(f"FAILED  - {crash.message}"))
    shown = copy.copy(found)
    shown.nodeid = short(label(found.nodeid), room)
    return shown


def label(nodeid: str) -> str:
    """What a test of kvcheck is about, in words.

    >>> label("test_code.py::test_code[kv-multi_turn-512-kivi:bits=4]")
    'kv multi_turn 512 kivi:bits=4'
    """
    _, bracket, inside = nodeid.partition("[")
    return inside.removesuffix("]").replace("-", " ", 3) if bracket else nodeid
