"""Expected Attention against its paper: scores from queries that are drawn, one head and one key at a time."""

from __future__ import annotations

import math

import pytest
import torch
from toys import ROPE, SHAPE, absorbed, prompt

from kvcheck.cache.shape import ModelShape
from kvcheck.core.errors import MethodUnsupported, SpecError
from kvcheck.methods import make

HEADS = [(row, head) for row in range(2) for head in range(SHAPE.kv_heads)]


def kept(cache, layer: int = 0) -> list[list[list[int]]]:
    return cache.layers[layer].positions.tolist()


def turn(position: float) -> torch.Tensor:
    """The rotation (8, 8) to a position, channel c with channel c + 4, float64."""
    matrix = torch.zeros(8, 8, dtype=torch.float64)
    for at, speed in enumerate(ROPE):
        cos, sin = math.cos(position * speed), math.sin(position * speed)
        matrix[at, at] = matrix[at + 4, at + 4] = cos
        matrix[at, at + 4], matrix[at + 4, at] = -sin, sin
    return matrix


def queries_before(part, row: int, head: int, sink: int) -> torch.Tensor:
    """The prompt's queries of one head behind the sinks, un-rotated one by one."""
    asked = part.queries[row, head].double()
    return torch.stack([turn(-at) @ asked[at] for at in range(sink, len(asked))])


def scores_by_hand(part, row: int, head: int, sink: int, future: int, spread: bool, norm: bool, epsilon: float):
    keys, values = part.keys[row, head].double(), part.values[row, head].double()
    n, shares = len(keys), []
    average = sum(turn(n + step) for step in range(future)) / future
    for query_head in (2 * head, 2 * head + 1):
        before = queries_before(part, row, query_head, sink)
        mean = before.mean(0)
        covariance = sum(torch.outer(each - mean, each - mean) for each in before) / len(before)
        logits = []
        for key in keys[sink:]:
            seen = average.T @ key
            logit = float(seen @ mean) / 8**0.5
            logits.append(logit + (float(seen @ covariance @ seen) / 8 / 2 if spread else 0.0))
        shares.append(torch.tensor(logits, dtype=torch.float64).softmax(0))
    score = (shares[0] + shares[1]) / 2
    return (score + epsilon) * values[sink:].norm(dim=1) if norm else score


@pytest.mark.parametrize(
    ("text", "given"),
    [
        ("", (4, 512, True, True, 0.0)),
        (",sink=2,future=7,epsilon=0.02", (2, 7, True, True, 0.02)),
        (",sink=0,covariance=false,vnorm=false", (0, 512, False, False, 0.0)),
    ],
)
def test_the_first_and_the_best_by_the_paper_stay(text: str, given: tuple) -> None:
    parts = prompt(50)
    cache = absorbed(make(f"expected_attention:budget=20{text}"), parts)
    for layer, part in enumerate(parts):
        for row, head in HEADS:
            score, sink = scores_by_hand(part, row, head, *given), given[0]
            best = score.argsort(descending=True)[: 20 - sink] + sink
            assert kept(cache, layer)[row][head] == [*range(sink), *sorted(best.tolist())]


def test_scores_are_the_attention_that_drawn_queries_pay() -> None:
    """With one future position, what the formula says in closed form is the mean over queries drawn from the normal
    distribution of what they weigh a key, before it is normalized."""
    part = prompt(40)[0]
    before = queries_before(part, 0, 0, 4)
    source = torch.Generator().manual_seed(3)
    drawn = torch.randn(400_000, 8, generator=source, dtype=torch.float64)
    factor = torch.linalg.cholesky(torch.cov(before.T, correction=0) + 1e-9 * torch.eye(8))
    asked = (before.mean(0) + drawn @ factor.T) @ turn(40).T
    weight = (asked @ part.keys[0, 0, 4:].double().T / 8**0.5).exp().mean(0)
    cache = make("expected_attention:future=1,budget=40,vnorm=false").build(SHAPE)
    cache.absorb(prompt(40))
    layer = cache.layers[0]
    mean, covariance = layer.expected(part.queries[:, :, 4:].float())
    keys = part.keys[0, 0, 4:].double()
    closed = (keys @ mean[0, 0, 0].double() / 8**0.5 + ((keys @ covariance[0, 0, 0].double()) * keys).sum(1) / 16).exp()
    torch.testing.assert_close(weight / closed, torch.ones(36, dtype=torch.float64), atol=0.1, rtol=0)


def test_a_token_whose_value_is_zero_leaves_first() -> None:
    parts = prompt(40)
    for part in parts:
        part.values[:, :, 11] = 0
    assert all(11 not in head for row in kept(absorbed(make("expected_attention:budget=39"), parts)) for head in row)
    without = absorbed(make("expected_attention:budget=39,vnorm=false"), parts)
    assert any(11 in head for row in kept(without) for head in row)


def test_the_queries_of_the_first_tokens_do_not_count() -> None:
    parts, other = prompt(40), prompt(40)
    for part in other:
        part.queries[:, :, :4] = 50.0
    one, two = (absorbed(make("expected_attention"), each) for each in (parts, other))
    assert kept(one) == kept(two)


@pytest.mark.parametrize("n", [1, 4, 5, 20])
def test_a_prompt_within_the_budget_is_kept_whole(n: int) -> None:
    assert kept(absorbed(make("expected_attention:budget=20"), prompt(n)))[1][1] == list(range(n))


def test_a_model_whose_rotation_is_not_known_is_refused() -> None:
    with pytest.raises(MethodUnsupported, match="without their rotation"):
        make("expected_attention").build(ModelShape(2, 4, 2, 8))


@pytest.mark.parametrize("text", ["budget=0", "budget=4", "sink=-1", "future=0", "epsilon=-1"])
def test_a_value_out_of_range_is_refused_with_what_to_type(text: str) -> None:
    with pytest.raises(SpecError, match="--kv-method="):
        make(f"expected_attention:{text}")
