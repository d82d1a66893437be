"""Where RULER's tasks are found, and how a size is chosen that fits."""

from __future__ import annotations

import subprocess
import sys

import pytest
from ruler_samples import NAMES

from kvcheck.core.errors import KvcheckError, SpecError
from kvcheck.core.record import CaseId
from kvcheck.plugin import parse
from kvcheck.tasks import TASKS
from kvcheck.tasks.profiles import PROFILES, cases, infos
from kvcheck.tasks.ruler.fit import distinct, largest


@pytest.mark.parametrize("name", NAMES)
def test_a_task_is_known_by_its_exact_name(name):
    assert TASKS.get(name).info.name == name
    assert name in TASKS


def test_the_thirteen_tasks_are_listed_nowhere():
    assert len(NAMES) == 13
    assert not [name for name in TASKS.names() if "/" in name]


@pytest.mark.parametrize("profile", PROFILES)
def test_no_profile_runs_them_unasked(profile):
    assert not {case.task for case in cases(profile)} & set(NAMES)
    assert {info.name for info in infos()} == set(TASKS.names())


def test_they_are_not_imported_unasked():
    code = (
        "import sys; from kvcheck.tasks import TASKS; from kvcheck.tasks.profiles import cases; "
        "[cases(profile) for profile in ('quick', 'default', 'full')]; 'kv' in TASKS; "
        "sys.exit('kvcheck.tasks.ruler' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_their_cases_are_made_when_they_are_asked_for():
    found = cases("default", tasks=["ruler/vt", "kv"], lengths=[1024], modes=["single"])
    assert [str(case) for case in found] == [
        "kv/v1/single/len=1024/seed=0/n=8",
        "ruler/vt/v1/single/len=1024/seed=0/n=8",
    ]


def test_a_case_with_a_slash_in_its_task_reads_back():
    case = CaseId("ruler/niah_single_1", 1, "multi_request", 4096, 0, 8)
    assert CaseId.parse(str(case)) == case


@pytest.mark.parametrize("text", ["ruler//vt", "/vt", "ruler/", "a/b/c"])
def test_a_case_with_more_slashes_is_refused(text):
    with pytest.raises(SpecError, match="not a case id"):
        CaseId.parse(f"{text}/v1/single/len=512/seed=0/n=1")


@pytest.mark.parametrize("wrong", ["ruler/vtt", "ruler/niah_single_4"])
def test_a_wrong_name_is_refused_with_the_nearest_right_one(wrong):
    for ask in (TASKS.get, lambda name: parse.settings({"tasks": name}, {})):
        with pytest.raises(SpecError, match=r"did you mean .*ruler/"):
            ask(wrong)


def test_the_option_takes_their_names():
    assert parse.settings({"tasks": "ruler/vt,kv"}, {}).tasks == ("ruler/vt", "kv")


@pytest.mark.parametrize("room", [5, 6, 49, 50, 1000, 4321])
def test_the_largest_size_that_fits_is_found(room):
    def cost(size):
        return 5 + size + size * size // 7

    assert largest(cost, room, 0) == max(size for size in range(200) if cost(size) <= room)


def test_the_search_looks_little_farther_than_what_fits():
    seen = []

    def cost(size):
        seen.append(size)
        return 100 + 17 * size

    assert largest(cost, 58_000, 3) == 3405
    assert max(seen) < 3405 * 1.12


def test_words_that_are_used_up_are_an_error():
    drawn = distinct(lambda: "only")
    assert next(drawn) == "only"
    with pytest.raises(KvcheckError, match="1 different words"):
        next(drawn)


def test_no_size_fits_where_the_least_one_does_not():
    assert largest(lambda size: 5 + size, 4, 0) is None
