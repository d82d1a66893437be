"""Growable buffers against a plain tensor, and the rotation table that is kept."""

from __future__ import annotations

import random

import pytest
import torch

from kvcheck.cache import rotary
from kvcheck.cache.growable import GrowableBuffer


def step(rng: random.Random, buffer: GrowableBuffer, held: torch.Tensor) -> torch.Tensor:
    """Do one thing to a buffer -> what it should hold then."""
    batch, heads, length, dim = held.shape
    what = rng.choice(["append", "append", "slide", "keep", "drop", "select"])
    if what == "append":
        block = torch.randn(batch, heads, rng.choice([1, 1, 1, 3, 40]), dim)
        buffer.append(block)
        return torch.cat([held, block], dim=2)
    if what == "slide":
        count = rng.randint(0, length) if rng.random() < 0.2 else min(1, length)
        first = rng.randint(0, length - count)
        buffer.slide(first, count)
        return torch.cat([held[:, :, :first], held[:, :, first + count :]], dim=2)
    if what == "keep":
        kept = rng.randint(min(1, length), length)
        index = torch.stack([torch.randperm(length)[:kept].sort().values for _ in range(batch * heads)])
        index = index.view(batch, heads, kept)
        buffer.keep(index, rng.randint(0, 1) if kept else 0)
        return held.gather(2, index.unsqueeze(-1).expand(-1, -1, -1, dim))
    if what == "drop":
        oldest = rng.randint(0, length)
        buffer.drop(oldest)
        return held[:, :, oldest:]
    selected = buffer.select(range(batch))
    buffer.tensor, buffer.length, buffer.start = selected.tensor, selected.length, selected.start
    return held


@pytest.mark.parametrize("seed", range(30))
def test_a_room_holds_what_a_plain_tensor_would_whatever_is_done_to_it(seed: int) -> None:
    torch.manual_seed(seed)
    rng = random.Random(seed)
    given = torch.randn(*rng.choice([(1, 1), (2, 3)]), rng.randint(0, 100), 4)
    buffer, held, before = GrowableBuffer(given), given.clone(), given.clone()
    for _ in range(60):
        held = step(rng, buffer, held)
        assert torch.equal(buffer.used, held)
        assert 0 <= buffer.unused_bytes <= buffer.tensor.nbytes - buffer.used.nbytes
    assert torch.equal(given, before)  # what was adopted is never written to


def test_the_rotation_does_not_depend_on_the_type_that_was_usual_when_it_was_first_asked_for() -> None:
    states, positions, rope = torch.randn(3, 4), torch.arange(3), (1.0, 0.3)
    rotary._frequencies.cache_clear()
    expected = rotary.rotate(states, positions, rope)
    rotary._frequencies.cache_clear()
    torch.set_default_dtype(torch.bfloat16)
    try:
        found = rotary.rotate(states, positions, rope)
    finally:
        torch.set_default_dtype(torch.float32)
        rotary._frequencies.cache_clear()
    assert torch.equal(found, expected)
