"""The commands that messages name, completed so that they do what they say where this session runs."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable

import pytest

from kvcheck.plugin import options
from kvcheck.settings import MODEL, PROMPTS

PLACE = ("model", *MODEL, "device", "dtype", *PROMPTS, "query_aware", "seed", "baselines")
"""Options that decide which records a command is about: without them it would read and write others."""

SELECTION = ("profile", "lengths", "tasks", "modes", "n")
"""Options that decide which cases there are: a command that records must record those."""

PLAIN = "pytest --kv-method="
RECORDS = re.compile(r"pytest [^\n;]*--kv-record=(?:new|changed)[^\n;]*")


def completer(config: pytest.Config) -> Callable[[str], str]:
    """A function that completes the commands of a message by what was named on this session's command line."""
    given = options.given(config)
    words = ["--pyargs"] if config.option.pyargs else []
    words += [str(path) for path in config.option.file_or_dir or ()]
    flags = {name: f"--kv-{name.replace('_', '-')}" for name in PLACE if name in given}
    words += [flag if given[name] is True else f"{flag}={given[name]}" for name, flag in flags.items()]
    start = "".join(f"{shlex.quote(word)} " for word in words)
    chosen = [f"--kv-{name}={given[name]}" for name in SELECTION if name in given]

    def select(found: re.Match[str]) -> str:
        lacking = [word for word in chosen if word.partition("=")[0] + "=" not in found[0]]
        return " ".join([found[0], *map(shlex.quote, lacking)])

    return lambda message: RECORDS.sub(select, message.replace(PLAIN, f"pytest {start}--kv-method="))
