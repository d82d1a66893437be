"""Bugs of chunked prefill show their mechanism, their counterparts do not, and ordinary use raises nothing."""

from __future__ import annotations

import pytest
import torch
from routes import apart, at_home, feed, prefilled, spec, text, tokens, usual

from kvcheck.zoo import bugs

FAMILY = [one.name for one in bugs(("chunked_prefill",))]
COUNTERPARTS = "kvcheck.zoo.counterparts"
RING = "ring-smaller-than-chunk-plus-window"
SINKS = "chunk-treated-as-new-prefill"
CHUNKED_SINKS = f"{COUNTERPARTS}.chunked.ChunkedStreamingLLM:window=64"


@pytest.mark.parametrize("name", FAMILY)
def test_ordinary_use_raises_nothing(name, model, embedded):
    usual(text(name), embedded if name == RING else model)


@pytest.mark.parametrize(
    ("given", "dense"),
    [(text("oracle-hidden-states-in-simulated-chunks"), True), (f"{COUNTERPARTS}.chunked.Blockwise", False)],
)
def test_later_chunks_are_computed_from_tokens_that_have_been_dropped(given, dense, model):
    runner, ids = at_home(spec(given, budget=64), model), tokens(1, 300)
    cache, logits = prefilled(runner, ids)
    full, right = prefilled(at_home("fp16", model), ids)
    assert {layer.stored for layer in cache.layers} == {64}
    assert (apart([logits], [right]) < 1e-3) == dense
    layer, like = cache.layers[2], full.layers[2]
    at = layer.positions.long().unsqueeze(3).expand(-1, -1, -1, like.keys.shape[3])
    assert torch.allclose(layer.keys, like.keys.gather(2, at), atol=2e-2) == dense


def test_the_first_layer_keeps_the_same_whether_chunks_are_real_or_not(model):
    kept = []
    for given in (text("oracle-hidden-states-in-simulated-chunks"), f"{COUNTERPARTS}.chunked.Blockwise"):
        cache, _ = prefilled(at_home(spec(given, budget=64), model), tokens(2, 300))
        kept.append(cache.layers[0].positions)
    assert torch.equal(*kept)


@pytest.mark.parametrize(("given", "leaks"), [(text("chunk-mask-built-with-zero-offset"), True), ("cake", False)])
def test_a_token_of_a_later_chunk_sees_tokens_behind_it(given, leaks, model):
    runner, ids = at_home(spec(given, chunk=32), model), tokens(1, 60)
    changed = ids.clone()
    changed[:, 50:] = tokens(1, 10, seed=3)
    one, other = (prefilled(runner, each)[0].layers[2].keys for each in (ids, changed))
    assert torch.equal(one[:, :, :32], other[:, :, :32])
    assert (not torch.allclose(one[:, :, 32:50], other[:, :, 32:50], atol=1e-2)) == leaks


@pytest.mark.parametrize(
    ("given", "over"), [(text("resume-uses-first-chunk-pages"), True), (f"{COUNTERPARTS}.chunked.Chunked", False)]
)
def test_later_chunks_are_written_over_the_first_one(given, over, model):
    cache, _ = prefilled(at_home(spec(given, chunk=32), model), tokens(1, 90))
    full, _ = prefilled(at_home("fp16", model), tokens(1, 90))
    mine, right = cache.layers[0].keys, full.layers[0].keys
    assert mine.shape == right.shape
    assert torch.allclose(mine[:, :, :26], right[:, :, 64:] if over else right[:, :, :26], atol=1e-2)
    assert (not mine[:, :, 32:].any()) == over


@pytest.mark.parametrize(("given", "slots"), [(text(SINKS), 2 * 68 + 44), (CHUNKED_SINKS, 68)])
def test_every_chunk_keeps_a_budget_of_its_own(given, slots, model):
    runner = at_home(given, model)
    cache, _ = prefilled(runner, tokens(1, 300))
    layer = cache.layers[0]
    assert layer.stored == slots
    positions = set(layer.positions[0, 0].tolist())
    assert ({128, 129, 130, 131} <= positions) == (slots > 68)
    feed(runner, cache, tokens(1, 1, seed=2))
    assert layer.stored == slots
    assert (0 in layer.positions[0, 0].tolist()) == (slots == 68)


def test_a_prompt_of_one_chunk_is_cut_right(model):
    kept = [
        prefilled(at_home(each, model), tokens(2, 128))[0].layers[1].positions for each in (text(SINKS), CHUNKED_SINKS)
    ]
    assert torch.equal(*kept)


@pytest.mark.parametrize(
    ("given", "same"), [(text("one-shot-block-eviction"), False), (f"{COUNTERPARTS}.chunked.ChunkedH2O", True)]
)
def test_what_is_kept_depends_on_how_the_prompt_was_split(given, same, model):
    def kept(chunk):
        cache, _ = prefilled(at_home(spec(given, chunk=chunk), model), tokens(1, 300))
        assert cache.layers[0].stored == 150
        return cache.layers[0].positions

    assert torch.equal(kept(300), kept(50)) == same


@pytest.mark.parametrize(("given", "right"), [(text(RING), False), (f"{COUNTERPARTS}.chunked.ChunkedMix", True)])
def test_a_chunk_overwrites_what_its_early_tokens_still_see(given, right, embedded):
    def off(length):
        """How far the values of a layer above the first sliding one are from those of one forward."""
        caches = [prefilled(at_home(each, embedded), tokens(1, length))[0] for each in (given, "mixattention")]
        return apart(*([cache.layers[1].values.float()] for cache in caches))

    assert off(256) < 1e-3, "one chunk"
    assert (off(500) < 1e-2) == right
