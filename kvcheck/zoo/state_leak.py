"""Bugs of state: what one sample leaves behind for the next."""

from __future__ import annotations

from collections import Counter
from functools import cached_property

import torch

from kvcheck.cache.shape import Prefilled
from kvcheck.methods.snapkv import SnapKV, SnapLayer
from kvcheck.zoo.base import bug, used_by
from kvcheck.zoo.counterparts.paged_window import PagedLayer, PagedWindow
from kvcheck.zoo.counterparts.regimes import RegimeLayer, Regimes
from kvcheck.zoo.counterparts.tiered import Tiered, TieredRunner


@bug("kv-len-counter-survives-sample", "https://github.com/Zefan-Cai/KVCache-Factory/issues/54")
class KvLenCounterSurvivesSample(SnapKV):
    """Whether a forward is a prompt's is told by a count of tokens per layer of the model: where it equals the tokens
    of the forward, nothing came before. The count outlives the sample, so that later prompts are not taken for prompts
    and are kept whole.

    From KVCache-Factory, where it hung on how transformers prepared its inputs. Shows from the second sample on, as
    results that are too good; what is recorded of the first one is right.
    """

    @cached_property
    def counted(self) -> Counter[int]:
        """Tokens that each layer of the model has seen, in this sample and before."""
        return Counter()


@used_by(KvLenCounterSurvivesSample)
class CountingLayer(SnapLayer):
    """Compresses when the count says that the prompt is all there was."""

    method: KvLenCounterSurvivesSample

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Count, and take in."""
        self.method.counted[self.index] += key_states.shape[2]
        return super().update(key_states, value_states, *args, **kwargs)

    def absorb(self, prefilled: Prefilled) -> None:
        """Count, and take in."""
        self.method.counted[self.index] += prefilled.keys.shape[2]
        super().absorb(prefilled)

    def compress(self, queries: torch.Tensor) -> None:
        """Compress a prompt, if it is one."""
        if self.method.counted[self.index] == self.seen:
            super().compress(queries)


@bug("rope-base-persists-after-long-input", "https://github.com/huggingface/transformers/issues/25306")
class RopeBasePersistsAfterLongInput(Regimes):
    """The frequencies of the rotation follow the longest text that has been seen, not the text at hand: a long one
    slows them down, and short ones are turned by the slower ones from then on.

    From the dynamic scaling of transformers, which enlarged the base and did not restore it. Shows on short texts after
    a long one, and between the turns of a short text if a long one comes in between.
    """

    @cached_property
    def longest(self) -> list[int]:
        """The length of the longest text so far."""
        return [0]


@used_by(RopeBasePersistsAfterLongInput)
class LongestLayer(RegimeLayer):
    """Turns by the longest text."""

    method: RopeBasePersistsAfterLongInput

    def is_long(self, length: int) -> bool:
        """Whether any text was."""
        self.method.longest[0] = max(self.method.longest[0], length)
        return super().is_long(self.method.longest[0])


@bug("reset-misses-lower-tier", "https://github.com/vllm-project/vllm/issues/57727")
class ResetMissesLowerTier(Tiered):
    """A reset empties the blocks that are stored on the device and leaves those in host memory, which serve the next
    prompt that begins with the same tokens.

    From vLLM's offloading. Shows in what a run costs after a reset, in host memory that grows with every prompt, and in
    wrong answers when the weights have changed in between: the blocks are those of the old ones.
    """


@used_by(ResetMissesLowerTier)
class HalfResetRunner(TieredRunner):
    """Empties the device."""

    def reset(self) -> None:
        """Forget the blocks on the device."""
        self.near.clear()


@bug("block-clear-spills-into-neighbour", "https://github.com/vllm-project/vllm/pull/43990")
class BlockClearSpillsIntoNeighbour(PagedWindow):
    """Clearing the values of a page begins where they begin inside the page and goes on for the length of a whole page:
    the last part of it wipes the keys of the page that comes next in the slab.

    From vLLM, in a slab that several layers share. Shows when a page is used again while the next one is in use, which
    depends on the order in which pages came and left; a prompt and the first pages of an answer are right.
    """


@used_by(BlockClearSpillsIntoNeighbour)
class SpillingLayer(PagedLayer):
    """Clears a stride from an offset."""

    def clear(self, page: int) -> None:
        """Clear the keys and the values of a page."""
        if self.slab is not None:
            rows = self.slab.view(len(self.slab), -1)
            stride = self.slab[0, 0].numel()
            for offset in (0, stride // 2):
                rows[:, offset + page * stride : offset + (page + 1) * stride] = 0
