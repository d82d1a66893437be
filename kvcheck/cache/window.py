"""A layer of a model that sees a sliding window: it holds what the window may still reach, whatever the method."""

from __future__ import annotations

import torch

from kvcheck.cache import kernels
from kvcheck.cache.layer import CacheLayer
from kvcheck.cache.method import Method
from kvcheck.cache.shape import ModelShape

BLOCK = 1024
"""Tokens of a prompt that attend at a time: a mask over all pairs of a long one would not fit into memory."""


class WindowLayer(CacheLayer):
    """The newest W - 1 tokens of a layer in which a token sees W, itself included, as transformers counts them.

    Bytes: 2·B·G·min(n, W - 1)·d·2. It is part of the model: methods act on the other layers.
    """

    is_sliding = True

    def __init__(self, shape: ModelShape, index: int, method: Method, window: int) -> None:
        super().__init__(shape, index, method)
        self.window = window

    def attention(self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, rows: slice) -> torch.Tensor:
        """Every token sees its own window; BLOCK tokens at a time, with the columns that they can see."""
        past, parts = keys.shape[2] - query.shape[2], []
        for start in range(0, query.shape[2], BLOCK):
            block = query[:, :, start : start + BLOCK]
            end = past + start + block.shape[2]
            near = slice(max(0, past + start + 1 - (self.window or end)), end)
            mask = kernels.visible(block.shape[2], end - near.start, self.window, query.device)
            near_keys, near_values = keys[:, :, near], values[:, :, near]
            parts.append(kernels.attend_masked(block, near_keys, near_values, mask, self.scaling, self.softmax))
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
        """Slots beyond the newest W - 1 tokens."""
        return self.stored - (self.window or self.stored + 1) + 1
