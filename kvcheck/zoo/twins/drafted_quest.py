"""Quest under speculative decoding: guessed tokens are fed and rolled back."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import torch

from kvcheck.cache import checks
from kvcheck.cache.growable import GrowableBuffer
from kvcheck.cache.kv_cache import CacheLayer
from kvcheck.cache.method import MethodInfo
from kvcheck.cache.method_runner import MethodRunner
from kvcheck.cache.shape import ModelShape
from kvcheck.methods.quest import Quest, QuestLayer
from kvcheck.zoo.twins._drafts import DraftRunner, length_after

if TYPE_CHECKING:
    from kvcheck.models import LoadedModel


@dataclass(frozen=True)
class DraftedQuest(Quest):
    """Quest that can be rolled back, and is: every later forward carries `draft` guessed tokens, which then leave."""

    info: ClassVar[MethodInfo] = replace(Quest.info, summary="Quest with guessed tokens that are rolled back")

    draft: int = 4

    def __post_init__(self) -> None:
        """Raise SpecError for values out of range."""
        super().__post_init__()
        checks.whole(self.name(), "draft", self.draft, 0, 4)

    def layer(self, shape: ModelShape, index: int) -> CacheLayer:
        """A layer that can be rolled back."""
        return CropQuestLayer(shape, index, self)

    def runner(self, loaded: LoadedModel) -> MethodRunner:
        """Feeds guesses."""
        return DraftRunner(self, loaded)


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
