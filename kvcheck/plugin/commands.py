"""The commands that messages name, completed so that they do what they say where this session runs."""

from __future__ import annotations

import shlex
from collections.abc import Callable

import pytest

from kvcheck.plugin import options

PLACE = ("model", "device", "dtype", "query_aware", "seed", "baselines")
"""Options that decide which records a command is about: without them it would read and write others."""

PLAIN = "pytest --kv-method="


def completer(config: pytest.Config) -> Callable[[str], str]:
    """A function that completes the commands of a message by what was named on this session's command line."""
    given = options.given(config)
    words = ["--pyargs"] if config.option.pyargs else []
    words += [str(path) for path in config.option.file_or_dir or ()]
    words += [f"--kv-{name.replace('_', '-')}={given[name]}" for name in PLACE if name in given]
    start = "".join(f"{shlex.quote(word)} " for word in words)
    return lambda message: message.replace(PLAIN, f"pytest {start}--kv-method=") if start else message
