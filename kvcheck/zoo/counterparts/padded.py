"""SnapKV whose prompts are padded on the left, as a server pads the rows of a batch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch.nn.functional import pad, scaled_dot_product_attention

from kvcheck.cache import checks, forward
from kvcheck.cache.growable import GrowableBuffer
from kvcheck.cache.kv_cache import KVCache
from kvcheck.cache.method import MethodInfo
from kvcheck.cache.method_runner import MethodRunner
from kvcheck.methods.snapkv import SnapKV, SnapLayer
from kvcheck.zoo.base import used_by

FILLER = 0  # the token that pads


@dataclass(frozen=True)
class PaddedSnapKV(SnapKV):
    """SnapKV behind left padding: every prompt is filled up to a multiple of `multiple` tokens.

    The pads are hidden: no token sees them, positions count from the first real token, and they leave before the votes
    are counted. So the cache is that of SnapKV, up to the rounding of another kernel; with a budget of 1.0 it is the
    full cache.
    """

    info: ClassVar[MethodInfo] = replace(
        SnapKV.info,
        summary="SnapKV on prompts that are padded on the left",
        shares_prefill=False,
        variant="prompts are filled up to a multiple of 64 tokens; the pads are hidden, and leave with the prompt",
    )

    multiple: int = 64

    def __post_init__(self) -> None:
        """Raise SpecError for values out of range."""
        super().__post_init__()
        checks.whole(self.name(), "multiple", self.multiple, 1, 64)


@used_by(PaddedSnapKV)
class PaddedLayer(SnapLayer):
    """Hides pads while the prompt is in, then drops them. pads: tokens at the start that are none."""

    pads: int

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self.pads = 0

    def attention(self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, rows: slice) -> torch.Tensor:
        """Real tokens see no pad; a pad sees itself and earlier ones, so that its softmax is over something."""
        if not self.pads:
            return super().attention(query, keys, values, rows)
        count = keys.shape[2]
        row = torch.arange(count - query.shape[2], count, device=query.device).unsqueeze(1)
        column = torch.arange(count, device=query.device)
        seen = (column <= row) & ((column >= self.pads) | (row < self.pads))
        return scaled_dot_product_attention(query, keys, values, seen, scale=self.scaling, enable_gqa=True)

    def compress(self, queries: torch.Tensor) -> None:
        """Drop the pads, then choose among the real tokens."""
        pads = self.drop_pads()
        super().compress(queries[:, :, pads:])

    def drop_pads(self) -> int:
        """Forget the pads. Returns how many there were."""
        pads, self.pads = self.pads, 0
        if pads:
            self.k, self.v = (GrowableBuffer(each[:, :, pads:].clone()) for each in (self.keys, self.values))
            self.seen -= pads
            self.prompt = self.seen
        return pads


@used_by(PaddedSnapKV)
class PaddedRunner(MethodRunner):
    """Fills prompts up on their left."""

    method: PaddedSnapKV

    def prefill(self, ids: torch.Tensor) -> tuple[KVCache, torch.Tensor]:
        """As MethodRunner.prefill, on padded rows."""
        pads = -ids.shape[1] % self.method.multiple
        cache = self.build()
        for layer in cache.layers:
            layer.pads = pads
        fed = pad(ids, (pads, 0), value=FILLER)
        positions = self.positions(pads, ids)
        logits = forward.feed(self.model, fed, cache, position_ids=positions, logits_to_keep=1).logits
        return cache, logits[:, -1]

    def positions(self, pads: int, ids: torch.Tensor) -> torch.Tensor:
        """Positions (R, pads + n): counted from the first real token; pads are at 0."""
        each = torch.arange(-pads, ids.shape[1], device=ids.device).clamp(min=0)
        return each.expand(len(ids), -1)
