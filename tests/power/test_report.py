"""The command: what it prints and writes, and what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from kvcheck import power
from kvcheck.cli.commands import main
from kvcheck.core.errors import MissingBaseline, SpecError
from kvcheck.power import Plan, report
from kvcheck.power.runs import Simulation
from kvcheck.power.tables import Table

TABLE = Table("Title", "How.", ("what", "n"), "<>", (("a|b", "3"),), ("said",), ("it breaks",), ({"n": 3},))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command with one method and three cases, and two quick sections."""
    plain = power.load

    def load(uri: str | None = None, model: str = "mini") -> power.Recorded:
        whole = plain(uri, model)
        return replace(whole, cases=whole.cases[-3:], methods=("fp16", "kivi"))

    def measure(recorded: power.Recorded, plan: Plan, say: report.Say) -> list[Table]:
        from kvcheck.power import sections

        return [
            section(Simulation(recorded, plan, lambda done, total: say(f"{done} of {total}", done == total)))
            for section in (sections.against_itself, sections.intervals)
        ]

    monkeypatch.setattr(power, "load", load)
    monkeypatch.setattr(power, "measure", measure)


@pytest.mark.usefixtures("small")
def test_the_command_prints_and_writes_its_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page, figures = tmp_path / "power.md", tmp_path / "power.json"
    code = main(["power", "--runs", "20", "--jobs", "1", "--md", str(page), "--json", str(figures)])
    assert code == 0
    assert "another machine" in capsys.readouterr().out
    assert "kvcheck power --runs 20 --seed 0" in page.read_text("utf-8")
    read = json.loads(figures.read_text("utf-8"))
    assert (read["runs"], read["tables"][0]["rows"][1]["most"]) == (20, 0.01)


def test_a_missed_figure_is_said_and_ends_with_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(power, "measure", lambda *arguments: [TABLE])
    assert main(["power", "--runs", "20"]) == 1
    out = capsys.readouterr().out
    assert "MISSED: it breaks" in out
    assert "1 figure surely missed" in out


def test_markdown_escapes_what_would_break_a_table() -> None:
    lines = list(TABLE.markdown())
    assert "| a&#124;b | 3 |" in lines
    assert "- **Missed:** it breaks" in lines


@pytest.mark.parametrize("bad", [{"runs": 3}, {"seed": -1}, {"jobs": 0}])
def test_a_plan_that_makes_no_sense_names_the_command(bad: dict[str, int]) -> None:
    with pytest.raises(SpecError, match="kvcheck power --"):
        Plan(**bad)


def test_a_model_without_baselines_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["power", "--model", "mimi"]) == 2
    assert "did you mean mini" in capsys.readouterr().err


def test_without_fp16_the_command_to_record_is_named(tmp_path: Path) -> None:
    from kvcheck.power import recorded
    from kvcheck.store.baselines import FileStore

    with pytest.raises(MissingBaseline, match="--kv-record=new"):
        recorded._model(FileStore(tmp_path), "mini")
