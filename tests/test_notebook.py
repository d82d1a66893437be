"""The notebook of the docs runs from its first cell to its last."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[1] / "docs" / "tutorial" / "compare_methods.ipynb"


@pytest.mark.nightly
def test_the_notebook_runs_and_finds_every_method_in_its_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    known: dict[str, object] = {}
    for cell in json.loads(PAGE.read_text("utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), known)
    whole, turns = known["whole"], known["turns"]
    assert set(whole.index) == {"fp16", "snapkv", "streaming_llm", "kivi:bits=4", "kivi"}
    assert whole.loc["fp16", "drop"] == 0
    assert whole.loc["streaming_llm", "drop"] > whole.loc["kivi:bits=4", "drop"]
    assert {one["method"] for one in turns} == set(whole.index)
    assert known["page"].stat().st_size > 10_000


def test_its_cells_are_python_and_were_saved_without_output() -> None:
    cells = [cell for cell in json.loads(PAGE.read_text("utf-8"))["cells"] if cell["cell_type"] == "code"]
    assert len(cells) > 4
    for cell in cells:
        compile("".join(cell["source"]), str(PAGE), "exec")
        assert (cell["outputs"], cell["execution_count"]) == ([], None)
