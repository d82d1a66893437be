"""The command line lists, compares and reports; it works on files and says what is wrong with them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from kvcheck.cli.commands import main
from kvcheck.core import paths
from kvcheck.core.record import (
    CaseId,
    CaseRecord,
    LatencyRecord,
    MemoryRecord,
    Run,
    RunHeader,
    SampleRecord,
    TurnRecord,
)
from kvcheck.store import baselines
from kvcheck.store.baselines import FileStore, ModelId
from kvcheck.store.run_file import write_run
from kvcheck.tasks import TASKS

DATA = str(paths.bundle("fixtures") / "data" / "benchmarks")


def record(method: str, scores: list[float]) -> CaseRecord:
    """A case with these scores."""
    case = CaseId("kv", 1, "single", 512, 0, len(scores))
    samples = tuple(SampleRecord(at, f"{at:012x}", (TurnRecord(score, "answer"),)) for at, score in enumerate(scores))
    memory = MemoryRecord(500, 1000, 0, 256, 512, 4, 4)
    return CaseRecord(case, method, "abc", "string_retrieval", True, True, 0.0, samples, memory)


def own_code(folder: Path) -> str:
    """The embedded model under a name that only code beside it knows."""
    shutil.copytree(paths.bundle("fixtures") / "mini", folder)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config |= {"model_type": "own_kind", "auto_map": {"AutoConfig": "own_kind.OwnConfig"}}
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    code = "from transformers import LlamaConfig\n\nclass OwnConfig(LlamaConfig):\n    model_type = 'own_kind'\n"
    (folder / "own_kind.py").write_text(code, "utf-8")
    return str(folder)


def run_file(path: Path, *records: CaseRecord) -> Path:
    """A run of these records."""
    header = RunHeader("0.1.0", "", False, {"torch": "2.13"}, {"cpu": "x"}, "abc", "mini", {"profile": "quick"})
    write_run(path, Run(header, records))
    return path


def test_methods_are_listed_with_their_parameters(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods"]) == 0
    listed = capsys.readouterr().out
    assert "snapkv" in listed
    assert "budget=0.5,window=32" in listed
    assert all(len(line) <= 100 for line in listed.splitlines())


def test_tasks_are_listed_by_capability(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tasks"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in TASKS.names())
    assert text.index("string_retrieval") < text.index("long_generation")
    assert all(len(line) <= 100 for line in text.splitlines())


def test_compare_finds_a_regression(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = run_file(tmp_path / "good.json", record("snapkv", [1.0] * 16))
    bad = run_file(tmp_path / "bad.json", record("snapkv", [0.0] * 16))
    assert main(["compare", str(good), str(good), "--fail-on-regression"]) == 0
    assert main(["compare", str(good), str(bad)]) == 0
    assert main(["compare", str(good), str(bad), "--fail-on-regression"]) == 1
    text = capsys.readouterr().out
    assert "1.000 -> 0.000" in text
    assert "fail: snapkv on mini: accuracy drop against the first run 100.0 points" in text


def test_compare_fails_on_a_halved_cache_with_the_same_answers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = record("snapkv", [1.0] * 16)
    assert whole.memory is not None
    half = replace(whole, memory=replace(whole.memory, kv_bytes=250, kept=128))
    files = [str(run_file(tmp_path / f"{at}.json", one)) for at, one in enumerate((whole, half))]
    assert main(["compare", *files, "--fail-on-regression"]) == 1
    assert "250 bytes, 128 slots now; 500, 256 recorded" in capsys.readouterr().out


def test_compare_of_two_methods_takes_a_budget(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = run_file(tmp_path / "good.json", record("snapkv", [1.0] * 64))
    other = run_file(tmp_path / "other.json", record("kivi", [0.0] * 16 + [1.0] * 48))
    files = [str(good), str(other), "--fail-on-regression"]
    assert main(["compare", *files]) == 1
    text = " ".join(capsys.readouterr().out.split())
    assert "question: does kivi lose more than its budget against snapkv?" in text
    assert "accuracy drop against snapkv 25.0 points" in text
    assert "allowed 2 (default budget)" in text
    assert main(["compare", *files, "--budget", "drop=60"]) == 0
    assert "allowed 60 (your --budget)" in " ".join(capsys.readouterr().out.split())


def test_compare_fails_on_what_is_inconclusive_where_it_is_told_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = run_file(tmp_path / "good.json", record("snapkv", [1.0] * 16))
    doubtful = run_file(tmp_path / "doubtful.json", record("snapkv", [0.0] + [1.0] * 15))
    assert main(["compare", str(good), str(doubtful), "--fail-on-regression"]) == 0
    assert "inconclusive: snapkv on mini" in capsys.readouterr().out
    assert main(["compare", str(good), str(doubtful), "--strict"]) == 1
    assert "inconclusive" in capsys.readouterr().err


def test_compare_refuses_a_limit_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = str(run_file(tmp_path / "one.json", record("snapkv", [1.0] * 16)))
    assert main(["compare", one, one, "--budget", "bites=1"]) == 2
    assert "unknown budget 'bites'" in capsys.readouterr().err


def test_compare_fails_on_a_case_that_has_gone(tmp_path: Path) -> None:
    first = record("snapkv", [1.0] * 16)
    other = replace(first, case=replace(first.case, length=1024))
    both = run_file(tmp_path / "both.json", first, other)
    one = run_file(tmp_path / "one.json", first)
    assert main(["compare", str(both), str(one), "--fail-on-regression"]) == 1


@pytest.mark.parametrize("command", [["report"], ["compare", "none.json"]])
def test_a_file_that_cannot_be_read_is_named(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.json"
    broken.write_text('{"header": {"sche')
    assert main([*command, str(broken)]) == 2
    assert ".json" in capsys.readouterr().err


def test_report_prints_the_summary_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = run_file(tmp_path / "run.json", record("fp16", [1.0] * 8), record("snapkv", [1.0] * 4 + [0.0] * 4))
    assert main(["report", str(path)]) == 0
    assert "1.000 -> 0.500" in capsys.readouterr().out
    assert main(["report", str(path), "--md"]) == 0
    assert capsys.readouterr().out.startswith("## kvcheck")


@pytest.fixture
def nothing_shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Verifying all that ships takes 20 seconds."""
    monkeypatch.setattr(baselines, "bundle", lambda name: tmp_path / "shipped")


@pytest.mark.usefixtures("nothing_shipped")
def test_baselines_are_listed_and_a_damaged_one_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = FileStore(tmp_path)
    store.record(
        ModelId("theirs", "abc"), "fp16", [record("fp16", [1.0] * 4)], "new", {"kvcheck": "0.1.0", "packages": {}}
    )
    place = ["--baselines", str(tmp_path)]
    assert main(["baselines", "list", *place]) == 0
    assert "fp16.txt" in capsys.readouterr().out
    assert main(["baselines", "verify", *place]) == 0
    path = next(tmp_path.rglob("*.txt"))
    path.write_text(path.read_text().replace("1111", "0000") + "x")
    assert main(["baselines", "verify", *place]) == 1
    assert "fp16.txt" in capsys.readouterr().err


@pytest.mark.usefixtures("nothing_shipped")
@pytest.mark.parametrize("place", ["nowhere", "memory://nowhere"])
def test_a_named_place_without_baselines_does_not_verify(place: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["baselines", "verify", "--baselines", place]) == 1
    assert f"{place}: there are no baselines" in capsys.readouterr().err


def test_an_unknown_command_is_a_usage_error() -> None:
    with pytest.raises(SystemExit) as error:
        main(["compair"])
    assert error.value.code == 2


def test_latency_is_not_compared_between_sessions_and_is_no_regression(tmp_path: Path) -> None:
    seconds = LatencyRecord("ttft", 512, 0.1, 0.1, 1.0, 0.9, 1.1, 9)
    case = CaseId("latency", 1, "single", 512, 0, 1)
    latency = CaseRecord(case, "snapkv", "abc", "latency", True, False, 0.0, (), None, (seconds,), "measured")
    path = run_file(tmp_path / "run.json", record("snapkv", [1.0] * 16), latency)
    assert main(["compare", str(path), str(path), "--fail-on-regression"]) == 0


def test_a_shipped_baseline_is_listed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shipped = FileStore(tmp_path / "shipped")
    shipped.record(ModelId("theirs", "abc"), "fp16", [record("fp16", [1.0] * 4)], "new", {})
    monkeypatch.setattr(baselines, "bundle", lambda name: tmp_path / "shipped")
    monkeypatch.setattr(paths, "bundle", lambda name: tmp_path / "shipped")
    monkeypatch.chdir(tmp_path)
    assert main(["baselines", "list"]) == 0
    assert capsys.readouterr().out.count("fp16.txt") == 1


class TestPrompt:
    """`kvcheck prompt` shows what a model is shown."""

    def test_the_context_and_every_turn_are_shown_as_they_are_fed(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["prompt", "kv", "--length", "200", "--mode", "multi_turn"]) == 0
        text = capsys.readouterr().out
        assert text.startswith("--- context, 201 tokens\n<s>")
        assert text.count("--- turn ") == text.count("--- answer ") == 4
        assert "graded by substring against ['" in text

    def test_a_single_question_is_shown_alone(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["prompt", "kv", "--length", "200", "--index", "3"]) == 0
        assert capsys.readouterr().out.count("--- turn ") == 1

    def test_gold_answers_stand_before_the_next_question(self, capsys: pytest.CaptureFixture[str]) -> None:
        arguments = ["prompt", "kv", "--length", "200", "--mode", "multi_turn"]
        main(arguments)
        answer = capsys.readouterr().out.split("--- answer 1")[1].splitlines()[1]
        main([*arguments, "--history", "gold"])
        second = capsys.readouterr().out.split("--- turn 2")[1].split("--- answer 2")[0]
        assert answer in second

    def test_a_mode_that_the_task_lacks_is_refused(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["prompt", "needle", "--mode", "multi_turn"]) == 2
        assert "has no mode multi_turn" in capsys.readouterr().err

    @pytest.mark.parametrize("option", ["--index=-1", "--length=0"])
    def test_a_number_below_the_least_is_refused(self, capsys: pytest.CaptureFixture[str], option: str) -> None:
        assert main(["prompt", "kv", option]) == 2
        assert "--index is a number from 0 up, --length from 1 up" in capsys.readouterr().err

    def test_a_prompt_that_the_model_has_no_room_for_is_shown_and_said(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["prompt", "kv", "--length", "5115"]) == 2
        shown = capsys.readouterr()
        assert shown.out.startswith("--- context, 5116 tokens")
        assert "the model has room for 5120" in shown.err
        assert main(["prompt", "kv", "--length", "5115", "--rope", "yarn:factor=2"]) == 0

    @pytest.mark.parametrize(
        ("arguments", "hint"),
        [
            (["kv", "--length", "5"], "ask for a longer --length"),
            (["kv", "--length", "9000"], "at most, or a --model with a longer context"),
            (["longbench/qasper"], "kvcheck prompt longbench/qasper --data=hub"),
            (["longbench/qasper", "--data", DATA, "--length", "4000", "--index", "2"], "--index 1 at most"),
            (["kv", "--trust-remote-code", "a/b"], "--model=mini --trust-remote-code=mini"),
        ],
    )
    def test_an_error_names_the_options_of_the_command(
        self, capsys: pytest.CaptureFixture[str], arguments: list[str], hint: str
    ) -> None:
        assert main(["prompt", *arguments]) == 2
        said = capsys.readouterr().err
        assert hint in said
        assert "--kv-" not in said

    def test_the_code_of_a_model_runs_where_it_is_trusted(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        folder = own_code(tmp_path / "own")
        assert main(["prompt", "kv", "--length", "200", "--model", folder]) == 2
        assert f"--trust-remote-code={folder}" in capsys.readouterr().err
        assert main(["prompt", "kv", "--length", "200", "--model", folder, "--trust-remote-code", folder]) == 0

    def test_a_missing_chat_template_is_said(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["prompt", "kv", "--chat", "yes"]) == 2
        assert "no chat template" in capsys.readouterr().err
