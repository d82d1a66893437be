"""Beside other plugins of pytest (`pip install -e '.[plugins]'`): what each may do, and that it does.

Where one works, the verdicts are those without it; where it does not, it is refused by name. Skipped where it is not
installed. Every run has only the plugins that it asks for, whatever else is installed.
"""

from __future__ import annotations

import json
import time
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import pytest
from outside import SUITE, Foreign, Result

METHODS = ("--kv-method=fp16", "--kv-method=snapkv", "--kv-method=h2o")
THREE = ("--kv-tasks=kv", "--kv-lengths=512", "--kv-n=8", "--kv-modes=single,multi_turn,multi_request")


def needs(plugin: str) -> tuple[str, ...]:
    """The plugin, for a run that uses it; skips the test where it is not installed."""
    try:
        version(plugin)
    except PackageNotFoundError:
        pytest.skip(f"{plugin} is not installed: pip install 'kvcheck[plugins]'")
    return (plugin,)


def said(result: Result) -> dict[str, Any]:
    """Records, verdicts and failures of a run."""
    found = json.loads(result.text("run.json"))
    return {name: found[name] for name in ("cases", "verdicts", "failures")}


def refused(fake: Foreign, result: Result, word: str) -> bool:
    """Whether the run was refused by name before anything was measured."""
    return result.status == pytest.ExitCode.USAGE_ERROR and word in result.out and not fake.tried()


def both(fake: Foreign, plugin: str, *options: str, **how: Any) -> tuple[Result, dict[str, Any], Result]:
    """A run without the plugin, what it said, and a run with it."""
    plugins = needs(plugin)
    fake.behave(snapkv={"kv": 0.0}, h2o="skip")
    plain = fake.check(*THREE, *METHODS)
    before = said(plain)
    assert plain.status == pytest.ExitCode.TESTS_FAILED
    (fake.path / "ran.txt").unlink()
    (fake.path / "run.json").unlink()
    return plain, before, fake.check(*THREE, *METHODS, *options, plugins=plugins, **how)


# -- pytest-timeout ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["signal", "thread"])
def test_the_time_limit_of_pytest_timeout_holds_where_it_is_the_shorter(fake: Foreign, how: str) -> None:
    plugins = needs("pytest-timeout")
    fake.behave(snapkv="hang")
    began = time.monotonic()
    options = ("--timeout=2", f"--timeout-method={how}", "--kv-timeout=300")
    result = fake.check("--kv-method=snapkv", "--kv-method=h2o", *options, plugins=plugins, limit=60)
    result.red()
    assert time.monotonic() - began < 45
    assert "imeout" in result.out
    if how == "signal":
        result.passes("h2o")


def test_the_time_limit_of_kvcheck_holds_where_it_is_the_shorter(fake: Foreign) -> None:
    plugins = needs("pytest-timeout")
    fake.behave(snapkv="hang")
    options = ("--timeout=300", "--kv-timeout=1")
    result = fake.check("--kv-method=snapkv", "--kv-method=h2o", *options, plugins=plugins, limit=60)
    result.fails("snapkv", "ran longer than 1 s")
    result.passes("h2o")


def test_without_a_limit_of_kvcheck_that_of_pytest_timeout_holds(fake: Foreign) -> None:
    plugins = needs("pytest-timeout")
    fake.behave(snapkv="hang")
    options = ("--timeout=2", "--kv-timeout=0")
    result = fake.check("--kv-method=snapkv", "--kv-method=h2o", *options, plugins=plugins, limit=60)
    result.red()
    result.passes("h2o")


# -- pytest-forked -----------------------------------------------------------------------------------------------------


def test_forked_tests_have_the_same_verdicts_or_are_refused_by_name(fake: Foreign) -> None:
    plain, before, result = both(fake, "pytest-forked", "--forked")
    if not refused(fake, result, "forked"):
        assert (result.status, said(result)) == (plain.status, before)


@pytest.mark.nightly
def test_forked_tests_of_the_embedded_model_pass_or_are_refused_by_name(real: Foreign) -> None:
    plugins = needs("pytest-forked")
    small = ("--kv-tasks=kv", "--kv-lengths=512", "--kv-n=4", "--kv-modes=multi_turn", "--kv-json=run.json")
    result = real.run(*SUITE, *small, "--kv-method=snapkv", "--forked", plugins=plugins)
    if not refused(real, result, "forked"):
        assert result.status == 0, result.out
        result.passes("snapkv")


# -- pytest-rerunfailures ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [(), ("-n", "2")], ids=["alone", "-n 2"])
def test_a_failure_stays_one_however_often_it_is_run_again(fake: Foreign, workers: tuple[str, ...]) -> None:
    plugins = needs("pytest-rerunfailures")
    fake.behave(snapkv="flaky")
    result = fake.check("--kv-method=snapkv", "--kv-method=h2o", "--reruns=2", *workers, plugins=plugins)
    if not refused(fake, result, "reruns"):
        result.fails("snapkv", "not at the first try")
        result.passes("h2o")


def test_the_marker_of_reruns_does_not_make_a_failure_a_pass(fake: Foreign) -> None:
    plugins = needs("pytest-rerunfailures")
    fake.behave(snapkv="flaky")
    fake.write(
        "test_mine.py",
        "import pytest\n\n@pytest.mark.flaky(reruns=2)\ndef test_mine(kv_case):\n    kv_case.gate()\n",
    )
    small = ("--kv-tasks=kv", "--kv-lengths=512", "--kv-n=8", "--kv-modes=single", "--kv-json=run.json")
    result = fake.run("test_mine.py", *small, "--kv-baselines=stored", "--kv-method=snapkv", plugins=plugins)
    result.red()


# -- plugins that must not change anything -----------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [1, 2])
def test_in_random_order_the_verdicts_are_the_same(fake: Foreign, seed: int) -> None:
    plain, before, result = both(fake, "pytest-randomly", "-p", "no:cacheprovider", f"--randomly-seed={seed}")
    assert (result.status, said(result)) == (plain.status, before)


def test_repeated_tests_have_one_record_and_the_same_verdict_or_are_refused_by_name(fake: Foreign) -> None:
    plain, before, result = both(fake, "pytest-repeat", "--count=2")
    if not refused(fake, result, "count"):
        assert (result.status, said(result)) == (plain.status, before)


def test_coverage_is_written_and_the_verdicts_are_the_same(fake: Foreign) -> None:
    plain, before, result = both(fake, "pytest-cov", "--cov=kvcheck.plugin", "--cov-report=xml:cov.xml")
    assert (result.status, said(result)) == (plain.status, before)
    assert "<coverage" in result.text("cov.xml")


def test_the_html_report_has_the_verdicts(fake: Foreign) -> None:
    plain, before, result = both(fake, "pytest-html", "--html=report.html", "--self-contained-html")
    assert (result.status, said(result)) == (plain.status, before)
    assert "accuracy drop against fp16" in result.text("report.html")


def test_sugar_leaves_the_summary(fake: Foreign) -> None:
    plain, before, result = both(fake, "pytest-sugar")
    assert (result.status, said(result)) == (plain.status, before)
    assert result.outcome("snapkv") == plain.outcome("snapkv")


def test_sugar_leaves_the_summary_where_a_terminal_is_pretended(fake: Foreign) -> None:
    plain, before, result = both(fake, "pytest-sugar", "--force-sugar")
    assert (result.status, said(result)) == (plain.status, before)
    assert "snapkv on fake" in result.out


def test_without_sockets_the_verdicts_are_the_same(fake: Foreign) -> None:
    plain, before, result = both(fake, "pytest-socket", "--disable-socket")
    assert (result.status, said(result)) == (plain.status, before)


@pytest.mark.nightly
def test_without_sockets_the_embedded_model_works(real: Foreign) -> None:
    plugins = needs("pytest-socket")
    small = ("--kv-tasks=kv", "--kv-lengths=512", "--kv-n=4", "--kv-modes=multi_turn", "--kv-json=run.json")
    result = real.run(*SUITE, *small, "--kv-method=snapkv", "--disable-socket", plugins=plugins)
    assert result.status == 0, result.out
    result.passes("snapkv")
