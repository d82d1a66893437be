"""Bugs of positions show their mechanism, their counterparts do not, and ordinary use raises nothing."""

from __future__ import annotations

import pytest
import torch
from routes import apart, at_home, feed, prefilled, text, tokens, toy, usual, walk

from kvcheck.cache.rotary import rotate
from kvcheck.zoo import bugs

FAMILY = {one.name: one for one in bugs(("positions",))}
COUNTERPARTS = "kvcheck.zoo.counterparts"
SHIFTED = f"{COUNTERPARTS}.shifted.Shifted"
PADDED = f"{COUNTERPARTS}.padded.PaddedSnapKV"
LATE = "shared-layer-query-offset-after-update"
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 256,
}


@pytest.mark.parametrize("name", FAMILY)
def test_ordinary_use_raises_nothing(name, model, embedded):
    usual(text(name), embedded if name == LATE else model)


@pytest.mark.parametrize(("given", "number"), [(text("offset-is-retained-rows"), 50), ("h2o", 100)])
def test_the_token_behind_an_evicted_prompt_gets_the_number_of_the_slots(given, number, model):
    runner = at_home(given, model)
    cache, _ = prefilled(runner, tokens(1, 100))
    assert cache.get_seq_length() == number
    feed(runner, cache, tokens(1, 1, seed=2))
    feed(runner, cache, tokens(1, 1, seed=3))
    raw, _ = prefilled(at_home("fp16", model), tokens(1, 1, seed=2))
    assert cache.layers[0].positions[0, 0, -2] == 100
    key = rotate(raw.layers[0].keys, torch.tensor(number), cache.layers[0].shape.rope)
    assert torch.allclose(cache.layers[0].keys[:, :, -2:-1], key, atol=1e-2)


@pytest.mark.parametrize(("given", "alike"), [(text("rerotation-uses-unscaled-rope"), False), (SHIFTED, True)])
@pytest.mark.parametrize("scaling", [LLAMA3, {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}])
def test_a_key_that_moved_is_not_the_key_of_its_new_position(given, alike, scaling):
    found = moved(given, toy(rope_parameters=scaling))
    assert torch.allclose(*found, atol=2e-2) == alike


def test_a_key_that_moved_is_right_where_the_model_scales_nothing(model):
    assert torch.allclose(*moved(text("rerotation-uses-unscaled-rope"), model), atol=2e-2)


def moved(given, loaded):
    """The keys of the first layer, which depend on tokens and positions only, after a shift: those in the cache, and
    those of the same tokens at the positions of their slots."""
    runner, ids = at_home(given + (":" if ":" not in given else ",") + "window=60", loaded), tokens(1, 100)
    cache, _ = prefilled(runner, ids)
    feed(runner, cache, tokens(1, 1, seed=2))
    layer = cache.layers[0]
    at = layer.positions[0, 0].long()
    text_left = torch.cat([ids, tokens(1, 1, seed=2)], dim=1)[:, at]
    right, _ = prefilled(at_home("fp16", loaded), text_left)
    return layer.read(slice(None), torch.float32)[0], right.layers[0].keys.float()


@pytest.mark.parametrize(("given", "by"), [(text("left-pad-shared-positions"), 28), (PADDED, 0)])
def test_the_keys_of_a_padded_prompt_are_rotated_by_its_pads(given, by, model):
    ids = tokens(2, 100)
    runner = at_home(given + (":" if ":" not in given else ",") + "budget=1.0", model)
    cache, _ = prefilled(runner, ids)
    full, _ = prefilled(at_home("fp16", model), ids)
    turned = rotate(full.layers[0].keys.float(), torch.tensor(by), runner.shape.rope)
    assert torch.allclose(cache.layers[0].keys.float(), turned, atol=2e-2)
    assert cache.get_seq_length() == 100


def test_a_prompt_without_pads_is_numbered_right(model):
    given = text("left-pad-shared-positions")
    assert apart(walk(at_home(given, model), 128), walk(at_home(PADDED, model), 128)) == 0


def test_layers_that_read_others_are_asked_too_late(embedded):
    def split(given):
        """Logits of one forward, and of the same tokens in two."""
        runner = at_home(given, embedded)
        once, logits = prefilled(runner, tokens(1, 40))
        assert once.seen == 40
        cache, _ = prefilled(runner, tokens(1, 40)[:, :39])
        return logits, feed(runner, cache, tokens(1, 40)[:, 39:])[:, -1]

    assert apart(*([each] for each in split("mixattention"))) < 1e-3
    assert apart(*([each] for each in split(text(LATE)))) > 5e-3


@pytest.mark.parametrize(("given", "right"), [(text("pending-shift-overwritten"), False), (SHIFTED, True)])
def test_of_two_groups_that_leave_together_one_moves_the_keys(given, right, model):
    assert torch.allclose(*moved(given, model), atol=2e-2) == right


def test_one_group_at_a_time_is_shifted_right(model):
    walks = []
    for given in (text("pending-shift-overwritten"), SHIFTED):
        runner = at_home(given + ":window=60", model)
        cache, _ = prefilled(runner, tokens(1, 62))
        walks.append([feed(runner, cache, token) for token in tokens(1, 60, seed=2).split(1, dim=1)])
        assert cache.layers[0].stored < 65
    assert apart(*walks) == 0


@pytest.mark.parametrize(("given", "differ"), [(text("racy-partial-rotation"), True), ("cake", False)])
def test_two_runs_of_one_prompt_differ_in_some_channels_of_some_keys(given, differ, model):
    runner, ids = at_home(given, model), tokens(1, 300)
    one, other = (prefilled(runner, ids)[0].layers[0].keys for _ in range(2))
    changed = (one != other).any(dim=3).float().mean()
    assert (0 < changed < 0.1) == differ
    channels = (one != other).any(dim=0).any(dim=0).any(dim=0).nonzero().flatten().tolist()
    assert channels == ([0, 1, 8, 9] if differ else [])
