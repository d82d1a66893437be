"""What the project around a run may do: change folders, replace fixtures, take items out, name files twice."""

from __future__ import annotations

import re

import pytest
from outside import ONE, SUITE, Foreign, nightly

METHOD = "--kv-method=snapkv"
ELSEWHERE = """
@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
"""
IN_PLACE = {
    "kv_case": "@pytest.fixture\ndef kv_case():\n    from unittest.mock import MagicMock\n    return MagicMock()\n",
    "kv_session": "@pytest.fixture(scope='session')\ndef kv_session():\n    return FakeSession(None)\n",
}
TAKEN_OUT = """
def pytest_collection_finish(session):
    session.items.clear()
"""
LOST = """
import shutil

@pytest.fixture(autouse=True)
def lost():
    shutil.rmtree(HERE / "run.json.journal")
"""


def test_a_test_that_changes_folders_is_judged_by_the_same_baselines(fake: Foreign) -> None:
    fake.add("conftest.py", ELSEWHERE)
    result = fake.check(METHOD)
    assert result.status == 0, result.out
    result.passes("snapkv")


@pytest.mark.parametrize("fixture", ["kv_case", *nightly("kv_session")])
def test_a_fixture_in_place_of_ours_is_named(fake: Foreign, fixture: str) -> None:
    fake.add("conftest.py", IN_PLACE[fixture])
    result = fake.check(METHOD)
    result.red()
    assert f"the fixture {fixture} is defined anew in conftest" in result.out


@pytest.mark.parametrize("workers", [(), *nightly(("-n", "2"))])
def test_items_that_are_taken_out_behind_the_selection_are_missed(fake: Foreign, workers: tuple[str, ...]) -> None:
    fake.add("conftest.py", TAKEN_OUT)
    result = fake.check(METHOD, *workers)
    result.red()
    assert "pytest_collection_finish" in result.out


def test_a_journal_that_goes_meanwhile_ends_red_and_is_named(fake: Foreign) -> None:
    fake.add("conftest.py", LOST)
    result = fake.check(METHOD)
    result.red()
    assert "journal" in result.out


@pytest.mark.parametrize(
    ("words", "cause"),
    [
        (("--kv-json=" + "a" * 300,), "too long"),
        (("--kv-json=out", "--junitxml=./out"), "--kv-json and --junitxml name one file"),
        (("--kv-json=conftest.py",), "conftest.py holds something else"),
        (("--kv-md=conftest.py",), "conftest.py holds something else"),
        (("--kv-method=" + "+".join(["snapkv"] * 500),), "500 methods are joined"),
    ],
    ids=["a name that is too long", "one file for two", "a source file", "a source file for --kv-md", "500 methods"],
)
def test_it_is_refused_before_anything_is_measured(fake: Foreign, words: tuple[str, ...], cause: str) -> None:
    before = (fake.path / "conftest.py").read_text("utf-8")
    result = fake.run(*SUITE, *ONE, METHOD, "--kv-baselines=stored", *words)
    assert result.status == pytest.ExitCode.USAGE_ERROR, result.out
    assert cause in result.out
    assert "INTERNALERROR" not in result.out
    assert not fake.tried()
    assert (fake.path / "conftest.py").read_text("utf-8") == before


def test_the_id_of_a_failed_test_can_be_typed_again(fake: Foreign) -> None:
    fake.behave(snapkv="raise")
    wide = {"COLUMNS": "400"}  # where id and numbers do not fit a line, the case stands there in words
    first = fake.check(METHOD, env=wide)
    found = re.search(r"^FAILED (\S+)", first.out, re.MULTILINE)
    assert found is not None, first.out
    assert not found[1].startswith("::")
    again = fake.run(found[1], *ONE, METHOD, "--kv-baselines=stored", "--rootdir=.")
    assert again.status == pytest.ExitCode.TESTS_FAILED, again.out
    assert "1 failed" in again.out


def test_a_project_that_hides_the_suites_tests_is_told_how_to_see_them(fake: Foreign) -> None:
    fake.write("pytest.ini", "[pytest]\npython_functions = check_*\n")
    result = fake.check(METHOD)
    result.red()
    assert "-opython_functions=test_*" in result.out.replace("'", "")
