"""A layer of a model that sees a sliding window: it holds what the window may still reach, whatever the method."""

from __future__ import annotations

from typing import TypeVar

import torch

from kvcheck.cache import kernels
from kvcheck.cache.layer import CacheLayer
from kvcheck.cache.method import Method
from kvcheck.cache.shape import ModelShape

Position = TypeVar("Position", int, torch.Tensor)

BLOCK = 1024
"""Tokens of a prompt that attend at a time: a mask over all pairs of a long one would not fit into memory."""


class WindowLayer(CacheLayer):
    """The newest W - 1 tokens of a layer in which a token sees W, itself included, as transformers counts them.

    Bytes: 2·B·G·min(n, W - 1)·d·2. It is part of the model: methods act on the other layers.
    """

    is_sliding = True

    def __init__(self, shape: ModelShape, index: int, method: Method, window: int) -> None:
        super().__init__(shape, index, method)
        self.window = self.size = window

    def first(self, position: Position) -> Position:
        """The first position that a token at this one sees; below 0 where that is all."""
        return position + 1 - self.size

    def attention(self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, rows: slice) -> torch.Tensor:
        """Every token sees its own window; BLOCK tokens at a time, with the columns that they can see."""
        begin, start, parts = self.seen - keys.shape[2], self.seen - query.shape[2], []
        for block in query.split(BLOCK, dim=2):
            end = start + block.shape[2]
            near = max(begin, self.first(start))
            column = torch.arange(near, end, device=query.device)
            row = column[start - near :].unsqueeze(1)
            mask = (column <= row) & (column >= self.first(row))
            near_keys, near_values = (each[:, :, near - begin : end - begin] for each in (keys, values))
            parts.append(kernels.attend_masked(block, near_keys, near_values, mask, self.scaling, self.softmax))
            start = end
        return torch.cat(parts, dim=2)

    def compress(self, queries: torch.Tensor) -> None:
        """The prompt is in: drop what no later token sees."""
        if self.over > 0:
            self.without(0, self.over)

    def step(self, query: torch.Tensor) -> None:
        """More has come: the window moves on."""
        if self.over > 0:
            self.slide(0, self.over)

    @property
    def over(self) -> int:
        """Slots before all that the next token sees."""
        return self.stored - (self.seen - max(0, self.first(self.seen)))


class ChunkLayer(WindowLayer):
    """The newest n mod C tokens of a layer in which a token sees the earlier ones of its own chunk of C, and itself.

    Bytes: 2·B·G·(n mod C)·d·2 after n tokens: the first token of a chunk sees itself only.
    """

    def first(self, position: Position) -> Position:
        """The start of its chunk."""
        return position // self.size * self.size
