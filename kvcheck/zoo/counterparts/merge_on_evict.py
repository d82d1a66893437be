"""SnapKV that folds what it evicts into what it keeps, as kvpress's MergingPress does."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch.nn.functional import normalize

from kvcheck.cache import checks
from kvcheck.cache.method import MethodInfo
from kvcheck.methods.snapkv import SnapKV, SnapLayer
from kvcheck.zoo.base import used_by


@dataclass(frozen=True)
class MergeOnEvict(SnapKV):
    """SnapKV; the values of evicted tokens are folded into the kept tokens whose keys are most like theirs.

    budget, window, kernel, pooling: as in SnapKV. similarity: an evicted token is eligible if the largest cosine of its
    key with a kept key is at least this. fraction: of the eligible tokens of a row and kv head, the share that is
    merged, the most alike first (rounded). The value of a kept token becomes the mean of its own, with weight 1, and of
    what is folded into it, with the cosines as weights. Keys stay.

    Bytes: those of SnapKV. Errors: SpecError for values out of range.
    """

    info: ClassVar[MethodInfo] = replace(
        SnapKV.info,
        summary="SnapKV that folds the values of evicted tokens into similar kept ones",
        verbatim=False,
        variant="values only, as kvpress's MergingPress; SnapKV of kvcheck",
    )

    similarity: float = 0.6
    fraction: float = 0.75

    def __post_init__(self) -> None:
        """Raise SpecError for values out of range."""
        super().__post_init__()
        checks.share(self.name(), "similarity", self.similarity, 0, 1, 0.6)
        checks.share(self.name(), "fraction", self.fraction, 0, 1, 0.75)

    def chosen(self, alike: torch.Tensor) -> torch.Tensor:
        """(B, G, e) bool: which evicted tokens are merged. alike: their largest cosines with a kept key."""
        eligible = alike >= self.similarity
        count = (eligible.sum(dim=2, keepdim=True) * self.fraction).round()
        ranked = torch.where(eligible, alike, float("-inf")).argsort(dim=2, descending=True, stable=True)
        return eligible & (ranked.argsort(dim=2) < count)


@used_by(MergeOnEvict)
class MergeLayer(SnapLayer):
    """Folds values before it lets go of them."""

    method: MergeOnEvict

    def keep(self, index: torch.Tensor, spare: int = 0) -> None:
        """Keep these slots, with the values of the others folded in."""
        index = index.to(self.keys.device)
        gone = _others(index, self.stored)
        wide = (*index.shape[:2], -1, self.keys.shape[3])
        values, stays, goes = self.values.float(), index.unsqueeze(3).expand(wide), gone.unsqueeze(3).expand(wide)
        alike, nearest = self._alike(stays, goes)
        weights = (alike * self.method.chosen(alike)).unsqueeze(3)
        targets = nearest.unsqueeze(3)
        total = torch.ones_like(stays[..., :1], dtype=weights.dtype).scatter_add(2, targets, weights)
        folded = values.gather(2, stays).scatter_add(2, targets.expand(wide), weights * values.gather(2, goes))
        super().keep(index, spare)
        self.values.copy_(folded / total)

    def _alike(self, stays: torch.Tensor, goes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, G, e): the largest cosine of every evicted key with a kept one, and which of the kept it is."""
        unit = normalize(self.keys.float(), dim=3)
        kept, found = unit.gather(2, stays).transpose(2, 3), []
        for block in unit.gather(2, goes).split(256, dim=2):
            found.append(torch.matmul(block, kept).max(dim=3))
        return torch.cat([best.values for best in found], dim=2), torch.cat([best.indices for best in found], dim=2)


def _others(index: torch.Tensor, slots: int) -> torch.Tensor:
    """The slots that are not in the index (B, G, m) -> (B, G, slots - m), ascending."""
    kept = torch.zeros(*index.shape[:2], slots, dtype=torch.bool, device=index.device).scatter_(2, index, True)
    return (~kept).nonzero()[:, 2].view(*index.shape[:2], -1)
