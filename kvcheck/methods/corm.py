"""CORM: a key that no recent query found important leaves. arXiv 2404.15949 (no official code found)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn.functional import pad

from kvcheck.cache import checks
from kvcheck.cache.kv_cache import CacheLayer
from kvcheck.cache.method import Method, MethodInfo, Stage
from kvcheck.cache.ragged import Flat, RaggedLayer
from kvcheck.cache.shape import ModelShape

ROUNDING = 1e-3  # relative: equal weights must not fall below their own average


@dataclass(frozen=True)
class CORM(Method):
    """Evict a key when it was minor for all of the last w queries, unless it is among the last r tokens.

    A key is minor for a query that sees t keys when its weight is below 1/t, the average; it is important when any
    query head of its group finds it so. Rows and kv heads decide for themselves and hold different numbers of slots:
    there is no budget. Evaluated when the prompt is in, for its last w queries, and after every later forward, of which
    a block of several tokens is one.

    window: w, a share of the prompt (0.0625, the 256 of 4,096 tokens of the paper) or a number of tokens. recent: r,
    likewise. A query sees what is stored: t shrinks with the cache. A key that fewer than w queries have seen stays.

    Bytes: 2·d·2·Σ kept slots over layers, rows and kv heads; it depends on the data, and is never below that of the
    last r tokens. Besides, 4 bytes of bookkeeping per slot for the query that last found it important.
    Errors: SpecError for values out of range.
    Left open by the paper, and chosen: what t is after an eviction; the rule for GQA (any head of the group); the
    treatment of the prompt.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        summary="evicts what none of the last queries found important; heads keep different numbers of tokens",
        stage=Stage.COMPRESSION,
        paper="arXiv 2404.15949",
        formula="2·d·2·Σ kept slots over layers, rows and kv heads (depends on the data)",
        knob="window",
        evicts_in_decode=True,
        needs=("queries",),
        variant="important for any query head of the group; the average is that over stored keys",
        exempt={
            "a_block_is_its_tokens_one_by_one": "a block is attended to whole, then evicted from once",
            "memory_is_freed_in_every_row_of_every_sample": "queries at random may find every token important",
        },
    )

    window: float | int = 0.0625
    recent: float | int = 0.0625

    def __post_init__(self) -> None:
        """Raise SpecError for values out of range."""
        checks.budget(self.name(), "window", self.window)
        checks.budget(self.name(), "recent", self.recent)

    def sizes(self, prompt: int) -> tuple[int, int]:
        """w and r for a prompt of this length."""
        return checks.tokens(self.window, prompt, least=1), checks.tokens(self.recent, prompt, least=1)

    def layer(self, shape: ModelShape, index: int) -> CacheLayer:
        """A layer that evicts after every forward."""
        return CORMLayer(shape, index, self)

    def protected(self, prompt: int) -> frozenset[int]:
        """The last r tokens."""
        return frozenset(range(max(0, prompt - self.sizes(prompt)[1]), prompt))


class CORMLayer(RaggedLayer):
    """kept_important: by slot, the position of the query that last found it important; its own where none has yet."""

    meta = (*RaggedLayer.meta, "kept_important")
    method: CORM

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self.kept_important: Flat | None = None

    def compress(self, queries: torch.Tensor) -> None:
        """Ask the last w queries of the prompt."""
        window, _ = self.method.sizes(self.seen)
        self.evict(queries[:, :, -window:], self.positions)

    def step(self, query: torch.Tensor) -> None:
        """Ask the queries of this forward."""
        new = self.positions[:, :, self.longest :]
        self.evict(query, new if self.kept_important is None else torch.cat([self.kept_important.padded(), new], dim=2))

    def evict(self, queries: torch.Tensor, important: torch.Tensor) -> None:
        """Drop what was minor for the last w queries. important (B, G, m): as kept_important, before these queries."""
        window, recent = self.method.sizes(self.prompt or self.seen)
        keys, positions, valid = self.keys, self.positions, self.valid
        important = torch.maximum(important, self._important_to(queries, keys, valid))
        valid = valid & ((important >= self.seen - window) | (positions >= self.seen - recent))
        self.kept_important = self.store(keys, self.values, positions, valid).of(important.int())

    def _important_to(self, queries: torch.Tensor, keys: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """(B, G, m): the position of the last of these queries that found a slot important, -1 where none did."""
        keys, tokens = keys.float(), queries.shape[2]
        group, first = self.shape.group, self.seen - tokens
        last = torch.full(valid.shape, -1, dtype=torch.int32, device=keys.device)
        for row in range(tokens):
            seen = valid & pad(valid[..., : valid.shape[2] - (tokens - 1 - row)], (0, tokens - 1 - row))
            asked = queries[:, :, row].float().unflatten(1, (-1, group)) * self.scaling
            scores = torch.matmul(asked, keys.transpose(2, 3)).masked_fill(~seen.unsqueeze(2), float("-inf"))
            average = (1 - ROUNDING) / seen.sum(dim=2, keepdim=True).unsqueeze(2)
            now = (scores.softmax(dim=-1) >= average).any(dim=2) & seen
            last = torch.where(now, torch.full_like(last, first + row), last)
        return last


METHOD = CORM
