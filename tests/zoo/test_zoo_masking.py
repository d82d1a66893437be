"""Bugs of masks show their mechanism, their counterparts do not, and ordinary use raises nothing."""

from __future__ import annotations

import pytest
import torch
from routes import apart, at_home, feed, prefilled, spec, text, tokens, usual, walk

from kvcheck.zoo import bugs

FAMILY = [one.name for one in bugs(("masking",))]
COUNTERPARTS = "kvcheck.zoo.counterparts"


@pytest.mark.parametrize("name", FAMILY)
def test_ordinary_use_raises_nothing(name, model):
    usual(text(name), model)


@pytest.mark.parametrize(
    ("given", "some"), [(text("scoring-ignores-padding-mask"), True), (f"{COUNTERPARTS}.padded.PaddedSnapKV", False)]
)
def test_pads_take_slots_of_the_budget(given, some, model):
    cache, _ = prefilled(at_home(spec(given, window=4), model), tokens(2, 100))
    pads = [int((layer.positions < 0).sum()) for layer in cache.layers]
    assert any(pads) == some
    assert {layer.stored for layer in cache.layers} == {50}


def test_a_prompt_that_needs_no_pads_is_scored_right(model):
    one, other = (
        walk(at_home(given, model), 128)
        for given in (text("scoring-ignores-padding-mask"), f"{COUNTERPARTS}.padded.PaddedSnapKV")
    )
    assert apart(one, other) == 0


@pytest.mark.parametrize(
    ("given", "blind"),
    [(text("causal-shortcut-after-prefill-eviction"), True), (f"{COUNTERPARTS}.chunked.Blockwise:chunk=8192", False)],
)
def test_the_prompt_attends_to_what_its_eviction_left(given, blind, model):
    ids = tokens(1, 200)
    _, logits = prefilled(at_home(given, model), ids)
    _, full = prefilled(at_home("fp16", model), ids)
    assert (apart([logits], [full]) > 0.05) == blind
    within = spec(given, budget=200)
    assert apart(walk(at_home(within, model), 100, block=5), walk(at_home("fp16", model), 100, block=5)) < 1e-4


@pytest.mark.parametrize(("given", "blank"), [(text("window-cache-rolled-one-step-early"), 1), ("streaming_llm", 0)])
def test_the_token_that_fills_the_window_drops_one_and_leaves_a_blank(given, blank, model):
    runner = at_home(given.partition(":")[0] + ":window=60", model)
    cache, _ = prefilled(runner, tokens(1, 62))
    full = []
    for token in tokens(1, 4, seed=2).split(1, dim=1):
        feed(runner, cache, token)
        full.append((cache.layers[0].stored, int((cache.layers[0].keys[0, 0] == 0).all(dim=1).sum())))
    assert full == [(63, 0), (64, blank), (64, blank), (64, blank)]


@pytest.mark.parametrize("length", [64, 65, 100])
def test_a_window_that_the_prompt_fills_is_right(length, model):
    given = text("window-cache-rolled-one-step-early").partition(":")[0] + ":window=60"
    assert apart(walk(at_home(given, model), length), walk(at_home("streaming_llm:window=60", model), length)) == 0


def test_a_block_that_crosses_the_cap_leaves_the_blank_before_the_token_that_filled_it(model):
    given = text("window-cache-rolled-one-step-early").partition(":")[0] + ":window=60"
    runner, counterpart = at_home(given, model), at_home("streaming_llm:window=60", model)
    caches = [prefilled(each, tokens(1, 62))[0] for each in (runner, counterpart)]
    for each, cache in zip((runner, counterpart), caches, strict=True):
        feed(each, cache, tokens(1, 6, seed=2))
    mine, right = (cache.layers[0].keys[0, 0] for cache in caches)
    assert torch.equal(mine[:4], right[:4])
    assert torch.equal(mine[4:58], right[5:59])
    assert not mine[58].any()
    assert torch.equal(mine[59:], right[59:])


@pytest.mark.parametrize(("given", "forgets"), [(text("key-loop-starts-at-query-offset"), True), ("fp16", False)])
def test_a_second_block_answers_without_what_came_before(given, forgets, model):
    runner, later = at_home(given, model), tokens(1, 8, seed=2)
    layers_before = []
    for seed in (3, 4):
        cache, _ = prefilled(runner, tokens(1, 30, seed=seed))
        layers_before.append(feed(runner, cache, later, 8))
    assert torch.allclose(*layers_before, atol=1e-4) == forgets


@pytest.mark.parametrize(
    ("given", "leaks"), [(text("compressed-block-offset-added-twice"), True), (f"{COUNTERPARTS}.pooled.Pooled", False)]
)
def test_a_token_of_a_later_block_sees_entries_of_tokens_behind_it(given, leaks, model):
    runner = at_home(given, model)
    later, changed = tokens(1, 12, seed=2), tokens(1, 12, seed=2)
    changed[0, 6:] = tokens(1, 6, seed=3)
    outs = []
    for block in (later, changed):
        cache, _ = prefilled(runner, tokens(1, 40))
        outs.append(feed(runner, cache, block, 12)[:, :6])
    assert (not torch.allclose(*outs, atol=1e-4)) == leaks


@pytest.mark.parametrize("given", [f"{COUNTERPARTS}.pooled.Pooled"])
def test_the_counterpart_answers_a_block_as_token_by_token(given, model):
    runner, later = at_home(given, model), tokens(2, 12, seed=2)
    one, other = (prefilled(runner, tokens(2, 41))[0] for _ in range(2))
    block = feed(runner, one, later, 12)
    single = torch.cat([feed(runner, other, token) for token in later.split(1, dim=1)], dim=1)
    assert torch.allclose(block, single, atol=1e-2)
