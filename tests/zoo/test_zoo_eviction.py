"""Bugs of eviction show their mechanism, their counterparts do not, and ordinary use raises nothing."""

from __future__ import annotations

import pytest
import torch
from routes import at_home, feed, layers, prefilled, spec, text, tokens, usual

from kvcheck.zoo import bugs

FAMILY = [one.name for one in bugs(("eviction",))]


@pytest.mark.parametrize("name", FAMILY)
def test_ordinary_use_raises_nothing(name, model):
    usual(text(name), model)


@pytest.mark.parametrize(("given", "left"), [(text("nkept-floors-to-zero"), 0), ("tova", 1)])
def test_a_prompt_of_one_token_leaves_an_empty_cache(given, left, model):
    cache, _ = prefilled(at_home(given, model), tokens(2, 1))
    assert [layer.stored for layer in cache.layers] == [left] * 3


def test_two_tokens_are_rounded_to_one_by_both(model):
    for given in (text("nkept-floors-to-zero"), "tova"):
        cache, _ = prefilled(at_home(given, model), tokens(2, 2))
        assert cache.layers[0].stored == 1


@pytest.mark.parametrize(("given", "first"), [(text("attention-sinks-evictable"), 36), ("streaming_llm", 0)])
def test_the_first_tokens_leave_with_the_others(given, first, model):
    cache, _ = prefilled(at_home(spec(given, window=60), model), tokens(2, 100))
    positions = cache.layers[0].positions
    assert int(positions.min()) == first
    assert positions.shape[2] == 64


@pytest.mark.parametrize(("given", "frozen"), [(text("newcomer-score-freeze"), True), ("h2o", False)])
def test_what_the_prompt_left_in_the_cache_stays_for_good(given, frozen, model):
    runner = at_home(given, model)
    cache, _ = prefilled(runner, tokens(1, 100))
    before = cache.layers[1].positions
    for token in tokens(1, 60, seed=2).split(1, dim=1):
        feed(runner, cache, token)
    after = cache.layers[1].positions
    assert torch.equal(before, after) == frozen
    assert (int(after.max()) < 100) == frozen


@pytest.mark.parametrize(
    ("given", "blank"),
    [(text("trim-clamped-by-logical-length"), True), ("kvcheck.zoo.counterparts.drafted.Drafted", False)],
)
def test_a_rollback_after_an_eviction_leaves_rows_that_nothing_was_written_to(given, blank, model):
    runner = at_home(given, model)
    cache, _ = prefilled(runner, tokens(1, 100))
    feed(runner, cache, tokens(1, 1, seed=2))
    layer = cache.layers[0]
    assert layer.seen == 101
    assert layer.stored == 54
    assert bool((layer.keys == 0).all(dim=3).any()) == blank


def test_a_rollback_before_any_eviction_is_right(model):
    ids, outs = tokens(1, 100), []
    for given in (text("trim-clamped-by-logical-length"), "kvcheck.zoo.counterparts.drafted.Drafted"):
        runner = at_home(spec(given, window=500), model)
        cache, _ = prefilled(runner, ids[:, :50])
        outs.append([feed(runner, cache, token) for token in ids[:, 50:60].split(1, dim=1)])
    assert all(torch.equal(one, other) for one, other in zip(*outs, strict=True))


@pytest.mark.parametrize(("given", "slots"), [(text("multi-token-append-never-evicts"), 62), ("streaming_llm", 54)])
def test_a_block_of_tokens_stays_on_top_until_a_single_token_comes(given, slots, model):
    runner = at_home(given, model)
    cache, _ = prefilled(runner, tokens(1, 100))
    feed(runner, cache, tokens(1, 9, seed=2))
    assert {layer.stored for layer in layers(cache)} == {slots}
    feed(runner, cache, tokens(1, 1, seed=3))
    assert {layer.stored for layer in layers(cache)} == {54}
