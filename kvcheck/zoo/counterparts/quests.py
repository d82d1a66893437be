"""Quest with one choice for all heads, with a cache that is saved and loaded, and under speculative decoding."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import torch

from kvcheck.cache import checks, scoring
from kvcheck.cache.growable import GrowableBuffer
from kvcheck.cache.method import MethodInfo
from kvcheck.cache.method_runner import MethodRunner
from kvcheck.methods.quest import Quest, QuestLayer
from kvcheck.zoo.base import used_by
from kvcheck.zoo.counterparts._files import through
from kvcheck.zoo.counterparts.drafted import DraftRunner, length_after

if TYPE_CHECKING:
    from kvcheck.models import LoadedModel


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


@dataclass(frozen=True)
class StoredQuest(Quest):
    """Quest, with keys, values and the bounds of all pages saved after the prompt and loaded again."""

    info: ClassVar[MethodInfo] = replace(Quest.info, summary="Quest whose cache of the prompt is saved and loaded")


@used_by(StoredQuest)
class StoredQuestLayer(QuestLayer):
    """Goes through a file after the prompt."""

    def compress(self, queries: torch.Tensor) -> None:
        """Bound the pages, save, load."""
        super().compress(queries)
        self.restore(through(self.state(), {})[0])

    def state(self) -> dict[str, torch.Tensor]:
        """What is saved."""
        if self.low is None or self.high is None:
            return {}
        return {"keys": self.keys, "values": self.values, "low": self.low.used, "high": self.high.used}

    def restore(self, state: dict[str, torch.Tensor]) -> None:
        """Take in what was loaded."""
        self.k, self.v, self.low, self.high = (
            GrowableBuffer(state[name]) for name in ("keys", "values", "low", "high")
        )


@dataclass(frozen=True)
class DraftedQuest(Quest):
    """Quest that can be rolled back, and is: every later forward carries `draft` guessed tokens, which then leave."""

    info: ClassVar[MethodInfo] = replace(Quest.info, summary="Quest with guessed tokens that are rolled back")

    draft: int = 4

    def __post_init__(self) -> None:
        """Raise SpecError for values out of range."""
        super().__post_init__()
        checks.whole(self.name(), "draft", self.draft, 0, 4)

    def runner(self, loaded: LoadedModel) -> MethodRunner:
        """Feeds guesses."""
        return DraftRunner(self, loaded)


@used_by(DraftedQuest)
class CropQuestLayer(QuestLayer):
    """Pages can be taken back; the budget stays that of the prompt."""

    is_croppable = True

    def crop(self, tokens: int = 0) -> None:
        """Leave the first `tokens` tokens; negative: take back so many. The open page's bounds are found anew."""
        length = length_after(self.seen, tokens)
        if self.k is None or self.v is None or length == self.seen:
            return
        self.k, self.v = (GrowableBuffer(buffer.used[:, :, :length].clone()) for buffer in (self.k, self.v))
        self.crop_index(tokens)
        self.seen = length

    def crop_index(self, tokens: int) -> None:
        """The same for the bounds, whose last page may have lost tokens. `seen` is still what it was before."""
        if self.low is None or self.high is None:
            return
        page = self.method.page
        whole = length_after(self.seen, tokens) // page
        last = self.bounds(self.keys[:, :, whole * page :])
        self.low, self.high = (
            GrowableBuffer(torch.cat([buffer.used[:, :, :whole], found], dim=2))
            for buffer, found in zip((self.low, self.high), last, strict=True)
        )
