"""Bugs of caches that put tokens, or whole pieces of text, together."""

from __future__ import annotations

import torch

from kvcheck.zoo.base import bug, used_by
from kvcheck.zoo.counterparts.fragments import Fragments, FragmentsRunner
from kvcheck.zoo.counterparts.merge_on_evict import MergeOnEvict


@bug("merge-quantile-over-ineligible", "https://github.com/NVIDIA/kvpress/pull/287")
class MergeQuantileOverIneligible(MergeOnEvict):
    """The bound on the cosine is a quantile over all evicted tokens, of which those that are not eligible count as
    minus infinity. With a few of them more than the fraction of the eligible is merged; where the quantile falls among
    them it is NaN, no token passes, and the method only evicts.

    Found in kvpress's MergingPress. Shows where many evicted keys are unlike all that are kept.
    """

    def chosen(self, alike: torch.Tensor) -> torch.Tensor:
        """(B, G, e) bool: the eligible tokens above the quantile."""
        eligible = alike >= self.similarity
        ranked = torch.where(eligible, alike, float("-inf"))
        return eligible & (ranked >= torch.quantile(ranked, 1 - self.fraction, dim=2, keepdim=True))


@bug("fragments-joined-without-rerotation", "https://github.com/MemTensor/MemOS/issues/2315")
class FragmentsJoinedWithoutRerotation(Fragments):
    """Pieces that were computed alone, each from position 0, are put one behind the other with their keys as they are,
    so that all but the first carry the rotation of a place in their own piece, while queries count on from the end.

    Found in MemOS, which joins stored pieces of a memory. Shows where two pieces or more are joined.
    """


@used_by(FragmentsJoinedWithoutRerotation)
class UnturnedRunner(FragmentsRunner):
    """Leaves keys as they were computed."""

    def moved(self, keys: torch.Tensor, start: int) -> torch.Tensor:
        """The same keys."""
        return keys
