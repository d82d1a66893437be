"""The counterparts of quantization, accounting, merging and config are right."""

from __future__ import annotations

import pytest
import torch
from counterpart_checks import SHAPE, absorbed, ordinary_use, prompt, runner_of, used, used_right, words

from kvcheck.cache.shape import ModelShape
from kvcheck.core.errors import MethodUnsupported, SpecError
from kvcheck.measure.audit import audit
from kvcheck.measure.memory import held
from kvcheck.methods import make
from kvcheck.zoo.counterparts.long_rope import LongRope

T = "kvcheck.zoo.counterparts"
SPECS = (
    f"{T}.turbo.Turbo",
    f"{T}.turbo.Turbo:block=24,bits=2",
    f"{T}.turbo.MixTurbo",
    f"{T}.calibrated.Calibrated",
    f"{T}.calibrated.Calibrated:quantized=false",
    f"{T}.chain.Chain",
    f"{T}.chain.Chain:votes=0.3,norms=0.2",
    f"{T}.pyramid.Pyramid:budget=64",
    f"{T}.pyramid.Pyramid:budget=0.7",
    f"{T}.merge_on_evict.MergeOnEvict",
    f"{T}.long_rope.LongRope",
    f"{T}.fragments.Fragments:piece=20",
)
LOSSLESS = (
    f"{T}.calibrated.Calibrated:quantized=false",
    f"{T}.chain.Chain:votes=0,norms=0",
    f"{T}.pyramid.Pyramid:budget=1.0",
    f"{T}.merge_on_evict.MergeOnEvict:budget=1.0",
    f"{T}.long_rope.LongRope",
)


@pytest.mark.parametrize("spec", SPECS)
def test_it_holds_what_it_declares(spec: str) -> None:
    for tokens in (1, 17, 100, 150):
        dense = runner_of("fp16").build()
        with dense.recording() as layers:
            runner_of("fp16").feed(dense, words(2, tokens))
        runner = runner_of(spec)
        if runner.method.info.shares_prefill:
            cache = runner.build()
            cache.absorb([layer.select([0, 1]) for layer in layers])
        else:
            cache, _ = runner.prefill(words(2, tokens))
        assert audit(cache, layers, runner.method).problems == ()
        for decoded in range(1, 4):
            runner.feed(cache, words(2, 1, decoded))
            assert held(cache).kv == runner.method.kv_bytes(runner.shape, 2, tokens, decoded)


@pytest.mark.parametrize("spec", LOSSLESS)
def test_it_is_the_full_cache_where_it_loses_nothing(spec: str) -> None:
    for tokens in (1, 150):
        assert all(map(torch.equal, used(spec, tokens), used_right("fp16", tokens)))


@pytest.mark.parametrize("spec", SPECS)
def test_a_fork_leaves_its_origin_alone_and_rows_do_not_depend_on_each_other(spec: str) -> None:
    runner = runner_of(spec)
    alone, first = runner.prefill(words(2, 60)[:1])
    both, logits = runner.prefill(words(2, 60))
    assert torch.allclose(first, logits[:1], atol=1e-3)
    next_token = words(2, 1, 1)
    fork = both.select([1, 0])
    mine = runner.feed(fork, next_token[[1, 0]])
    runner.feed(fork, words(2, 3, 2))
    assert torch.allclose(runner.feed(both, next_token), mine[[1, 0]], atol=1e-3)
    assert torch.allclose(runner.feed(alone, next_token[:1]), mine[1:], atol=1e-3)


def test_keys_are_turned_as_the_model_would_turn_them() -> None:
    """With the frequencies of a long text in the model itself, the full cache says the same."""
    import copy

    loaded = runner_of("fp16").loaded
    method = LongRope(native=30, capacity=90)
    turned = ordinary_use(method.runner(loaded), 60)
    other = copy.deepcopy(loaded.model)
    frequencies = other.model.rotary_emb.inv_freq
    last = len(frequencies) - 1
    frequencies.mul_(3.0 ** (-torch.arange(last + 1) / last))
    runner = runner_of("fp16")
    runner.model = other
    for mine, theirs in zip(turned, ordinary_use(runner, 60), strict=True):
        assert torch.allclose(mine, theirs, atol=0.3, rtol=0.02)


@pytest.mark.parametrize("piece", [20, 1000])
def test_joined_pieces_are_those_of_a_cache_that_hides_earlier_ones(piece: int) -> None:
    """In the first layer, where a key depends on its own token alone, joined pieces are the full cache."""
    ids = words(2, 70)
    cache, logits = runner_of(f"{T}.fragments.Fragments:piece={piece},fresh=10").prefill(ids)
    full, expected = runner_of("fp16").prefill(ids)
    for layer in range(1 if piece == 20 else 4):
        mine, theirs = cache.layers[layer], full.layers[layer]
        assert torch.allclose(mine.keys.float(), theirs.keys.float(), atol=0.02)
        assert torch.allclose(mine.values.float(), theirs.values.float(), atol=0.02)
    assert torch.allclose(logits, expected, atol=0.05) is (piece == 1000)


def test_what_is_evicted_is_folded_into_what_is_kept() -> None:
    """Values of the kept tokens change, keys and the choice do not; a fraction of 0 is SnapKV."""
    spec = f"{T}.merge_on_evict.MergeOnEvict:budget=0.5,window=4,similarity=0.1"
    parts = prompt(40)
    plain, merged, none = (absorbed(make(text), parts) for text in ("snapkv:window=4", spec, f"{spec},fraction=0"))
    for one, two, three in zip(plain.layers, merged.layers, none.layers, strict=True):
        assert torch.equal(one.positions, two.positions)
        assert torch.equal(one.keys, two.keys)
        assert not torch.equal(one.values, two.values)
        assert torch.equal(one.values, three.values)


def test_a_block_that_fills_no_byte_is_refused() -> None:
    with pytest.raises(MethodUnsupported, match="whole bytes"):
        make(f"{T}.turbo.Turbo:block=7").build(SHAPE)
    with pytest.raises(SpecError, match="bits=5"):
        make(f"{T}.turbo.Turbo:bits=5")
    with pytest.raises(MethodUnsupported, match="rotates"):
        make(f"{T}.long_rope.LongRope").build(ModelShape(2, 4, 2, 8))
