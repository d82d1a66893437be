"""Quest whose cache goes to a file and comes back once the prompt is in."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from kvcheck.cache.growable import GrowableBuffer
from kvcheck.cache.kv_cache import CacheLayer
from kvcheck.cache.method import MethodInfo
from kvcheck.cache.shape import ModelShape
from kvcheck.methods.quest import Quest, QuestLayer
from kvcheck.zoo.twins._files import through


@dataclass(frozen=True)
class StoredQuest(Quest):
    """Quest, with keys, values and the bounds of all pages saved after the prompt and loaded again."""

    info: ClassVar[MethodInfo] = replace(Quest.info, summary="Quest whose cache of the prompt is saved and loaded")

    def layer(self, shape: ModelShape, index: int) -> CacheLayer:
        """A layer that goes through a file once."""
        return StoredQuestLayer(shape, index, self)


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
