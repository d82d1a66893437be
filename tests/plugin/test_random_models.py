"""Models of random weights: memory and latency are measured, accuracy is refused."""

from __future__ import annotations

import pytest

TINY = "--kv-model=random:tiny"


@pytest.fixture(autouse=True)
def no_other_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """The session under test is no worker, whatever runs this test."""
    for name in ("PYTEST_ADDOPTS", "PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT"):
        monkeypatch.delenv(name, raising=False)


def test_memory_and_latency_are_all_that_is_measured(pytester: pytest.Pytester) -> None:
    result = pytester.runpytest_subprocess(
        "--pyargs", "kvcheck.suites", TINY, "--kv-method=snapkv", "--kv-lengths=256,512"
    )
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(
        ["memory *ratio 0.500 at 512 tokens*", "ttft *", "tpot *", "throughput *of 8 together*"]
    )
    result.stdout.fnmatch_lines(["memory *at 256 tokens*"])


def test_a_task_on_random_weights_is_refused_at_once(pytester: pytest.Pytester) -> None:
    result = pytester.runpytest_subprocess("--pyargs", "kvcheck.suites", TINY, "--kv-method=snapkv", "--kv-tasks=kv")
    assert result.ret != 0
    result.stderr.fnmatch_lines(["*random:tiny has random weights*kv says nothing*", "*leave --kv-tasks out*"])


def test_recording_random_weights_is_refused_at_once(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CI", raising=False)
    result = pytester.runpytest_subprocess("--pyargs", "kvcheck.suites", TINY, "--kv-method=snapkv", "--kv-record=new")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*random:tiny has random weights: no case of it can be recorded", "*leave --kv-rec*"])


def test_an_unknown_shape_is_told_the_known_ones(pytester: pytest.Pytester) -> None:
    result = pytester.runpytest_subprocess(
        "--pyargs", "kvcheck.suites", "--kv-model=random:llama-8b", "--kv-method=snapkv"
    )
    assert result.ret != 0
    result.stderr.fnmatch_lines(["*unknown shape 'llama-8b'*", "*llama-3.1-8b*"])
