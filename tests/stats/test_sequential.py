"""Looking after every block: error rates by simulation with fixed seeds."""

from __future__ import annotations

import numpy as np
import pytest

from kvcheck.judging.stats import binary_sequence, confidence_sequence, log_capital

RUNS, N, BLOCK, ALPHA = 400, 96, 8, 0.05


def right_or_wrong(rng: np.random.Generator) -> np.ndarray:
    return rng.choice([1.0, -1.0, 0.0], N, p=[0.22, 0.20, 0.58])


def losses_only(rng: np.random.Generator) -> np.ndarray:
    return (rng.random(N) < 0.02).astype(float)


def graded(rng: np.random.Generator) -> np.ndarray:
    return np.clip(rng.normal(0.02, 0.3, N), -1, 1)


def clustered(rng: np.random.Generator) -> np.ndarray:
    shared = rng.beta(0.3, 0.3, (N, 1))
    return (rng.random((N, 5)) < shared).mean(axis=1) - (rng.random((N, 5)) < rng.permutation(shared)).mean(axis=1)


@pytest.mark.parametrize("draw", [right_or_wrong, losses_only, graded, clustered])
def test_peeking_after_every_block_does_not_raise_the_false_alarms(draw) -> None:
    """The true drop is at most the limit of 0.02; the bets are looked at after each of twelve blocks."""
    rng = np.random.default_rng(4)
    alarms = 0
    for _ in range(RUNS):
        values = draw(rng)
        alarms += any(log_capital(values[:n], 0.02) >= np.log(1 / ALPHA) for n in range(BLOCK, N + 1, BLOCK))
    assert alarms / RUNS <= ALPHA + 0.01


def test_the_confidence_sequence_holds_the_means_that_the_bets_do_not_reject() -> None:
    values = right_or_wrong(np.random.default_rng(5))
    low, high = confidence_sequence(values, ALPHA)
    edges = log_capital(values, low), log_capital(-values, -high)
    assert edges == pytest.approx([np.log(2 / ALPHA)] * 2, abs=1e-3)


def test_a_broken_cache_is_caught_within_a_dozen_contexts() -> None:
    assert confidence_sequence([1.0] * 12, 0.05)[0] > 0.02


def test_the_order_of_the_contexts_does_not_matter() -> None:
    values = [1.0, 0.0, -0.5, 0.25]
    assert log_capital(values, 0.1) == pytest.approx(log_capital(values[::-1], 0.1))


def test_it_narrows_with_more_contexts() -> None:
    widths = [np.ptp(confidence_sequence([0.0] * n)) for n in (8, 32, 128)]
    assert widths == sorted(widths, reverse=True)


def test_nothing_seen_says_nothing() -> None:
    assert confidence_sequence([]) == (-1.0, 1.0)


def test_a_value_outside_the_range_is_refused() -> None:
    with pytest.raises(ValueError, match="outside"):
        confidence_sequence([1.5])


@pytest.mark.parametrize(("share", "p_lost", "p_won"), [(1.0, 0.02, 0.0), (0.75, 0.05, 0.07), (0.5, 0.3, 0.2)])
def test_peeking_at_right_or_wrong_does_not_raise_the_misses(share: float, p_lost: float, p_won: float) -> None:
    rng = np.random.default_rng(8)
    drop, missed, runs = share * p_lost - (1 - share) * p_won, 0, 60
    for _ in range(runs):
        right = np.arange(48) % 8 < 8 * share
        lost, won = right & (rng.random(48) < p_lost), ~right & (rng.random(48) < p_won)
        for n in range(12, 49, 12):
            low, high = binary_sequence(lost[:n].sum(), right[:n].sum(), won[:n].sum(), (~right[:n]).sum(), share, 0.1)
            if not low - 1e-6 <= drop <= high + 1e-6:
                missed += 1
                break
    assert missed / runs <= 0.1 + 0.02


def test_a_broken_cache_is_caught_within_four_contexts_even_among_sixty_cases() -> None:
    assert binary_sequence(4, 4, 0, 0, 1.0, 0.05 / 60)[0] > 0.02


def test_no_context_seen_says_nothing() -> None:
    assert binary_sequence(0, 0, 0, 0, 0.75) == pytest.approx((-0.25, 0.75))
