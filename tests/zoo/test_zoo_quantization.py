"""Every bug of quantization does what it says, and its counterpart does not."""

from __future__ import annotations

import pytest
import torch
from counterpart_checks import MINI, SHAPE, absorbed, error, family, feed, prompt, read, used, used_right

from kvcheck.cache.shape import Prefilled
from kvcheck.methods.flexgen import FlexGen
from kvcheck.methods.fp8 import FP8
from kvcheck.methods.fp16 import Fp16
from kvcheck.methods.kivi import KIVI
from kvcheck.zoo import quantization as zoo
from kvcheck.zoo.counterparts.calibrated import Calibrated
from kvcheck.zoo.counterparts.turbo import MixTurbo, Turbo


def with_channel(value: float, spread: float) -> list[Prefilled]:
    """A prompt of 40 tokens whose keys have one channel at `value`, within `spread` of it."""
    parts = prompt(40)
    for part in parts:
        part.keys[..., 3] = value + spread * torch.linspace(0, 1, 40)
    return parts


@pytest.mark.parametrize(("kind", "exact"), [(KIVI, True), (zoo.PrefillQuantizedDespiteResidual, False)])
def test_the_newest_tokens_of_a_prompt_are_quantized(kind: type[KIVI], exact: bool) -> None:
    parts = prompt(40)
    cache = absorbed(kind(group=4, residual=16), parts)
    values = read(cache)[1]
    assert torch.equal(values[:, :, -16:], parts[0].values[:, :, -16:].float()) is exact
    assert cache.layers[0].v.length == (16 if exact else 0)
    assert cache.layers[0].k.length == (8 if exact else 0)


def test_every_flush_empties_the_tails() -> None:
    cache = absorbed(zoo.PrefillQuantizedDespiteResidual(group=4, residual=16), prompt(40))
    lengths = []
    for seed in range(20):
        feed(cache, prompt(1, seed=seed))
        lengths.append(cache.layers[0].v.length)
    assert lengths == [*range(1, 16), 0, 1, 2, 3, 4]


@pytest.mark.parametrize(("kind", "most"), [(KIVI, 0.02), (zoo.KeysQuantizedPerVector, 10.0)])
def test_an_outlier_channel_drowns_its_neighbours(kind: type[KIVI], most: float) -> None:
    parts = with_channel(200.0, 1.0)
    keys = read(absorbed(kind(bits=4, group=8, residual=8), parts))[0]
    found = error(keys[..., 4:8], parts[0].keys[..., 4:8])
    assert most / 100 < found < most


def test_another_group_than_the_default_is_read_by_the_wrong_scales() -> None:
    for group, same in ((8, False), (64, True)):
        parts = prompt(9, MINI)
        mine, right = (absorbed(kind(group=group), parts, MINI) for kind in (zoo.GroupSizeHardcodedInDequant, FlexGen))
        assert torch.equal(read(mine)[0], read(right)[0]) is same
        assert torch.equal(read(mine)[0][..., :8], read(right)[0][..., :8])


@pytest.mark.parametrize(("kind", "helps"), [(KIVI, True), (zoo.BitWidthConstantsHardcoded, False)])
def test_more_bits_are_worse(kind: type[KIVI], helps: bool) -> None:
    parts = prompt(40)
    two, four = (read(absorbed(kind(bits=bits, group=8, residual=8), parts)) for bits in (2, 4))
    for which in (0, 1):
        true = (parts[0].keys, parts[0].values)[which]
        assert (error(four[which], true) < error(two[which], true)) is helps


@pytest.mark.parametrize(("kind", "same"), [(Calibrated, True), (zoo.ScaleAppliedToUnquantizedCache, False)])
def test_scores_shrink_where_nothing_is_quantized(kind: type[Calibrated], same: bool) -> None:
    cache, full = kind(quantized=False).build(SHAPE), Fp16().build(SHAPE)
    for layer in cache.layers:
        layer.calibrate(0.02, 0.01)
    for parts in (prompt(9), prompt(1, seed=1)):
        assert all(map(torch.equal, feed(cache, parts), feed(full, parts))) is same


@pytest.mark.parametrize(("kind", "right"), [(FP8, True), (zoo.ScalesFallBackToOne, False)])
def test_large_keys_saturate_at_448(kind: type[FP8], right: bool) -> None:
    parts = prompt(9)
    parts[0].keys.mul_(1000)
    keys = read(absorbed(kind(), parts))[0]
    assert (float(keys.abs().max()) > 1000) is right
    assert (error(keys, parts[0].keys) < 0.01) is right
    assert error(read(absorbed(kind(), parts), 1)[0], parts[1].keys) < 0.01


@pytest.mark.parametrize(("kind", "right"), [(KIVI, True), (zoo.ConstantGroupDividesByZero, False)])
def test_a_constant_channel_is_read_as_nan(kind: type[KIVI], right: bool) -> None:
    for value in (0.0, 1.5):
        parts = with_channel(value, 0.0)
        method = kind(group=8, residual=8)
        assert bool(read(absorbed(method, parts))[0].isfinite().all()) is right
        assert error(read(absorbed(method, prompt(40)))[0], prompt(40)[0].keys) < 0.2


@pytest.mark.parametrize(("kind", "right"), [(KIVI, True), (zoo.ReciprocalScaleOverflowsFp16, False)])
def test_a_nearly_constant_channel_overflows(kind: type[KIVI], right: bool) -> None:
    method = kind(bits=4, group=8, residual=8)
    assert bool(read(absorbed(method, with_channel(0.01, 0.0004)))[0].isfinite().all()) is right
    wide = with_channel(1.0, 0.5)
    assert error(read(absorbed(method, wide))[0], wide[0].keys) < 0.02


@pytest.mark.parametrize(("kind", "right"), [(FlexGen, True), (zoo.HalfValuesDroppedInDecode, False)])
def test_one_token_of_one_row_loses_half_of_the_values(kind: type[FlexGen], right: bool) -> None:
    def attends(rows: int, tokens: int) -> torch.Tensor:
        cache = absorbed(kind(group=8), prompt(30, rows=1)).select([0] * rows)
        block = [
            Prefilled(*(each.expand(rows, -1, -1, -1) for each in (part.keys, part.values, part.queries)))
            for part in prompt(tokens, rows=1, seed=1)
        ]
        return feed(cache, block)[0][:1]

    assert torch.allclose(attends(1, 1), attends(2, 1), atol=1e-5) is right
    assert torch.allclose(attends(1, 3), attends(2, 3), atol=1e-5)


@pytest.mark.parametrize(("kind", "right"), [(Turbo, True), (zoo.TailBlockTruncated, False)])
def test_channels_behind_the_last_whole_block_are_zero(kind: type[Turbo], right: bool) -> None:
    parts = prompt(9)
    keys = read(absorbed(kind(block=12), parts))[0]
    assert error(keys[..., :12], parts[0].keys[..., :12]) < 0.02
    assert bool(keys[..., 12:].any()) is right
    whole = read(absorbed(kind(block=8), parts))[0]
    assert error(whole, parts[0].keys) < 0.02


@pytest.mark.parametrize(("kind", "right"), [(Turbo, True), (zoo.CodebookFittedToWrongVariance, False)])
def test_a_codebook_that_is_too_narrow_cuts_large_entries(kind: type[Turbo], right: bool) -> None:
    parts = prompt(200, MINI)
    for bits, bound in ((2, 0.1175), (4, 0.0095)):  # the Lloyd-Max distortion of a normal distribution
        found = error(read(absorbed(kind(bits=bits), parts, MINI))[0], parts[0].keys)
        assert (found < 1.15 * bound) is right


@pytest.mark.parametrize(("kind", "right"), [(MixTurbo, True), (zoo.SharedLayerUsesOwnQuantParams, False)])
def test_a_layer_misreads_the_keys_of_another(kind: type[MixTurbo], right: bool) -> None:
    cache = kind().build(MINI)
    feed(cache, prompt(9, MINI))
    for made, reads in ((1, 2), (0, 3)):
        for mine, theirs in zip(read(cache, reads), read(cache, made), strict=True):
            assert torch.equal(mine, theirs) is right
    fork = cache.select([1])
    assert torch.equal(read(fork, 2)[0], read(cache, 2)[0][1:])


@pytest.mark.parametrize("one", family("quantization"), ids=lambda one: one.name)
def test_ordinary_use_raises_nothing(one) -> None:
    for tokens in (1, 150):
        mine, right = used(one.spec, tokens), used_right(one.counterpart, tokens)
        assert [each.shape for each in mine] == [each.shape for each in right]
        assert all(bool(each.isfinite().all()) for each in right)
