"""Cases in which nothing is asked, from outside: judged by how likely the text is, and by nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., pytest.RunResult]
Behave = Callable[[dict[str, Any]], None]
SUITE = "kvcheck.suites.test_language_modelling"
PROSE = ("--kv-tasks=completion/prose", "--kv-lengths=512", "--kv-n=16", "--kv-modes=multi_request")


@pytest.fixture
def prose(run: Run) -> Run:
    """Run the task with fp16 recorded."""
    recording = run("--kv-method=fp16", "--kv-record=new", *PROSE, suite=SUITE, small=False)
    recording.assert_outcomes(passed=1)
    return lambda *options: run(*PROSE, *options, suite=SUITE, small=False)


def test_a_limit_on_the_likelihood_is_all_that_a_run_of_it_needs(prose: Run, behave: Behave) -> None:
    behave({"kivi": {"completion/prose": 1.0}, "snapkv": {"completion/prose": 0.0}})
    result = prose("--kv-method=kivi", "--kv-method=snapkv", "--kv-budget=kl=0.5", "--kv-against=fp16")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["  completion/prose  no answers *not informative*1 left out*"])
    result.stdout.fnmatch_lines(["FAILED kvcheck::run*snapkv* - kl 1.000*", "*1 failed*"])
    assert "no case can show" not in result.stdout.str()
    assert "kvcheck::run[kivi]" not in result.stdout.str()


def test_without_a_limit_and_a_record_of_its_own_nothing_is_judged_and_the_run_fails(prose: Run) -> None:
    result = prose("--kv-method=kivi")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(
        [
            "*no case can show a loss of accuracy*",
            "*where nothing is asked, a limit can be told from: --kv-budget=kl=0.01",
        ]
    )


def test_a_record_of_its_own_is_enough_too(prose: Run, behave: Behave) -> None:
    assert prose("--kv-method=kivi", "--kv-record=new").ret == 0
    assert prose("--kv-method=kivi").ret == 0
    behave({"kivi": {"completion/prose": 0.0}})
    result = prose("--kv-method=kivi")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*kvcheck::run*kivi* - *nll*"])


def test_no_accuracy_stands_in_the_reports(prose: Run, repo: pytest.Pytester) -> None:
    result = prose(
        "--kv-method=kivi", "--kv-budget=kl=0.5", "--kv-against=fp16", "--kv-md=run.md", "--junitxml=run.xml"
    )
    assert result.ret == 0
    assert "no answers" in (repo.path / "run.md").read_text("utf-8")
    assert "0.000 ->" not in (repo.path / "run.md").read_text("utf-8")
    assert "kvcheck_accuracy" not in (repo.path / "run.xml").read_text("utf-8")


@pytest.mark.parametrize(
    ("content", "why"),
    [(None, "cannot be read: No such file or directory"), (b"caf\xe9 au lait", "is not UTF-8: byte 3 is 0xe9"),
     (b" \n", "is empty")],
)  # fmt: skip
def test_a_text_that_is_none_is_refused_before_anything_runs(
    run: Run, tmp_path: Path, content: bytes | None, why: str
) -> None:
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    result = run("--kv-method=kivi", f"--kv-text={path}", *PROSE, suite=SUITE, small=False)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*--kv-text: {path} {why}*"])


def test_a_text_that_no_case_reads_is_refused(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("Once upon a time.", "utf-8")
    result = run("--kv-method=kivi", f"--kv-text={path}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--kv-text: no case of this run reads a text*"])
