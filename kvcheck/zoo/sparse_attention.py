"""Bugs of sparse attention: the index that chooses is wrong, and the wrong tokens are read."""

from __future__ import annotations

import torch

from kvcheck.cache import retrieve
from kvcheck.cache.growable import GrowableBuffer
from kvcheck.cache.kv_cache import CacheLayer
from kvcheck.cache.shape import ModelShape
from kvcheck.methods.quest import Quest, QuestLayer
from kvcheck.zoo.base import bug, used_by
from kvcheck.zoo.counterparts.neighbour import NeighbourQuest, PadQuestLayer
from kvcheck.zoo.counterparts.paged import PagedQuest, PagedQuestLayer
from kvcheck.zoo.counterparts.quests import CropQuestLayer, DraftedQuest, JointQuest

LARGE = 128
"""Pages from which on a tensor of scores is too large for the reduction: 2,048 tokens in pages of 16."""


@bug("selector-scores-collapse-to-zero", "https://github.com/ml-explore/mlx-lm/pull/1454")
class SelectorScoresCollapseToZero(Quest):
    """For more than 128 pages all bounds come out as zero, and the partial sort then picks the last pages: attention to
    what was said last, whatever the question.

    From a reduction that overflowed in silence; there the limit was higher, here it is one that small models reach.
    Shows for texts of more than 128 pages.
    """


@used_by(SelectorScoresCollapseToZero)
class _Collapsing(QuestLayer):
    def choose(self, query: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        """The newest pages, where there are too many to score."""
        chosen = super().choose(query, own)
        if self.low is None or self.low.length <= LARGE:
            return chosen
        count = chosen.shape[-1]
        last = own.clamp(min=count - 1).unsqueeze(-1) - torch.arange(count - 1, -1, -1, device=own.device)
        return last.expand_as(chosen)


@bug("selector-wrong-head-aggregation", "https://github.com/ml-explore/mlx-lm/pull/531")
class SelectorWrongHeadAggregation(JointQuest):
    """Every head chooses pages for itself, by bounds that are not rectified, where the heads of a layer are to choose
    together, by the sum of what is positive.

    From the port of an indexer. Shows once the text is longer than what a token attends to.
    """

    def layer(self, shape: ModelShape, index: int) -> CacheLayer:
        """A layer whose heads are on their own."""
        return QuestLayer(shape, index, self)


@bug("index-buffer-crop-out-of-step", "https://github.com/huggingface/transformers/pull/47720")
class IndexBufferCropOutOfStep(DraftedQuest):
    """A rollback by more than there is empties keys and values, but cuts the bounds at a negative place, which counts
    from their end: bounds of old pages stay, and those of later pages are behind them.

    From a cache layer with an index beside keys and values, which was cropped by an older rule. Shows after a rollback
    by at least a page more than the cache holds.
    """


@used_by(IndexBufferCropOutOfStep)
class _TwoRules(CropQuestLayer):
    def crop_index(self, tokens: int) -> None:
        """Relative, without a lower end."""
        length = self.seen + tokens if tokens < 0 else tokens
        if length >= 0 or self.low is None or self.high is None:
            return super().crop_index(tokens)
        pages = -(-length // self.method.page)
        self.low, self.high = (GrowableBuffer(buffer.used[:, :, :pages].clone()) for buffer in (self.low, self.high))
        return None


@bug("pages-in-physical-order", "https://github.com/vllm-project/vllm-ascend/pull/14039")
class PagesInPhysicalOrder(PagedQuest):
    """The chosen pages are fetched in the order in which they lie in the pool, and masked as if they had come in the
    order of the text: the end of another page is hidden, and the unwritten end of the newest page is attended to.

    From a kernel that fetched two pages in one copy. Shows when earlier requests have left the pool so that a row's
    pages do not ascend in it.
    """


@used_by(PagesInPhysicalOrder)
class _ByAddress(PagedQuestLayer):
    def look(self, query: torch.Tensor) -> torch.Tensor:
        """As Quest's, but for the order of what is fetched."""
        page, count = self.method.page, query.shape[2]
        tokens = torch.arange(self.seen - count, self.seen, device=query.device)
        pages = self.choose(query, tokens // page)
        offsets = torch.arange(page, device=query.device)
        hidden = (pages.unsqueeze(-1) * page + offsets).flatten(-2) > tokens.unsqueeze(-1)
        table = self.used().to(query.device)
        known = pages.clamp(max=table.shape[1] - 1)
        addresses = table[:, None, None].expand(*known.shape[:3], -1).gather(3, known)
        fetched = known.gather(3, addresses.argsort(dim=-1, stable=True))
        slots = (fetched.unsqueeze(-1) * page + offsets).flatten(-2)
        whole = [self.pages_of(pool) for pool in (self.pk, self.pv)]
        out = torch.empty_like(query)
        for at in retrieve.row_chunks(query, slots.shape[-1] * query.shape[-1]):
            keys, values = (retrieve.gather(each, slots[:, :, at]).float() for each in whole)
            scores = torch.matmul(keys, query[:, :, at].float().unsqueeze(-1)).squeeze(-1) * self.scaling
            weights = scores.masked_fill(hidden[:, :, at], -torch.inf).softmax(-1)
            out[:, :, at] = torch.matmul(weights.unsqueeze(-2), values).squeeze(-2)
        return out

    def pages_of(self, pool: torch.Tensor | None) -> torch.Tensor:
        """All rows' pages in the order of the text (B, G, m·S, d), with the unwritten end of the last."""
        return torch.empty(0) if pool is None else pool[self.used()].transpose(1, 2).flatten(2, 3)


@bug("pads-pooled-into-blocks", "https://github.com/huggingface/transformers/issues/45938")
class PadsPooledIntoBlocks(NeighbourQuest):
    """The prompt's pages are bounded column by column from the left end of the batch on, padding included: of a padded
    row the borders are shifted, and the first page is bounded by keys of padding.

    From a compressor that pooled groups of tokens before the mask was applied. Shows for rows that are padded because
    another one is longer.
    """


@used_by(PadsPooledIntoBlocks)
class _Columns(PadQuestLayer):
    def aligned(self, row: int) -> torch.Tensor:
        """The columns as they are."""
        return self._buffers()[0].used[row : row + 1]


@bug("compressed-write-only-in-one-branch", "https://github.com/HYGON-AI/sglang-das/pull/317")
class CompressedWriteOnlyInOneBranch(Quest):
    """Bounds are written in even layers only; in odd ones their room stays zero, and of the past the oldest pages are
    chosen.

    From an engine in which the write stood inside the branch of one memory layout. Shows in the layers of the other
    one, once the text is longer than what a token attends to.
    """

    def layer(self, shape: ModelShape, index: int) -> CacheLayer:
        """Half of the layers write no bounds."""
        return QuestLayer(shape, index, self) if index % 2 == 0 else _Unwritten(shape, index, self)


class _Unwritten(QuestLayer):
    def bounds(self, keys: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Room for the bounds, empty."""
        low, high = super().bounds(keys)
        return torch.zeros_like(low), torch.zeros_like(high)

    def write(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """New tokens do not reach the open page's bounds either."""
        super().write(keys, values)
        for bound in (self.low, self.high):
            if bound is not None:
                bound.used.zero_()
