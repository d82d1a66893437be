"""Cases that cannot show a loss of accuracy, from outside: listed, left out, and red where there are no others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kvcheck.core.record import NOT_INFORMATIVE
from kvcheck.store.run_file import read_run

Run = Callable[..., pytest.RunResult]
Behave = Callable[[dict[str, Any]], None]
TWO = "--kv-tasks=kv,multi_hop"


def test_a_run_of_nothing_else_fails_with_the_cases_the_reason_and_what_to_do(
    run: Run, behave: Behave, repo: pytest.Pytester, dist: tuple[str, ...]
) -> None:
    behave({"fp16": {"kv": 0.0}, "snapkv": {"kv": 0.0}})
    recording = run("--kv-method=fp16", "--kv-record=new", *dist)
    recording.assert_outcomes(passed=3)
    recording.stdout.fnmatch_lines(
        ["*recorded 3 cases of fp16*", "*3 of 3 cases not informative: no loss of accuracy can show there"]
    )
    result = run("--kv-method=snapkv", "--kv-json=run.json", *dist, "-rf")
    result.assert_outcomes(passed=3, failed=1)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(
        [
            "  snapkv, run: no case can show a loss of accuracy   FAIL",
            "    kv * 512: fp16 is not surely above chance: 0.000 over * answers, a guess scores 0.000 (p = 1)",
            "    another task, length or model, or more contexts of fp16 (--kv-n, --kv-record=changed)",
        ]
    )
    result.stdout.fnmatch_lines(["*snapkv on fake: 3 cases: 3 not informative*"])
    result.stdout.fnmatch_lines(["FAILED kvcheck::run*snapkv* - no case can show a loss of accuracy"])
    assert "gives up" not in result.stdout.str()
    verdicts = read_run(repo.path / "run.json").verdicts
    assert {one.outcome for name in verdicts if not name.startswith("run|") for one in verdicts[name]} == {
        NOT_INFORMATIVE
    }


def test_beside_others_it_is_listed_and_left_out(run: Run, behave: Behave, repo: pytest.Pytester) -> None:
    behave({"fp16": {"kv": 0.0}, "snapkv": {"kv": 0.0}})
    recording = run("--kv-method=fp16", "--kv-record=new", TWO)
    assert recording.ret == 0, recording.outlines
    result = run("--kv-method=snapkv", TWO, "--kv-strict", "--kv-budget=drop=40", "--kv-json=run.json")
    assert result.ret == 0, "it is no open question: more contexts of the method would not settle it"
    result.stdout.fnmatch_lines(
        [
            "*6 cases: 3 pass, 3 not informative*",
            "*string_retrieval *1.000 -> 1.000 *3 pass + 3 left out*",
            "  kv *0.000 -> 0.000 *not informative*3 left out*",
            "*not informative: no loss of accuracy can show there*",
            "*fp16 is not surely above chance*",
        ]
    )
    (verdict,) = read_run(repo.path / "run.json").verdicts["run|snapkv"]
    assert (verdict.question, verdict.n) == ("budget", 24)


def test_a_loss_where_fp16_is_right_is_not_hidden_by_it(run: Run, behave: Behave) -> None:
    behave({"fp16": {"kv": 0.0}, "snapkv": {"kv": 0.0, "multi_hop": 0.5}})
    assert run("--kv-method=fp16", "--kv-record=new", TWO).ret == 0
    result = run("--kv-method=snapkv", TWO)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*accuracy drop against fp16: 50.0 points*FAIL"])


def test_a_model_of_random_weights_shows_nothing(repo: pytest.Pytester, tmp_path: Path) -> None:
    from checkpoints import save_talker

    save_talker(tmp_path / "blind")
    options = (
        *("--pyargs", "kvcheck.suites.test_needle", "--kv-tasks=needle", "--kv-lengths=512", "--kv-n=4"),
        *("--kv-modes=single", f"--kv-model={tmp_path / 'blind'}", "--kv-baselines=stored", "-p", "no:cacheprovider"),
    )
    repo.makeconftest("")
    recording = repo.runpytest_subprocess(*options, "--kv-method=fp16", "--kv-record=new")
    recording.assert_outcomes(passed=1)
    result = repo.runpytest_subprocess(*options, "--kv-method=streaming_llm:window=8,sink=0")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(
        [
            "*run: no case can show a loss of accuracy*",
            "    needle single 512: fp16 is not surely above chance: 0.000*",
        ]
    )
    assert "gives up nothing" not in result.stdout.str()
