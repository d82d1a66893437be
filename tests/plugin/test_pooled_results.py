"""What the cases of a method show together is a result like any other: counted, named, in every file."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from building import fp16, record
from building import run as measured

from kvcheck.cli.commands import main
from kvcheck.core.settings import Settings
from kvcheck.judging.budget import judge
from kvcheck.plugin import referee
from kvcheck.plugin.gate import Gate
from kvcheck.store.baselines import ModelId

Run = Callable[..., pytest.RunResult]
Behave = Callable[[dict[str, Any]], None]
FILES = ("--kv-json=run.json", "--junitxml=junit.xml", "--kv-md=summary.md")
NAME = "kvcheck::run[[]snapkv[]]"


def junit(repo: pytest.Pytester) -> dict[str, str]:
    """What became of every verdict on several cases, by name."""
    found = ET.parse(repo.path / "junit.xml").getroot().iter("testcase")
    return {
        str(one.get("name")): next((part.tag for part in one if part.tag != "properties"), "passed")
        for one in found
        if one.get("classname") == "kvcheck"
    }


def first_lines(repo: pytest.Pytester, capsys: pytest.CaptureFixture[str]) -> str:
    """What `kvcheck report` says first of the run file."""
    assert main(["report", str(repo.path / "run.json")]) == 0
    return " ".join(capsys.readouterr().out.partition("\n\n")[0].split())


@pytest.fixture
def doubtful(behave: Behave) -> None:
    """snapkv loses one context of eight."""
    behave({"snapkv": 0.875})


@pytest.mark.parametrize("workers", [(), ("-n", "2")], ids=["alone", "workers"])
def test_the_progress_ends_at_a_hundred_percent(workers: tuple[str, ...], recorded: Run, behave: Behave) -> None:
    behave({"snapkv": 0.1})
    text = recorded("--kv-method=snapkv", "-v", *workers).stdout.str()
    shares = [int(share) for share in re.findall(r"\[ *(\d+)%\]", text)]
    assert "kvcheck::run" in text
    assert max(shares) == 100


@pytest.mark.usefixtures("doubtful")
def test_an_inconclusive_run_has_not_passed_and_does_not_fail(
    recorded: Run, repo: pytest.Pytester, capsys: pytest.CaptureFixture[str]
) -> None:
    result = recorded("--kv-method=snapkv", *FILES, "--color=yes")
    assert result.ret == 0
    text = result.stdout.str()
    assert "\x1b[33minconclusive: snapkv on fake: accuracy drop against fp16 12.5 points" in text
    last = text.splitlines()[-1]
    assert "1 inconclusive" in last
    assert last.startswith("\x1b[33m="), "yellow, not green"
    assert junit(repo) == {"run[snapkv]": "skipped"}
    assert (repo.path / "summary.md").read_text().startswith("## kvcheck: inconclusive")
    run = json.loads((repo.path / "run.json").read_text())
    assert run["failures"] == {}
    assert run["verdicts"]["run|snapkv"][0]["outcome"] == "inconclusive"
    capsys.readouterr()
    said = first_lines(repo, capsys)
    assert said.startswith("inconclusive: snapkv on fake: accuracy drop against fp16 12.5 points [")
    assert "over 24 contexts of 3 cases: kv; 512 tokens; about " in said


@pytest.mark.usefixtures("doubtful")
@pytest.mark.parametrize("dist", [(), ("-n", "2")], ids=["no xdist", "-n 2"])
def test_strict_fails_a_run_that_is_inconclusive(recorded: Run, repo: pytest.Pytester, dist: tuple[str, ...]) -> None:
    result = recorded("--kv-method=snapkv", "--kv-strict", *FILES, *dist)
    assert result.ret == 1
    result.assert_outcomes(passed=3, failed=1)
    result.stdout.fnmatch_lines(
        [
            "fail: snapkv on fake: accuracy drop against fp16 12.5 points*",
            f"FAILED {NAME} - inconclusive: drop 12.5 points*",
        ]
    )
    assert junit(repo) == {"run[snapkv]": "failure"}
    run = json.loads((repo.path / "run.json").read_text())
    assert "inconclusive is a failure here because of --kv-strict" in run["failures"]["run|snapkv"]
    assert "kvcheck::run[snapkv]" in (repo.path / ".pytest_cache/v/cache/lastfailed").read_text()
    recorded("--kv-method=snapkv", *dist)
    assert "run[snapkv]" not in Path(repo.path / ".pytest_cache/v/cache/lastfailed").read_text()


def test_a_run_that_loses_fails_by_its_numbers_everywhere(
    recorded: Run, repo: pytest.Pytester, behave: Behave, capsys: pytest.CaptureFixture[str]
) -> None:
    behave({"snapkv": {"kv": 0.0, "multi_hop": 0.0}})
    result = recorded("--kv-method=snapkv", "--kv-tasks=kv,multi_hop", "--kv-modes=multi_request", *FILES, "-rf")
    assert result.ret == 1
    result.stdout.fnmatch_lines(
        [
            "  snapkv, run: accuracy drop against fp16 100.0 points [[]*[]], allowed 2 (default budget)   FAIL",
            "fail: snapkv on fake: accuracy drop against fp16 100.0 points*",
            f"FAILED {NAME} - drop 100.0 points [[]*",
        ]
    )
    found = junit(repo)
    assert found["run[snapkv]"] == "failure"
    failures = json.loads((repo.path / "run.json").read_text())["failures"]
    assert failures["run|snapkv"].startswith("drop 100.0 points [")
    capsys.readouterr()
    said = first_lines(repo, capsys)
    assert "contexts of 2 cases: kv, multi_hop; multi_request; 512 tokens" in said
    terminal = result.stdout.str().partition(" kvcheck =")[2]
    assert said in " ".join(terminal.split())


def test_a_run_that_passes_is_no_test_more(recorded: Run, repo: pytest.Pytester) -> None:
    result = recorded("--kv-method=snapkv", "--kv-budget=drop=40", *FILES, "--color=yes")
    result.assert_outcomes(passed=3)
    assert "\x1b[32mpass: snapkv on fake: answers identical to those of fp16" in result.stdout.str()
    assert set(junit(repo).values()) == {"passed"}


def test_a_verdict_on_a_run_that_comes_out_otherwise_in_a_fresh_process_is_a_failure(tmp_path: Path) -> None:
    settings = Settings(methods=("mine.Mine",), against="both", baselines=str(tmp_path))
    cases = [record([0.0] * 8 + [1.0] * 8, "mine.Mine", task=task) for task in ("kv", "needle")]
    full = [fp16(16, task=task) for task in ("kv", "needle")]
    found = measured(*cases, *full)
    records = {(str(one.case), one.method): one for one in found.cases}
    gate = Gate(settings, tmp_path, ModelId("theirs", "f00d"), records, judge)
    honest = {f"{scope}|mine.Mine": one for scope, one in gate.pooled(cases).items()}
    assert honest["run|mine.Mine"][0].outcome == "fail"
    told = {"run|mine.Mine": tuple(replace(one, outcome="pass") for one in honest["run|mine.Mine"])}
    said = replace(found, verdicts=honest, failures={})
    assert dict(referee.pooled(said, gate, ["mine.Mine"])) == {}
    ((name, text),) = referee.pooled(replace(said, verdicts={**honest, **told}), gate, ["mine.Mine"])
    assert (name, text.startswith("judged anew, it is {'budget': 'fail'}")) == ("run|mine.Mine", True)
