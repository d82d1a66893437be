"""What every method owes: exact bytes, one result on every route, independent rows, forks that leave origins alone."""

from __future__ import annotations

import pytest
import torch
from toys import SHAPE, absorbed, cut, dense, feed, model_of, prompt, states, tokens

from kvcheck.cache import attention
from kvcheck.cache.kv_cache import KVCache
from kvcheck.cache.method import Method
from kvcheck.cache.shape import ModelShape
from kvcheck.core.errors import KvcheckError
from kvcheck.measure.audit import audit
from kvcheck.measure.memory import held
from kvcheck.methods import METHODS, make
from kvcheck.methods.fp16 import Fp16

C, W = 32, 8
SPECS = (
    "fp16",
    "snapkv:budget=32,window=8",
    "snapkv:budget=0.4,window=8,pooling=max",
    "pyramidkv:budget=32,window=8",
    "h2o:budget=32",
    "h2o:budget=0.3,recent=0.25",
    "streaming_llm:sink=4,window=28",
    "streaming_llm:sink=0,window=0.5",
    "flexgen:group=8",
    "flexgen:group=8,bits=2",
    "kivi:group=4,residual=32",
    "kivi:group=8,residual=16,bits=4",
    "tova:budget=32",
    "tova:budget=0.3",
    "turboquant",
    "kvquant",
    "kvquant:bits=4,group=8,outliers=0.25,sink=0",
    "kvquant:bits=2,group=4,outliers=0.0,sink=3,recent=10",
    "expected_attention:budget=32",
    "adakv:budget=32,window=8",
    "chunkkv:budget=32,window=8",
    "r_kv:budget=32,buffer=16",
    "r_kv:budget=0.4,buffer=8,window=4",
    "chunkkv:budget=0.4,window=8,chunk=7",
    "adakv:budget=0.4,window=8,floor=0.0",
    "expected_attention:budget=0.4,sink=2,covariance=false",
    "turboquant:bits=3,sketch=true,recent=16",
    "fp8",
    "fp8:scale=token",
    "think:recent=8",
    "think:ratio=0.5,recent=32",
    "snapkv:budget=32,window=8+fp8",
    "save_load",
    "offload",
    "corm:window=8,recent=8",
    "corm:window=0.1,recent=0.2",
    "kvmerger:threshold=0.2,heavy=4,recent=8",
    "look_m:text_prior=false,heavy=16,recent=8",
    "look_m:text_prior=false,heavy=0.2,recent=0.2,merge=average",
    "snapkv:budget=32,window=8+kivi:group=4,residual=16",
    "pyramidkv:budget=32,window=8+flexgen:group=8",
    "snapkv:budget=32,window=8+kvquant:group=8",
    "a_shape:n_init=4,n_local=8",
    "tri_shape:n_local=0.2,n_last=8",
    "minference",
    "minference:pattern=vertical_slash,vertical=4,slash=8",
    "quest:page=4,budget=16,dense_layers=0",
    "quest:page=8,budget=0.3,dense_layers=1",
    "retrieval_attention:sink=4,window=28,top_k=6",
    "retrieval_attention:sink=0,window=0.2,top_k=0.1",
    "inf_llm:init=4,local=20,block=8,retrieved=16,exc=7",
    "inf_llm:init=0,local=0.2,block=4,retrieved=0.2,representatives=2,exc=16",
)
DENSE_BEHIND = ("fp16", "snapkv", "pyramidkv", "adakv", "chunkkv", "expected_attention", "a_shape", "tri_shape")
READ_LESS = ("minference", "quest", "retrieval")
ONCE = tuple(spec for spec in SPECS if spec.startswith((*DENSE_BEHIND, *READ_LESS)) and "+" not in spec)
every_method = pytest.mark.parametrize("text", SPECS)
dense_prefill = pytest.mark.parametrize("text", [text for text in SPECS if make(text).info.shares_prefill])
BOUNDARIES = (1, W - 1, W, W + 1, C - 1, C, C + 1, 4 * C + 3)


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def declared(method: Method, cache: KVCache, rows: int, prompt: int, decoded: int) -> int:
    """The bytes that a method declares; where they depend on the data, those of the slots that its layers report."""
    found = method.kv_bytes(SHAPE, rows, prompt, decoded)
    slots = sum(layer.slots for layer in cache.layers)
    return round(slots * SHAPE.token_bytes(rows)) if found is None else found


ELSEWHERE = {"cacheblend", "cake", "duo_attention", "kvzip", "llmlingua2", "mixattention"}
"""Methods that need a runner or act on the text, each with a test file of its own."""


def test_every_registered_method_is_tested_here():
    assert set(METHODS.names()) <= {spec.partition(":")[0] for spec in SPECS} | ELSEWHERE


@every_method
@pytest.mark.parametrize("n", BOUNDARIES)
def test_bytes_and_slots_are_as_declared_for_prompts_around_every_boundary(text, n):
    method, parts = make(text), prompt(n)
    cache = absorbed(method, parts)
    assert held(cache).kv == declared(method, cache, 2, n, 0)
    assert method.slots(SHAPE, n, 0) in (None, tuple(layer.stored for layer in cache.layers))
    assert audit(cache, parts, method).problems == ()


@every_method
@pytest.mark.parametrize("n", [1, C - 1, 3 * C])
def test_bytes_stay_as_declared_over_300_decoded_tokens(text, n):
    method, parts = make(text), prompt(n + 300, rows=1)
    cache = absorbed(method, cut(parts, 0, n))
    for at in range(300):
        feed(cache, cut(parts, n + at, n + at + 1))
        assert held(cache).kv == declared(method, cache, 1, n, at + 1)
    assert method.slots(SHAPE, n, 300) in (None, tuple(layer.stored for layer in cache.layers))
    assert audit(cache, cut(parts, 0, n), method).problems == ()


@dense_prefill
def test_absorbing_a_prompt_feeding_it_and_feeding_it_in_chunks_give_the_same_cache(text):
    method, parts = make(text), prompt(75)
    absorb, direct, chunked = absorbed(method, parts), method.build(SHAPE), method.build(SHAPE)
    feed(direct, parts)
    with chunked.prefilling():
        for start, stop in ((0, 30), (30, 31), (31, 75)):
            feed(chunked, cut(parts, start, stop))
    assert same(states(absorb), states(direct))
    assert same(states(absorb), states(chunked))
    assert held(absorb).kv == held(direct).kv == held(chunked).kv
    later = prompt(3, seed=5)
    outs = [feed(cache, cut(later, 0, 1)) + feed(cache, cut(later, 1, 3)) for cache in (absorb, direct, chunked)]
    assert same(outs[0], outs[1])
    assert same(outs[0], outs[2])


@dense_prefill
def test_the_engines_route_through_a_model_gives_the_cache_that_generate_would_build(text):
    model, ids, method = attention.use(model_of()), tokens(2, 60), make(text)
    shape = ModelShape.of(model.config)
    full, direct = Fp16().build(shape), method.build(shape)
    with full.recording() as taken:
        recorded = model(ids, past_key_values=full).logits
    assert taken[0].queries.shape == (2, 4, 60, 8)
    plain = model(ids, past_key_values=direct).logits
    assert torch.equal(recorded, plain), "the logits of the prompt do not depend on the method"
    absorb = absorbed(method, taken, shape)
    assert same(states(absorb), states(direct))
    for token in tokens(2, 6, seed=3).split(1, dim=1):
        one, two = (model(token, past_key_values=cache).logits for cache in (absorb, direct))
        assert torch.equal(one, two)


@dense_prefill
def test_the_prompt_attends_densely_whatever_the_method_keeps(text):
    parts = prompt(70)
    outs = feed(make(text).build(SHAPE), parts)
    for out, part in zip(outs, parts, strict=True):
        torch.testing.assert_close(out.double(), dense(part.queries, part.keys, part.values, 0), atol=1e-5, rtol=1e-5)


@every_method
def test_a_row_of_a_batch_is_what_it_is_alone(text):
    method, parts, later = make(text), prompt(70, rows=3), prompt(4, rows=3, seed=9)
    together = absorbed(method, parts)
    outs = [feed(together, cut(later, 0, 1)), feed(together, cut(later, 1, 4))]
    for row in range(3):
        alone = absorbed(method, [part.select([row]) for part in parts])
        mine = [part.select([row]) for part in later]
        single = [feed(alone, cut(mine, 0, 1)), feed(alone, cut(mine, 1, 4))]
        for batch_step, single_step in zip(outs, single, strict=True):
            for batched, lone in zip(batch_step, single_step, strict=True):
                torch.testing.assert_close(batched[row : row + 1], lone, atol=1e-6, rtol=1e-6)
        assert same(states(together.select([row])), states(alone))


@every_method
def test_a_fork_goes_on_as_its_origin_would_and_leaves_it_alone(text):
    method, parts, later = make(text), prompt(70), prompt(40, seed=9)
    origin, counterpart = absorbed(method, parts), absorbed(method, parts)
    before = [tensor.clone() for tensor in states(origin)]
    fork = origin.select([1, 0, 1])
    assert held(fork).kv == declared(method, fork, 3, 70, 0)
    for at in range(40):
        step = cut(later, at, at + 1)
        forked = feed(fork, [part.select([1, 0, 1]) for part in step])
        for mine, theirs in zip(forked, feed(counterpart, step), strict=True):
            torch.testing.assert_close(mine, theirs[[1, 0, 1]], atol=1e-6, rtol=1e-6)
    assert same(before, states(origin))
    feed(origin, cut(later, 0, 2))
    assert held(origin).kv == declared(method, origin, 2, 70, 2)


@every_method
def test_two_caches_of_one_method_share_nothing(text):
    method = make(text)
    first, second = absorbed(method, prompt(50)), absorbed(method, prompt(50, seed=4))
    lone = absorbed(method, prompt(50, seed=4))
    later = prompt(3, seed=9)
    feed(first, cut(later, 0, 3))
    assert same(feed(second, later), feed(lone, later))


@every_method
def test_what_is_absorbed_is_not_written_to(text):
    method, parts = make(text), prompt(50)
    copies = prompt(50)
    cache = absorbed(method, parts)
    for at in range(40):
        feed(cache, cut(prompt(40, seed=9), at, at + 1))
    for part, copy in zip(parts, copies, strict=True):
        assert torch.equal(part.keys, copy.keys)
        assert torch.equal(part.values, copy.values)


@pytest.mark.parametrize("text", ONCE)
def test_a_follow_up_block_answers_as_token_by_token_and_takes_the_true_positions(text):
    model, ids, method = attention.use(model_of()), tokens(2, 60), make(text)
    shape = ModelShape.of(model.config)
    block, single = method.build(shape), method.build(shape)
    for cache in (block, single):
        model(ids, past_key_values=cache)
    assert block.get_seq_length() == 60
    follow = tokens(2, 7, seed=8)
    whole = model(follow, past_key_values=block).logits
    steps = [model(follow[:, at : at + 1], past_key_values=single).logits for at in range(7)]
    torch.testing.assert_close(whole, torch.cat(steps, 1), atol=2e-3, rtol=2e-3)
    again = method.build(shape)
    model(ids, past_key_values=again)
    told = model(follow, past_key_values=again, position_ids=torch.arange(60, 67).expand(2, -1)).logits
    assert torch.equal(whole, told)


LOOKUP = ("quest", "retrieval_attention", "inf_llm", "corm", "adakv")  # their slots are found by their place


@pytest.mark.parametrize("text", [text for text in SPECS if make(text).info.verbatim and not text.startswith(LOOKUP)])
def test_the_order_of_slots_does_not_matter_to_what_is_attended(text):
    cache, later = absorbed(make(text), prompt(70)), prompt(1, seed=9)
    shuffled = cache.select([0, 1])
    for layer in shuffled.layers:
        order = torch.randperm(layer.stored, generator=torch.Generator().manual_seed(2))
        layer.k.tensor, layer.v.tensor = layer.k.used[:, :, order], layer.v.used[:, :, order]
    for straight, mixed in zip(feed(cache, later), feed(shuffled, later), strict=True):
        torch.testing.assert_close(straight, mixed, atol=1e-6, rtol=1e-5)


@every_method
def test_reset_forgets_everything(text):
    method, parts = make(text), prompt(50)
    cache = absorbed(method, parts)
    cache.reset()
    assert cache.get_seq_length() == 0
    cache.absorb(parts)
    assert same(states(cache), states(absorbed(method, parts)))


def test_a_cache_that_holds_tokens_cannot_absorb_a_prompt():
    cache = absorbed(Fp16(), prompt(5))
    with pytest.raises(KvcheckError, match="only an empty cache"):
        cache.absorb(prompt(5))
    with pytest.raises(KvcheckError, match="1 prefilled layers do not fit a cache of 2"):
        Fp16().build(SHAPE).absorb(prompt(5)[:1])


def test_a_method_that_needs_queries_refuses_a_prompt_without_them():
    parts = [type(part)(part.keys, part.values) for part in prompt(50)]
    with pytest.raises(KvcheckError, match="snapkv compresses by the prompt's queries"):
        make("snapkv").build(SHAPE).absorb(parts)
    make("streaming_llm").build(SHAPE).absorb(parts)


def test_a_complete_prompt_cannot_be_continued_as_a_prompt_and_an_open_one_not_be_forked():
    cache = absorbed(Fp16(), prompt(5))
    with pytest.raises(KvcheckError, match="is complete"), cache.prefilling():
        pass
    open_cache = Fp16().build(SHAPE)
    with open_cache.prefilling():
        feed(open_cache, prompt(4))
        with pytest.raises(KvcheckError, match="in the middle of its prompt"):
            open_cache.select([0])
        with pytest.raises(KvcheckError, match="being fed already"), open_cache.prefilling():
            pass
