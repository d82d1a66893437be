"""TOVA against the rule of its sheet: the newest query decides, for all heads of a layer alike."""

from __future__ import annotations

import pytest
import torch
from toys import SHAPE, absorbed, cut, feed, prompt, weights

from kvcheck.core.errors import SpecError
from kvcheck.methods import make


def kept_by_hand(queries: torch.Tensor, keys: torch.Tensor, cap: int) -> torch.Tensor:
    """(B, C): the positions with the largest weights of the last query, mean over the heads."""
    last = weights(queries[:, :, -1:], keys, keys.shape[2] - 1)[:, :, 0].mean(1)
    return last.topk(cap, dim=1).indices.sort(dim=1).values


def test_the_prompt_keeps_what_its_last_query_attends_to() -> None:
    parts = prompt(50)
    for layer, part in zip(absorbed(make("tova:budget=12"), parts).layers, parts, strict=True):
        wanted = kept_by_hand(part.queries, part.keys, 12)
        assert torch.equal(layer.positions.long(), wanted.unsqueeze(1).expand(-1, SHAPE.kv_heads, -1))


def test_every_decoded_token_decides_anew_among_what_is_left() -> None:
    parts = prompt(40)
    cache = absorbed(make("tova:budget=12"), cut(parts, 0, 30))
    for at in range(30, 40):
        before = [torch.cat([layer.positions.long(), torch.full((2, 2, 1), at)], 2) for layer in cache.layers]
        feed(cache, cut(parts, at, at + 1))
        for layer, there, part in zip(cache.layers, before, parts, strict=True):
            stored = part.keys.gather(2, there.unsqueeze(-1).expand(-1, -1, -1, 8))
            wanted = kept_by_hand(part.queries[:, :, at : at + 1], stored, 12)
            assert torch.equal(layer.positions[:, 0].long(), there[:, 0].gather(1, wanted))


def test_one_slot_holds_the_token_with_the_largest_weight() -> None:
    parts = prompt(20)
    layer = absorbed(make("tova:budget=1"), parts).layers[0]
    assert torch.equal(layer.positions[:, :1, 0].long(), kept_by_hand(parts[0].queries, parts[0].keys, 1))


def test_the_newest_token_can_leave() -> None:
    parts = prompt(20)
    parts[0].queries[:, 1::2] = parts[0].queries[:, ::2]
    parts[0].keys[:, :, -1] = -8 * parts[0].queries[:, ::2, -1]
    assert 19 not in absorbed(make("tova:budget=10"), parts).layers[0].positions


def test_a_budget_out_of_range_is_refused() -> None:
    with pytest.raises(SpecError, match="neither a share of the prompt"):
        make("tova:budget=0")
