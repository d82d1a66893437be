"""ThinK: drops the key channels that matter least to recent queries. arXiv 2407.21018, SalesforceAIResearch/ThinK."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from kvcheck.cache import checks, scoring
from kvcheck.cache.full import KeepsAll
from kvcheck.cache.growable import GrowableBuffer
from kvcheck.cache.kv_cache import CacheLayer
from kvcheck.cache.method import Lossless, MethodInfo, Stage
from kvcheck.cache.shape import ModelShape


@dataclass(frozen=True)
class ThinK(KeepsAll):
    """Once, after the prompt: drop k = int(d · ratio) of the d channels of all keys but those of the newest tokens.

    ratio: the share of channels that go. recent: r, the newest tokens whose keys stay whole, and as many queries whose
    squares, times those of the keys, score a channel: mean over the queries (and the group) · mean over the p keys.
    Each kv head drops its own. Values are not touched. A prompt of up to r tokens stays as it is. What is decoded is
    stored whole, and the choice is not made again; scores are scaled by 1/sqrt(d) as before.

    Bytes, for p > r: L·B·G·[((p - r)·(d - k) + r·d + p·d + 2·decoded·d)·2 + d], the last d for the mask of channels.
    Errors: SpecError for values out of range.
    Differences from the official code: on the full cache (official: on top of SnapKV or H2O); one mask per kv head by
    the mean of its query heads (official: per query head); nothing is pruned where p <= r (official: everything).
    kvpress sets channels to 0, those of recent keys too, and frees nothing.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        summary="drops the channels of keys that matter least to the newest queries",
        stage=Stage.COMPRESSION,
        paper="arXiv 2407.21018",
        formula="L·B·G·[((p - r)·(d - k) + r·d + p·d + 2·decoded·d)·2 + d]",
        knob="ratio",
        verbatim=False,
        needs=("queries",),
        variant="on the full cache, one mask per kv head (official: on top of SnapKV, per query head)",
        lossless=Lossless.at("ratio=0.0"),
    )

    ratio: float = 0.4
    recent: int = 32

    def __post_init__(self) -> None:
        """Raise SpecError for values out of range."""
        checks.share(self.name(), "ratio", self.ratio, 0, 0.95, 0.4)
        checks.whole(self.name(), "recent", self.recent, 1, 32)

    def dropped(self, head_dim: int) -> int:
        """k, channels that go."""
        return int(head_dim * self.ratio)

    def layer(self, shape: ModelShape, index: int) -> CacheLayer:
        """A layer that prunes once, after the prompt."""
        return ThinKLayer(shape, index, self)

    def kv_bytes(self, shape: ModelShape, batch: int, prompt: int, decoded: int) -> int:
        """Narrow old keys, whole recent ones, values, and the mask."""
        whole, heads = shape.dense_bytes(batch, prompt + decoded), shape.layers * batch * shape.kv_heads
        if prompt <= self.recent:
            return whole
        saved = (prompt - self.recent) * self.dropped(shape.head_dim) * shape.itemsize
        return whole - heads * saved + heads * shape.head_dim


class ThinKLayer(CacheLayer):
    """Narrow keys of old tokens, then whole keys of recent ones.

    narrow: GrowableBuffer of (B, G, p - r, d - k); channels: (B, G, d) bool, those that are left; k: the whole keys.
    """

    method: ThinK

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self.narrow: GrowableBuffer | None = None
        self.channels: torch.Tensor | None = None

    def compress(self, queries: torch.Tensor) -> None:
        """Score the channels, and store old keys without those that score least."""
        recent = self.method.recent
        if self.k is None or self.stored <= recent:
            return
        keys, left = self.keys, self.shape.head_dim - self.method.dropped(self.shape.head_dim)
        asked = queries[:, :, -recent:].float().square().mean(dim=2).unflatten(1, (-1, self.shape.group)).mean(dim=2)
        index = scoring.top(asked * keys.float().square().mean(dim=2), left)
        old = keys[:, :, :-recent]
        self.narrow = GrowableBuffer(old.gather(3, index.unsqueeze(2).expand(-1, -1, old.shape[2], -1)))
        self.channels = torch.zeros(*index.shape[:2], keys.shape[3], dtype=torch.bool, device=keys.device)
        self.channels.scatter_(2, index, True)
        self.k.drop(old.shape[2])

    def read(self, rows: slice, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys with zeros in the channels that are gone, and values."""
        whole, values = super().read(rows, dtype)
        if self.narrow is None or self.channels is None:
            return whole, values
        narrow = self.narrow.used[rows].to(dtype)
        keys = whole.new_zeros(*whole.shape[:2], narrow.shape[2] + whole.shape[2], whole.shape[3])
        channels = self.channels[rows].unsqueeze(2).expand(-1, -1, narrow.shape[2], -1)
        keys[:, :, : narrow.shape[2]].masked_scatter_(channels, narrow)
        keys[:, :, narrow.shape[2] :] = whole
        return keys, values

    @property
    def stored(self) -> int:
        """Slots per kv head."""
        return super().stored + (0 if self.narrow is None else self.narrow.length)


METHOD = ThinK
