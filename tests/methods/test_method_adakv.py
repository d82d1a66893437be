"""Ada-KV against its paper and official code: budgets of heads, counted one slot at a time."""

from __future__ import annotations

import pytest
import torch
from toys import SHAPE, absorbed, cut, dense, feed, prompt, weights

from kvcheck.core.errors import SpecError
from kvcheck.measure.memory import held
from kvcheck.methods import make
from kvcheck.methods.adakv import shared


def held_positions(layer, row: int, head: int) -> list[int]:
    return layer.positions[row, head][layer.valid[row, head]].tolist()


def uneven(n: int):
    """A prompt whose first kv head looks at few tokens, and whose second at many."""
    parts = prompt(n)
    for part in parts:
        part.queries[:, :2].mul_(6)
        part.queries[:, 2:].mul_(0.3)
    return parts


def scores_by_hand(part, row: int, head: int, window: int, kernel: int, pooling: str) -> list[float]:
    n = part.keys.shape[2]
    paid = weights(part.queries[:, :, -window:], part.keys, n - window)[row, 2 * head : 2 * head + 2]
    votes = [float(paid[:, :, at].sum()) / 2 for at in range(n - window)]
    half, smooth = kernel // 2, []
    for at in range(n - window):
        near = votes[max(0, at - half) : at + half + 1]
        smooth.append(max(near) if pooling == "max" else sum(near) / kernel)
    return smooth


def chosen_by_hand(scores: list[list[float]], budget: int, floor: float) -> list[set[int]]:
    """Slots are handed out one by one: marked, assured, and what is left."""
    every = sorted(((-score, at, head) for head, row in enumerate(scores) for at, score in enumerate(row)))
    marked = [sum(1 for _, _, of in every[: len(scores) * budget] if of == head) for head in range(len(scores))]
    least = int(floor * budget)
    mine = []
    for head, row in enumerate(scores):
        sure = least + marked[head] * (budget - least) // budget
        mine.append(set(sorted(range(len(row)), key=lambda at, row=row: (-row[at], at))[:sure]))
    for _, at, head in every:
        if sum(map(len, mine)) < len(scores) * budget:
            mine[head].add(at)
    return mine


@pytest.mark.parametrize(
    ("text", "given"),
    [
        ("", (7, "max", 0.2)),
        (",floor=0.0", (7, "max", 0.0)),
        (",floor=1.0", (7, "max", 1.0)),
        (",floor=0.55,kernel=1,pooling=avg", (1, "avg", 0.55)),
    ],
)
def test_heads_get_what_they_score_and_at_least_their_floor(text: str, given: tuple[int, str, float]) -> None:
    kernel, pooling, floor = given
    parts = uneven(60)
    for layer, part in zip(absorbed(make(f"adakv:budget=27,window=6{text}"), parts).layers, parts, strict=True):
        for row in range(2):
            scores = [scores_by_hand(part, row, head, 6, kernel, pooling) for head in range(2)]
            for head, wanted in enumerate(chosen_by_hand(scores, 21, floor)):
                assert held_positions(layer, row, head) == [*sorted(wanted), *range(54, 60)]


def test_the_budget_of_a_layer_is_met_exactly_and_heads_differ() -> None:
    method, parts = make("adakv:budget=27,window=6"), uneven(60)
    cache = absorbed(method, parts)
    for layer in cache.layers:
        for counts in layer.kept_keys.counts:
            assert sum(counts) == 2 * 27
            assert min(counts) >= 6 + int(0.2 * 21)
    assert any(one != other for layer in cache.layers for one, other in layer.kept_keys.counts)
    assert held(cache).kv == method.kv_bytes(SHAPE, 2, 60, 0)


def test_a_floor_of_one_is_snapkv() -> None:
    parts = uneven(60)
    ada = absorbed(make("adakv:budget=27,window=6,floor=1.0"), parts)
    snap = absorbed(make("snapkv:budget=27,window=6,kernel=7,pooling=max"), parts)
    for mine, theirs in zip(ada.layers, snap.layers, strict=True):
        assert torch.equal(mine.positions, theirs.positions)


@pytest.mark.parametrize("floor", [0.0, 0.2, 0.7, 1.0])
@pytest.mark.parametrize("levels", [1, 3, 1000])
def test_what_is_shared_out_is_never_more_nor_less_than_the_budget(floor: float, levels: int) -> None:
    scores = torch.randint(levels, (3, 4, 23), generator=torch.Generator().manual_seed(levels)).float()
    for budget in (1, 2, 11, 22, 23):
        kept = shared(scores, budget, floor)
        assert kept.sum(dim=(1, 2)).tolist() == [4 * budget] * 3
        assert int(kept.sum(dim=2).min()) >= int(floor * budget)


def test_equal_scores_are_kept_alike_in_all_heads() -> None:
    kept = shared(torch.ones(1, 3, 10), 4, 0.2)
    assert kept.sum(dim=2).tolist() == [[4, 4, 4]]


def test_later_tokens_see_what_their_head_holds() -> None:
    parts = uneven(62)
    cache = absorbed(make("adakv:budget=20,window=6"), cut(parts, 0, 60))
    later = cut(parts, 60, 62)
    outs = feed(cache, later)
    for layer, out, part in zip(cache.layers, outs, parts, strict=True):
        for row in range(2):
            for head in range(2):
                at = held_positions(layer, row, head)
                mine = slice(2 * head, 2 * head + 2)
                keys, values = (each[row : row + 1, head : head + 1, at] for each in (part.keys, part.values))
                wanted = dense(part.queries[row : row + 1, mine, 60:], keys, values, len(at) - 2)
                torch.testing.assert_close(out[row : row + 1, :, mine].double(), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("text", ["floor=1.5", "floor=-0.1", "budget=0", "kernel=4"])
def test_a_value_out_of_range_is_refused_with_what_to_type(text: str) -> None:
    with pytest.raises(SpecError, match="--kv-method="):
        make(f"adakv:{text}")
