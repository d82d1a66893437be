"""A window of exact tokens, and the mean of every complete block of tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn.functional import scaled_dot_product_attention

from kvcheck.cache import checks
from kvcheck.cache.growable import GrowableBuffer
from kvcheck.cache.kv_cache import CacheLayer
from kvcheck.cache.method import Method, MethodInfo
from kvcheck.cache.shape import ModelShape
from kvcheck.core.errors import SpecError
from kvcheck.core.front import option
from kvcheck.zoo.base import used_by


@dataclass(frozen=True)
class Pooled(Method):
    """After the prompt, a token attends to the newest W tokens as they are, and to blocks of the whole text.

    block: r tokens that become one entry, the mean of their keys (post-RoPE) and of their values. window: W, a share of
    the prompt (0.5; fixed when the prompt is in) or a number of tokens, never less than a block. A token at position i
    sees the tokens from i - W + 1 to i and the entries of the (i + 1) // r blocks that are complete at i, those inside
    its window among them. The prompt is dense. A block of tokens answers as token by token would.

    With block=1 and window=0 the entries are the tokens, and it is the full cache, without a slot that is called so.

    Bytes: 2·L·B·G·(min(n, W) + n // r)·d·2 after n tokens. Errors: SpecError for values out of range.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        summary="keeps a window of tokens, and the mean of every block of tokens",
        stage="compression",
        knob="window",
        evicts_in_decode=True,
        formula="2·L·B·G·(min(n, W) + n // r)·d·2",
        variant="entries are means; the prompt is dense; blocks inside the window are seen, too",
    )

    block: int = 4
    window: float | int = 0.5

    def __post_init__(self) -> None:
        """Raise SpecError for values out of range."""
        checks.whole(self.name(), "block", self.block, 1, 4)
        if (self.block, self.window) == (1, 0) and not isinstance(self.window, bool):
            return
        checks.budget(self.name(), "window", self.window)
        if isinstance(self.window, int) and self.window < self.block:
            raise SpecError(
                f"{self.name()}: a window of {self.window} tokens does not hold a block of {self.block}",
                f"type {option('methods')}={self.name()}:block={self.block},window={self.block}",
            )

    def width(self, prompt: int) -> int:
        """W for a prompt of this length."""
        return checks.tokens(self.window, prompt, least=self.block)

    def slots(self, shape: ModelShape, prompt: int, decoded: int) -> tuple[int, ...]:
        """Tokens in the window."""
        return (min(prompt + decoded, self.width(prompt)),) * shape.layers

    def kv_bytes(self, shape: ModelShape, batch: int, prompt: int, decoded: int) -> int:
        """The window and the entries."""
        seen = prompt + decoded
        return shape.dense_bytes(batch, min(seen, self.width(prompt)) + seen // self.block)

    def protected(self, prompt: int) -> frozenset[int]:
        """The window."""
        return frozenset(range(max(0, prompt - self.width(prompt)), prompt))


@used_by(Pooled)
class PooledLayer(CacheLayer):
    """The window in k and v; the entries in pk and pv, GrowableBuffers (B, G, n // r, d)."""

    method: Pooled
    pk: GrowableBuffer | None
    pv: GrowableBuffer | None

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self.pk = self.pv = None

    def compress(self, queries: torch.Tensor) -> None:
        """Make the entries of the prompt, then drop what is outside of the window."""
        self.pool(0, self.seen)
        self.trim()

    def write(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Store new tokens; after the prompt, make the entries that they complete."""
        super().write(keys, values)
        if self.prompt is not None:
            self.pool(self.seen, self.seen + keys.shape[2])

    def pool(self, before: int, after: int) -> None:
        """Append the entries of the blocks that the tokens from `before` to `after` complete."""
        size = self.method.block
        done, complete = before // size, after // size
        start = done * size - (after - self.stored)  # the slot that the first of these blocks begins at
        span = slice(start, start + (complete - done) * size)
        for name, states in (("pk", self.keys), ("pv", self.values)):
            means = states[:, :, span].unflatten(2, (complete - done, size)).float().mean(3).to(self.dtype)
            buffer = getattr(self, name)
            if buffer is None:
                setattr(self, name, GrowableBuffer(means))
            else:
                buffer.append(means)

    def attention(self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, rows: slice) -> torch.Tensor:
        """After the prompt, the window and the entries, by one softmax."""
        if self.prompt is None or self.pk is None or self.pv is None:
            return super().attention(query, keys, values, rows)
        device, width = query.device, self.method.width(self.prompt)
        row = torch.arange(self.seen - query.shape[2], self.seen, device=device).unsqueeze(1)
        age = row - torch.arange(self.seen - keys.shape[2], self.seen, device=device)
        near = (age >= 0) & (age < width)
        entries = torch.arange(self.pk.length, device=device) < self.visible(row)
        keys, values = (
            torch.cat([states, buffer.used[rows].to(states.dtype)], dim=2)
            for states, buffer in ((keys, self.pk), (values, self.pv))
        )
        mask = torch.cat([near, entries], dim=1)
        return scaled_dot_product_attention(query, keys, values, mask, scale=self.scaling, enable_gqa=True)

    def visible(self, row: torch.Tensor) -> torch.Tensor:
        """How many entries the tokens at these positions (q, 1) see: those of blocks that are complete there."""
        return (row + 1) // self.method.block

    def step(self, query: torch.Tensor) -> None:
        """Drop what has left the window."""
        self.trim()

    def trim(self) -> None:
        """Keep the window."""
        width = self.method.width(self.prompt or self.seen)
        if self.stored > width:
            self.keep(self.every_head(torch.arange(self.stored - width, self.stored)), spare=1)
