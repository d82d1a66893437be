"""Run files from before each method had one spec are compared under it."""

from __future__ import annotations

from building import record, run

from kvcheck.cli.old_runs import in_one_form
from kvcheck.core.record import Run


def of(*methods: str) -> Run:
    return run(*(record([1.0, 0.0], method) for method in methods))


def methods(one: Run) -> list[str]:
    return sorted(each.method for each in one.cases)


def test_a_default_spelled_out_is_the_method_itself() -> None:
    old, new = in_one_form(of("fp16", "snapkv:budget=0.5", "kivi:bits=4"), of("fp16", "snapkv", "kivi:bits=4"))
    assert methods(old) == methods(new) == ["fp16", "kivi:bits=4", "snapkv"]


def test_of_two_that_become_one_the_method_itself_stays() -> None:
    both = run(record([0.0], "snapkv:budget=0.5"), record([1.0], "snapkv"))
    (found, _) = in_one_form(both, of("snapkv"))
    assert [(one.method, one.accuracy) for one in found.cases] == [("snapkv", 1.0)]


def test_classes_that_a_file_names_are_left_as_they_are() -> None:
    old, _ = in_one_form(of("no_such_package.Cache:size=1"), of("snapkv"))
    assert methods(old) == ["no_such_package.Cache:size=1"]


def test_runs_of_the_same_methods_are_left_as_they_are() -> None:
    one = of("snapkv:budget=0.5")
    assert in_one_form(one, one) == [one, one]
