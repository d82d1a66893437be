"""ChunkKV: SnapKV's votes, counted by runs of neighbouring tokens. arXiv 2502.00299, NVIDIA/kvpress."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn.functional import pad

from kvcheck.cache import checks, scoring
from kvcheck.cache.kv_cache import CacheLayer
from kvcheck.cache.method import Lossless, MethodInfo, Stage
from kvcheck.cache.shape import ModelShape
from kvcheck.cache.voting import WindowVote


@dataclass(frozen=True)
class ChunkKV(WindowVote):
    """After the prompt of p tokens, keep whole chunks of it: those that its last queries attend to most.

    budget: C, window included: a share of the prompt (0.5; C = floor(0.5 p), at least window + 1) or a number of
    tokens. Prompts of at most C tokens are kept whole. window: w, queries that vote, and newest tokens, which stay.
    chunk: c, tokens of a chunk (10, as in the paper; kvpress 20); the first p - w tokens are cut into chunks from the
    beginning, and the last of them is what is left.

    A = softmax(Q_w Kᵀ·scaling) over all p keys in float32, causal in the last w x w block; summed over the w queries
    and all query heads of the layer. A chunk scores the mean of its tokens. Chunks are kept from the best on, the same
    in all kv heads of a layer; of the chunk that does not fit any more, the first tokens, so that the budget is met
    exactly. Decoded tokens are appended and never leave.

    Bytes: 2·L·B·G·(min(p, C) + decoded)·d·2. Errors: SpecError for values out of range.
    Differences: the paper keeps floor(C/c) chunks beside the window; kvpress keeps the share of all chunks that the
    budget is of the prompt, has no window apart from them, and smooths votes as SnapKV does before. The paper's reuse
    of one layer's choice by the next ones, which saves time and no memory, is left out.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        summary="keeps the chunks of the prompt that its last queries attend to, the same in all heads of a layer",
        stage=Stage.COMPRESSION,
        paper="arXiv 2502.00299",
        formula="2·L·B·G·(min(p, C) + decoded)·d·2",
        knob="budget",
        needs=("queries",),
        variant="the paper's, with the budget met exactly by the beginning of one more chunk; no reuse between layers",
        lossless=Lossless.at("budget=1.0"),
        cross_head="the heads of a layer vote together",
    )

    chunk: int = 10

    def __post_init__(self) -> None:
        """Raise SpecError for values out of range."""
        super().__post_init__()
        checks.whole(self.name(), "chunk", self.chunk, 1, 10)

    def layer(self, shape: ModelShape, index: int) -> CacheLayer:
        """A layer that compresses once, after the prompt."""
        return ChunkLayer(shape, index, self)


class ChunkLayer(CacheLayer):
    """Chooses chunks by the observation window."""

    method: ChunkKV

    def compress(self, queries: torch.Tensor) -> None:
        """Keep the best chunks of the prefix and the window."""
        method, prompt = self.method, self.stored
        votes = method.votes(self, queries)
        if votes is None:
            return
        scores = by_chunk(votes.sum(dim=1), method.chunk)
        chosen = scoring.top(scores, method.cap(prompt) - method.window)  # of a chunk, the first tokens come first
        window = torch.arange(prompt - method.window, prompt, device=chosen.device).expand(len(chosen), -1)
        self.keep(torch.cat([chosen, window], dim=1).unsqueeze(1).expand(-1, self.shape.kv_heads, -1))


def by_chunk(scores: torch.Tensor, chunk: int) -> torch.Tensor:
    """Scores (B, n), each replaced by the mean of its chunk; summed in float64, so that equal chunks score the same."""
    tokens, wide = scores.shape[1], scores.double()
    cut = pad(wide, (0, -tokens % chunk)).unflatten(1, (-1, chunk))
    sizes = pad(torch.ones_like(wide[:1]), (0, -tokens % chunk)).unflatten(1, (-1, chunk)).sum(dim=2)
    return (cut.sum(dim=2) / sizes).to(scores.dtype).repeat_interleave(chunk, dim=1)[:, :tokens]


METHOD = ChunkKV
