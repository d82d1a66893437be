"""The options on pytest's command line and in `[tool.kvcheck]`. They are declared in kvcheck/core/settings.py.

Declaring costs next to nothing and happens in every pytest session; reading happens only where kvcheck is used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from kvcheck.core.settings import OPTIONS

if TYPE_CHECKING:
    import argparse
    from pathlib import Path

    from kvcheck.core.settings import Settings
    from kvcheck.store.journal import Ended

FIXTURES = {
    "kv_case": "case.KvCase",
    "kv_latency": "latency.KvLatency",
    "kv_property": "conformance.KvProperty",
    "kv_engine": "served.KvEngine",
    "kv_finding": "findings.KvFinding",
    "kv_candidate": "zoo.KvCandidate",
}
"""What a test takes of kvcheck, and the class of kvcheck/plugin/ that it is given."""


class Subject(NamedTuple):
    """The parameter of a fixture: what one item is about. given: to the class; case: "" for the name of the test."""

    given: tuple[object, ...]
    case: str = ""
    method: str = ""


COLLECTOR = "kvcheck-collector"
"""The name of the plugin that collects results; workers of pytest-xdist have none."""
ACTIVE: pytest.StashKey[bool] = pytest.StashKey()
"""On the config: kvcheck is used in this session."""
USED: pytest.StashKey[bool] = pytest.StashKey()
"""On the config: a test of this session takes a case."""
ENDED = "kvcheck"
"""On a report: what came of the item."""
REFUSAL = "kvcheck_refusal"
"""On a report: why no case of this session can run."""
STATUS: pytest.StashKey[int] = pytest.StashKey()
"""On the config: the exit status of the session, once it is over."""
RESULT: pytest.StashKey[Callable[[], Ended]] = pytest.StashKey()
"""On an item: what rides on its report."""
Typed = dict[str, "str | bool | list[str]"]
"""Options as they were typed, by name."""
DEST = "kv_"
"""Before the name of a setting, on `config.option`."""


def declare(parser: pytest.Parser) -> None:
    """Add every option to pytest's command line."""
    group = parser.getgroup("kvcheck", "kvcheck: does a KV cache method still work")
    for option in OPTIONS.values():
        how: dict[str, Any] = {"action": "store", "metavar": option.metavar}
        if option.repeat:
            how["action"] = "append"
        elif not option.metavar:
            how = {"action": "store_true"}
        group.addoption(option.flag, dest=DEST + option.name, default=None, help=option.help, **how)


def given(config: pytest.Config, early: argparse.Namespace | None = None) -> Typed:
    """The options that stand on the command line. early: what pytest knows of it before conftest.py files are there."""
    typed = config.option if early is None else early
    found = {name: getattr(typed, DEST + name, None) for name in OPTIONS}
    return {name: value for name, value in found.items() if value is not None}


def words(found: Mapping[str, object]) -> list[str]:
    """Options by name, as they are typed."""
    typed: list[str] = []
    for name, option in OPTIONS.items():
        value = found.get(name)
        each = value if isinstance(value, list) else [value] if value is not None else []
        typed += [option.flag if one is True else f"{option.flag}={one}" for one in each]
    return typed


def wanted(config: pytest.Config, early: argparse.Namespace | None = None) -> bool:
    """Does the command line or the project ask for kvcheck? Cheap: pytest asks in every session. early: as `given`."""
    if given(config, early):
        return True
    try:
        return b"[tool.kvcheck" in (config.rootpath / "pyproject.toml").read_bytes()
    except OSError:
        return False


def load(config: pytest.Config) -> Settings:
    """Settings from `[tool.kvcheck]` and, above it, the command line. Raises KvcheckError."""
    from kvcheck.plugin import parse

    raw = parse.table(config.rootpath / "pyproject.toml")
    typed = given(config)
    source = {name: f"{parse.TABLE} {name}" for name in raw} | {name: OPTIONS[name].flag for name in typed}
    return parse.settings({**raw, **typed}, source)


def last_run(config: pytest.Config) -> Path | None:
    """Where the run is kept when no --kv-json is given: pytest's cache folder, None where the cache is off."""
    cache = getattr(config, "cache", None)
    if cache is None:
        return None
    return cache.mkdir("kvcheck") / "last-run.json"
