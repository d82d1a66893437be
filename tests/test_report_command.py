"""`kvcheck report`: a page, a table for pandas, and what it says where it cannot."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from building import fp16, record, run

from kvcheck.cli import main
from kvcheck.core.record import Run
from kvcheck.store.run_file import write_run


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of two methods."""
    monkeypatch.chdir(tmp_path)
    write_run("run.json", two())
    return tmp_path


def two() -> Run:
    return run(fp16(), record([1.0] * 16), record([1.0] * 8 + [0.0] * 8, "h2o"))


def test_a_page_is_written_and_its_size_said(kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "run.json", "--html", "page.html"]) == 0
    assert "page.html: one page" in capsys.readouterr().out
    assert "h2o" in (kept / "page.html").read_text("utf-8")


def test_two_runs_are_compared_on_the_page(kept: Path) -> None:
    write_run("later.json", run(fp16(), record([0.0] * 16)))
    assert main(["report", "run.json", "later.json", "--html", "page.html"]) == 0
    assert "is snapkv worse than before?" in (kept / "page.html").read_text("utf-8")


def test_csv_has_a_row_per_method_and_capability(kept: Path) -> None:
    assert main(["report", "run.json", "--csv", "all.csv"]) == 0
    with open(kept / "all.csv", encoding="utf-8", newline="") as file:
        rows = {(row["method"], row["capability"]): row for row in csv.DictReader(file)}
    assert set(rows) == {(name, kind) for name in ("fp16", "snapkv", "h2o") for kind in ("all", "string_retrieval")}
    assert float(rows["h2o", "all"]["drop"]) == 50.0
    assert float(rows["h2o", "all"]["kv_share"]) == 0.5


def test_pandas_reads_the_parquet_file(kept: Path) -> None:
    pandas = pytest.importorskip("pandas")
    assert main(["report", "run.json", "--parquet", "all.parquet", "--sort", "drop"]) == 0
    found = pandas.read_parquet(kept / "all.parquet")
    assert list(found[found.capability == "all"].method)[-1] == "h2o", "it gives up most"
    assert found.accuracy.dtype.kind == "f"


def test_what_passed_is_brief_until_all_is_asked_for(kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["report", "run.json", "--sort", "bytes"])
    brief = capsys.readouterr().out
    main(["report", "run.json", "-v"])
    assert "fp16 is the reference" not in brief
    assert "fp16 is the reference" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["report"], "name run files, or --shipped"),
        (["report", "run.json", "--shipped"], "name run files, or --shipped"),
        (["report", "run.json", "--sort", "byts"], "--sort=byts"),
        (["report", "run.json", "--html", "run.json/page.html"], "page.html"),
    ],
)
def test_what_cannot_be_done_is_said(
    kept: Path, capsys: pytest.CaptureFixture[str], words: list[str], says: str
) -> None:
    assert main(words) == 2
    assert says in capsys.readouterr().err
