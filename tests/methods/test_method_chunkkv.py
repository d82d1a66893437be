"""ChunkKV against its paper: votes of all heads, counted chunk by chunk."""

from __future__ import annotations

import pytest
import torch
from toys import absorbed, prompt, weights

from kvcheck.cache.shape import ModelShape, Prefilled
from kvcheck.core.errors import SpecError
from kvcheck.methods import make

ONE = ModelShape(layers=1, heads=4, kv_heads=2, head_dim=8)


def kept(cache, layer: int = 0) -> list[list[list[int]]]:
    return cache.layers[layer].positions.tolist()


def chosen_by_hand(part: Prefilled, row: int, cap: int, window: int, chunk: int) -> list[int]:
    """Chunks are taken from the best on, token by token, until the budget is full."""
    n = part.keys.shape[2]
    paid = weights(part.queries[:, :, -window:], part.keys, n - window)[row]
    votes = [float(paid[:, :, at].sum()) for at in range(n - window)]
    chunks = [list(range(at, min(at + chunk, n - window))) for at in range(0, n - window, chunk)]
    chunks.sort(key=lambda members: -sum(votes[at] for at in members) / len(members))
    taken = [at for members in chunks for at in members][: cap - window]
    return [*sorted(taken), *range(n - window, n)]


@pytest.mark.parametrize(
    ("n", "cap", "window", "chunk"), [(60, 27, 6, 5), (61, 30, 8, 10), (50, 20, 4, 1), (57, 9, 4, 7)]
)
def test_the_best_chunks_and_the_window_stay_in_every_head(n: int, cap: int, window: int, chunk: int) -> None:
    parts = prompt(n)
    cache = absorbed(make(f"chunkkv:budget={cap},window={window},chunk={chunk}"), parts)
    for layer, part in enumerate(parts):
        for row in range(2):
            wanted = chosen_by_hand(part, row, cap, window, chunk)
            assert kept(cache, layer)[row] == [wanted, wanted]


def test_a_token_that_one_head_looks_at_brings_its_chunk_into_all_heads() -> None:
    keys, queries = torch.zeros(1, 2, 64, 8), torch.zeros(1, 4, 64, 8)
    queries[..., 0] = 30.0
    keys[:, 1, 33, 0] = 30.0
    part = Prefilled(keys.half(), prompt(64, ONE, rows=1)[0].values, queries.half())
    cache = absorbed(make("chunkkv:budget=14,window=4,chunk=10"), [part], ONE)
    assert kept(cache)[0] == [[*range(30, 40), *range(60, 64)]] * 2


def test_chunks_of_one_token_keep_what_snapkv_keeps_for_one_kv_head() -> None:
    shape = ModelShape(layers=1, heads=2, kv_heads=1, head_dim=8)
    parts = prompt(60, shape)
    chunks = absorbed(make("chunkkv:budget=24,window=6,chunk=1"), parts, shape)
    assert kept(chunks) == kept(absorbed(make("snapkv:budget=24,window=6,kernel=1"), parts, shape))


def test_equal_chunks_go_to_the_older_one() -> None:
    parts = prompt(40, ONE)
    parts[0].keys.zero_()
    cache = absorbed(make("chunkkv:budget=19,window=4,chunk=10"), parts, ONE)
    assert kept(cache)[0][0] == [*range(15), *range(36, 40)]


@pytest.mark.parametrize("text", ["budget=0", "window=0", "chunk=0", "budget=32,window=32"])
def test_a_value_out_of_range_is_refused_with_what_to_type(text: str) -> None:
    with pytest.raises(SpecError, match="--kv-method="):
        make(f"chunkkv:{text}")
