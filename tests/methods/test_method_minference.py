"""MInference: the patterns of the heads and the search for them, against masks written from the definitions."""

from __future__ import annotations

import pytest
import torch
from masks import ONE, a_mask, block_mask, close, line_mask, masked, run, seen_by, tagged
from toys import cut, dense, feed, prompt, weights

from kvcheck.cache import scoring, sparsity
from kvcheck.cache.shape import ModelShape, Prefilled
from kvcheck.measure.memory import held
from kvcheck.methods import make
from kvcheck.methods.minference import PATTERNS, MInference, View

SPECS = ("a_shape:n_init=3,n_local=9", "tri_shape:n_init=3,n_local=9,n_last=6", "minference:vertical=4,slash=9,block=8")
PINNED = tuple(f"minference:vertical=4,slash=9,block=8,pattern={pattern}" for pattern in PATTERNS)


@pytest.fixture
def small_blocks(monkeypatch):
    """Rows are computed a few at a time, as on long prompts."""
    monkeypatch.setattr(sparsity, "ROWS", 7)
    monkeypatch.setitem(scoring.WEIGHTS, "cpu", 4000)


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


@pytest.mark.parametrize("past", [0, 8, 13, 21, 58])
def test_gathered_blocks_are_those_of_the_mask_wherever_a_chunk_starts(past, small_blocks):
    part, text = prompt(61, ONE)[0], "minference:pattern=block_sparse,vertical=4,slash=12,block=8"
    cache = make(text).build(ONE)
    with cache.prefilling():
        if past:
            feed(cache, cut([part], 0, past))
        out = feed(cache, cut([part], past, 61))[0]
    view = View(part.queries[:, :, past:], part.keys, part.scaling, make(text))
    mask = torch.eye(61).bool().expand(2, 4, 61, 61).clone()
    mask[:, :, past:] = (view.block_mask(past, 61) > 0).tril(past)
    assert not bool(mask.tril().all())
    close(out, masked(part, mask)[:, past:])
