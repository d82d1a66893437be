"""R-KV against its paper and official code, as loops over keys and queries."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cosine_similarity
from toys import SHAPE, absorbed, cut, feed, prompt

from kvcheck.core.errors import SpecError
from kvcheck.measure.memory import held
from kvcheck.methods import make
from kvcheck.methods.r_kv import redundancy

HEADS = [(row, head) for row in range(2) for head in range(SHAPE.kv_heads)]


def kept(cache, layer: int = 0) -> list[list[list[int]]]:
    return cache.layers[layer].positions.tolist()


def alike(n: int):
    """A prompt with keys that resemble each other."""
    parts = prompt(n)
    for part in parts:
        part.keys[:, :, 10:18] = part.keys[:, :, 2:10] + 0.1 * part.keys[:, :, 10:18]
        part.keys[:, :, 20:30] = part.keys[:, :, 19:20] + 0.2 * part.keys[:, :, 20:30]
    return parts


def redundancy_by_hand(keys: torch.Tensor) -> torch.Tensor:
    """keys (n, d) -> (n,)."""
    n = len(keys)
    table = [[0.0 if i == j else float(cosine_similarity(keys[i], keys[j], dim=0)) for j in range(n)] for i in range(n)]
    for row in table:
        row[max((j for j in range(n) if row[j] > 0.5), default=0)] = 0.0
    return torch.tensor([sum(row[j] for row in table) / n for j in range(n)], dtype=torch.float64).softmax(0)


def attended_by_hand(keys: torch.Tensor, asked: torch.Tensor, kernel: int) -> list[float]:
    """keys (n, d), the queries of one group (2, w, d) -> n votes."""
    votes = torch.zeros(len(keys), dtype=torch.float64)
    for at in range(asked.shape[1]):
        logits = [max(float(asked[member, at] @ key) for member in range(2)) / 8**0.5 for key in keys]
        votes += torch.tensor(logits, dtype=torch.float64).softmax(0) / asked.shape[1]
    half = kernel // 2
    return [float(votes[max(0, at - half) : at + half + 1].max()) for at in range(len(keys))]


def chosen_by_hand(part, row: int, head: int, slots: list[int], cap: int, window: int, kernel: int, weight: float):
    """Which of the slots, positions ascending, stay when the token after the last of them is about to come."""
    end = slots[-1] + 1
    keys = part.keys[row, head, slots].double()
    asked = part.queries[row, 2 * head : 2 * head + 2, end - window : end].double()
    old = len(slots) - window
    votes, same = attended_by_hand(keys[:old], asked, kernel), redundancy_by_hand(keys)
    score = [weight * votes[at] - (1 - weight) * float(same[at]) for at in range(old)]
    best = sorted(range(old), key=lambda at: (-score[at], at))[: cap - window]
    return [slots[at] for at in sorted(best)] + slots[old:]


@pytest.mark.parametrize(("window", "kernel", "weight"), [(8, 7, 0.07), (4, 1, 0.5), (5, 3, 1.0), (6, 7, 0.0)])
def test_the_prompt_keeps_what_attention_and_redundancy_say(window: int, kernel: int, weight: float) -> None:
    parts = alike(50)
    cache = absorbed(make(f"r_kv:budget=20,window={window},kernel={kernel},weight={weight}"), parts)
    for layer, part in enumerate(parts):
        for row, head in HEADS:
            wanted = chosen_by_hand(part, row, head, list(range(50)), 20, window, kernel, weight)
            assert kept(cache, layer)[row][head] == wanted


@pytest.mark.parametrize("blocks", [[1] * 28, [3, 10, 2, 13], [28]])
def test_while_decoding_it_chooses_when_the_buffer_is_full(blocks: list[int]) -> None:
    """Token by token and in blocks, of which each is chosen from once, however many borders it crosses."""
    parts = alike(58)
    cache = absorbed(make("r_kv:budget=16,buffer=10,window=4,kernel=3"), cut(parts, 0, 30))
    part, held_by_hand = parts[0], {}
    for row, head in HEADS:
        held_by_hand[row, head] = chosen_by_hand(part, row, head, list(range(30)), 16, 4, 3, 0.07)
    at = 30
    for count in blocks:
        feed(cache, cut(parts, at, at + count))
        for (row, head), slots in held_by_hand.items():
            slots += range(at, at + count)
            later = (len(slots) - 16) % 10
            if len(slots) >= 26:
                end = len(slots) - later
                slots[:] = chosen_by_hand(part, row, head, slots[:end], 16, 4, 3, 0.07) + slots[end:]
            assert kept(cache)[row][head] == slots
        at += count
    assert cache.layers[0].stored == 16 + 28 % 10


def test_slots_and_bytes_go_up_to_the_buffer_and_back() -> None:
    method, parts = make("r_kv:budget=16,buffer=10,window=4"), prompt(70)
    cache, counts = absorbed(method, cut(parts, 0, 12)), []
    for at in range(12, 70):
        feed(cache, cut(parts, at, at + 1))
        counts.append(cache.layers[1].stored)
        assert counts[-1] == method.slots(SHAPE, 12, at - 11)[1]
        assert held(cache).kv == method.kv_bytes(SHAPE, 2, 12, at - 11)
    assert max(counts) == 25
    assert min(counts[14:]) == 16


def test_of_keys_that_are_alike_the_newest_is_spared() -> None:
    """Three copies of one key among keys that resemble none: the two older ones lose, the newest does not."""
    keys = torch.eye(16)[:12].clone()
    keys[[3, 6, 9]] = keys[3].clone()
    found = redundancy(keys.view(1, 1, 12, 16))[0, 0]
    torch.testing.assert_close(found.double(), redundancy_by_hand(keys.double()), atol=1e-6, rtol=1e-5)
    assert float(found[3]) > float(found[6]) > float(found[9])
    assert float(found[9]) == float(found[0])


@pytest.mark.parametrize("rows", [1, 3, 16])
def test_redundancy_in_chunks_equals_the_full_computation(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = alike(40)[0].keys.float()
    whole = redundancy(keys)
    monkeypatch.setattr("kvcheck.methods.r_kv.ROWS", rows)
    torch.testing.assert_close(redundancy(keys), whole, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("text", ["budget=0", "budget=8", "window=0", "kernel=4", "buffer=4", "weight=2"])
def test_a_value_out_of_range_is_refused_with_what_to_type(text: str) -> None:
    with pytest.raises(SpecError, match="--kv-method="):
        make(f"r_kv:{text}")
