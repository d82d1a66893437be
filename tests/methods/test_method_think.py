"""ThinK against its sheet: which channels leave, what that does to the scores, and that they are really gone."""

from __future__ import annotations

import pytest
import torch
from toys import SHAPE, absorbed, cut, dense, feed, prompt

from kvcheck.core.errors import SpecError
from kvcheck.measure.memory import held
from kvcheck.methods import make

RATIO, RECENT = 0.5, 6
TEXT = f"think:ratio={RATIO},recent={RECENT}"


def dropped_by_hand(part) -> list[list[set[int]]]:
    """Per row and kv head the channels with the smallest mean q^2 times mean k^2, as double loops."""
    out = []
    for row in range(2):
        out.append([])
        for head in range(SHAPE.kv_heads):
            asked = torch.stack([part.queries[row, 2 * head + g, -RECENT:].double() ** 2 for g in range(2)]).mean(
                (0, 1)
            )
            score = asked * (part.keys[row, head].double() ** 2).mean(0)
            out[-1].append(set(score.argsort()[: int(8 * RATIO)].tolist()))
    return out


def test_the_channels_of_the_smallest_scores_leave_in_old_keys_only() -> None:
    parts = prompt(40)
    for layer, part in zip(absorbed(make(TEXT), parts).layers, parts, strict=True):
        keys, values = layer.read(slice(None), torch.float32)
        wanted = part.keys.float().clone()
        for row, heads in enumerate(dropped_by_hand(part)):
            for head, channels in enumerate(heads):
                wanted[row, head, :-RECENT, list(channels)] = 0
        assert torch.equal(keys, wanted)
        assert torch.equal(values, part.values.float())


def test_narrow_keys_are_stored_narrow() -> None:
    cache = absorbed(make(TEXT), prompt(40))
    assert cache.layers[0].narrow.tensor.shape == (2, 2, 34, 4)
    assert held(cache).kv == make(TEXT).kv_bytes(SHAPE, 2, 40, 0)


def test_channels_that_are_zero_already_cost_nothing() -> None:
    parts = prompt(41)
    for part in parts:
        part.keys[..., ::2] = 0
    outs = [feed(absorbed(make(text), cut(parts, 0, 40)), cut(parts, 40, 41)) for text in (TEXT, "fp16")]
    for mine, full in zip(*outs, strict=True):
        torch.testing.assert_close(mine, full, atol=1e-5, rtol=1e-5)


def test_what_is_decoded_is_stored_whole() -> None:
    parts = prompt(45)
    cache = absorbed(make(TEXT), cut(parts, 0, 40))
    for at in range(40, 45):
        feed(cache, cut(parts, at, at + 1))
    keys, _ = cache.layers[0].read(slice(None), torch.float32)
    assert torch.equal(keys[:, :, 34:], parts[0].keys[:, :, 34:].float())


@pytest.mark.parametrize("text", ["think:ratio=0,recent=6", "think:recent=40"])
def test_nothing_to_drop_is_the_full_cache(text: str) -> None:
    parts = prompt(41)
    cache = absorbed(make(text), cut(parts, 0, 40))
    for mine, part in zip(feed(cache, cut(parts, 40, 41)), parts, strict=True):
        torch.testing.assert_close(
            mine, dense(part.queries[:, :, 40:], part.keys, part.values, 40).float(), atol=2e-3, rtol=2e-3
        )


@pytest.mark.parametrize("text", ["think:ratio=1.0", "think:recent=0"])
def test_values_out_of_range_are_refused(text: str) -> None:
    with pytest.raises(SpecError, match="is not a"):
        make(text)
