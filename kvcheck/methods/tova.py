"""TOVA: what the newest query attends to least leaves, in all heads alike. arXiv 2401.06104, schwartz-lab-NLP/TOVA."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from kvcheck.cache import checks, kernels, scoring
from kvcheck.cache.kv_cache import CacheLayer
from kvcheck.cache.method import Lossless, Method, MethodInfo, Stage
from kvcheck.cache.shape import ModelShape


@dataclass(frozen=True)
class TOVA(Method):
    """After every forward, keep the C slots that the newest query attends to most; all heads of a layer keep the same.

    budget: C, a share of the prompt (0.5) or a number of tokens (1024). The score of a slot is the attention of the
    newest query, mean over all H query heads; nothing is summed over steps, nothing is protected: the newest token can
    leave too. A block of several tokens is one forward: its last query decides.

    Bytes: 2·L·B·G·min(n, C)·d·2 after n tokens. Errors: SpecError for values out of range.
    Differences from the official code: the budget may be a share; the reported length is that of the tokens seen
    (official: that of the slots and one more). kvpress protects the newest token and acts after the prompt only.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        summary="keeps what the newest query attends to most, the same tokens in all heads of a layer",
        stage=Stage.COMPRESSION,
        paper="arXiv 2401.06104",
        formula="2·L·B·G·min(n, C)·d·2",
        knob="budget",
        evicts_in_decode=True,
        needs=("queries",),
        variant="the newest token may leave (official); original positions",
        lossless=Lossless.at("budget=100000"),
        exempt={"a_block_is_its_tokens_one_by_one": "a block is attended to whole, then evicted from once"},
        cross_head="all heads of a layer keep the same tokens",
    )

    budget: float | int = 0.5

    def __post_init__(self) -> None:
        """Raise SpecError for values out of range."""
        checks.budget(self.name(), "budget", self.budget)

    def cap(self, prompt: int) -> int:
        """C for a prompt of this length."""
        return checks.tokens(self.budget, prompt, least=1)

    def layer(self, shape: ModelShape, index: int) -> CacheLayer:
        """A layer that evicts after every forward."""
        return TOVALayer(shape, index, self)

    def slots(self, shape: ModelShape, prompt: int, decoded: int) -> tuple[int, ...]:
        """min(n, C) in every layer."""
        return (min(prompt + decoded, self.cap(prompt)),) * shape.layers


class TOVALayer(CacheLayer):
    """Keeps what the newest query attends to."""

    method: TOVA

    def compress(self, queries: torch.Tensor) -> None:
        """Evict after the prompt."""
        self.evict(queries)

    def step(self, query: torch.Tensor) -> None:
        """Evict after every later forward."""
        self.evict(query)

    def evict(self, queries: torch.Tensor) -> None:
        """Keep the C slots with the largest weights of the last query."""
        cap = self.method.cap(self.prompt or self.seen)
        if self.stored > cap:
            weights = kernels.probabilities(queries[:, :, -1:], self.keys, self.scaling, self.stored - 1)
            chosen = scoring.top(weights.mean(dim=(1, 2, 3)), cap)
            self.keep(chosen.unsqueeze(1).expand(-1, self.shape.kv_heads, -1), spare=1)


METHOD = TOVA
