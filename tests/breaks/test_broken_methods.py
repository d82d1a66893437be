"""The methods of broken.py on the embedded model: each fails by name and cause, the others are judged as if alone."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
from broken import IN_A_LAYER, IN_THE_METHOD
from nights import daily
from outside import BROKEN, SUITE, Foreign, Result, nightly

SMALL = ("--kv-tasks=kv", "--kv-lengths=512", "--kv-n=4", "--kv-modes=multi_turn", "-m", "not conformance")
RAISED = {f"Raises_{place}": "broken here" for place in IN_A_LAYER}
WAYS = {
    "Skips": "this kernel is not here",
    "Xfails": "a known flaw of mine",
    "Importorskips": "no_such_kernel_package",
    "UnittestSkips": "not on this machine",
    "ExitsPytest": "enough for today",
    "Exits0": "SystemExit",
    "Exits1": "SystemExit",
    "RaisesBase": "at the root",
    "ExitsGenerator": "the generator is gone",
    "IsCancelled": "nobody waits",
    "StopsIteration": "no more blocks",
    "IsOutOfMemory": "no room for keys",
    "Recurses": "RecursionError",
    "MissesABaseline": "I have no baseline",
    "IsUnsupported": "I serve no such model",
    "SaysTimeIsUp": "TimeLimit|ran longer",
    "ThreadRaises": "a copy got lost",
}
WRONG = {
    "GivesNone": "None",
    "GivesText": "str",
    "GivesNumpy": "numpy|ndarray",
    "GivesHalf": "(?i)half|float16|dtype",
    "GivesInt": "(?i)int|dtype",
    "GivesDouble": "(?i)double|float64|dtype",
    "GivesHeadsFirst": "(?i)accuracy|shape|claims|nll",
    "GivesOneHeadLess": "(?i)shape|size",
    "GivesNanInOneLayer": "(?i)nan",
    "GivesInfInOneLayer": "(?i)nan|inf",
    "GivesNanInRow1": "(?i)nan",
    "GivesNanWhileDecoding": "(?i)nan",
    "GivesZeros": "(?i)accuracy|zero|claims",
    "HalvesKeys": "(?i)keys|verbatim|claims",
    "DropsInSilence": "(?i)slots|bytes|claims",
    "SwapsTheJudge": r"kvcheck\.judging\.budget\.judge",
}
HARMLESS = ("Good", "ClearsQueries")
"""What a method does to its own copy of the queries is its own affair."""
FAULTY = {**RAISED, **WAYS, **WRONG}
SOON = ("Raises_update", "Raises_compress", "Skips", "ExitsPytest", "Exits0", "RaisesBase", "IsOutOfMemory")
SOON += ("SaysTimeIsUp", "GivesNone", "GivesHalf", "GivesNanInRow1", "DropsInSilence", "SwapsTheJudge")
"""Those that are tried every day; the others are nightly."""


def check(real: Foreign, *names: str, options: tuple[str, ...] = ()) -> Result:
    """A small run of these methods."""
    files = ("--kv-json=run.json", "--kv-md=run.md")
    return real.run(*SUITE, *SMALL, *files, *(f"--kv-method=broken.{name}" for name in names), *options, limit=400)


def answers(result: Result, name: str) -> str:
    """What a method answered, to the last digit."""
    cases = json.loads(result.text("run.json"))["cases"]
    return json.dumps([one["samples"] for one in cases if one["method"] == f"broken.{name}"])


@pytest.fixture(scope="module")
def session(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Result:
    """Those that are asked about, which fail within their case, in one session, a full cache on either side."""
    here = [one for one in request.session.items if one.name.startswith("test_it_fails_by_name_and_cause[")]
    names = [name for name in FAULTY if any(one.name.endswith(f"[{name}]") for one in here)]
    real = Foreign(tmp_path_factory.mktemp("broken"))
    real.write("broken.py", BROKEN.read_text("utf-8"))
    return check(real, "ClearsQueries", *names, "Good")


@pytest.mark.parametrize("name", daily(FAULTY, *SOON))
def test_it_fails_by_name_and_cause(session: Result, name: str) -> None:
    session.fails(f"broken.{name}", FAULTY[name])


@pytest.mark.parametrize("name", HARMLESS)
def test_the_full_cache_behind_them_is_judged_as_if_alone(session: Result, name: str) -> None:
    session.passes(f"broken.{name}")


@pytest.mark.nightly
def test_the_full_cache_behind_them_answers_as_if_alone(session: Result, real: Foreign) -> None:
    assert answers(session, "Good") == answers(check(real, "Good"), "Good")


@pytest.mark.nightly
def test_what_raises_before_a_case_is_refused_or_fails_by_name(real: Foreign) -> None:
    """In one session: where one is refused, nothing is measured; else each fails, and the full cache does not."""
    names = [f"Raises_{place}" for place in IN_THE_METHOD]
    result = check(real, *names, "Good")
    if result.status == pytest.ExitCode.USAGE_ERROR:
        assert re.search(r"broken\.Raises_\w+.*broken here", result.out, re.DOTALL), result.out
        assert not result.text("run.json")
        return
    for name in names:
        result.fails(f"broken.{name}", "broken here")
    result.passes("broken.Good")


@pytest.mark.parametrize("place", ["init", *nightly("spec", *IN_THE_METHOD)])
def test_it_is_refused_or_fails_by_name(real: Foreign, place: str) -> None:
    name = f"broken.Raises_{place}"
    result = check(real, f"Raises_{place}")
    result.red()
    if result.status == pytest.ExitCode.USAGE_ERROR:
        assert name in result.out
        assert "broken here" in result.out
    else:
        result.fails(name, "broken here")


@pytest.mark.nightly
@pytest.mark.parametrize("name", FAULTY)
def test_alone_it_fails_just_so(real: Foreign, name: str) -> None:
    check(real, name).fails(f"broken.{name}", FAULTY[name])


@pytest.mark.nightly
def test_what_only_the_second_block_shows_fails_by_name(real: Foreign) -> None:
    result = check(real, "GivesNanFromTheSecondCache", options=("--kv-n=8",))
    result.fails("broken.GivesNanFromTheSecondCache", "(?i)nan")


@pytest.mark.nightly
@pytest.mark.parametrize("workers", [(), ("-n", "2")], ids=["alone", "-n 2"])
@pytest.mark.parametrize("name", ["OsExit0", "OsExit1", "Segfaults", "Aborts", "Terminates", "Kills", "Interrupts"])
def test_a_method_that_ends_the_process_ends_no_run_green(real: Foreign, name: str, workers: tuple[str, ...]) -> None:
    check(real, name, options=workers).red()


def test_saying_that_all_is_well_ends_no_run_green(real: Foreign) -> None:
    result = check(real, "OsExit0WithAWord")
    result.red()
    assert "ended with status 0 before the run was over" in result.out
    assert "of broken.OsExit0WithAWord" in result.out


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="there is no /proc that tells of stopped processes")
@pytest.mark.parametrize("workers", [(), pytest.param(("-n", "2"), marks=pytest.mark.nightly)], ids=["alone", "-n 2"])
def test_a_stopped_process_is_ended_when_its_time_is_over(real: Foreign, workers: tuple[str, ...]) -> None:
    result = check(real, "Stops", options=("--kv-timeout=2", *workers))
    result.red()
    assert "was stopped for" in result.out


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")
def test_what_a_method_forks_ends_with_the_run(real: Foreign) -> None:
    check(real, "ForksAndExits").red()
    left = Path("/proc", real.path.joinpath("left.txt").read_text(), "stat")
    assert not left.exists() or left.read_text().rpartition(")")[2].split()[0] == "Z", "it lives on"


def test_what_a_thread_of_a_method_forks_outlives_the_thread(real: Foreign) -> None:
    check(real, "ForksInAThread").passes("broken.ForksInAThread")


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["Hangs", "HangsAndSwallows"])
def test_a_hang_ends_in_bounded_time(real: Foreign, name: str) -> None:
    result = check(real, name, options=("--kv-timeout=5",))
    result.red()
    assert "5 s" in result.out


@pytest.mark.nightly
def test_a_thread_that_lives_on_does_not_keep_the_run_from_ending(real: Foreign) -> None:
    result = check(real, "ThreadStays", "Good")
    assert result.status in (0, 1), result.out
    assert (result.status == 0) == (not result.file.failures)
    result.passes("broken.Good")
