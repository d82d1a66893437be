"""Whatever forward calls a cache, and however many decorators lie around it, kvcheck's caches get there."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from architectures import ALL

from kvcheck.cache import forward
from kvcheck.conformance.models import small
from kvcheck.core.errors import MethodUnsupported
from kvcheck.methods import make
from kvcheck.models import LoadedModel, probing

IDS = torch.randint(1024, (2, 48), generator=torch.Generator().manual_seed(1))


def named_past_key_values(inner: Callable[..., Any]) -> Callable[..., Any]:
    def forward(self: Any, input_ids: Any = None, past_key_values: Any = None, **kwargs: Any) -> Any:
        return inner(self, input_ids, past_key_values, **kwargs)

    return forward


def named_cache(inner: Callable[..., Any]) -> Callable[..., Any]:
    def forward(self: Any, input_ids: Any = None, cache: Any = None, **kwargs: Any) -> Any:
        return inner(self, input_ids, cache, **kwargs)

    return forward


def decorated(inner: Callable[..., Any]) -> Callable[..., Any]:
    """As transformers 5.24: the old name is taken too, in a decorator that shows the signature of what it wraps."""
    known = named_cache(inner)

    @functools.wraps(known)
    def forward(*args: Any, **kwargs: Any) -> Any:
        if "past_key_values" in kwargs:
            pytest.fail("the old name is deprecated, and will be gone one day")
        return known(*args, **kwargs)

    return forward


def hidden(names: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator that shows nothing, and forwards that take nothing else than what they name."""

    def around(inner: Callable[..., Any]) -> Callable[..., Any]:
        known = names(inner)

        def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
            if names is named_cache and "past_key_values" in kwargs:
                raise TypeError("unexpected keyword argument 'past_key_values'")
            return known(self, *args, **kwargs)

        return forward

    return around


WAYS = {
    "past_key_values": (named_past_key_values, "past_key_values"),
    "cache": (named_cache, "cache"),
    "decorated": (decorated, "cache"),
    "hidden past_key_values": (hidden(named_past_key_values), "past_key_values"),
    "hidden cache": (hidden(named_cache), "cache"),
}


def as_if(loaded: LoadedModel, way: Callable[..., Any]) -> LoadedModel:
    """The model, with a forward of another kind around its own."""
    kind = type(loaded.model)

    def inner(self: Any, input_ids: Any, cache: Any, **kwargs: Any) -> Any:
        return kind.forward(self, input_ids=input_ids, **{forward.of(plain).carries: cache}, **kwargs)

    plain = small("llama").model
    loaded.model.__class__ = type(f"Other{kind.__name__}", (kind,), {"forward": way(inner)})
    return loaded


def answered(loaded: LoadedModel) -> torch.Tensor:
    """Logits of a prompt and of what follows it, through a method."""
    runner = make("snapkv:budget=24,window=8").runner(loaded)
    cache, first = runner.prefill(IDS[:, :40])
    return torch.cat([first, runner.feed(cache, IDS[:, 40:], keep=8).flatten(0, 1)])


@pytest.mark.parametrize("way", WAYS)
def test_a_cache_gets_there_whatever_it_is_called(way: str) -> None:
    around, name = WAYS[way]
    other = as_if(small("llama"), around)
    with torch.inference_mode():
        assert torch.equal(answered(small("llama")), answered(other))
    assert forward.of(other.model).carries == name


@pytest.mark.parametrize("way", WAYS)
def test_a_foreign_cache_gets_there_too(way: str) -> None:
    logits = []
    for loaded in (small("llama"), as_if(small("llama"), WAYS[way][0])):
        runner = make("transformers.dynamic").runner(loaded)
        with torch.inference_mode():
            row, first = runner.prefill_row(IDS[:1, :40])
            logits += [first, runner.feed_row(row, IDS[:1, 40:], 8)]
    assert torch.equal(logits[0], logits[2])
    assert torch.equal(logits[1], logits[3])


def test_a_class_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = as_if(small("llama"), named_cache)
    first = forward.of(loaded.model)
    monkeypatch.setattr(forward.inspect, "signature", lambda function: pytest.fail("asked again"))
    assert forward.of(loaded.model) is first


def test_a_model_that_takes_no_cache_under_any_name_is_refused() -> None:
    def deaf(inner: Callable[..., Any]) -> Callable[..., Any]:
        return lambda self, *args, **kwargs: inner(self, args[0] if args else kwargs["input_ids"], None)

    loaded = as_if(small("llama"), deaf)
    assert forward.of(loaded.model).carries == ""
    with pytest.raises(MethodUnsupported, match="takes no cache under a name that kvcheck knows"):
        probing.find(loaded)


def test_a_recurrent_model_makes_its_own_cache_whatever_that_is_called() -> None:
    """From transformers 5.24 on Mamba's has the name of one with keys and values."""
    loaded = replace(small("llama"), model=ALL["mamba"].model())
    states = probing.find(loaded)
    assert states is not None
    assert not states.keyed
    assert states.shape.layers == 0
