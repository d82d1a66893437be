"""snapkv+kivi: the first method evicts, the second quantizes what is left, and the memory of both is counted once."""

from __future__ import annotations

import pytest
import torch
from toys import SHAPE, absorbed, prompt

from kvcheck.cache.shape import Prefilled
from kvcheck.core.errors import SpecError
from kvcheck.measure.memory import held
from kvcheck.methods import make

TEXT = "snapkv:budget=32,window=8+flexgen:group=8"


def test_what_the_first_keeps_is_what_the_second_quantizes() -> None:
    parts = prompt(131)
    both = absorbed(make(TEXT), parts)
    kept = absorbed(make("snapkv:budget=32,window=8"), parts)
    again = absorbed(make("flexgen:group=8"), [Prefilled(layer.keys, layer.values) for layer in kept.layers])
    for mine, first, second in zip(both.layers, kept.layers, again.layers, strict=True):
        assert torch.equal(mine.positions, first.positions)
        for one, other in zip(
            mine.read(slice(None), torch.float32), second.read(slice(None), torch.float32), strict=True
        ):
            assert torch.equal(one, other)


def test_its_bytes_are_those_of_the_second_for_the_slots_of_the_first() -> None:
    cache = absorbed(make(TEXT), prompt(131))
    assert held(cache).kv == make("flexgen:group=8").kv_bytes(SHAPE, 2, 32, 0)


def test_slots_that_differ_by_layer_are_counted_layer_by_layer() -> None:
    method = make("pyramidkv:budget=32,window=8,beta=4+kivi:group=4,residual=16")
    assert len(set(method.slots(SHAPE, 131, 0))) == 2
    assert held(absorbed(method, prompt(131))).kv == method.kv_bytes(SHAPE, 2, 131, 0)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("kivi+snapkv", "kivi cannot come first"),
        ("h2o+kivi", "h2o cannot come first"),
        ("fp16+kivi", "fp16 cannot come first"),
        ("snapkv+streaming_llm", "streaming_llm cannot come second"),
        ("snapkv+kivi+kivi", "kivi cannot come first"),
        ("snapkv+kivvi", "did you mean kivi"),
    ],
)
def test_methods_that_do_not_fit_together_are_refused(text: str, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        make(text)


def test_its_spec_reads_back() -> None:
    assert make(str(make(TEXT).spec)) == make(TEXT)
