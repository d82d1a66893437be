"""The options: declared once, read from the command line and from `[tool.kvcheck]`, checked into Settings.

Declaring costs next to nothing and happens in every pytest session; reading happens only where kvcheck is used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

if TYPE_CHECKING:
    import argparse
    from pathlib import Path

    from kvcheck.core.settings import Settings
    from kvcheck.store.journal import Ended

FIXTURES = ("kv_case", "kv_latency", "kv_property", "kv_finding", "kv_suspect")
"""What a test takes of kvcheck."""
ACTIVE: pytest.StashKey[bool] = pytest.StashKey()
"""On the config: kvcheck is used in this session."""
USED: pytest.StashKey[bool] = pytest.StashKey()
"""On the config: a test of this session takes a case."""
REFUSAL = "kvcheck_refusal"
"""On a report: why no case of this session can run."""
STATUS: pytest.StashKey[int] = pytest.StashKey()
"""On the config: the exit status of the session, once it is over."""
RESULT: pytest.StashKey[Callable[[], Ended]] = pytest.StashKey()
"""On an item: what rides on its report."""


class Option(NamedTuple):
    """One setting: its name in `[tool.kvcheck]`, how it is spelled on the command line, and its help."""

    name: str
    help: str
    metavar: str = ""
    repeat: bool = False

    @property
    def flag(self) -> str:
        """`--kv-method` for `methods`, `--kv-record-in-ci` for `record_in_ci`."""
        spelled = {"methods": "method"}.get(self.name, self.name)
        return "--kv-" + spelled.replace("_", "-")

    @property
    def dest(self) -> str:
        """The attribute of `config.option`."""
        return f"kv_{self.name}"


OPTIONS = (
    Option(
        "methods", "method under test, NAME:key=value,… or package.module.Class:key=value; repeatable", "SPEC", True
    ),
    Option("model", "embedded model, path or hub id (default: mini)", "NAME"),
    Option("profile", "how much is measured: quick, default or full", "PROFILE"),
    Option("lengths", "context lengths in tokens, such as 512,2048", "N,…"),
    Option("tasks", "tasks, such as kv,needle (default: the profile's)", "NAME,…"),
    Option("modes", "single, multi_turn, multi_request (default: the profile's)", "MODE,…"),
    Option("n", "contexts per case (default: the profile's)", "N"),
    Option("device", "auto, cpu, cuda, cuda:1, …, or spread: layers on all GPUs (default: auto)", "DEVICE"),
    Option("dtype", "auto, float32, float16 or bfloat16 (default: auto)", "DTYPE"),
    Option(
        "query_aware", "is the question visible at compression: mode, yes or no (default: the mode decides)", "WHEN"
    ),
    Option("seed", "seed of the samples (default: 0)", "N"),
    Option(
        "baselines",
        "where baselines are read, first place first; the first is recorded into (default: .kvcheck/baselines); "
        "the shipped ones lie below",
        "URI,…",
    ),
    Option("record", "write baselines: new, changed or all", "WHICH"),
    Option("record_in_ci", "allow --kv-record where CI is set"),
    Option("against", "judge against fp16, self (the stored record) or both (default: both)", "WHAT"),
    Option("budget", "limits, such as drop=2,bytes=0.30,ttft=1.2,tpot=1.2", "KEY=X,…"),
    Option("alpha", "level of the tests (default: 0.05)", "P"),
    Option("strict", "an inconclusive verdict fails"),
    Option("json", "write the run to this file, as cases finish", "PATH"),
    Option("md", "write a Markdown summary to this file", "PATH"),
    Option("timeout", "seconds per case, 0 for no limit (default: 1800)", "SECONDS"),
    Option("findings", "measure what the papers found, and assert its direction; needs no --kv-method"),
    Option("zoo", "would the gate catch known bugs: all, or names and families; needs no --kv-method", "NAME,…"),
    Option(
        "data",
        "where public benchmarks are read: hub, or a folder; name them by --kv-tasks=longbench/qasper",
        "hub|PATH",
    ),
    Option("compat", "score public benchmarks with the slips of their own code"),
    Option("chat", "chat template of the model: task (as the benchmark does), yes or no (default: task)", "WHEN"),
    Option("history", "answers in a conversation: task (as the benchmark does), own or gold (default: task)", "WHOSE"),
    Option("rope", "RoPE in place of the model's own, such as yarn:factor=4 or default:theta=1e6", "KIND:KEY=X,…"),
    Option("attention", "kernel of attention: auto, math, flash, efficient or cudnn (default: auto)", "KERNEL"),
    Option("trust_remote_code", "run the code that comes with this model: its --kv-model again, by name", "NAME"),
    Option("resume", "continue an interrupted run: cases of this run file (or `last`) are not run again", "PATH"),
)


def declare(parser: pytest.Parser) -> None:
    """Add every option to pytest's command line."""
    group = parser.getgroup("kvcheck", "kvcheck: does a KV cache method still work")
    for option in OPTIONS:
        how: dict[str, Any] = {"action": "store", "metavar": option.metavar}
        if option.repeat:
            how["action"] = "append"
        elif not option.metavar:
            how = {"action": "store_true"}
        group.addoption(option.flag, dest=option.dest, default=None, help=option.help, **how)


def given(config: pytest.Config, early: argparse.Namespace | None = None) -> dict[str, Any]:
    """The options that stand on the command line. early: what pytest knows of it before conftest.py files are there."""
    typed = config.option if early is None else early
    found = {option.name: getattr(typed, option.dest, None) for option in OPTIONS}
    return {name: value for name, value in found.items() if value is not None}


def words(found: Mapping[str, Any]) -> list[str]:
    """Options by name, as they are typed."""
    typed: list[str] = []
    for option in OPTIONS:
        value = found.get(option.name)
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
    source = dict.fromkeys(raw, "[tool.kvcheck]")
    for name, value in given(config).items():
        raw[name] = value
        source[name] = next(option.flag for option in OPTIONS if option.name == name)
    return parse.settings(raw, source)


def last_run(config: pytest.Config) -> Path | None:
    """Where the run is kept when no --kv-json is given: pytest's cache folder, None where the cache is off."""
    cache = getattr(config, "cache", None)
    if cache is None:
        return None
    return cache.mkdir("kvcheck") / "last-run.json"
