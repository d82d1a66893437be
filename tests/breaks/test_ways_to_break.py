"""What a method may do to get away: none of it is green, and its neighbours are judged as if they were alone."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from outside import ONE, SUITE, Foreign, Result, by_name, nightly

from kvcheck.methods import METHODS as METHOD_NAMES

WAYS = {
    "skip": "this kernel is not here",
    "xfail": "a known flaw of mine",
    "importorskip": "no_such_kernel_package",
    "unittest skip": "not on this machine",
    "pytest fail": "said by the method",
    "pytest exit": "enough for today",
    "exit": "SystemExit",
    "exit 1": "SystemExit",
    "base exception": "at the root",
    "generator exit": "the generator is gone",
    "cancelled": "nobody waits",
    "stop iteration": "no more blocks",
    "memory": "no room for keys",
    "recursion": "RecursionError",
    "assertion": "the heads do not fit",
    "bug": "deep inside",
    "raise": "no slot",
    "nan": "not finite",
    "nothing": "no samples",
    "missing baseline": "I have no baseline",
    "unsupported": "I serve no such model",
    "time limit": "TimeLimit|ran longer",
    "thread raises": "a copy got lost",
}
"""What a method does, and what the failure of its case says of it."""

WORKERS = {"alone": (), "-n 2": ("-n", "2")}
LAST, *METHODS = sorted(set(METHOD_NAMES.names()) - {"fp16"}, reverse=True)
"""Names to break by: the fake engine answers to any. The last of a session does nothing wrong."""


@pytest.fixture(scope="module")
def session(make_fake: Callable[[], Foreign]) -> tuple[Foreign, Result]:
    """One session: many methods that break, each in a way of its own, one before them and one behind that do not."""
    fake = make_fake()
    fake.behave(**dict(zip(METHODS, WAYS, strict=False)))
    return fake, fake.check("--kv-method=fp16", *(f"--kv-method={name}" for name in [*METHODS[: len(WAYS)], LAST]))


def broken(way: str) -> str:
    """The method that breaks in this way."""
    return METHODS[list(WAYS).index(way)]


@pytest.mark.parametrize("way", WAYS)
def test_it_fails_by_name_and_cause(session: tuple[Foreign, Result], way: str) -> None:
    _, result = session
    result.fails(broken(way), WAYS[way])


def test_the_methods_beside_them_are_judged_as_if_alone(session: tuple[Foreign, Result]) -> None:
    _, result = session
    for method in ("fp16", LAST):
        result.passes(method)


def test_every_method_was_tried_once(session: tuple[Foreign, Result]) -> None:
    fake, _ = session
    assert sorted(line.partition("|")[2] for line in fake.tried()) == sorted(["fp16", LAST, *METHODS[: len(WAYS)]])


def test_the_reports_say_failed(session: tuple[Foreign, Result]) -> None:
    _, result = session
    assert result.text("run.md").startswith("## kvcheck: failed")
    assert all(result.failures(broken(way)) for way in WAYS)


@pytest.mark.parametrize("way", ["skip", *nightly("base exception", "generator exit", "pytest exit")])
def test_after_half_of_its_contexts_it_fails_just_so(fake: Foreign, way: str) -> None:
    fake.behave(snapkv=f"late {way}")
    result = fake.check("--kv-method=snapkv", "--kv-method=h2o")
    result.fails("snapkv", WAYS[way])
    result.passes("h2o")


@pytest.mark.parametrize("workers", by_name(WORKERS, "alone"))
@pytest.mark.parametrize("way", ["os exit 0", "sigkill", *nightly("os exit 1", "segv", "abort", "sigterm")])
def test_a_method_that_ends_the_process_ends_no_run_green(fake: Foreign, way: str, workers: tuple[str, ...]) -> None:
    fake.behave(snapkv=f"late {way}")
    fake.check("--kv-method=fp16", "--kv-method=snapkv", "--kv-method=h2o", *workers).red()


@pytest.mark.parametrize("way", ["os exit 0", *nightly("sigkill")])
def test_what_had_finished_before_the_process_ended_is_not_measured_again(fake: Foreign, way: str) -> None:
    fake.behave(snapkv=way)
    methods = ("--kv-method=fp16", "--kv-method=snapkv", "--kv-method=h2o")
    fake.check(*methods).red()
    fake.behave()
    (fake.path / "ran.txt").unlink()
    result = fake.check(*methods, "--kv-resume=run.json")
    assert result.status == 0, result.out
    assert [line.partition("|")[2] for line in fake.tried()] == ["snapkv", "h2o"]
    for method in ("fp16", "snapkv", "h2o"):
        result.passes(method)


def test_cases_that_are_measured_again_are_not_called_taken(fake: Foreign) -> None:
    fake.behave(snapkv="late sigterm")
    methods = ("--kv-method=fp16", "--kv-method=snapkv", "--kv-method=h2o")
    fake.check(*methods).red()
    fake.behave()
    result = fake.check(*methods, "--kv-resume=run.json")
    assert "1 case taken from run.json, not measured again" in result.out, result.out


def test_a_green_file_of_an_earlier_run_is_not_left_in_place_of_this_one(fake: Foreign) -> None:
    assert fake.check("--kv-method=snapkv").status == 0
    fake.behave(snapkv="os exit 0")
    result = fake.check("--kv-method=snapkv")
    result.red()
    left = json.loads(result.text("run.json") or '{"verdicts": {}}')
    assert not left["verdicts"], "run.json still says that all is well"
    assert "passed" not in result.text("run.md")


def test_a_module_that_ends_the_process_when_it_is_imported_ends_no_run_green(fake: Foreign) -> None:
    fake.write("gone.py", "import os\nos._exit(0)\n")
    result = fake.check("--kv-method=fp16", "--kv-method=gone.Gone")
    result.red()


MODULES = {
    "skip": ("import pytest\npytest.skip('no kernel', allow_module_level=True)\n", "no kernel"),
    "importorskip": ("import pytest\npytest.importorskip('no_such_kernel')\n", "no_such_kernel"),
    "exit": ("import sys\nsys.exit(0)\n", "SystemExit"),
    "base exception": ("raise BaseException('at the root')\n", "at the root"),
}


@pytest.mark.parametrize("module", by_name(MODULES, "skip", "exit"))
def test_a_module_that_cannot_be_imported_is_refused_by_name(fake: Foreign, module: tuple[str, str]) -> None:
    text, cause = module
    fake.write("gone.py", text)
    result = fake.check("--kv-method=fp16", "--kv-method=gone.Gone")
    result.red()
    assert result.status == pytest.ExitCode.USAGE_ERROR, result.out
    assert "gone.Gone" in result.out
    assert cause in result.out
    assert not fake.tried()


def test_ctrl_c_is_not_a_success(fake: Foreign) -> None:
    fake.behave(snapkv="late interrupt")
    result = fake.check("--kv-method=h2o", "--kv-method=snapkv")
    assert result.status == pytest.ExitCode.INTERRUPTED, result.out
    assert "interrupted" in result.out
    assert not result.text("run.md").startswith("## kvcheck: passed")
    result.passes("h2o")


def test_a_hang_is_ended_by_the_time_limit(fake: Foreign) -> None:
    fake.behave(snapkv="hang")
    result = fake.check("--kv-method=snapkv", "--kv-method=h2o", "--kv-timeout=1")
    result.fails("snapkv", "ran longer than 1 s")
    result.passes("h2o")


def test_a_hang_that_swallows_every_exception_ends_in_bounded_time(fake: Foreign) -> None:
    fake.behave(snapkv="hang and swallow")
    result = fake.check("--kv-method=h2o", "--kv-method=snapkv", "--kv-timeout=1", limit=90)
    result.red()
    assert "snapkv" in result.out
    assert "1 s" in result.out


def test_a_thread_that_lives_on_does_not_keep_the_run_from_ending(fake: Foreign) -> None:
    fake.behave(snapkv="thread stays")
    result = fake.check("--kv-method=snapkv", "--kv-method=h2o", limit=90)
    assert result.status in (0, 1), result.out
    assert (result.status == 0) == (not result.file.failures)
    result.passes("h2o")


def test_the_run_file_lands_where_the_session_began(fake: Foreign) -> None:
    fake.behave(snapkv="chdir")
    result = fake.check("--kv-method=snapkv", "--kv-method=h2o")
    assert {one.method for one in result.file.cases} >= {"h2o"}
    assert result.text("run.md").startswith("## kvcheck: ")


@pytest.mark.parametrize("workers", by_name(WORKERS, "alone"))
def test_a_method_that_replaces_the_judge_is_judged_all_the_same(fake: Foreign, workers: tuple[str, ...]) -> None:
    fake.behave(snapkv="judge")
    fake.check("--kv-method=snapkv", *workers).red()


def test_the_options_of_the_suite_do_not_matter_to_it(fake: Foreign) -> None:
    fake.behave(snapkv="skip")
    result = fake.run(*SUITE, *ONE, "--kv-baselines=stored", "--kv-method=snapkv", "-q", "-p", "no:cacheprovider")
    assert result.status == pytest.ExitCode.TESTS_FAILED
    assert "this kernel is not here" in result.out
