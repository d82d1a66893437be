"""Tests of a user that look away, options that leave things out: every selected case has a verdict, or it is red."""

from __future__ import annotations

import pytest
from outside import ONE, Foreign, Result, by_name

HEAD = """
import pytest

@pytest.mark.kv_capability("string_retrieval")
"""
LOST = {
    "catches the failure": """
def test_mine(kv_case):
    try:
        kv_case.gate()
    except Exception:
        pass
""",
    "catches everything": """
def test_mine(kv_case):
    try:
        kv_case.gate()
    except BaseException:
        pass
""",
    "measures and does not check": """
def test_mine(kv_case):
    kv_case.run()
""",
    "skips after the measurement": """
def test_mine(kv_case):
    kv_case.run()
    pytest.skip("too bad")
""",
    "skips after the verdict": """
def test_mine(kv_case):
    try:
        kv_case.gate()
    finally:
        pytest.skip("too bad")
""",
    "says that nothing failed": """
def test_mine(kv_case):
    try:
        kv_case.gate()
    except BaseException:
        kv_case.failure, kv_case.verdicts = "", ()
""",
    "is expected to fail": """
@pytest.mark.xfail
def test_mine(kv_case):
    kv_case.gate()
""",
    "is expected to fail, not strictly": """
@pytest.mark.xfail(strict=False, reason="known to lose")
def test_mine(kv_case):
    kv_case.gate()
""",
    "is skipped": """
@pytest.mark.skip(reason="too slow")
def test_mine(kv_case):
    kv_case.gate()
""",
    "is skipped by a fixture": """
@pytest.fixture
def device():
    pytest.skip("no device")

def test_mine(kv_case, device):
    kv_case.gate()
""",
    "does nothing": """
def test_mine(kv_case):
    pass
""",
}
"""What a test of a user's own does with a method that has lost everything."""

SOON = ("catches everything", "measures and does not check", "is expected to fail", "is skipped by a fixture")
WORKERS = {"alone": (), "-n 2": ("-n", "2")}
GATE = "def test_mine(kv_case):\n    kv_case.gate()\n"
HOOKS = {
    "a judge that returns nothing": """
def pytest_kvcheck_judge():
    return ()
""",
    "a hook that turns failures into passes": """
@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(item, call):
    report = yield
    report.outcome = "passed"
    report.longrepr = None
    return report
""",
    "a hook that swallows what is raised": """
@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    try:
        return (yield)
    except BaseException:
        return True
""",
    "a session that says 0": """
def pytest_sessionfinish(session):
    session.exitstatus = 0
""",
    "reports that get lost": """
@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if hasattr(report, "kvcheck"):
        del report.kvcheck
    report.outcome = "passed"
    return report
""",
}
"""What a conftest.py does to a test that checks, of a method that has lost everything."""


def mine(fake: Foreign, body: str, *options: str) -> Result:
    """Run a test of one's own on a method that has lost everything."""
    head, _, rest = body.partition("def test_mine")
    above = f"import pytest\n{head}\n{HEAD}def test_mine{rest}"
    fake.write("test_mine.py", above if "fixture" in head else HEAD + body.lstrip())
    return fake.run("test_mine.py", *ONE, "--kv-baselines=stored", "--kv-json=run.json", "--kv-md=run.md", *options)


@pytest.mark.parametrize("workers", by_name(WORKERS, "alone"))
@pytest.mark.parametrize("body", by_name(LOST, *SOON))
def test_a_test_that_looks_away_does_not_make_the_run_green(fake: Foreign, body: str, workers: tuple[str, ...]) -> None:
    fake.behave(snapkv=0.0)
    result = mine(fake, body, "--kv-method=snapkv", *workers)
    result.red()
    assert result.status == pytest.ExitCode.TESTS_FAILED, result.out
    assert "snapkv" in result.out
    assert result.text("run.md").startswith("## kvcheck: failed")


def test_a_test_of_ones_own_that_checks_is_green(fake: Foreign) -> None:
    result = mine(fake, "def test_mine(kv_case):\n    kv_case.check(kv_case.run())\n", "--kv-method=snapkv")
    assert result.status == 0, result.out
    result.passes("snapkv")


@pytest.mark.parametrize("workers", by_name(WORKERS, "alone"))
@pytest.mark.parametrize("hook", by_name(HOOKS, "a judge that returns nothing", "a hook that swallows what is raised"))
def test_a_hook_that_looks_away_does_not_make_the_run_green(fake: Foreign, hook: str, workers: tuple[str, ...]) -> None:
    fake.behave(snapkv=0.0)
    fake.add("conftest.py", hook)
    mine(fake, GATE, "--kv-method=snapkv", *workers).red()


LEAVING_OUT = {
    "-x": ("-x",),
    "--maxfail": ("--maxfail=1",),
    "--stepwise": ("--stepwise",),
    "--setup-plan": ("--setup-plan",),
    "--setup-only": ("--setup-only",),
    "a -k of another name": ("-k", "no_such_test"),
    "--deselect": ("--deselect", "::test_string_retrieval"),
    "--lf without failures": ("--lf", "--lfnf=none"),
    "a suite that is ignored": ("--ignore-glob=*string*",),
}
"""Options of pytest that leave cases out."""


@pytest.mark.parametrize("options", by_name(LEAVING_OUT, "-x", "--setup-plan"))
def test_options_that_leave_cases_out_do_not_make_a_lost_run_green(fake: Foreign, options: tuple[str, ...]) -> None:
    fake.behave(snapkv=0.0)
    fake.check("--kv-method=fp16", "--kv-method=snapkv", "--kv-method=h2o", *options).red()


@pytest.mark.nightly
def test_the_failure_that_stepwise_passes_over_stays_one(fake: Foreign) -> None:
    fake.behave(snapkv=0.0)
    methods = ("--kv-method=snapkv", "--kv-method=h2o")
    fake.check(*methods, "--stepwise").red()
    fake.check(*methods, "--stepwise", "--stepwise-skip").red()


@pytest.mark.nightly
def test_what_stepwise_goes_on_with_is_judged(fake: Foreign) -> None:
    fake.behave(h2o=0.0)
    methods = ("--kv-method=snapkv", "--kv-method=h2o")
    fake.check(*methods, "--stepwise").red()
    fake.behave()
    result = fake.check(*methods, "--stepwise")
    assert result.status == 0, result.out
    result.passes("h2o")


def test_tests_that_take_no_case_do_not_make_a_run_of_a_method_green(fake: Foreign) -> None:
    fake.write("test_other.py", "def test_other():\n    pass\n")
    result = fake.run("test_other.py", "--kv-method=snapkv", "--kv-baselines=stored")
    assert result.status != 0, result.out
    assert "nothing was measured" in result.out


def test_a_method_in_pyproject_does_not_disturb_tests_that_take_no_case(fake: Foreign) -> None:
    fake.write("pyproject.toml", '[tool.kvcheck]\nmethods = ["snapkv"]\n')
    fake.write("test_other.py", "def test_other():\n    pass\n")
    result = fake.run("test_other.py")
    assert result.status == 0, result.out


def test_no_method_at_all_is_a_usage_error(fake: Foreign) -> None:
    assert fake.run("--pyargs", "kvcheck.suites").status == pytest.ExitCode.USAGE_ERROR


def test_what_was_not_reached_is_said(fake: Foreign) -> None:
    fake.behave(snapkv=0.0)
    result = fake.check("--kv-method=snapkv", "--kv-method=h2o", "-x")
    result.red()
    assert "h2o" in result.out.partition(" kvcheck ")[2] or "h2o" in str(result.file.failures)
