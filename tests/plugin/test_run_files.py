"""The run file, the summaries and JUnit XML are the same however the tests are distributed, and nothing is lost."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any
from xml.etree import ElementTree

import pytest

from kvcheck.store.run_file import read_run

Run = Callable[..., pytest.RunResult]
Behave = Callable[[dict[str, Any]], None]


def summary(result: pytest.RunResult) -> list[str]:
    """The lines between kvcheck's headline and pytest's."""
    lines = result.outlines
    start = next(at for at, line in enumerate(lines) if line.strip("=").strip() == "kvcheck")
    end = next(at for at, line in enumerate(lines) if at > start and line.startswith("==="))
    return lines[start:end]


def test_the_run_file_and_the_summary_do_not_depend_on_the_distribution(
    recorded: Run, repo: pytest.Pytester, behave: Behave, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    behave({"snapkv": {"kv": 0.5, "multi_hop": 1.0}})
    seen = []
    for name, dist in (("one", ()), ("two", ("-n", "2"))):
        options = ("--kv-method=snapkv", "--kv-method=fp16", f"--kv-json={name}.json", "--kv-tasks=kv,multi_hop", *dist)
        result = recorded(*options)
        seen.append(((repo.path / f"{name}.json").read_text("utf-8"), summary(result)))
    assert seen[0] == seen[1]


def test_a_run_file_says_what_is_needed_to_judge_it_later(recorded: Run, repo: pytest.Pytester) -> None:
    recorded("--kv-method=snapkv", "--kv-json=out/run.json")
    run = read_run(repo.path / "out" / "run.json")
    assert [record.method for record in run.cases] == ["snapkv"] * 3
    assert len(run.cases[0].samples) == 8
    assert (run.header.model, run.header.model_name) == ("fake0000fake0000", "fake")
    assert {"pytest", "torch"} <= set(run.header.packages)
    assert run.header.settings["query_aware"] == "mode"
    assert datetime.fromisoformat(run.header.time).utcoffset() == timedelta(0)
    assert {verdict.question for verdict in run.verdicts[f"{run.cases[0].case}|snapkv"]} == {"budget"}


def test_reports_name_a_model_and_not_the_folder_that_it_lies_in_here(run: Run, repo: pytest.Pytester) -> None:
    conftest = repo.path / "conftest.py"
    conftest.write_text(conftest.read_text().replace('model_name = "fake"', 'model_name = "/home/me/models/tiny"'))
    result = run("--kv-method=fp16", "--kv-json=run.json")
    result.stdout.fnmatch_lines(["*fp16 on tiny-fake0000: *"])
    assert "/home/me" not in (repo.path / "run.json").read_text("utf-8")


def test_a_worker_that_dies_loses_nothing_that_finished(recorded: Run, behave: Behave, repo: pytest.Pytester) -> None:
    behave({"snapkv": {"multi_hop": "die"}})
    options = ("--kv-tasks=kv,multi_hop", "--kv-modes=single", "--kv-lengths=512", "--kv-n=8")
    result = recorded("--kv-method=fp16", "--kv-method=snapkv", *options, "-n", "2", "--kv-json=run.json", small=False)
    assert result.ret != 0
    names = {f"{one.case.task}|{one.method}" for one in read_run(repo.path / "run.json").cases}
    assert {"kv|fp16", "kv|snapkv", "multi_hop|fp16"} <= names
    result.stdout.fnmatch_lines(
        ["*crashed*", "*snapkv on fake: 2 cases: 1 pass, 1 error*", "*multi_hop/v1/single/len=512/seed=0/n=8  snapkv*"]
    )


def test_a_case_without_a_result_is_not_called_passed(recorded: Run, behave: Behave, repo: pytest.Pytester) -> None:
    behave({"snapkv": "die"})
    recorded("--kv-method=snapkv", "--kv-modes=single", "-n", "1", "--max-worker-restart=0", "--kv-md=mine.md")
    assert (repo.path / "mine.md").read_text("utf-8").startswith("## kvcheck: failed")


def test_a_page_says_how_the_run_went(recorded: Run, repo: pytest.Pytester) -> None:
    recorded("--kv-method=snapkv", "--kv-modes=single", "--kv-html=page.html")
    page = (repo.path / "page.html").read_text("utf-8")
    assert "<code>snapkv</code>" in page
    assert "answers identical to those of fp16 so far" in page, "as the terminal says"


def test_a_file_that_is_no_page_is_not_overwritten(run: Run, repo: pytest.Pytester) -> None:
    (repo.path / "mine.html").write_text("<!DOCTYPE html><title>mine</title>")
    result = run("--kv-method=fp16", "--kv-html=mine.html")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert (repo.path / "mine.html").read_text() == "<!DOCTYPE html><title>mine</title>"


def test_an_interrupted_run_is_kept_and_can_be_resumed(recorded: Run, behave: Behave, repo: pytest.Pytester) -> None:
    behave({"h2o": "interrupt"})
    options = ("--kv-method=snapkv", "--kv-method=h2o", "--kv-modes=single")
    stopped = repo.runpytest_subprocess(
        "--pyargs", "kvcheck.suites.test_string_retrieval", "--kv-baselines=stored", "--kv-tasks=kv",
        "--kv-lengths=512", "--kv-n=8", "--kv-json=run.json", *options,
    )  # fmt: skip
    assert stopped.ret == pytest.ExitCode.INTERRUPTED
    stopped.stdout.fnmatch_lines(["*interrupted: 1 case kept in run.json; continue with --kv-resume=run.json*"])
    behave({})
    (repo.path / "ran.txt").unlink()
    result = recorded(*options, "--kv-resume=run.json", "--kv-json=run.json")
    result.assert_outcomes(passed=2)
    assert (repo.path / "ran.txt").read_text().splitlines() == ["kv/v1/single/len=512/seed=0/n=8|h2o"]
    assert len(read_run(repo.path / "run.json").cases) == 2
    result.stdout.fnmatch_lines(["*1 case taken from run.json*"])


def test_the_last_run_can_be_resumed_without_a_file_of_ones_own(recorded: Run, repo: pytest.Pytester) -> None:
    recorded("--kv-method=snapkv", "--kv-modes=single")
    (repo.path / "ran.txt").unlink()
    recorded("--kv-method=snapkv", "--kv-modes=single", "--kv-resume=last").assert_outcomes(passed=1)
    assert not (repo.path / "ran.txt").exists()


def test_a_run_of_other_settings_or_a_damaged_one_is_not_resumed(recorded: Run, repo: pytest.Pytester) -> None:
    recorded("--kv-method=snapkv", "--kv-modes=single", "--kv-json=run.json")
    other = recorded("--kv-method=snapkv", "--kv-resume=run.json", "--kv-query-aware=no")
    assert other.ret == pytest.ExitCode.USAGE_ERROR
    other.stderr.fnmatch_lines(["*query_aware=mode*query_aware=no*"])
    (repo.path / "run.json").write_text((repo.path / "run.json").read_text()[:100])
    damaged = recorded("--kv-method=snapkv", "--kv-resume=run.json")
    assert damaged.ret == pytest.ExitCode.USAGE_ERROR
    damaged.stderr.fnmatch_lines(["*run.json is not a whole run file*"])


@pytest.mark.parametrize("value", ["1e999", "[" * 50_000 + "]" * 50_000, "9" * 400], ids=["1e999", "deep", "long"])
def test_a_run_with_a_value_that_no_run_writes_is_a_named_refusal(
    recorded: Run, repo: pytest.Pytester, value: str
) -> None:
    recorded("--kv-method=snapkv", "--kv-modes=single", "--kv-json=run.json")
    text = (repo.path / "run.json").read_text("utf-8")
    (repo.path / "run.json").write_text(text.replace('"nll":', f'"nll":{value},"was":', 1), "utf-8")
    result = recorded("--kv-method=snapkv", "--kv-resume=run.json")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*run.json is not a whole run file*"])
    assert "INTERNALERROR" not in str(result.stdout) + str(result.stderr)


def test_a_run_of_another_commit_is_not_resumed(recorded: Run, repo: pytest.Pytester) -> None:
    recorded("--kv-method=snapkv", "--kv-modes=single", "--kv-json=run.json")
    git = ("git", "-C", str(repo.path), "-c", "user.name=t", "-c", "user.email=t@example.org")
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "another method"], check=True)
    result = recorded("--kv-method=snapkv", "--kv-resume=run.json")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*was measured with commit=, this session has commit=*"])


def test_a_run_with_other_prompts_is_not_resumed(recorded: Run) -> None:
    recorded("--kv-method=snapkv", "--kv-modes=single", "--kv-json=run.json")
    result = recorded("--kv-method=snapkv", "--kv-resume=run.json", "--kv-history=gold")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*was measured with history=as usual, this session has history=gold*"])


def test_markdown_goes_to_its_file_and_is_appended_to_the_job_summary(
    recorded: Run, repo: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = repo.path / "summary.md"
    job.write_text("earlier step\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(job))
    recorded("--kv-method=snapkv", "--kv-budget=drop=40", "--kv-md=mine.md")
    mine = (repo.path / "mine.md").read_text("utf-8")
    assert mine.startswith("## kvcheck: passed")
    assert "### `snapkv`: 3 cases: 3 pass" in mine
    assert job.read_text("utf-8") == "earlier step\n" + mine


def test_junit_xml_carries_the_numbers(recorded: Run, repo: pytest.Pytester, behave: Behave) -> None:
    behave({"snapkv": 0.0})
    recorded("--kv-method=snapkv", "--kv-modes=single", "--junitxml=junit.xml")
    case = ElementTree.parse(repo.path / "junit.xml").getroot().find(".//testcase")
    assert case is not None
    found = {one.get("name"): one.get("value") for one in case.iter("property")}
    assert found["kvcheck_accuracy"] == "0.0000"
    assert found["kvcheck_fp16_accuracy"] == "1.0000"
    assert found["kvcheck_drop"] == "100.00"
    assert found["kvcheck_kv_ratio"] == "0.5000"
    assert found["kvcheck_verdict_budget"] == "fail"
    failure = case.find("failure")
    assert failure is not None
    assert "accuracy drop against fp16" in (failure.text or "")


def test_hooks_of_third_parties_are_called(recorded: Run, repo: pytest.Pytester, dist: tuple[str, ...]) -> None:
    conftest = repo.path / "conftest.py"
    conftest.write_text(
        conftest.read_text()
        + """
import json
from kvcheck.core.record import Verdict

def pytest_kvcheck_record(config, record, verdicts, failure):
    assert not hasattr(config, "workerinput")
    with open("tracked.txt", "a") as file:
        file.write(f"{record.method} {record.accuracy} {len(verdicts)} {bool(failure)}\\n")

def pytest_kvcheck_machine_info(machine):
    return {"partition": "gpu-a" if machine["python"] else ""}

def pytest_kvcheck_judge(record, fp16, own, budget, alpha, against):
    if record.case.mode == "single":
        return (Verdict("budget", "fail", 9.0, 8.0, 10.0, budget.drop, 8, reason="mine says no"),)
"""
    )
    result = recorded("--kv-method=snapkv", "--kv-json=run.json", *dist)
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["*mine says no*"])
    assert sorted((repo.path / "tracked.txt").read_text().splitlines()) == ["snapkv 1.0 1 False"] * 2 + [
        "snapkv 1.0 1 True"
    ]
    assert json.loads((repo.path / "run.json").read_text())["header"]["machine"]["partition"] == "gpu-a"


OWN = "SIZE = 1\n\ndef make(model, budget=0.5, window=3): ...\n"
MINE = ("--kv-method=mine.make", "--kv-modes=single", "--kv-json=run.json")


def _git(repo: pytest.Pytester, *words: str) -> None:
    who = ("-c", "user.name=t", "-c", "user.email=t@example.org")
    subprocess.run(["git", "-C", str(repo.path), *who, *words], check=True)


def _measured(repo: pytest.Pytester) -> list[str]:
    path = repo.path / "ran.txt"
    lines = path.read_text().splitlines() if path.exists() else []
    path.unlink(missing_ok=True)
    return [line.rpartition("|")[2] for line in lines]


@pytest.mark.parametrize("kept_by", ["a repository", "nothing"])
def test_a_method_edited_without_a_commit_is_measured_anew(recorded: Run, repo: pytest.Pytester, kept_by: str) -> None:
    repo.makepyfile(mine=OWN)
    if kept_by == "a repository":
        _git(repo, "init", "-q")
        _git(repo, "add", "-A")
        _git(repo, "commit", "-qm", "one")
    recorded(*MINE)
    assert _measured(repo) == ["mine.make"]
    recorded(*MINE, "--kv-resume=run.json")
    assert _measured(repo) == []
    (repo.path / "mine.py").write_text(OWN.replace("SIZE = 1", "SIZE = 2"))
    result = recorded(*MINE, "--kv-resume=run.json")
    assert _measured(repo) == ["mine.make"]
    result.stdout.fnmatch_lines(["*mine.make is measured anew: its code has changed since run.json*"])


def test_a_method_whose_code_an_earlier_run_does_not_name_is_measured_anew(
    recorded: Run, repo: pytest.Pytester
) -> None:
    repo.makepyfile(mine=OWN)
    recorded(*MINE)
    run = json.loads((repo.path / "run.json").read_text())
    del run["header"]["sources"]["mine.make"]
    (repo.path / "run.json").write_text(json.dumps(run))
    _measured(repo)
    recorded(*MINE, "--kv-resume=run.json")
    assert _measured(repo) == ["mine.make"]


def test_a_run_of_an_engine_that_was_edited_since_is_not_resumed(recorded: Run, repo: pytest.Pytester) -> None:
    recorded("--kv-method=snapkv", "--kv-modes=single", "--kv-json=run.json")
    with (repo.path / "conftest.py").open("a") as file:
        file.write("\n# edited\n")
    result = recorded("--kv-method=snapkv", "--kv-modes=single", "--kv-resume=run.json")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*was measured with the code of plugins and tasks=*"])


def test_a_run_that_names_a_method_with_its_default_is_resumed(recorded: Run, repo: pytest.Pytester) -> None:
    recorded("--kv-method=snapkv", "--kv-modes=single", "--kv-json=run.json")
    text = (repo.path / "run.json").read_text("utf-8")
    (repo.path / "run.json").write_text(text.replace("snapkv", "snapkv:budget=0.5"), "utf-8")
    _measured(repo)
    options = ("--kv-modes=single", "--kv-resume=run.json", "--kv-json=run.json")
    recorded("--kv-method=snapkv: window=32, budget=0.50", *options).assert_outcomes(passed=1)
    assert _measured(repo) == []
    assert [one.method for one in read_run(repo.path / "run.json").cases] == ["snapkv"]


def test_what_a_run_file_names_is_not_imported_to_read_it(recorded: Run, repo: pytest.Pytester) -> None:
    repo.makepyfile(other="open('imported.txt', 'w')\n\ndef make(model, size=1): ...\n")
    recorded("--kv-method=snapkv", "--kv-modes=single", "--kv-json=run.json")
    text = (repo.path / "run.json").read_text("utf-8")
    (repo.path / "run.json").write_text(text.replace("snapkv", "other.make:size=1"), "utf-8")
    recorded("--kv-method=snapkv", "--kv-modes=single", "--kv-resume=run.json")
    assert not (repo.path / "imported.txt").exists()


def test_defaults_spelled_out_are_judged_by_the_record_of_the_method(recorded: Run, repo: pytest.Pytester) -> None:
    recorded("--kv-method=snapkv", "--kv-modes=single", "--kv-record=new")
    both = ("--kv-method=snapkv:budget=0.5", "--kv-method=snapkv", "--kv-method=snapkv: budget = 0.50")
    _measured(repo)
    recorded(*both, "--kv-modes=single", "--kv-json=run.json").assert_outcomes(passed=1)
    assert _measured(repo) == ["snapkv"]
    verdicts = read_run(repo.path / "run.json").verdicts["kv/v1/single/len=512/seed=0/n=8|snapkv"]
    assert [one.outcome for one in verdicts if one.question == "regression"] == ["pass"]
