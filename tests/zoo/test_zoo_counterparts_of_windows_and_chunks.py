"""The counterparts that no registered method could be: lossless where they say so, and exact in what they declare."""

from __future__ import annotations

import pytest
import torch
from routes import apart, at_home, feed, measured, mini, prefilled, tokens, walk

from kvcheck.measure.audit import audit
from kvcheck.measure.memory import held
from kvcheck.methods import make

COUNTERPARTS = "kvcheck.zoo.counterparts"
LOSSLESS = (
    f"{COUNTERPARTS}.chunked.Blockwise:budget=1000,window=8,chunk=16",
    f"{COUNTERPARTS}.chunked.Chunked:chunk=16",
    f"{COUNTERPARTS}.chunked.ChunkedH2O:budget=1000,chunk=16",
    f"{COUNTERPARTS}.chunked.ChunkedStreamingLLM:window=1000,chunk=16",
    f"{COUNTERPARTS}.drafted.Drafted:window=1000",
    f"{COUNTERPARTS}.padded.PaddedSnapKV:budget=1000",
    f"{COUNTERPARTS}.paged_window.PagedWindow:page=4,window=1000",
    f"{COUNTERPARTS}.pooled.Pooled:block=1,window=0",
    f"{COUNTERPARTS}.regimes.Regimes",
    f"{COUNTERPARTS}.shifted.Shifted:window=1000",
    f"{COUNTERPARTS}.tiered.Tiered:block=8,room=3",
)
LIKE = {
    f"{COUNTERPARTS}.chunked.ChunkedH2O:chunk=16": "h2o",
    f"{COUNTERPARTS}.chunked.ChunkedStreamingLLM:chunk=16": "streaming_llm",
    f"{COUNTERPARTS}.drafted.Drafted": "streaming_llm",
    f"{COUNTERPARTS}.padded.PaddedSnapKV:window=4": "snapkv:window=4",
}
LOSSY = (
    *LIKE,
    f"{COUNTERPARTS}.chunked.Blockwise:window=8,chunk=16",
    f"{COUNTERPARTS}.paged_window.PagedWindow:page=4",
    f"{COUNTERPARTS}.paged_window.PagedWindow",
    f"{COUNTERPARTS}.pooled.Pooled",
    f"{COUNTERPARTS}.pooled.Pooled:block=3,window=7",
    f"{COUNTERPARTS}.regimes.Regimes:original=60",
    f"{COUNTERPARTS}.shifted.Shifted",
    f"{COUNTERPARTS}.shifted.Shifted:discard=5,window=21,sink=2",
)


@pytest.mark.parametrize("length", [1, 2, 17, 75])
@pytest.mark.parametrize("given", LOSSLESS)
def test_a_counterpart_that_loses_nothing_is_the_full_cache(given, length, model):
    assert apart(walk(at_home(given, model), length), walk(at_home("fp16", model), length)) < 1e-3


@pytest.mark.parametrize("length", [1, 2, 17, 150])
@pytest.mark.parametrize("given", LIKE)
def test_a_counterpart_that_feeds_otherwise_is_the_method_that_it_wraps(given, length, model):
    assert apart(walk(at_home(given, model), length), walk(at_home(LIKE[given], model), length)) < 1e-3


def test_mixattention_in_chunks_is_mixattention():
    model = mini()
    for length in (1, 129, 300):
        one, other = (
            walk(at_home(each, model), length) for each in (f"{COUNTERPARTS}.chunked.ChunkedMix", "mixattention")
        )
        assert apart(one, other) < 1e-2


@pytest.mark.parametrize("length", [1, 33, 75])
@pytest.mark.parametrize("given", [*(each for each in LOSSLESS if "window=0" not in each), *LOSSY])
def test_slots_and_bytes_are_as_declared_after_the_prompt_and_while_decoding(given, length, model):
    runner, ids = at_home(given, model), tokens(2, length)
    full = make("fp16").build(runner.shape)
    with torch.inference_mode(), full.recording() as taken:
        model.model(ids, past_key_values=full)
    cache, _ = prefilled(runner, ids)
    assert audit(cache, taken, runner.method).problems == ()
    for at, token in enumerate(tokens(2, 40, seed=2).split(1, dim=1)):
        feed(runner, cache, token)
        assert held(cache).kv == runner.method.kv_bytes(runner.shape, 2, length, at + 1)
        assert tuple(layer.stored for layer in cache.layers) == runner.method.slots(runner.shape, length, at + 1)
    assert audit(cache, taken, runner.method).problems == ()
    assert measured(cache.select([1])) <= measured(cache)


@pytest.mark.parametrize("given", LOSSY)
def test_a_fork_goes_on_as_its_origin_would(given, model):
    runner, later = at_home(given, model), tokens(2, 30, seed=2)
    origin, _ = prefilled(runner, tokens(2, 75))
    fork = origin.select([1, 0, 1])
    for token in later.split(1, dim=1):
        mine, theirs = feed(runner, origin, token), feed(runner, fork, token[[1, 0, 1]])
        assert torch.allclose(mine[[1, 0, 1]], theirs, atol=1e-3)
