"""Bugs of state show their mechanism, their counterparts do not, and ordinary use raises nothing."""

from __future__ import annotations

import pytest
import torch
from routes import apart, at_home, feed, prefilled, spec, text, tokens, toy, usual

from kvcheck.zoo import bugs

FAMILY = [one.name for one in bugs(("state_leak",))]
COUNTERPARTS = "kvcheck.zoo.counterparts"
REGIMES = f"{COUNTERPARTS}.regimes.Regimes"
TIERED = f"{COUNTERPARTS}.tiered.Tiered"
PAGED = f"{COUNTERPARTS}.paged_window.PagedWindow"


@pytest.mark.parametrize("name", FAMILY)
def test_ordinary_use_raises_nothing(name, model):
    usual(text(name), model)


@pytest.mark.parametrize(("given", "second"), [(text("kv-len-counter-survives-sample"), 100), ("snapkv", 50)])
def test_only_the_first_sample_is_compressed(given, second, model):
    runner = at_home(given, model)
    stored = [prefilled(runner, tokens(1, 100, seed))[0].layers[2].stored for seed in (1, 2)]
    assert stored == [50, second]
    assert prefilled(at_home(given, model), tokens(1, 100))[0].layers[2].stored == 50, "a runner of its own begins anew"


@pytest.mark.parametrize(("given", "alike"), [(text("rope-base-persists-after-long-input"), False), (REGIMES, True)])
def test_a_short_text_is_answered_otherwise_after_a_long_one(given, alike, model):
    runner = at_home(spec(given, original=50), model)
    _, before = prefilled(runner, tokens(1, 40))
    prefilled(runner, tokens(1, 60, seed=2))
    _, after = prefilled(runner, tokens(1, 40))
    assert torch.equal(before, after) == alike


@pytest.mark.parametrize(("given", "stale"), [(text("reset-misses-lower-tier"), True), (TIERED, False)])
def test_after_a_reset_blocks_of_the_old_weights_are_served(given, stale):
    model = toy()
    runner, ids = at_home(spec(given, block=8, room=2), model), tokens(1, 50)
    prefilled(runner, ids)
    with torch.no_grad():
        model.model.model.layers[0].self_attn.k_proj.weight.mul_(1.5)
    _, answer = prefilled(runner, ids)
    _, right = prefilled(at_home(TIERED, model), ids)
    assert (apart([answer], [right]) > 1e-2) == stale


@pytest.mark.parametrize(("given", "blocks"), [(text("reset-misses-lower-tier"), 8), (TIERED, 4)])
def test_host_memory_keeps_the_blocks_of_earlier_prompts(given, blocks, model):
    runner = at_home(spec(given, block=8, room=2), model)
    for seed in (1, 2):
        prefilled(runner, tokens(1, 50, seed))
    assert len(runner.far) == blocks


@pytest.mark.parametrize(("given", "wiped"), [(text("block-clear-spills-into-neighbour"), 4), (PAGED, 0)])
def test_a_page_that_is_used_again_wipes_the_keys_of_the_next_one(given, wiped, model):
    runner = at_home(spec(given, page=4, window=40), model)
    cache, _ = prefilled(runner, tokens(1, 80))
    lost = []
    for token in tokens(1, 12, seed=2).split(1, dim=1):
        feed(runner, cache, token)
        keys, values = cache.layers[0].read(slice(None), torch.float32)
        lost.append(int((keys[0, 0] == 0).all(dim=1).sum()))
        assert not (values == 0).all(dim=3).any()
    assert max(lost) == wiped
    assert lost[0] == 0, "nothing has been used again yet"
