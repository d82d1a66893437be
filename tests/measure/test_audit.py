"""The audit accepts every method as it is and names what is wrong with a cache that was tampered with."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
import transformers
from building import fp16

from kvcheck.backends.transformers.guard import Guard
from kvcheck.backends.transformers.meter import Meter
from kvcheck.cache.kv_cache import CacheLayer, KVCache
from kvcheck.cache.method import Method, MethodInfo
from kvcheck.cache.rows import Row
from kvcheck.cache.shape import ModelShape, Prefilled
from kvcheck.core.errors import KvcheckError
from kvcheck.measure.audit import audit, kept
from kvcheck.measure.memory import held
from kvcheck.methods import make
from kvcheck.store.run_file import case_from_json, dumps

SHAPE = ModelShape(layers=2, heads=4, kv_heads=2, head_dim=8)
METHODS = ("fp16", "snapkv:budget=20,window=8", "pyramidkv:budget=20,window=8", "h2o:budget=20")
METHODS += ("streaming_llm:window=20", "flexgen:group=8", "kivi:group=8,residual=16")
SNAP = METHODS[1]


def prompt(n: int = 60) -> list[Prefilled]:
    source = torch.Generator().manual_seed(0)

    def draw(heads: int) -> torch.Tensor:
        return torch.randn(2, heads, n, 8, generator=source).half()

    return [Prefilled(draw(2), draw(2), draw(4)) for _ in range(2)]


def made(text: str, parts: list[Prefilled]) -> tuple[KVCache, Method]:
    method = make(text)
    cache = method.build(SHAPE)
    cache.absorb(parts)
    return cache, method


@pytest.mark.parametrize("text", METHODS)
def test_an_honest_cache_has_no_problems(text):
    parts = prompt()
    cache, method = made(text, parts)
    proof = audit(cache, parts, method)
    assert proof.problems == ()
    assert (proof.layers, proof.touched, proof.seen) == (2, 2, 60)
    assert proof.kept == sum(method.slots(SHAPE, 60, 0)) / 2


@pytest.mark.parametrize("text", [SNAP, "corm:window=8,recent=8", "kvmerger:threshold=0.2,heavy=4,recent=8"])
def test_kept_slots_are_those_of_all_rows_whichever_are_audited(text):
    """A case whose method was audited in an earlier case is audited on its last row only."""
    parts = prompt()
    cache, method = made(text, parts)
    assert kept(cache) == audit(cache, parts, method).kept
    found = []
    for audited in (False, True):
        meter = Meter(method, SHAPE, Guard(text, "a test"), audited=audited)
        meter.watch(cache, parts, range(2))
        found.append(meter.record())
    assert found[0] == found[1]


TEXT_DEPENDENT = ["corm:window=8,recent=8", "kvmerger:threshold=0.2,heavy=4,recent=8"]


@pytest.mark.parametrize("text", [SNAP, *TEXT_DEPENDENT])
def test_what_a_context_holds_is_what_it_would_hold_alone(text):
    parts = prompt()
    cache, method = made(text, parts)
    meter = Meter(method, SHAPE, Guard(text, "a test"))
    meter.watch(cache, parts, [3, 5])
    alone = [made(text, [layer.select([row]) for layer in parts])[0] for row in range(2)]
    assert [meter.weights[at].kv for at in (3, 5)] == [held(one).kv for one in alone]
    assert [meter.weights[at].kept for at in (3, 5)] == [kept(one) for one in alone]
    assert meter.record().kv_bytes == round(held(cache).kv / 2)
    assert meter.record().declared == (text == SNAP)


@pytest.mark.parametrize("text", [SNAP, *TEXT_DEPENDENT])
def test_a_meter_that_goes_on_behind_a_record_ends_as_if_it_had_never_stopped(text):
    whole = Meter(make(text), SHAPE, Guard(text, "a test"))
    again = Meter(make(text), SHAPE, Guard(text, "a test"))
    for block in range(3):
        parts = prompt(60 + block)
        cache, _ = made(text, parts)
        contexts = [2 * block, 2 * block + 1]
        whole.watch(cache, parts, contexts)
        if block < 2:  # so far it was another process, whose record came back from a file
            mine = fp16(2 * block + 2)
            samples = tuple(replace(one, weight=whole.weights[one.index]) for one in mine.samples)
            so_far = replace(mine, samples=samples, memory=whole.record())
        else:
            again.resume(case_from_json(dumps(so_far)))
            again.watch(cache, parts, contexts)
    assert again.weights == whole.weights
    assert again.record() == whole.record()


def test_a_meter_does_not_go_on_behind_contexts_of_which_it_is_not_known_what_they_held():
    with pytest.raises(KvcheckError, match="what its contexts held is not known"):
        Meter(make(SNAP), SHAPE, Guard(SNAP, "a test")).resume(fp16(2))


def test_a_question_that_has_a_prompt_of_its_own_counts_in_its_context():
    parts = prompt()
    cache, method = made(SNAP, parts)
    meter, once = (Meter(method, SHAPE, Guard(SNAP, "a test")) for _ in range(2))
    once.watch(cache, parts, [0, 1])
    for contexts in ([0, 0], [1, 1]):
        meter.watch(cache, parts, contexts)
    assert meter.record() == once.record()
    assert [weight.caches for weight in meter.weights.values()] == [2, 2]


def lose_a_slot(layer: CacheLayer) -> None:
    layer.keep(torch.arange(1, layer.stored).expand(2, 2, -1))


def swap_values(layer: CacheLayer) -> None:
    layer.v.tensor[1] = layer.v.tensor[1].roll(1, dims=1)


def swap_keys_of_the_last_row(layer: CacheLayer) -> None:
    layer.k.tensor[1] = layer.k.tensor[0]


def overwrite_with_nan(layer: CacheLayer) -> None:
    layer.k.tensor[0, 0, 0, 0] = float("nan")


def repeat_a_position(layer: CacheLayer) -> None:
    layer.kept[0, 1, 3] = layer.kept[0, 1, 2]


def point_past_the_end(layer: CacheLayer) -> None:
    layer.kept[0, 1, -1] = 60


def keep_everything_alive(layer: CacheLayer) -> None:
    layer.k.tensor = torch.zeros(2, 2, 60, 8).half()[:, :, : layer.stored].copy_(layer.k.tensor)


def forget_the_window(layer: CacheLayer) -> None:
    full = make("fp16").build(SHAPE)
    full.absorb(prompt())
    layer.kept = None
    layer.k, layer.v, layer._kept_at = full.layers[layer.index].k, full.layers[layer.index].v, 0
    layer.keep(torch.arange(20).expand(2, 2, -1))


def hoard(layer: CacheLayer) -> None:
    layer.kept = layer.kept.repeat_interleave(50, dim=2)[:, :, ::50]


def empty(layer: CacheLayer) -> None:
    layer.reset()


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lose_a_slot, "layer 1: 19 slots per kv head, 20 declared"),
        (swap_values, "layer 1: values of 40 slots are not those of the prompt, the first in row 1, kv head 0"),
        (swap_keys_of_the_last_row, "layer 1: keys of .* slots are not those of the prompt, the first in row 1"),
        (overwrite_with_nan, r"layer 1: a tensor of shape \(2, 2, 20, 8\) holds NaN"),
        (repeat_a_position, "layer 1: positions are repeated or out of order"),
        (point_past_the_end, "layer 1: positions reach from 0 to 60 of 60 tokens seen|positions reach from"),
        (keep_everything_alive, "bytes of keys and values are held, .* declared"),
        (forget_the_window, "layer 1: 32 protected positions are missing, the first is 52 in row 0, kv head 0"),
        (hoard, "declared as bookkeeping"),
        (empty, "layer 1: the layer is empty"),
    ],
)
def test_a_fault_in_one_layer_is_named(fault, message):
    parts = prompt()
    cache, method = made(SNAP, parts)
    fault(cache.layers[1])
    problems = audit(cache, parts, method).problems
    assert problems
    assert any(re.search(message, problem) for problem in problems), problems


@pytest.mark.parametrize("text", METHODS[5:])
def test_quantized_keys_of_another_row_are_noticed(text):
    parts = prompt()
    cache, method = made(text, [part.select([0, 0]) for part in parts])
    problems = audit(cache, parts, method).problems
    assert any("not those of the prompt, the first in row 1" in problem for problem in problems)


def test_an_empty_cache_is_a_problem():
    method = make("fp16")
    assert audit(method.build(SHAPE), prompt(), method).problems == ("the cache is empty",)


def test_a_cache_of_too_few_layers_or_tokens_is_a_problem():
    cache, method = made("fp16", prompt())
    cache.layers.pop()
    assert audit(cache, prompt(), method).problems == ("the cache has 1 layers, the model has 2",)
    cache, method = made("fp16", prompt(50))
    assert audit(cache, prompt(), method).problems == ("the cache saw 50 tokens of a prompt of 60",)


@dataclass(frozen=True)
class Idle(Method):
    """Claims to free memory, declares no size, does nothing."""

    info: ClassVar[MethodInfo] = MethodInfo(summary="does nothing", stage="compression")

    def layer(self, shape: ModelShape, index: int) -> CacheLayer:
        return CacheLayer(shape, index, self)


def test_a_method_that_does_nothing_is_a_problem_even_if_it_declares_no_size():
    parts, method = prompt(300), Idle()
    cache = method.build(SHAPE)
    cache.absorb(parts)
    assert [problem[:11] for problem in audit(cache, parts, method).problems] == ["did nothing"]
    cache = method.build(SHAPE)
    cache.absorb(prompt(10))
    assert audit(cache, prompt(10), method).problems == ()


def test_a_prefill_of_the_methods_own_may_round_otherwise_in_the_first_layer_and_no_more():
    parts = prompt()

    @dataclass(frozen=True)
    class Own(Method):
        info: ClassVar[MethodInfo] = MethodInfo("own", "generation", shares_prefill=False, frees_memory=False)

    cache, _ = made(SNAP, parts)
    for layer in cache.layers:
        layer.k.tensor += 1e-3
    assert audit(cache, parts, Own()).problems == ()
    swap_values(cache.layers[1])
    assert audit(cache, parts, Own()).problems == ()
    swap_values(cache.layers[0])
    assert "layer 0: values of" in " ".join(audit(cache, parts, Own()).problems)


def test_a_cache_that_hides_its_keys_and_values_from_the_count_is_a_problem():
    parts = prompt()
    cache, _ = made("fp16", parts)

    class Hidden(CacheLayer):
        hidden: ClassVar[dict[int, tuple]] = {}
        keys = property(lambda self: self.hidden[self.index][0])
        values = property(lambda self: self.hidden[self.index][1])
        stored = property(lambda self: self.keys.shape[2])
        positions = property(lambda self: torch.arange(60, dtype=torch.int32).expand(2, 2, -1))

    @dataclass(frozen=True)
    class Hiding(Method):
        info: ClassVar[MethodInfo] = MethodInfo("hides", "compression")

    for index, layer in enumerate(cache.layers):
        Hidden.hidden[index] = (layer.keys, layer.values)
        layer.__class__, layer.k, layer.v = Hidden, None, None
    assert any("cannot be counted" in problem for problem in audit(cache, parts, Hiding()).problems)


def test_a_transformers_cache_is_audited_by_what_it_holds():
    parts, cache = prompt(), transformers.DynamicCache()
    for index, part in enumerate(parts):
        cache.update(part.keys, part.values, index)
    assert audit(cache, parts, make("fp16")).problems == ()
    assert any("did nothing" in problem for problem in audit(cache, parts, make(SNAP)).problems)


def test_later_in_decoding_what_may_leave_is_not_asked_for():
    for text in METHODS:
        parts = prompt()
        cache, method = made(text, parts)
        for _ in range(30):
            for index in range(2):
                cache.update(torch.randn(2, 2, 1, 8), torch.randn(2, 2, 1, 8), index)
                cache.layers[index].attend(torch.randn(2, 4, 1, 8))
        assert audit(cache, parts, method).problems == ()


def test_a_foreign_layer_whose_keys_are_an_empty_tail_holds_what_it_says() -> None:
    layer = transformers.cache_utils.DynamicLayer()
    layer.update(torch.ones(1, 2, 8, 4), torch.ones(1, 2, 8, 4))
    layer.codes, layer.keys = layer.keys, layer.keys[:, :, :0]
    layer.get_seq_length = lambda: 8
    cache = transformers.Cache(layers=[layer])
    row = Row(cache, torch.nn.Identity())
    row.seen = 8
    assert kept(row) == 8
