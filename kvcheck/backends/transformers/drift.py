"""Drift: what reacts before accuracy does, on the tokens of the reference answer under teacher forcing.

The method's logits stand beside those of the full cache for the same token history (in later turns of a conversation:
with the method's own earlier answers), so that nothing but the cache differs. The whole reference is read in one block;
what follows its last token is compared too (agree, kl), but has no target (nll). Where the question was part of the
prompt and prefilling is dense, the first token comes from the full cache: without the position behind it, an answer of
one token would agree whatever the method does.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from kvcheck.runner.seam import Drift

DIGITS = 6


def between(reference: Sequence[int], dense: torch.Tensor, own: torch.Tensor | None) -> tuple[Drift, float]:
    """The drift over the T tokens of a reference answer, and the largest difference of a log-probability of any token.

    dense, own: log-probabilities (T + 1, V) in float32 of the full cache and of the method before each of the T
    reference tokens and behind the last. own None: the method is the full cache; the same numbers give kl 0, agree 1.
    """
    if not reference:
        return Drift(), 0.0
    mine = dense if own is None else own
    target = torch.tensor(reference, device=mine.device)
    nll = _mean(-mine[: len(target)].gather(-1, target[:, None])[:, 0])
    if own is None:
        return Drift(nll, 1.0, 0.0), 0.0
    agree = _mean((dense.argmax(-1) == own.argmax(-1)).float())
    kl = max(_mean(_divergence(dense, own)), 0.0)
    return Drift(nll, agree, kl), float((dense - own).abs().nan_to_num(0.0).max())


def _divergence(dense: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    """KL(dense || own) at every place, of log-probabilities (T, V) -> (T,)."""
    weight = dense.exp()
    return torch.where(weight > 0, weight * (dense - own), 0.0).sum(-1)


def divergences(dense: torch.Tensor, own: torch.Tensor) -> list[float]:
    """KL(dense || own) at every place of log-probabilities (T, V), in nats, no less than 0."""
    return [max(value, 0.0) for value in _divergence(dense, own).tolist()]


def likelihood(answer: Sequence[int], own: torch.Tensor) -> float:
    """The log-likelihood of the T tokens of an answer, by log-probabilities as in `between`."""
    target = torch.tensor(answer, device=own.device)
    return float(own[: len(target)].gather(-1, target[:, None]).double().sum())


def log_probs(logits: torch.Tensor) -> torch.Tensor:
    """Log-probabilities in float32."""
    return torch.log_softmax(logits.float(), dim=-1)


def padded(rows: Sequence[Sequence[int]], device: torch.device) -> torch.Tensor:
    """Token ids (R, longest), short rows filled up at their right end, where a causal model does not see it."""
    longest = max(len(row) for row in rows)
    return torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], dtype=torch.long, device=device)


def _mean(values: torch.Tensor) -> float:
    """Mean in float64, rounded so that a record stays readable."""
    return round(float(values.double().mean()), DIGITS)
