"""Bugs of long generation show their mechanism, their counterparts do not, and ordinary use raises nothing."""

from __future__ import annotations

import pytest
import torch
from routes import apart, at_home, feed, prefilled, spec, text, tokens, usual

from kvcheck.zoo import bugs

FAMILY = [one.name for one in bugs(("long_generation",))]
DRAFTED = "kvcheck.zoo.counterparts.drafted.Drafted"
REGIMES = "kvcheck.zoo.counterparts.regimes.Regimes"
LEDGER = "shared-budget-never-released"


@pytest.mark.parametrize("name", FAMILY)
def test_ordinary_use_raises_nothing(name, model):
    usual(text(name), model)


def decode(runner, cache, count, seed=2):
    """Feed tokens one by one -> their logits."""
    return [feed(runner, cache, token) for token in tokens(1, count, seed).split(1, dim=1)]


@pytest.mark.parametrize(("given", "slots"), [(text("evict-at-prefill-only"), 90), ("h2o", 50)])
def test_decoded_tokens_are_appended_to_a_cache_that_never_shrinks_again(given, slots, model):
    runner = at_home(given, model)
    cache, _ = prefilled(runner, tokens(1, 100))
    assert cache.layers[0].stored == 50
    decode(runner, cache, 40)
    assert {layer.stored for layer in cache.layers} == {slots}


@pytest.mark.parametrize(("given", "alike"), [(text("rope-regime-switch-keeps-old-keys"), False), (REGIMES, True)])
def test_a_text_that_grows_long_answers_otherwise_than_one_that_began_so(given, alike, model):
    runner, ids = at_home(spec(given, original=50, factor=1.5), model), tokens(1, 60)
    cache, _ = prefilled(runner, ids[:, :40])
    grown = [feed(runner, cache, token)[:, -1] for token in ids[:, 40:].split(1, dim=1)][-1]
    _, began = prefilled(runner, ids)
    assert (apart([grown], [began]) < 1e-2) == alike
    assert cache.seen == 60


@pytest.mark.parametrize("length", [30, 70])
def test_a_text_that_stays_on_one_side_of_the_length_is_right(length, model):
    walks = []
    for given in (text("rope-regime-switch-keeps-old-keys"), REGIMES):
        runner = at_home(spec(given, original=50), model)
        cache, logits = prefilled(runner, tokens(1, length))
        walks.append([logits, *decode(runner, cache, 10)])
    assert apart(*walks) == 0


@pytest.mark.parametrize(("given", "seen"), [(text("rollback-silently-refused"), 104), (DRAFTED, 101)])
def test_rejected_guesses_stay_in_the_text_once_the_window_slides(given, seen, model):
    runner = at_home(given, model)
    cache, _ = prefilled(runner, tokens(1, 100))
    decode(runner, cache, 1)
    assert {layer.seen for layer in cache.layers} == {seen}
    assert int(cache.layers[0].positions.max()) == seen - 1


def test_rejected_guesses_leave_as_long_as_the_window_does_not_slide(model):
    walks = []
    for given in (text("rollback-silently-refused"), DRAFTED):
        runner = at_home(spec(given, window=500), model)
        cache, _ = prefilled(runner, tokens(1, 100))
        walks.append(decode(runner, cache, 5))
        assert cache.seen == 105
    assert apart(*walks) == 0


def test_the_ledger_refuses_when_the_tokens_of_all_samples_exceed_the_limit(model):
    runner, counterpart = at_home(text(LEDGER), model), at_home("h2o", model)
    for _ in range(8):
        cache, _ = prefilled(runner, tokens(2, 1000))
    decode(runner, cache.select([0]), 192)
    with pytest.raises(RuntimeError, match="8193 tokens"):
        decode(runner, cache.select([0]), 1)
    for _ in range(9):
        prefilled(counterpart, tokens(2, 1000))


@pytest.mark.parametrize(
    ("given", "newest"), [(text("window-cache-only-right-for-first-prompt"), False), ("streaming_llm", True)]
)
def test_a_second_turn_drops_what_was_decoded_before_it(given, newest, model):
    runner = at_home(given, model)
    cache, _ = prefilled(runner, tokens(1, 100))
    decode(runner, cache, 10)
    feed(runner, cache, tokens(1, 8, seed=3))
    positions = set(cache.layers[0].positions[0, 0].tolist())
    assert cache.layers[0].stored == 54
    assert (set(range(100, 108)) <= positions) == newest
    assert set(range(108, 118)) <= positions
    assert (60 in positions) != newest


def test_the_first_turn_and_a_second_without_decoding_are_right(model):
    walks = []
    for given in (text("window-cache-only-right-for-first-prompt"), "streaming_llm"):
        runner = at_home(given, model)
        cache, _ = prefilled(runner, tokens(1, 100))
        walks.append([feed(runner, cache, tokens(1, 8, seed=3)), *decode(runner, cache, 40)])
        assert torch.equal(cache.layers[0].positions, cache.layers[2].positions)
    assert apart(*walks) == 0
