"""`kvcheck false-positives`: whether properties accuse correct methods."""

from __future__ import annotations

import pytest

from kvcheck.cli import commands
from kvcheck.conformance import NAMES
from kvcheck.conformance.false_positives import Tried, attempt, correct
from kvcheck.core.record import FAILS, HOLDS, PropertyRecord
from kvcheck.report import conformance

GOOD = PropertyRecord("the_same_call_gives_the_same", "fp16", HOLDS, 5)
BAD = PropertyRecord("the_same_call_gives_the_same", "tova", FAILS, 2, "it gives others", "def test(): ...")
SOME = [Tried("fp16", 0, (GOOD,), 3.0), Tried("fp16", 1, (GOOD,), 5.0), Tried("tova", 0, (BAD,), 1.0)]


def test_every_property_is_tried_on_a_method_with_every_seed():
    found = attempt(("faults.Random",), (0, 1), "quick", 1)
    assert [(one.method, one.seed) for one in found] == [("faults.Random", 0), ("faults.Random", 1)]
    for one in found:
        assert tuple(each.name for each in one.found) == NAMES
        assert "the_same_call_gives_the_same" in {each.name for each in one.false_positives}


def test_the_table_counts_trials_and_false_positives_per_method():
    text = list(conformance.false_positives(SOME))
    assert text[1].split() == ["fp16", "2", "10", "0", "4"]
    assert text[2].split() == ["tova", "1", "2", "1", "1"]
    assert text[-1] == "1 false positive in 12 trials of 2 correct methods"
    assert "    def test(): ..." in text


def test_the_markdown_table_has_the_same_numbers():
    text = list(conformance.false_positives_markdown(SOME))
    assert "| `fp16` | 2 | 10 | 0 | 4 |" in text
    assert text[-1] == '- `tova`, seed 0: `"the same call gives the same"`: `it gives others`'


def test_all_registered_methods_are_tried_by_default():
    assert {"fp16", "snapkv", "look_m:text_prior=false"} <= set(correct())
    assert "look_m" not in correct()


@pytest.mark.parametrize("wrong", [["--seeds", "0"], ["-n", "0"]])
def test_a_number_below_one_is_refused(wrong, capsys):
    assert commands.main(["false-positives", *wrong]) == commands.ERROR
    assert "from 1 up" in capsys.readouterr().err


def test_an_unknown_method_is_refused_before_anything_runs(capsys):
    assert commands.main(["false-positives", "--method", "snapvk"]) == commands.ERROR
    assert "snapkv" in capsys.readouterr().err


def test_the_command_by_its_former_name_is_refused_and_names_the_new_one(capsys):
    assert commands.main(["alarms", "-n", "2"]) == commands.ERROR
    assert "kvcheck false-positives -n 2" in capsys.readouterr().err
