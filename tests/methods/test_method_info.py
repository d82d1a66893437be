"""What a method declares of itself, and the names and forms that were taken before."""

from __future__ import annotations

import pytest

from kvcheck import CacheLayer, Lossless, Method, MethodInfo, SpecError, Stage
from kvcheck.cache.method import expect_method
from kvcheck.methods import make


def test_a_stage_may_be_given_as_text() -> None:
    info = MethodInfo(summary="keeps all", stage="retrieval")
    assert info.stage is Stage.RETRIEVAL
    assert f"{info.stage}" == "retrieval"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"whole": ""}, "is lossless now"),
        ({"joint": "all heads"}, "is cross_head now"),
        ({"lossless": "budget=1.0"}, "is no Lossless"),
        ({"exempt": (("a_property", "a reason"),)}, "is no mapping"),
    ],
)
def test_a_former_declaration_is_refused_by_its_new_one(given: dict, said: str) -> None:
    with pytest.raises(SpecError, match=said):
        MethodInfo(summary="keeps all", stage="compression", **given)


@pytest.mark.parametrize(("old", "new"), [("host", "runner"), ("whole", "lossless"), ("joint", "cross_head")])
def test_a_method_that_overrides_what_no_run_calls_is_refused(old: str, new: str) -> None:
    kind = type("Old", (Method,), {"info": MethodInfo("keeps all", "compression"), old: lambda self: None})
    with pytest.raises(SpecError, match=rf"defines {old}\(.*it is {new}\("):
        expect_method(kind, "mine.Old")


def test_a_layer_that_overrides_what_no_forward_calls_is_refused() -> None:
    with pytest.raises(SpecError, match=r"defines mix.*it is attention"):
        type("Old", (CacheLayer,), {"mix": lambda self: None})


def test_the_lossless_spec_is_that_of_the_parameters() -> None:
    assert str(make("snapkv").lossless()) == "snapkv:budget=1.0"
    assert str(make("fp16").lossless()) == "fp16"
    assert str(make("kivi:bits=4").lossless()) == "kivi:bits=4,residual=102400"
    assert str(make("snapkv:budget=0.25,window=16").lossless()) == "snapkv:budget=1.0,window=16"
    assert make("flexgen").lossless() is None
    assert Lossless.at("") == Lossless.ALWAYS
