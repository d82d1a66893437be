"""A case fails its own test, in the call phase, with the numbers and what to type."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable
from typing import Any

import pytest

Run = Callable[..., pytest.RunResult]
Behave = Callable[[dict[str, Any]], None]


def test_a_method_that_keeps_its_accuracy_passes(recorded: Run) -> None:
    result = recorded("--kv-method=snapkv")
    result.assert_outcomes(passed=3)
    result.stdout.fnmatch_lines(["*snapkv on fake: 3 cases: 3 pass*", "*gives up nothing against fp16*"])


def test_a_method_that_loses_for_sure_fails_its_own_test_with_the_numbers(recorded: Run, behave: Behave) -> None:
    behave({"snapkv": 0.0})
    result = recorded("--kv-method=snapkv", "--kv-modes=single", "--kv-n=8", "-rf")
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(
        [
            "*test_string_retrieval[[]kv-single-512-snapkv[]]*",
            "drop 100.0 points *, allowed 2",
            "  kv/v1/single/len=512/seed=0/n=8  snapkv",
            "*accuracy drop against fp16: 100.0 points*allowed 2 (default budget)*FAIL",
            "*accuracy: 1.000 -> 0.000 (a guess scores *",
            "*of the same * contexts: * lost, 0 won*",
            "*KV bytes: * in 4 of 4 layers",
            "*compared with: stored/fake/fp16.txt",
            "*for example: context 0, turn 1 of 1, evidence at 25% of the context",
            "    expected  not known: *",
            "    fp16      'right'",
            "    method    'wrong'",
            "*accept*: pytest --pyargs * --kv-baselines=stored --kv-method=snapkv --kv-budget=drop=*",
            "FAILED kv single 512 snapkv - drop 100.0 points *, allowed 2",
        ]
    )
    assert "Traceback" not in result.stdout.str()
    assert "case.py" not in result.stdout.str()


def test_in_ci_nothing_of_a_failure_is_printed_twice(
    recorded: Run, behave: Behave, monkeypatch: pytest.MonkeyPatch
) -> None:
    behave({"snapkv": 0.0})
    monkeypatch.setenv("CI", "true")
    result = recorded("--kv-method=snapkv", "--kv-modes=single")
    result.stdout.fnmatch_lines(["FAILED *test_string_retrieval[[]kv-single-512-snapkv[]] - drop 100.0 points *"])
    said = [line.strip() for line in result.outlines]
    for start in (
        "accuracy drop against fp16: ",
        "for example:",
        "fp16      'right'",
        "look: * --kv-modes=single --kv-lengths=",
    ):
        assert len(fnmatch.filter(said, f"{start}*")) == 1, start


def test_a_doubtful_case_passes_and_is_counted_and_fails_under_strict(recorded: Run, behave: Behave) -> None:
    behave({"snapkv": 0.875})
    result = recorded("--kv-method=snapkv", "--kv-modes=single")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["*1 case: 1 inconclusive*"])
    strict = recorded("--kv-method=snapkv", "--kv-modes=single", "--kv-strict")
    strict.assert_outcomes(passed=1, failed=1)
    strict.stdout.fnmatch_lines(["*more contexts: pytest*--kv-n=auto*", "*because of --kv-strict*"])


def test_a_budget_of_the_user_goes_before_the_default(recorded: Run, behave: Behave) -> None:
    behave({"snapkv": 0.0})
    recorded("--kv-method=snapkv", "--kv-budget=drop=100").assert_outcomes(passed=3)
    result = recorded("--kv-method=snapkv", "--kv-budget=drop=100,bytes=0.3")
    result.assert_outcomes(failed=3)
    result.stdout.fnmatch_lines(["*KV bytes as a share of fp16: 0.5*allowed 0.3*FAIL"])


def test_without_an_fp16_record_a_case_fails_with_the_command_that_records_one(run: Run) -> None:
    result = run("--kv-method=snapkv")
    result.assert_outcomes(failed=3)
    result.stdout.fnmatch_lines(
        ["*no fp16 record*", "*pytest *--kv-baselines=stored --kv-method=fp16 --kv-record=new*"]
    )
    assert "During handling" not in result.stdout.str()
    run("--kv-method=fp16").assert_outcomes(failed=3)


def test_nothing_is_measured_where_there_is_nothing_to_judge_by(run: Run, repo: Any) -> None:
    run("--kv-method=snapkv").assert_outcomes(failed=3)
    assert not (repo.path / "ran.txt").exists()


def test_a_baseline_with_too_few_contexts_is_the_baselines_fault_and_said_once(recorded: Run) -> None:
    result = recorded("--kv-method=snapkv", "--kv-modes=single", "--kv-n=9")
    result.assert_outcomes(failed=1)
    text = result.stdout.str()
    result.stdout.fnmatch_lines(["kv/v1/single/len=512/seed=0/n=9  snapkv", "*holds 8 contexts; this run has 9*"])
    result.stdout.fnmatch_lines(["*take --kv-n=8, or record it again: *--kv-method=fp16 --kv-record=changed*--kv-n=9*"])
    failure, _, summary = text.partition("failed without a verdict")
    assert failure.count("--kv-n=9") == summary.count("--kv-n=9") == 1
    assert "During handling" not in text
    assert "snapkv failed in" not in text


def test_the_command_that_records_names_the_cases_that_it_is_about(run: Run) -> None:
    result = run("--kv-method=snapkv", "--kv-lengths=700", "--kv-profile=full")
    (line,) = {line.strip() for line in result.outlines if "record it: pytest" in line}
    for word in ("--kv-method=fp16", "--kv-record=new", "--kv-profile=full", "--kv-lengths=700", "--kv-n=8"):
        assert word in line


def test_a_folder_of_baselines_that_is_not_there_is_refused(run: Run) -> None:
    result = run("--kv-method=snapkv", "--kv-baselines=typo")
    assert result.ret == 4
    result.stderr.fnmatch_lines(["*there is no folder typo*", "*check the spelling, or add --kv-record=new*"])


def test_a_method_that_exits_is_a_failure_with_its_reason(recorded: Run, behave: Behave) -> None:
    behave({"snapkv": "exit"})
    result = recorded("--kv-method=snapkv", "--kv-modes=single")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*1 case: 1 error*", "*SystemExit*"])


def test_a_baseline_with_too_few_contexts_is_noticed_before_measuring(recorded: Run, repo: Any) -> None:
    recorded("--kv-method=snapkv", "--kv-n=9").assert_outcomes(failed=3)
    assert not (repo.path / "ran.txt").exists()


def test_the_suggested_command_makes_a_record_that_is_large_enough(recorded: Run) -> None:
    recorded("--kv-method=fp16", "--kv-record=changed", "--kv-n=9").assert_outcomes(passed=3)
    recorded("--kv-method=snapkv", "--kv-n=9").assert_outcomes(passed=3)


def test_fp16_of_the_session_stands_in_for_a_record_that_is_too_small(recorded: Run) -> None:
    result = recorded("--kv-method=fp16", "--kv-method=snapkv", "--kv-modes=single", "--kv-n=9")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*record of fp16*holds 8 contexts*"])


def test_a_command_in_a_message_names_what_the_session_was_given(recorded: Run, behave: Behave) -> None:
    behave({"snapkv": 0.0})
    result = recorded("--kv-method=snapkv", "--kv-modes=single", "--kv-model=some/model", "--kv-seed=0")
    suite = "--pyargs kvcheck.suites.test_string_retrieval"
    start = f"pytest {suite} --kv-model=some/model --kv-seed=0 --kv-baselines=stored --kv-method=snapkv"
    result.stdout.fnmatch_lines([f"*look: {start} --kv-tasks=kv*", f"*accept*: {start} --kv-budget=drop=100*"])


def test_identical_answers_have_no_interval(recorded: Run) -> None:
    result = recorded("--kv-method=snapkv", "--kv-modes=single")
    result.stdout.fnmatch_lines(["*1.000 -> 1.000*0.0*identical*1 pass*", "*its answers are identical*"])


def test_a_changed_fp16_is_not_said_to_repeat_its_record(recorded: Run, behave: Behave) -> None:
    behave({"fp16": 0.5})
    text = recorded("--kv-method=fp16", "--kv-modes=single").stdout.str()
    assert "repeats its record exactly" not in text
    assert "its answers differ from its record" in text
    assert "1.000 -> 0.500" in text


def test_an_fp16_recorded_anew_is_what_the_other_methods_are_judged_by(recorded: Run, behave: Behave) -> None:
    behave({"fp16": 0.5, "snapkv": 0.5})
    both = ("--kv-method=fp16", "--kv-method=snapkv", "--kv-modes=single", "--kv-budget=drop=60")
    result = recorded(*both, "--kv-record=changed")
    result.assert_outcomes(passed=2)
    assert "inconclusive" not in result.stdout.str()
    recorded(*both).assert_outcomes(passed=2)


def test_fp16_of_the_same_session_stands_in_for_a_stored_one(run: Run) -> None:
    result = run("--kv-method=fp16", "--kv-method=snapkv", "--kv-modes=single")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*FAILED*fp16*"])


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("raise", "*snapkv raised in kv/v1/single*IndexError: no slot*"),
        ("bug", "*ZeroDivisionError: deep inside*"),
        ("nan", "*not finite*"),
        ("nothing", "*no samples*"),
        ("hang", "*ran longer than 1 s in kv/v1/single*"),
    ],
)
def test_a_method_that_breaks_fails_by_its_name_and_the_rest_runs(
    recorded: Run, behave: Behave, how: str, message: str
) -> None:
    behave({"snapkv": how})
    limit = ("--kv-timeout=1",) if how == "hang" else ()
    result = recorded("--kv-method=snapkv", "--kv-method=h2o", "--kv-modes=single", *limit)
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*snapkv*kv/v1/single/len=512*", "*failed without a verdict*"])
    result.stdout.fnmatch_lines([message])
    assert "kvcheck/plugin" not in result.stdout.str()


def test_a_clear_failure_ends_a_case_early(recorded: Run, behave: Behave, repo: pytest.Pytester) -> None:
    recorded("--kv-method=fp16", "--kv-record=new", "--kv-n=64", "--kv-modes=single")
    recorded("--kv-method=fp16", "--kv-record=all", "--kv-n=64", "--kv-modes=single")
    behave({"snapkv": 0.0})
    result = recorded("--kv-method=snapkv", "--kv-n=64", "--kv-modes=single")
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(["*stopped after * of 64 contexts*"])


def test_last_failed_and_exit_first_mean_what_people_expect(recorded: Run, behave: Behave) -> None:
    behave({"snapkv": 0.0})
    result = recorded("--kv-method=h2o", "--kv-method=snapkv", "--kv-modes=single", "-x")
    result.assert_outcomes(passed=1, failed=2)
    again = recorded("--kv-method=h2o", "--kv-method=snapkv", "--kv-modes=single", "--lf")
    again.assert_outcomes(failed=2)


def test_a_failure_that_is_expected_is_a_failure_all_the_same(recorded: Run, behave: Behave, repo: Any) -> None:
    behave({"snapkv": 0.0})
    repo.makepyfile(
        """
        import pytest

        @pytest.mark.xfail(reason="known to lose")
        @pytest.mark.kv_capability("string_retrieval")
        def test_mine(kv_case):
            kv_case.check(kv_case.run())
        """
    )
    small = ("--kv-tasks=kv", "--kv-lengths=512", "--kv-n=8", "--kv-modes=single", "--kv-baselines=stored")
    result = repo.runpytest(*small, "--kv-method=snapkv")
    result.assert_outcomes(xfailed=1, failed=2)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*snapkv on fake: 1 case: 1 fail*"])


def test_a_method_is_held_to_the_record_of_another_that_is_named(recorded: Run, behave: Behave) -> None:
    recorded("--kv-method=snapkv", "--kv-record=new").assert_outcomes(passed=3)
    behave({"tova": 0.0})
    result = recorded("--kv-method=tova", "--kv-against=snapkv")
    assert result.ret == 1
    result.stdout.fnmatch_lines(["fail: tova on fake: *the record of snapkv*"])
    behave({"tova": 1.0})
    assert recorded("--kv-method=tova", "--kv-against=snapkv").ret == 0


def test_a_record_of_another_method_that_is_not_there_is_asked_for(recorded: Run) -> None:
    result = recorded("--kv-method=tova", "--kv-against=snapkv")
    assert result.ret != 0
    assert "no record of snapkv for" in result.stdout.str()
    assert "--kv-method=snapkv --kv-record=new" in result.stdout.str()
