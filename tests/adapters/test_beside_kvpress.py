"""The benchmark beside kvpress: both sides are asked the same, and without compression they answer the same."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from kvcheck.models import load

pytest.importorskip("kvpress", reason="kvpress is not installed: pip install 'kvcheck[kvpress]'")
SCRIPT = Path(__file__).resolve().parents[2] / ".ci" / "beside_kvpress.py"


@pytest.fixture(scope="module")
def beside():
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("beside_kvpress", SCRIPT)
    found = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


@pytest.fixture(scope="module")
def sides(beside):
    """(kvcheck's side, kvpress's), each with a model of its own."""
    mine, theirs = (load("mini", torch.device("cpu"), torch.float32) for _ in range(2))
    return beside.Engine(mine), beside.Pipeline(theirs)


@pytest.mark.parametrize("several", [False, True])
def test_without_compression_both_sides_give_the_same_answers(several, beside, sides):
    engine, pipeline = sides
    asked = beside.Asked.of(engine.loaded, "kv", 192, 2, several)
    mine, theirs = engine.run(asked, ["fp16"]), pipeline.run(asked, [lambda: None])
    assert mine == theirs
    assert len(mine) == (sum(len(sample.turns) for sample in asked.samples) if several else 2)
    assert any(score for _, score in mine), "and some of them are right"


def test_a_row_has_both_sides_in_turns_and_says_what_kvchecks_time_went_into(beside, sides, monkeypatch):
    engine, pipeline = sides
    asked = beside.Asked.of(engine.loaded, "kv", 192, 1, False)
    row = beside.compared("snapkv, 128", asked, ["snapkv"], engine, pipeline, rounds=2)
    assert len(row.mine) == len(row.theirs) == 2
    assert all(seconds > 0 for seconds in (*row.mine, *row.theirs))
    assert 0 < row.parts["model", False] < sum(row.mine)
    row.mine, row.theirs, row.parts = [1.0, 2.0, 1.0], [2.0, 3.0, 1.0], {("model", False): 3.0, ("model", True): 0.5}
    row.accuracies = 1.0, 0.5
    assert row.line == "| snapkv, 128 | 1 | 1.00 | 2.00 | 1.50 | 1.00 to 2.00 | 1.00 / 0.50 | model 75% |"


def test_every_press_of_the_sweep_is_that_of_a_method(beside):
    from kvcheck.methods import make

    assert len(beside.presses()) == 8
    for name, press in beside.presses().items():
        assert make(name).name() == name.partition(":")[0]
        assert callable(press())
