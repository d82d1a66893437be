"""FP8: the error of every value, saturation, and the same numbers as transformers where it does the same."""

from __future__ import annotations

import pytest
import torch
import transformers
from toys import SHAPE, absorbed, cut, feed, prompt

from kvcheck.cache.shape import ModelShape
from kvcheck.core.errors import SpecError
from kvcheck.methods import make
from kvcheck.methods.fp8 import widen

BOTH = pytest.mark.parametrize("text", ["fp8", "fp8:scale=token"])


def test_every_code_is_widened_to_its_number():
    codes = torch.arange(256, dtype=torch.int32).to(torch.uint8)
    true, found = codes.view(torch.float8_e4m3fn).float(), torch.empty(256)
    widen(codes, found)
    assert torch.equal(found[~true.isnan()], true[~true.isnan()])


@BOTH
def test_every_value_is_read_back_within_a_sixteenth_of_itself(text: str) -> None:
    parts = prompt(60)
    for layer, part in zip(absorbed(make(text), parts).layers, parts, strict=True):
        for mine, true in zip(layer.read(slice(None), torch.float32), (part.keys, part.values), strict=True):
            scale = true.float().abs().amax(dim=(2, 3), keepdim=True) / 448
            assert bool(((mine - true.float()).abs() <= true.float().abs() / 15.9 + scale / 1000).all())


def test_what_is_larger_than_the_prompt_saturates_and_is_finite() -> None:
    parts = prompt(31)
    parts[0].keys[:, :, 30] = 60.0
    cache = absorbed(make("fp8"), cut(parts, 0, 30))
    feed(cache, cut(parts, 30, 31))
    read, _ = cache.layers[0].read(slice(None), torch.float32)
    largest = parts[0].keys[:, :, :30].float().abs().amax(dim=(2, 3))
    torch.testing.assert_close(read[:, :, 30], largest.unsqueeze(-1).expand(-1, -1, 8), rtol=1e-3, atol=0)


def test_a_scale_per_token_does_not_saturate() -> None:
    parts = prompt(31)
    parts[0].keys[:, :, 30] = 60.0
    cache = absorbed(make("fp8:scale=token"), cut(parts, 0, 30))
    feed(cache, cut(parts, 30, 31))
    read, _ = cache.layers[0].read(slice(None), torch.float32)
    torch.testing.assert_close(read[:, :, 30], torch.full((2, 2, 8), 60.0), rtol=1e-2, atol=0)


@pytest.mark.skipif(not hasattr(transformers.cache_utils, "Fp8QuantizedLayer"), reason="transformers has none yet")
def test_one_row_of_one_head_is_stored_as_by_transformers() -> None:
    shape = ModelShape(layers=1, heads=2, kv_heads=1, head_dim=8)
    parts = prompt(41, shape, rows=1)
    cache = absorbed(make("fp8"), cut(parts, 0, 40), shape)
    feed(cache, cut(parts, 40, 41))
    theirs = transformers.cache_utils.Fp8QuantizedLayer()
    theirs.update(parts[0].keys[:, :, :40].float(), parts[0].values[:, :, :40].float())
    keys, values = theirs.update(parts[0].keys[:, :, 40:].float(), parts[0].values[:, :, 40:].float())
    mine = cache.layers[0].read(slice(None), torch.float32)
    for ours, other in zip(mine, (keys, values), strict=True):
        torch.testing.assert_close(ours[:, :, :40], other[:, :, :40], rtol=0, atol=0)


def test_zeros_stay_zeros() -> None:
    parts = prompt(20)
    parts[0].keys.zero_()
    read, _ = absorbed(make("fp8"), parts, SHAPE).layers[0].read(slice(None), torch.float32)
    assert not read.any()


def test_an_unknown_scale_is_refused() -> None:
    with pytest.raises(SpecError, match="it must be head or token"):
        make("fp8:scale=tensor")
