"""Quest with one choice of pages for all heads of a layer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from kvcheck.cache import scoring
from kvcheck.cache.method import MethodInfo
from kvcheck.methods.quest import Quest, QuestLayer
from kvcheck.zoo.base import used_by


@dataclass(frozen=True)
class JointQuest(Quest):
    """Quest whose query heads choose together: positive bounds are added up over heads, negative ones count as none."""

    info: ClassVar[MethodInfo] = replace(
        Quest.info,
        summary="attends to the pages whose key bounds promise the largest scores over all heads",
        variant="one choice of pages per token, by the rectified bounds summed over query heads",
    )


@used_by(JointQuest)
class JointQuestLayer(QuestLayer):
    """One choice per token."""

    def choose(self, query: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        """The K pages of every token, ascending, the same for all heads: (B, H, q, d), (q,) -> (B, H, q, K)."""
        upper = self.bound(query).clamp(min=0).sum(dim=1, keepdim=True)
        behind = torch.arange(upper.shape[-1], device=query.device) - own.unsqueeze(-1)
        upper = upper.masked_fill(behind > 0, -torch.inf).masked_fill(behind == 0, torch.inf)
        chosen = scoring.top(upper, self.method.pages(self.prompt or self.seen))
        return chosen.expand(-1, query.shape[1], -1, -1)
