"""A-shape, tri-shape and MInference: what a prompt's rows see, against masks written from the definitions."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from masks import ONE, WIDE, a_mask, block_mask, close, line_mask, masked, run, seen_by, tagged
from toys import SHAPE, absorbed, cut, dense, feed, model_of, prompt, states, tokens, weights

from kvcheck.errors import KvcheckError, SpecError
from kvcheck.measure.audit import audit
from kvcheck.measure.memory import held
from kvcheck.methods import _scoring, _sparse, attention, make
from kvcheck.methods.a_shape import AShape
from kvcheck.methods.base import ModelShape, Prefilled
from kvcheck.methods.fp16 import Fp16
from kvcheck.methods.minference import PATTERNS, MInference
from kvcheck.methods.tri_shape import TriShape

SPECS = ("a_shape:n_init=3,n_local=9", "tri_shape:n_init=3,n_local=9,n_last=6", "minference:vertical=4,slash=9,block=8")
PINNED = tuple(f"minference:vertical=4,slash=9,block=8,pattern={pattern}" for pattern in PATTERNS)


@pytest.fixture
def small_blocks(monkeypatch):
    """Rows are computed a few at a time, as on long prompts."""
    monkeypatch.setattr(_sparse, "ROWS", 7)
    monkeypatch.setitem(_scoring.WEIGHTS, "cpu", 4000)


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

    def spy(query, keys, values, mask, scaling):
        gathered.append((query.shape[2], keys.shape[2]))
        return attend(query, keys, values, mask, scaling)

    attend = _sparse.attend
    monkeypatch.setattr(_sparse, "attend", spy)
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


@pytest.mark.parametrize(("v", "s", "last_q"), [(1, 1, 64), (4, 9, 64), (4, 9, 5), (13, 2, 1)])
def test_vertical_slash_keeps_the_columns_and_diagonals_that_the_last_queries_attend_to(v, s, last_q, small_blocks):
    part = prompt(41, ONE)[0]
    out = run(f"minference:pattern=vertical_slash,vertical={v},slash={s},last_q={last_q}", part)
    close(out, masked(part, line_mask(part, v, s, last_q)))


def test_shares_of_vertical_slash_are_those_of_the_prompt():
    part = prompt(40, ONE)[0]
    out = run("minference:pattern=vertical_slash,vertical=0.1,slash=0.25,last_q=8", part)
    close(out, masked(part, line_mask(part, 4, 10, 8)))
    assert MInference().sizes(512) == (25, 102)
    assert MInference().sizes(1) == (1, 1)
    assert MInference(vertical=1000, slash=6096).sizes(50) == (50, 50)


@pytest.mark.parametrize(
    ("v", "s", "block", "count"), [(4, 9, 8, 2), (1, 1, 8, 1), (1, 10, 8, 1), (8, 16, 8, 3), (5, 6, 3, 4)]
)
def test_block_sparse_sees_its_own_block_and_those_with_the_highest_pooled_product(v, s, block, count, small_blocks):
    for n in (41, 48):
        part = prompt(n, ONE, seed=n)[0]
        out = run(f"minference:pattern=block_sparse,vertical={v},slash={s},block={block}", part)
        close(out, masked(part, block_mask(part, count, min(block, v + s))))


def test_masked_and_gathered_a_shape_agree(small_blocks):
    part = prompt(60, ONE)[0]
    masks, gathers = run("minference:pattern=a_shape,vertical=3,slash=9", part), run(SPECS[0], part)
    torch.testing.assert_close(masks, gathers, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    "text",
    [
        "pattern=vertical_slash,vertical=60,slash=1",
        "pattern=vertical_slash,vertical=1,slash=60",
        "pattern=block_sparse,vertical=16,slash=48,block=8",
        "vertical=1.0",
        "slash=1.0",
    ],
)
def test_lines_or_blocks_that_cover_the_prompt_are_dense(text):
    part = prompt(60, ONE)[0]
    close(run(f"minference:{text}", part), dense(part.queries, part.keys, part.values, 0))


@pytest.mark.parametrize("text", [*SPECS, *PINNED, "a_shape", "tri_shape:n_last=3", "minference"])
def test_every_row_sees_itself_and_nothing_ahead(text, small_blocks):
    mask = seen_by(text, tagged(60))
    assert bool(mask.diagonal(dim1=2, dim2=3).all())
    assert not bool(mask.triu(1).any())
    assert bool((~mask).tril().any()), "and not everything behind"


def test_forced_columns_and_diagonals_are_seen_however_little_attention_they_get():
    mask = seen_by("minference:pattern=vertical_slash,vertical=6,slash=8", tagged(60))
    assert bool(mask[..., :3].flatten(0, 1).eq(torch.ones(60, 3).tril().bool()).all())
    for offset in range(4):
        assert bool(mask.diagonal(-offset, 2, 3).all())


def test_more_columns_diagonals_or_blocks_only_add_to_what_is_seen():
    part = tagged(60)
    for pattern, sizes in (("vertical_slash", range(1, 40)), ("block_sparse", range(5, 60, 8))):
        for name, other in (("vertical", "slash"), ("slash", "vertical")):
            last = torch.zeros(2, 4, 60, 60, dtype=torch.bool)
            for size in sizes:
                mask = seen_by(f"minference:pattern={pattern},block=8,{name}={size},{other}=3", part)
                assert not bool((last & ~mask).any())
                last = mask


def test_a_search_takes_the_pattern_that_keeps_most_attention_head_by_head(small_blocks):
    found = set()
    for seed, (v, s, block) in enumerate([(4, 8, 6), (8, 4, 6), (4, 8, 3), (8, 4, 3)]):
        part = prompt(43, ONE, seed=seed)[0]
        cache = make(f"minference:vertical={v},slash={s},block={block}").build(ONE)
        out = feed(cache, [part])[0]
        blocks = block_mask(part, 12 // block, block)
        masks = torch.stack([a_mask(43, v, s).expand(2, 4, -1, -1), line_mask(part, v, s, 64), blocks])
        wanted = (weights(part.queries, part.keys, 0) * masks).sum((3, 4)).argmax(0)
        assert torch.equal(cache.layers[0].found.long(), wanted)
        close(out, masked(part, masks.gather(0, wanted[None, :, :, None, None].expand_as(masks))[0]))
        found |= set(wanted.flatten().tolist())
    assert found == {0, 1, 2}, "the prompts are such that every pattern wins somewhere"


def test_a_search_finds_the_patterns_that_were_planted():
    shape = ModelShape(1, 6, 3, 8)
    part = prompt(64, shape)[0]
    part.queries.zero_(), part.keys.zero_()
    part.queries[:, :4, :, 0] = 20.0
    part.keys[:, 0, 1, 0] = 20.0  # everyone looks at a sink
    part.keys[:, 1, (10, 25, 44), 0] = 20.0  # everyone looks at three columns of three blocks
    for block in range(8):  # the blocks of rows look at one block each, which the last one does not look at
        span = slice(block * 8, block * 8 + 8)
        part.queries[:, 4:, span, block // 2] = part.keys[:, 2, span, block] = 20.0
    text = "minference:vertical=4,slash=12,block=8,last_q=8"
    cache = make(text).build(shape)
    out = feed(cache, [part])[0]
    wanted = ["a_shape"] * 2 + ["vertical_slash"] * 2 + ["block_sparse"] * 2
    assert [PATTERNS[code] for code in cache.layers[0].found[1].tolist()] == wanted
    for head, pattern in enumerate(wanted):
        assert torch.equal(out[:, :, head], run(f"{text},pattern={pattern}", part, shape)[:, :, head])


def test_a_search_is_by_row_repeats_itself_and_starts_afresh_in_a_fresh_cache():
    method, part = make("minference:vertical=4,slash=9,block=8"), prompt(43, ONE, rows=3, seed=2)[0]

    def found(part: Prefilled) -> list[list[int]]:
        cache = method.build(ONE)
        feed(cache, [part])
        return cache.layers[0].found.tolist()

    together = found(part)
    assert together == found(part)
    assert together == [found(part.select([row]))[0] for row in range(3)]
    assert together != found(prompt(43, ONE, rows=3, seed=3)[0])
    cache = method.build(ONE)
    feed(cache, [part])
    assert cache.select([2, 0]).layers[0].found.tolist() == [together[2], together[0]]
    assert held(cache).kv == method.kv_bytes(ONE, 3, 43, 0)
    cache.reset()
    assert cache.layers[0].found is None


def test_a_chunk_of_minference_estimates_with_its_own_last_queries():
    part, cache = prompt(41, ONE)[0], make("minference:pattern=vertical_slash,vertical=4,slash=9,last_q=6").build(ONE)
    with cache.prefilling():
        first, second = (feed(cache, cut([part], *span))[0] for span in ((0, 23), (23, 41)))
    start = cut([part], 0, 23)[0]
    close(first, masked(start, line_mask(start, 4, 9, 6)))
    mask = line_mask(part, 4, 9, 6, past=23)
    close(second, masked(part, mask | torch.eye(41).bool())[:, 23:])


def test_chunks_of_whole_blocks_see_the_blocks_that_one_pass_sees_and_keep_the_first_search():
    part, cache = prompt(41, ONE)[0], make(PINNED[2]).build(ONE)
    with cache.prefilling():
        outs = [feed(cache, cut([part], *span))[0] for span in ((0, 16), (16, 24), (24, 41))]
    close(torch.cat(outs, 1), masked(part, block_mask(part, 2, 8)))
    cache, alone = (make(SPECS[2]).build(ONE) for _ in range(2))
    feed(alone, cut([part], 0, 30))
    with cache.prefilling():
        feed(cache, cut([part], 0, 30))
        feed(cache, cut([part], 30, 41))
    assert torch.equal(cache.layers[0].found, alone.layers[0].found)


# -- all three ---------------------------------------------------------------------------------------------------------


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
