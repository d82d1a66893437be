"""A-shape, tri-shape and MInference: what a prompt's rows see, against masks written from the definitions."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from masks import ONE, WIDE, a_mask, close, masked, run, seen_by, tagged
from toys import SHAPE, absorbed, cut, dense, feed, model_of, prompt, states, tokens

from kvcheck.cache import attention, kernels, scoring, sparsity
from kvcheck.cache.shape import ModelShape, Prefilled
from kvcheck.core.errors import KvcheckError, SpecError
from kvcheck.measure.audit import audit
from kvcheck.measure.memory import held
from kvcheck.methods import make
from kvcheck.methods.a_shape import AShape
from kvcheck.methods.fp16 import Fp16
from kvcheck.methods.minference import PATTERNS
from kvcheck.methods.tri_shape import TriShape

SPECS = ("a_shape:n_init=3,n_local=9", "tri_shape:n_init=3,n_local=9,n_last=6", "minference:vertical=4,slash=9,block=8")
PINNED = tuple(f"minference:vertical=4,slash=9,block=8,pattern={pattern}" for pattern in PATTERNS)


@pytest.fixture
def small_blocks(monkeypatch):
    """Rows are computed a few at a time, as on long prompts."""
    monkeypatch.setattr(sparsity, "ROWS", 7)
    monkeypatch.setitem(scoring.WEIGHTS, "cpu", 4000)


# -- A-shape -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n_init", "n_local"), [(1, 1), (3, 9), (20, 5), (1, 130), (140, 10), (150, 149)])
def test_a_row_of_the_a_shape_sees_the_first_tokens_and_its_window(n_init, n_local):
    part = prompt(300, ONE)[0]
    close(run(f"a_shape:n_init={n_init},n_local={n_local}", part), masked(part, a_mask(300, n_init, n_local)))


@pytest.mark.parametrize(("n_init", "n_local"), [(1, 1), (3, 9), (30, 29)])
def test_the_a_shape_reads_as_many_pairs_as_its_cost_formula_says(n_init, n_local, small_blocks):
    mask = seen_by(f"a_shape:n_init={n_init},n_local={n_local}", tagged(60))
    assert torch.equal(mask, a_mask(60, n_init, n_local).expand_as(mask))
    assert int(mask[0, 0].sum()) == sum(min(i + 1, n_init + n_local) for i in range(60))


def test_the_a_shape_never_gathers_more_than_sinks_windows_and_a_block_of_rows(monkeypatch):
    gathered = []

    def spy(query, keys, values, mask, scaling, softmax):
        gathered.append((query.shape[2], keys.shape[2]))
        return attend(query, keys, values, mask, scaling, softmax)

    attend = kernels.attend_masked
    monkeypatch.setattr(kernels, "attend_masked", spy)
    run("a_shape:n_init=3,n_local=9", prompt(400, ONE)[0])
    assert gathered == [(128, 128), (128, 3 + 8 + 128), (128, 3 + 8 + 128), (16, 3 + 8 + 16)]


def test_keys_between_the_first_tokens_and_the_window_change_nothing():
    part, other = prompt(60, ONE)[0], prompt(60, ONE)[0]
    for each in (other.keys, other.values):
        each[:, :, 3 : 50 - 9 + 1] = 7.0
    one, two = (run(SPECS[0], each) for each in (part, other))
    assert torch.equal(one[:, 50:], two[:, 50:])
    assert not torch.equal(one[:, 49], two[:, 49]), "row 49 still sees position 41"


@pytest.mark.parametrize("text", ["a_shape:n_init=10,n_local=40", "a_shape:n_local=1.0", "tri_shape:n_local=49"])
def test_sizes_that_cover_the_prompt_give_the_full_attention_bit_for_bit(text):
    parts = prompt(50)
    for mine, theirs in zip(feed(make(text).build(SHAPE), parts), feed(Fp16().build(SHAPE), parts), strict=True):
        assert torch.equal(mine, theirs)


def test_one_token_less_loses_exactly_one_pair():
    mask = seen_by("a_shape:n_init=10,n_local=39", tagged(50))[1, 3]
    missing = (torch.ones(50, 50).tril().bool() & ~mask).nonzero().tolist()
    assert missing == [[49, 10]]


def test_shares_are_those_of_the_prompt_with_at_least_four_sinks():
    assert AShape().sizes(512) == (5, 128)
    assert AShape(0.125, 0.5).sizes(64) == (8, 32)
    assert AShape().sizes(1) == (4, 1)
    assert AShape(128, 3968).sizes(20) == (128, 3968)
    part = prompt(200, ONE)[0]
    close(run("a_shape", part), masked(part, a_mask(200, 4, 50)))


@pytest.mark.parametrize("cuts", [(0, 20, 21, 60), (0, 1, 60), (0, 59, 60)])
def test_chunks_of_a_prompt_see_what_one_pass_sees(cuts, small_blocks):
    part = prompt(60, ONE)[0]
    cache = make(SPECS[0]).build(ONE)
    with cache.prefilling():
        outs = [feed(cache, cut([part], *span))[0] for span in pairwise(cuts)]
    close(torch.cat(outs, 1), masked(part, a_mask(60, 3, 9)))


@pytest.mark.parametrize("text", ["a_shape", "a_shape:n_init=4", "a_shape:n_local=9", *SPECS[1:2], "tri_shape"])
def test_a_second_chunk_is_refused_where_the_length_of_the_prompt_is_needed(text):
    parts, cache = prompt(60, ONE), make(text).build(ONE)
    with pytest.raises(KvcheckError, match="is fed in chunks") as raised, cache.prefilling():  # noqa: PT012
        feed(cache, cut(parts, 0, 20))
        feed(cache, cut(parts, 20, 60))
    assert "feed it in one forward, or" in str(raised.value)
    whole = make(text).build(ONE)
    with whole.prefilling():
        out = feed(whole, parts)[0]
    assert torch.equal(out, feed(make(text).build(ONE), parts)[0])


# -- tri-shape ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n_last", "rows"), [(1, 1), (6, 6), (0.25, 15), (58, 58), (59, 59), (100, 59)])
def test_the_last_rows_of_the_tri_shape_are_dense_and_the_others_a_shaped(n_last, rows):
    part = prompt(60, ONE)[0]
    out = run(f"tri_shape:n_init=3,n_local=9,n_last={n_last}", part)
    mask = a_mask(60, 3, 9)
    mask[60 - rows :] = torch.ones(60, 60).tril().bool()[60 - rows :]
    close(out, masked(part, mask))


def test_the_tri_shape_of_a_prompt_no_longer_than_its_last_rows_is_dense():
    part = prompt(60, ONE)[0]
    close(run("tri_shape:n_init=1,n_local=1,n_last=59", part), dense(part.queries, part.keys, part.values, 0))
    assert TriShape().rows(101) == TriShape().rows(4000) == 100
    assert TriShape().rows(1) == 0


# -- MInference --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [*SPECS, *PINNED])
@pytest.mark.parametrize("n", [1, 2, 5])
def test_prompts_shorter_than_any_size_are_dense(text, n):
    part = prompt(n, ONE)[0]
    close(run(text, part), dense(part.queries, part.keys, part.values, 0))


@pytest.mark.parametrize("text", [*SPECS, *PINNED])
def test_decoding_and_follow_up_blocks_attend_to_everything(text):
    parts, cache = prompt(64), make(text).build(SHAPE)
    feed(cache, cut(parts, 0, 60))
    steps = [feed(cache, cut(parts, *span)) for span in ((60, 61), (61, 64))]
    outs = [torch.cat(step, 1) for step in zip(*steps, strict=True)]
    for out, part in zip(outs, parts, strict=True):
        close(out, dense(part.queries[:, :, 60:], part.keys, part.values, 60))
    assert cache.layers[1].positions[1, 1].tolist() == list(range(64))


def test_a_needle_between_sinks_and_window_is_lost_to_the_a_shape_and_found_by_the_others():
    part = tagged(60)
    part.queries.zero_(), part.keys.zero_()
    part.queries[..., 0] = part.keys[:, :, 20, 0] = 20.0
    last = {text: run(text, part, WIDE)[:, -1, :, 20] for text in (*SPECS[:2], PINNED[1])}
    assert bool((last[SPECS[0]] == 0).all())
    assert all(bool((weight > 0.9).all()) for text, weight in last.items() if text != SPECS[0])
    middle = run(SPECS[1], part, WIDE)[:, 40, :, 20]
    assert bool((middle == 0).all()), "the dense rows repair themselves only"


@pytest.mark.parametrize("text", SPECS)
def test_a_model_stores_what_its_sparse_prompt_makes_of_deeper_layers(text):
    model, ids, method = attention.use(model_of()), tokens(2, 60), make(text)
    shape = ModelShape.of(model.config)
    own, full = method.build(shape), Fp16().build(shape)
    model(ids, past_key_values=full)
    with own.prefilling():
        model(ids, past_key_values=own)
    assert torch.equal(own.layers[0].keys, full.layers[0].keys)
    assert torch.equal(own.layers[0].values, full.layers[0].values)
    assert not torch.equal(own.layers[1].keys, full.layers[1].keys)
    assert held(own).kv == held(full).kv == method.kv_bytes(shape, 2, 60, 0)
    own_prompt = [Prefilled(layer.keys, layer.values) for layer in own.layers]
    assert audit(own, own_prompt, method).problems == ()


@pytest.mark.parametrize("text", [*SPECS, "a_shape", "tri_shape:n_last=8", "minference"])
def test_the_engines_route_gives_the_answers_and_the_cache_of_a_plain_forward(text):
    model, ids, method = attention.use(model_of()), tokens(2, 60), make(text)
    shape = ModelShape.of(model.config)
    plain, engine = method.build(shape), method.build(shape)
    wanted = model(ids, past_key_values=plain).logits
    with engine.prefilling():
        assert torch.equal(model(ids, past_key_values=engine).logits, wanted)
    taken = absorbed(method, [Prefilled(layer.keys, layer.values) for layer in plain.layers], shape)
    for fed in (*tokens(2, 3, seed=3).split(1, dim=1), tokens(2, 5, seed=4)):
        one, two, three = (model(fed, past_key_values=cache).logits for cache in (plain, engine, taken))
        assert torch.equal(one, two)
        assert torch.equal(one, three)
    for mine, theirs in zip(states(plain), states(engine), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("text", ["a_shape:n_local=60", "tri_shape:n_init=60", "minference:vertical=1.0"])
def test_a_model_whose_prompt_is_covered_answers_as_with_the_full_cache(text):
    model, ids = attention.use(model_of()), tokens(2, 60)
    shape = ModelShape.of(model.config)
    own, full = make(text).build(shape), Fp16().build(shape)
    for fed in (ids, *tokens(2, 16, seed=3).split(1, dim=1)):
        mine, theirs = (model(fed, past_key_values=cache).logits for cache in (own, full))
        torch.testing.assert_close(mine, theirs, atol=2e-3, rtol=2e-3)


def test_half_precision_prompts_stay_in_their_dtype():
    part = prompt(60, ONE)[0]
    for text in SPECS:
        cache = make(text).build(ONE)
        cache.update(part.keys.bfloat16(), part.values.bfloat16(), 0)
        out = cache.layers[0].attend(part.queries.bfloat16())
        assert out.dtype == torch.bfloat16
        torch.testing.assert_close(out.float(), run(text, part), atol=0.05, rtol=0.05)


@pytest.mark.parametrize("text", [*SPECS, *PINNED])
def test_the_scaling_that_the_model_asks_for_is_used(text):
    part, cache = prompt(60, ONE)[0], make(text).build(ONE)
    cache.update(part.keys.float(), part.values.float(), 0)
    out = cache.layers[0].attend(part.queries.float() / 8, scaling=8 * 8**-0.5)
    torch.testing.assert_close(out, run(text, part), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("text", SPECS)
def test_they_claim_neither_memory_nor_the_full_caches_prefill_and_keep_what_they_absorb(text):
    method, parts = make(text), prompt(30)
    assert not method.info.frees_memory
    assert not method.info.shares_prefill
    assert method.protected(30) == set(range(30))
    assert audit(absorbed(method, parts), parts, method).problems == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a_shape:n_init=0", "a_shape: n_init=0 is neither a share"),
        ("a_shape:n_local=1.5", "a_shape: n_local=1.5 is neither a share"),
        ("tri_shape:n_local=-3", "tri_shape: n_local=-3 is neither a share"),
        ("tri_shape:n_last=0.0", "tri_shape: n_last=0.0 is neither a share"),
        ("minference:pattern=dense", "pattern='dense'; it must be search or a_shape or"),
        ("minference:vertical=0", "vertical=0 is neither a share"),
        ("minference:slash=2.0", "slash=2.0 is neither a share"),
        ("minference:block=0", "block=0 is not a whole number of at least 1"),
        ("minference:last_q=0", "last_q=0 is not a whole number"),
    ],
)
def test_values_out_of_range_are_refused(text, message):
    with pytest.raises(SpecError, match=message) as raised:
        make(text)
    assert "type --kv-method=" in str(raised.value)
