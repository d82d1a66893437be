"""H2O: heavy hitters and recent tokens. arXiv 2306.14048, FMInference/H2O (utils_real_drop)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn.functional import pad

from kvcheck.cache import checks, kernels, scoring
from kvcheck.cache.kv_cache import CacheLayer
from kvcheck.cache.method import Lossless, Method, MethodInfo, Stage
from kvcheck.cache.shape import ModelShape
from kvcheck.core.errors import KvcheckError


@dataclass(frozen=True)
class H2O(Method):
    """After every forward keep the newest tokens and, of the others, those that received most attention so far.

    budget: C slots per layer and kv head: a share of the prompt (0.5; C = floor(0.5 p), at least 2; fixed when the
    prompt is in) or a number of tokens. recent: the share of C for the newest tokens (rounded down, at least one slot);
    the rest goes to heavy hitters. recent=1.0 is a sliding window.

    Score of a token: the attention (softmax in float32 over all slots present) that it received from every query since
    it came, those of the prompt included, summed over the query heads of its kv head. Scores (B, G, slots) float32 live
    with the slots: survivors keep theirs, evicted tokens never return. The prompt's forward and that of a follow-up
    block are dense over what is stored and the block; the eviction follows. Ties go to the older token.

    Bytes: 2·L·B·G·min(n, C)·d·2 after n tokens; scores, 4·L·B·G·min(n, C), are counted apart, as bookkeeping.
    Errors: SpecError for values out of range.
    Differences from the official code (its real-drop variant): scores per kv head (official: MHA only); not summed over
    the batch, so rows are independent; one budget with a split instead of two sizes.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        summary="keeps the newest tokens and those that received most attention so far",
        stage=Stage.COMPRESSION,
        paper="arXiv 2306.14048",
        formula="2·L·B·G·min(n, C)·d·2",
        knob="budget",
        evicts_in_decode=True,
        needs=("queries",),
        variant="real drop at original positions; scores from prompt and decoding, per kv head",
        lossless=Lossless.at("budget=100000"),
        exempt={"a_block_is_its_tokens_one_by_one": "a block is attended to whole, then evicted from once"},
    )

    budget: float | int = 0.5
    recent: float = 0.5

    def __post_init__(self) -> None:
        """Raise SpecError for values out of range."""
        checks.budget(self.name(), "budget", self.budget)
        checks.share(self.name(), "recent", self.recent, 0, 1, 0.5)

    def cap(self, prompt: int) -> int:
        """C for a prompt of this length."""
        return checks.tokens(self.budget, prompt, least=2)

    def newest(self, prompt: int) -> int:
        """Slots for the newest tokens, of the C."""
        return max(1, checks.tokens(float(self.recent), self.cap(prompt), least=1))

    def layer(self, shape: ModelShape, index: int) -> CacheLayer:
        """A layer that scores and evicts after every forward."""
        return H2OLayer(shape, index, self)

    def slots(self, shape: ModelShape, prompt: int, decoded: int) -> tuple[int, ...]:
        """min(n, C) in every layer."""
        return (min(prompt + decoded, self.cap(prompt)),) * shape.layers

    def protected(self, prompt: int) -> frozenset[int]:
        """The newest tokens."""
        return frozenset(range(max(0, prompt - self.newest(prompt)), prompt))


class H2OLayer(CacheLayer):
    """Keeps heavy hitters and the newest. `scores` (B, G, slots) float32 go with the slots."""

    meta = ("kept", "scores")
    method: H2O

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self.scores: torch.Tensor | None = None
        self._received: list[torch.Tensor] = []

    def compress(self, queries: torch.Tensor) -> None:
        """Score the prompt by all of its queries, then evict."""
        self.scores = scoring.column_sums(queries, self.keys, self.scaling)
        self.evict()

    def attention(self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, rows: slice) -> torch.Tensor:
        """Attend; after the prompt, note what every slot received."""
        if self.prompt is None:
            return super().attention(query, keys, values, rows)
        past = keys.shape[2] - query.shape[2]
        if query.shape[2] > 1 or not self.softmax.plain:
            self._received.append(scoring.column_sums(query, keys, self.scaling, past))
            return super().attention(query, keys, values, rows)
        weights = kernels.probabilities(query, keys, self.scaling, past).squeeze(3)
        self._received.append(weights.sum(dim=2))
        return torch.matmul(weights.to(values.dtype), values).reshape(query.shape)

    def step(self, query: torch.Tensor) -> None:
        """Add what was received, then evict."""
        received, self._received = torch.cat(self._received), []
        if self.scores is None:
            raise KvcheckError("no slot has a score yet: the prompt is not in")
        self.scores = pad(self.scores, (0, query.shape[2])) + received
        self.evict()

    def evict(self) -> None:
        """Keep the newest and the heavy hitters among the others."""
        prompt = self.prompt or self.seen
        cap, newest = self.method.cap(prompt), self.method.newest(prompt)
        if self.stored <= cap or self.scores is None:
            return
        old = self.stored - newest
        heavy = scoring.top(self.scores[:, :, :old], cap - newest)
        recent = self.every_head(torch.arange(old, self.stored, device=heavy.device))
        index = torch.cat([heavy, recent], dim=2)
        self.scores = self.scores.gather(2, index)
        self.keep(index, spare=1)


METHOD = H2O
