"""One live cache per session: the next prompt rolls it back to what both have in common and feeds the rest."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from kvcheck.cache.growable import GrowableBuffer
from kvcheck.cache.kv_cache import CacheLayer, KVCache
from kvcheck.cache.method import MethodInfo
from kvcheck.cache.method_runner import MethodRunner
from kvcheck.methods.fp16 import Fp16
from kvcheck.zoo.base import used_by
from kvcheck.zoo.counterparts.drafted import length_after


@dataclass(frozen=True)
class LiveSession(Fp16):
    """The full cache, where a prompt starts from the cache of the prompt before it as far as their tokens agree.

    The last token of a prompt is always computed. Answers and bytes are those of the full cache; the copy that the
    session keeps is not part of the cache that a prompt gets.
    """

    info: ClassVar[MethodInfo] = replace(
        Fp16.info,
        summary="the full cache, reused from prompt to prompt as far as their tokens agree",
        stage="loading",
        exceeds="the session keeps a copy of the last prompt",
        shares_prefill=False,
        exempt={"the_same_call_gives_the_same": "a second time it computes less, and rounds sums otherwise"},
    )


@used_by(LiveSession)
class CropLayer(CacheLayer):
    """The full cache, which can be cut back to any length. The prompt is then open again."""

    is_croppable = True

    def crop(self, tokens: int = 0) -> None:
        """Leave the first `tokens` tokens; negative: take back so many."""
        self.cut(length_after(self.seen, tokens))

    def cut(self, length: int) -> None:
        """Leave the first `length` tokens, of which there are at least so many."""
        if self.k is not None and self.v is not None:
            self.k, self.v = (GrowableBuffer(buffer.used[:, :, :length].clone()) for buffer in (self.k, self.v))
        self.seen, self.prompt = length, None


@used_by(LiveSession)
class SessionRunner(MethodRunner):
    """live: the tokens and the cache of the last prompt, a copy of its own."""

    live: tuple[torch.Tensor, KVCache] | None = None

    def prefill(self, ids: torch.Tensor) -> tuple[KVCache, torch.Tensor]:
        """Reuse what the last prompts and these (R, n) have in common, and feed the rest."""
        rows = range(len(ids))
        if self.live is None or len(self.live[0]) != len(ids):
            cache, common = self.build(), 0
        else:
            cache, common = self.live[1].select(rows), self.common(ids, self.live[0])
            for layer in cache.layers:
                layer.crop(common)
        logits = self.feed(cache, ids[:, common:])[:, -1]
        self.live = ids.clone(), cache.select(rows)
        return cache, logits

    def common(self, ids: torch.Tensor, before: torch.Tensor) -> int:
        """Tokens at the start that are equal in all rows, of ids (R, n) less the last one."""
        most = min(ids.shape[1] - 1, before.shape[1])
        same = (ids[:, :most] == before[:, :most].to(ids.device)).all(dim=0)
        return int(same.long().cumprod(0).sum())
