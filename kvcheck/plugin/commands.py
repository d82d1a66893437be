"""The commands that messages name, completed so that they do what they say where this session runs.

A command is the rest of a line from `pytest -` on; it comes out quoted for a shell.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from kvcheck.core import front
from kvcheck.core.front import for_pytest
from kvcheck.core.settings import MODEL, OPTIONS, PROMPTS
from kvcheck.core.values import AUTO
from kvcheck.plugin import options

if TYPE_CHECKING:
    import argparse

PLACE = ("model", *MODEL, "device", "dtype", *PROMPTS, "query_aware", "seed", "baselines")
"""Options that decide which records a command is about: without them it would read and write others."""

SELECTION = ("profile", "lengths", "tasks", "modes", "n")
"""Options that decide which cases there are: a command that records must record those."""

JUDGING = ("against", "budget", "alpha", "strict", "timeout")
"""Options that decide what fails: a command that shows a failure again, or accepts it, must ask the same."""

COMMAND = re.compile(r"pytest (?=-)[^\n]*")
ANY = for_pytest("methods", front.ANY)
"""In a command: all methods of this session, and fp16."""


def completer(config: pytest.Config) -> Callable[[str], str]:
    """A function that completes the commands of a message by what was named on this session's command line."""
    given = options.given(config)
    start = ["pytest", *_around(config.option)]
    return lambda message: COMMAND.sub(lambda found: _completed(found[0], start, given), message)


def _around(option: argparse.Namespace) -> list[str]:
    """What decides which tests there are, beside kvcheck's own options. Of an item its file: options name the case."""
    words = [f"-p{name}" for name in getattr(option, "plugins", None) or () if not name.startswith("no:")]
    words += ["--pyargs"] if option.pyargs else []
    words += dict.fromkeys(str(path).partition("[")[0] for path in option.file_or_dir or ())
    marks = getattr(option, "markexpr", "")
    return [*words, "-m", marks] if marks else words


def _completed(command: str, start: list[str], given: options.Typed) -> str:
    """The command with the session's own options: of place before its own words, of selection behind them."""
    try:
        own = shlex.split(command)[1:]
    except ValueError:  # an apostrophe: prose, no command
        return command
    if ANY in own:
        named = given.get("methods")
        methods = dict.fromkeys(("fp16", *(named if isinstance(named, list) else ())))
        own = [*options.words({"methods": list(methods)}), *(word for word in own if word != ANY)]
    at = [word.partition("=")[0] for word in own]
    if "--kv-budget" in at and "budget" in given:  # the last one counts: it holds what the others limited, too
        where = at.index("--kv-budget")
        asked = [*str(given["budget"]).split(","), *own[where].partition("=")[2].split(",")]
        limits = {part.partition("=")[0].strip(): part.strip() for part in asked}
        own[where] = "--kv-budget=" + ",".join(limits.values())
    records = "--kv-record" in at
    front = PLACE if records else (*PLACE, *JUDGING)
    lacking = {name for name in given if OPTIONS[name].flag not in at}
    first = options.words({name: given[name] for name in front if name in lacking})
    first += options.words({"methods": given["methods"]}) if "--kv-method" not in at and "methods" in lacking else []
    if records and str(given.get("n", "")).startswith(AUTO):  # records are of a number
        lacking.discard("n")
    last = options.words({name: given[name] for name in SELECTION if name in lacking})
    return shlex.join([*start, *first, *own, *last])
