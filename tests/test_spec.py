"""The text form of methods."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvcheck.core.errors import SpecError
from kvcheck.core.spec import Spec, bind, split_specs

VALUES = st.one_of(st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.booleans(), st.none(), st.text())
KEYS = st.from_regex(r"[a-z][a-z_0-9]{0,8}", fullmatch=True)


@dataclass(frozen=True)
class Method:
    budget: float = 0.5
    window: int = 32
    mode: Literal["max", "mean"] = "max"
    sink: int | None = None
    exact: bool = False

    def __post_init__(self) -> None:
        if self.budget <= 0:
            raise SpecError(f"budget={self.budget} is out of range", "give a share above 0")


@dataclass(frozen=True)
class Needy:
    base: str


def test_a_spec_reads_back_as_it_was_written() -> None:
    text = "snapkv:budget=0.25,window=32,exact=true,sink=none,mode=max"
    assert str(Spec.parse(text)) == text


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(KEYS, VALUES, max_size=4))
def test_every_literal_survives_the_round_trip(params: dict) -> None:
    spec = Spec("x", tuple(params.items()))
    assert Spec.parse(str(spec)) == spec


@pytest.mark.parametrize(
    ("text", "value"),
    [("8", 8), ("8.0", 8.0), ("1e-3", 1e-3), ("true", True), ("None", None), ("abc", "abc"), ("'a,b=c'", "a,b=c")],
)
def test_values_are_literals(text: str, value: object) -> None:
    assert Spec.parse(f"x:a={text}").params == (("a", value),)


def test_parameters_keep_their_order() -> None:
    assert [key for key, _ in Spec.parse("x:b=1,a=2").params] == ["b", "a"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not a method name"),
        ("x:", "empty parameter"),
        ("x:a=1,", "empty parameter"),
        ("x:a=", "empty value"),
        ("x:a", "has no value"),
        ("x:a=1,a=2", "given twice"),
        ("x:a='b", "not closed"),
        ("x:a=print(1)", "cannot read the value"),
        ("x:a=[1]", "list"),
        ("snapkv+", r"nothing stands behind the \+ in"),
        ("+kivi", "not a method name"),
        ("x:1a=2", "not a parameter name"),
    ],
)
def test_what_cannot_be_read_is_quoted(text: str, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        Spec.parse(text)


def test_a_plus_before_a_name_joins_two_methods() -> None:
    spec = Spec.parse("snapkv:budget=0.25 + kivi:bits=4")
    assert (spec.name, str(spec.then), str(spec)) == ("snapkv", "kivi:bits=4", "snapkv:budget=0.25+kivi:bits=4")


@pytest.mark.parametrize("value", ["1e+5", "'a+b'"])
def test_a_plus_in_a_value_joins_nothing(value: str) -> None:
    assert Spec.parse(f"x:a={value}").then is None


def test_bind_builds_the_dataclass() -> None:
    assert bind(Spec.parse("m:budget=0.25,mode=mean,sink=4"), Method) == Method(0.25, 32, "mean", 4)


def test_an_int_is_taken_for_a_float() -> None:
    assert isinstance(bind(Spec.parse("m:budget=1"), Method).budget, float)


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ("budgte=1", "did you mean budget"),
        ("window=true", "give an int"),
        ("window=1.5", "give an int"),
        ("budget=half", "give a float"),
        ("exact=1", "give true or false"),
        ("mode=meen", "did you mean mean"),
        ("sink=x", "an int or none"),
        ("budget=0", "out of range"),
    ],
)
def test_a_wrong_parameter_is_refused_with_the_right_one(params: str, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        bind(Spec.parse(f"m:{params}"), Method)


def test_a_missing_parameter_is_named() -> None:
    with pytest.raises(SpecError, match="needs base"):
        bind(Spec.parse("m"), Needy)


def test_a_class_that_is_no_dataclass_is_bound_by_its_signature() -> None:
    class Plain:
        def __init__(self, budget: float = 1.0, **rest: object) -> None:
            self.budget = budget

    assert bind(Spec.parse("m:budget=0.5"), Plain).budget == 0.5


@pytest.mark.parametrize(
    "specs",
    [
        ["fp16"],
        ["fp16", "snapkv:budget=0.25,window=32", "kivi"],
        ["snapkv:budget=0.5+kivi:bits=4,group=32", "my_pkg.Cache:name='a,b=c',size=3", "h2o"],
    ],
)
def test_a_list_of_methods_is_split_where_no_parameter_follows(specs: list[str]) -> None:
    assert split_specs(",".join(specs)) == specs
