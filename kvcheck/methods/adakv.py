"""Ada-KV: SnapKV whose kv heads share one budget per layer. arXiv 2407.11550, FFY0/AdaKV."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from kvcheck.cache import checks, scoring
from kvcheck.cache.kv_cache import CacheLayer
from kvcheck.cache.method import Lossless, MethodInfo, Stage
from kvcheck.cache.ragged import RaggedLayer
from kvcheck.cache.shape import ModelShape
from kvcheck.methods.snapkv import SnapKV


@dataclass(frozen=True)
class AdaKV(SnapKV):
    """SnapKV's scores, but the C slots per kv head are shared out over the heads of a layer by what they score.

    budget, window, kernel, pooling: as in SnapKV, with the official kernel of 7 and max pooling; C is the mean over the
    kv heads, and every head keeps its window of w. floor: α, the share of the C - w other slots that every head gets
    whatever it scores (0.2).

    Of all G·(p - w) scores of a layer the G·(C - w) highest are marked; n_h of them are of head h. Head h is sure of
    its best floor(α(C - w)) + ⌊n_h·(C - w - floor(α(C - w))) / (C - w)⌋ tokens; what these roundings leave of the
    G·(C - w) slots goes to the highest scores of what is left, in any head. Decoded tokens are appended to every head
    and never leave. Heads hold different numbers of slots, end to end, without padding.

    Bytes: 2·L·B·G·(min(p, C) + decoded)·d·2. Errors: SpecError for values out of range.
    Differences from the official code: kv heads by the mean of their query heads (there: query heads, group times the
    memory); roundings are given away, so that the budget is met exactly (there: each head rounds to the nearest).
    kvpress marks once, with the best floor(αC) of every head safe, and counts the window as scored tokens.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        summary="SnapKV whose kv heads share one budget per layer by what they score",
        stage=Stage.COMPRESSION,
        paper="arXiv 2407.11550",
        formula="2·L·B·G·(min(p, C) + decoded)·d·2",
        knob="budget",
        needs=("queries",),
        variant="Ada-SnapKV, per kv head (official: per query head); the budget of a layer is met exactly",
        lossless=Lossless.at("budget=1.0"),
        cross_head="the heads of a layer share one budget",
    )

    kernel: int = 7
    pooling: str = "max"
    floor: float = 0.2

    def __post_init__(self) -> None:
        """Raise SpecError for values out of range."""
        super().__post_init__()
        checks.share(self.name(), "floor", self.floor, 0, 1, 0.2)

    def layer(self, shape: ModelShape, index: int) -> CacheLayer:
        """A layer that compresses once, after the prompt."""
        return AdaLayer(shape, index, self)

    def slots(self, shape: ModelShape, prompt: int, decoded: int) -> None:
        """Not per kv head."""

    def kv_bytes(self, shape: ModelShape, batch: int, prompt: int, decoded: int) -> int:
        """Of all heads together."""
        return shape.dense_bytes(batch, min(prompt, self.cap(prompt)) + decoded)


class AdaLayer(RaggedLayer):
    """Chooses by the observation window, over all heads at once."""

    method: AdaKV

    def compress(self, queries: torch.Tensor) -> None:
        """Keep the best of the prefix, and the window of every head."""
        method, prompt = self.method, self.stored
        votes = method.votes(self, queries)
        if votes is None:
            return
        wanted = torch.ones(*votes.shape[:2], prompt, dtype=torch.bool, device=votes.device)
        wanted[:, :, : votes.shape[2]] = shared(votes, method.cap(prompt) - method.window, method.floor)
        self.keep_where(wanted)


def shared(scores: torch.Tensor, budget: int, floor: float) -> torch.Tensor:
    """Which tokens are kept, (B, G, n) bool: G·budget of them, at least ⌊floor·budget⌋ of every head."""
    total = scores.shape[1] * budget
    least = int(floor * budget)
    sure = least + highest(scores, total).sum(dim=2) * (budget - least) // budget
    order = torch.sort(scores, dim=2, descending=True, stable=True).indices
    rank = torch.empty_like(order).scatter_(
        2, order, torch.arange(scores.shape[2], device=order.device).expand_as(order)
    )
    return highest(scores.masked_fill(rank < sure.unsqueeze(2), float("inf")), total)


def highest(scores: torch.Tensor, count: int) -> torch.Tensor:
    """The highest scores of a row over all heads, (B, G, n) bool; among equal ones the older tokens, then first heads.

    Tokens go before heads, so that a text of equal tokens is kept alike in all heads.
    """
    flat = scores.transpose(1, 2).flatten(1)
    chosen = torch.zeros_like(flat, dtype=torch.bool).scatter_(1, scoring.top(flat, count), True)
    return chosen.unflatten(1, (-1, scores.shape[1])).transpose(1, 2)


METHOD = AdaKV
