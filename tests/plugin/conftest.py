"""Shared by the tests of the plugin: a foreign repository with a fake engine, and three ways to distribute."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

# pytester puts sys.modules back after a run in this process: what it imported first would be imported twice, which
# torch does not survive.
import kvcheck.cli.commands
import kvcheck.judging.compare
import kvcheck.methods.adapters.recognise
import kvcheck.plugin.case
import kvcheck.plugin.collector
import kvcheck.plugin.latency
import kvcheck.plugin.params
import kvcheck.plugin.scheduling
import kvcheck.report.comparison
import kvcheck.report.markdown
import kvcheck.report.terminal
import kvcheck.tasks.profiles  # noqa: F401
from kvcheck.tasks import TASKS

TASKS.names()

FAKE = Path(__file__).with_name("fake_engine.py")
SUITE = "kvcheck.suites.test_string_retrieval"
SMALL = ("--kv-tasks=kv", "--kv-lengths=512", "--kv-n=8", "--kv-modes=single,multi_turn,multi_request")


@pytest.fixture(scope="session", autouse=True)
def _compiled_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Workers and child processes compile what they import once, also where PYTHONDONTWRITEBYTECODE is set."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
        patch.setenv("PYTHONPYCACHEPREFIX", str(tmp_path_factory.mktemp("compiled")))
        yield


@pytest.fixture(params=[(), ("-n", "0"), ("-n", "2")], ids=["no xdist", "-n 0", "-n 2"])
def dist(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """How the tests are distributed."""
    return request.param


@pytest.fixture
def repo(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A foreign repository whose engine is the fake one, with baselines of its own."""
    for name in ("CI", "GITHUB_STEP_SUMMARY", "PYTEST_ADDOPTS", "PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT"):
        monkeypatch.delenv(name, raising=False)
    pytester.makeconftest(FAKE.read_text("utf-8"))
    (pytester.path / "stored").mkdir()
    return pytester


@pytest.fixture
def behave(repo: pytest.Pytester) -> Callable[[dict[str, Any]], None]:
    """Say how methods behave: {method: accuracy or what goes wrong}."""

    def write(table: dict[str, Any]) -> None:
        (repo.path / "behaviour.json").write_text(json.dumps(table))

    return write


@pytest.fixture
def run(repo: pytest.Pytester) -> Callable[..., pytest.RunResult]:
    """Run the string retrieval suite with these options, one small case per mode unless they say otherwise."""

    def call(*options: str, suite: str = SUITE, small: bool = True) -> pytest.RunResult:
        return repo.runpytest("--pyargs", suite, *(SMALL if small else ()), "--kv-baselines=stored", *options)

    return call


@pytest.fixture(scope="session")
def baselines() -> dict[str, str]:
    """The fp16 baselines, recorded by the first test that needs them."""
    return {}


@pytest.fixture
def recorded(
    run: Callable[..., pytest.RunResult], repo: pytest.Pytester, baselines: dict[str, str]
) -> Callable[..., pytest.RunResult]:
    """The same, with the fp16 baseline recorded."""
    _record_once(run, repo, baselines, "--kv-tasks=kv,multi_hop")
    return run


@pytest.fixture
def long_recorded(
    run: Callable[..., pytest.RunResult], repo: pytest.Pytester, baselines: dict[str, str]
) -> Callable[..., pytest.RunResult]:
    """The same, at three lengths."""
    _record_once(run, repo, baselines, "--kv-lengths=512,1024,2048")
    return run


def _record_once(
    run: Callable[..., pytest.RunResult], repo: pytest.Pytester, baselines: dict[str, str], cases: str
) -> None:
    """Put the fp16 baseline of these cases into the repository; it is recorded by the first test that needs it."""
    path = repo.path / "stored" / "fake" / "fp16.txt"
    if cases not in baselines:
        result = run("--kv-method=fp16", "--kv-record=new", cases, "-p", "no:cacheprovider")
        assert result.ret == 0, result.outlines
        baselines[cases] = path.read_text("utf-8")
        (repo.path / "ran.txt").unlink()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(baselines[cases], "utf-8")
