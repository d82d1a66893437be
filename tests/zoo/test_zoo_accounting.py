"""Every bug of accounting does what it says, and its counterpart does not."""

from __future__ import annotations

import pytest
import torch
from counterpart_checks import MINI, SHAPE, absorbed, family, feed, prompt, read, used, used_right

from kvcheck.measure.audit import audit
from kvcheck.measure.memory import held
from kvcheck.methods.flexgen import FlexGen
from kvcheck.methods.fp16 import Fp16
from kvcheck.zoo import accounting as zoo
from kvcheck.zoo.counterparts.chain import Chain
from kvcheck.zoo.counterparts.pyramid import Pyramid


@pytest.mark.parametrize(("kind", "right"), [(Chain, True), (zoo.ComposedRatiosMultipliedAsRemoved, False)])
def test_two_halves_are_declared_as_a_quarter_removed(kind: type[Chain], right: bool) -> None:
    parts = prompt(100)
    cache = absorbed(kind(), parts)
    assert cache.layers[0].stored == 25
    assert kind().slots(SHAPE, 100, 0)[0] == (25 if right else 75)
    assert (audit(cache, parts, kind()).problems == ()) is right
    assert kind(votes=0.0, norms=0.0).slots(SHAPE, 100, 0)[0] == 100


@pytest.mark.parametrize(("kind", "right"), [(FlexGen, True), (zoo.BitWidthAccountingOnly, False)])
def test_bytes_are_declared_by_bits_and_held_in_sixteen(kind: type[FlexGen], right: bool) -> None:
    parts = prompt(40)
    cache = absorbed(kind(group=8), parts)
    assert (held(cache).kv == kind(group=8).kv_bytes(SHAPE, 2, 40, 0)) is right
    assert (held(cache).kv < Fp16().kv_bytes(SHAPE, 2, 40, 0)) is right
    assert torch.allclose(read(cache)[0], read(absorbed(FlexGen(group=8), parts))[0], atol=2e-3)


@pytest.mark.parametrize(("kind", "right"), [(Pyramid, True), (zoo.PerLayerBudgetGuardedByGlobal, False)])
def test_prompts_of_medium_length_have_no_pyramid(kind: type[Pyramid], right: bool) -> None:
    method = kind(budget=32, window=8)
    for tokens, flat in ((40, not right), (47, not right), (48, False), (100, False)):
        cache = absorbed(method, prompt(tokens, MINI), MINI)
        kept = tuple(layer.stored for layer in cache.layers)
        assert (len(set(kept)) == 1) is flat
        assert (kept == method.slots(MINI, tokens, 0)) is not flat


@pytest.mark.parametrize(("kind", "right"), [(Fp16, True), (zoo.LengthInferredFromNonzeroValues, False)])
def test_a_key_of_zeros_is_not_counted(kind: type[Fp16], right: bool) -> None:
    parts = prompt(9)
    cache = absorbed(kind(), parts)
    assert kind().build(SHAPE).get_seq_length() == 0
    assert cache.get_seq_length() == 9
    for part in parts:
        part.keys[:, :, 4] = 0
    cache = absorbed(kind(), parts)
    assert cache.get_seq_length() == (9 if right else 8)
    feed(cache, prompt(1, seed=1))
    assert cache.get_seq_length() == (10 if right else 9)


@pytest.mark.parametrize("one", family("accounting"), ids=lambda one: one.name)
def test_ordinary_use_raises_nothing(one) -> None:
    for tokens in (1, 150):
        mine, right = used(one.spec, tokens), used_right(one.counterpart, tokens)
        assert [each.shape for each in mine] == [each.shape for each in right]
        assert all(bool(each.isfinite().all()) for each in right)
