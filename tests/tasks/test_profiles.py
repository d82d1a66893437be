"""Which cases a profile runs."""

from __future__ import annotations

from functools import partial

import pytest

from kvcheck.core.errors import SpecError
from kvcheck.core.paths import bundle
from kvcheck.core.record import CAPABILITIES, MODES
from kvcheck.tasks import TASKS, find
from kvcheck.tasks.profiles import PROFILES, cases

USUAL = [name for name, one in PROFILES.items() if not one.parts]


@pytest.mark.parametrize("profile", USUAL)
def test_every_profile_asks_every_task(profile):
    assert {case.task for case in cases(profile)} == set(TASKS.names())


@pytest.mark.parametrize("profile", USUAL)
def test_every_profile_covers_every_capability_and_mode(profile):
    found = cases(profile)
    held = {TASKS.get(case.task).info.capability for case in found}
    assert held == {*CAPABILITIES} - {"language_modelling"}  # of tasks that are asked for by name
    assert {case.mode for case in found} == set(MODES)


def test_the_profile_for_pretrained_models_runs_what_each_of_them_can():
    found = [(case.task, case.mode, case.length, case.n) for case in cases("real")]
    assert found == [
        ("completion/kv", "multi_request", 512, 10),
        ("needle_multi", "multi_request", 512, 10),
        ("needle_multi", "multi_turn", 512, 10),
        ("completion/echo", "multi_request", 512, 8),
        ("completion/echo", "multi_request", 1024, 4),
        ("completion/prose", "single", 512, 16),
        ("completion/prose", "single", 2048, 4),
    ]


def test_it_is_narrowed_like_the_others():
    asked = cases("real", lengths=[256], tasks=["completion/echo", "kv"], n=2)
    assert {(case.task, case.length, case.n) for case in asked} == {("completion/echo", 256, 2), ("kv", 256, 2)}


def test_only_the_full_profile_runs_single_beside_multi_turn():
    def modes(profile):
        return {case.mode for case in cases(profile, tasks=["kv"])}

    assert modes("default") == {"multi_turn", "multi_request"}
    assert modes("full") == set(MODES)


def test_the_full_profile_runs_every_shipped_length():
    assert {case.length for case in cases("full", tasks=["needle"])} == {512, 1024, 2048, 4096}


def test_a_mode_asked_for_by_name_is_run_in_any_profile():
    assert {case.mode for case in cases("quick", tasks=["kv"], modes=["single"])} == {"single"}


def test_lengths_and_samples_can_be_asked_for():
    (case,) = cases("quick", lengths=[640], tasks=["kv"], modes=["single"], n=3)
    assert (case.length, case.n) == (640, 3)


def test_a_data_set_is_asked_at_a_limit_of_its_own_and_for_no_more_rows_than_it_has():
    place = partial(find, data=str(bundle("fixtures") / "data" / "benchmarks"))
    (case,) = cases("default", tasks=["longbench/qasper"], modes=["single"], find=place)
    assert (case.length, case.n) == (3500, 8)
    (case,) = cases("default", tasks=["scbench/qa_chn"], modes=["multi_turn"], n=100, lengths=[512], find=place)
    assert case.n == 35
    assert {case.length for case in cases("default", tasks=["ruler/vt"])} == {512, 1024}


def test_cases_of_one_task_and_length_stand_together():
    found = [(case.task, case.length) for case in cases("default")]
    assert len(dict.fromkeys(found)) == sum(1 for at, pair in enumerate(found) if at == 0 or found[at - 1] != pair)


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [({"profile": "quik"}, "quick"), ({"tasks": ["needl"]}, "needle"), ({"modes": ["multi_trun"]}, "multi_turn")],
)
def test_a_wrong_name_is_refused_with_the_nearest_right_one(wrong, hint):
    with pytest.raises(SpecError, match=f"did you mean .*{hint}"):
        cases(**wrong)
