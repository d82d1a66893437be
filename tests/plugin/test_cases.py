"""One item per case and method: ids, order, markers."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kvcheck.plugin.scheduling import scope

Run = Callable[..., pytest.RunResult]


def ids(result: pytest.RunResult) -> list[str]:
    """The ids in brackets, in the order in which they were collected."""
    return [line.partition("[")[2].rstrip("]") for line in result.outlines if "::" in line and "[" in line]


def test_one_item_stands_for_one_case_with_one_method(run: Run) -> None:
    result = run("--collect-only", "-q", "--kv-method=fp16", "--kv-method=snapkv:budget=0.25")
    assert ids(result) == [
        f"kv-{mode}-512-{method}"
        for mode in ("single", "multi_turn", "multi_request")
        for method in ("fp16", "snapkv:budget=0.25")
    ]


def test_the_same_method_given_twice_runs_once(run: Run) -> None:
    result = run("--collect-only", "-q", "--kv-method=snapkv:budget=0.25", "--kv-method=snapkv: budget=0.250")
    assert len(ids(result)) == 3


def test_items_of_one_task_and_length_stand_together(run: Run) -> None:
    options = ("--kv-tasks=kv,multi_hop", "--kv-lengths=1024,512", "--kv-method=fp16", "--kv-method=snapkv")
    result = run("--collect-only", "-q", *options, small=False)
    groups = [tuple(one.split("-")[at] for at in (0, 2)) for one in ids(result)]
    assert list(dict.fromkeys(groups)) == [("kv", "512"), ("kv", "1024"), ("multi_hop", "512"), ("multi_hop", "1024")]
    assert groups == sorted(groups, key=list(dict.fromkeys(groups)).index)


@pytest.mark.parametrize(
    ("options", "count"),
    [
        (("-k", "multi_turn"), 1),
        (("-m", "string_retrieval"), 3),
        (("-m", "kv and single"), 1),
        (("-m", "length_512 and quick"), 3),
        (("-m", "length_512 and slow"), 0),
        (("-m", "needle"), 0),
    ],
)
def test_markers_and_names_select_what_people_expect(run: Run, options: tuple[str, ...], count: int) -> None:
    result = run("--collect-only", "-q", "--strict-markers", "--kv-method=snapkv", *options)
    assert len(ids(result)) == count


def test_a_suite_without_a_case_under_these_options_is_deselected(repo: pytest.Pytester) -> None:
    result = repo.runpytest("--collect-only", "-q", "--pyargs", "kvcheck.suites", "--kv-method=fp16", "--kv-tasks=kv")
    assert ids(result)
    assert {one.split("-")[0] for one in ids(result)} == {"kv"}
    result.stdout.fnmatch_lines(["*deselected*"])


def test_every_worker_collects_the_same_items(run: Run) -> None:
    result = run("--kv-method=fp16", "--kv-method=snapkv", "--kv-record=new", "-n", "2")
    result.assert_outcomes(passed=6)
    assert "Different tests were collected" not in result.stdout.str()


def test_a_test_of_the_users_own_can_take_a_case(repo: pytest.Pytester, recorded: Run) -> None:
    repo.makepyfile(
        """
        import pytest

        @pytest.mark.kv_capability("string_retrieval")
        def test_mine(kv_case):
            record = kv_case.run()
            assert record.accuracy == 1.0
            kv_case.check(record)
        """
    )
    small = ("--kv-tasks=kv", "--kv-lengths=512", "--kv-n=2", "--kv-baselines=stored")
    result = repo.runpytest("--kv-method=fp16", *small, "--strict-markers")
    result.assert_outcomes(passed=2)  # multi_turn and multi_request
    assert result.ret == 0


def test_an_unknown_capability_is_refused(repo: pytest.Pytester) -> None:
    repo.makepyfile(
        """
        import pytest

        @pytest.mark.kv_capability("string_retreival")
        def test_mine(kv_case):
            pass
        """
    )
    result = repo.runpytest("--kv-method=fp16")
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines(["*kv_capability takes one of string_retrieval*"])


def test_cases_of_one_task_and_length_go_to_one_worker() -> None:
    first, second = (f"s/test_x.py::test_x[kv-{mode}-512-snapkv:a=1-2]" for mode in ("single", "multi_turn"))
    assert scope(first) == scope(second) == "s/test_x.py::kv-512"
    assert scope("test_y.py::test_y") == "test_y.py::test_y"
    assert scope("test_y.py::test_y[a-b]") == "test_y.py::test_y[a-b]"
