"""Quest: attend only to the pages that may hold large scores. arXiv 2406.10774, mit-han-lab/Quest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn.functional import pad

from kvcheck.cache import checks, retrieve, scoring
from kvcheck.cache.full import KeepsAll
from kvcheck.cache.growable import GrowableBuffer
from kvcheck.cache.kv_cache import CacheLayer
from kvcheck.cache.method import Lossless, MethodInfo, Stage
from kvcheck.cache.shape import ModelShape
from kvcheck.core.errors import KvcheckError

FEWEST = 3  # pages, however small the budget; as officially


@dataclass(frozen=True)
class Quest(KeepsAll):
    """Keep every token; after the prompt, every query head attends to K pages of `page` tokens only.

    page: S, tokens per page (16). budget: tokens that a query head attends to, a share of the prompt (0.125, rounded
    down; fixed when the prompt is in) or a number (the paper: 256 to 4096); K = max(3, ceil(budget / S)).
    dense_layers: the first layers of the model, which attend to everything (2).

    Per page and kv head the channel-wise smallest and largest key, m and M (B, G, pages, d), post-RoPE, in the stored
    dtype; the open page's are updated with every token. The bound u = Σ_c max(q_c·m_c, q_c·M_c) is no smaller than any
    q·k of the page. A token attends to its own page, up to itself, and to the K - 1 earlier pages with the highest
    bounds, by softmax over their tokens. Each token of a follow-up block chooses for itself, among pages that are
    complete before its own, so a block answers as token by token. Ties go to the older page. The prompt is dense.

    Bytes: 2·L·B·G·(n + ceil(n/S))·d·2 after n tokens: more than the full cache; what shrinks is what is read. Dense
    layers hold their m and M too, as officially. Errors: SpecError for values out of range.
    Differences from the official code: K counts the newest page, which is always chosen, as in its CUDA kernels (its
    evaluation code does not force it), and rounds up, so that a budget of all tokens is the full cache (there: down);
    follow-up blocks choose too (there: dense).
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        summary="attends to the pages whose key bounds promise the largest scores",
        stage=Stage.RETRIEVAL,
        paper="arXiv 2406.10774",
        formula="2·L·B·G·(n + ceil(n/S))·d·2",
        knob="budget",
        frees_memory=False,
        variant="the newest page is forced (official kernels); pages per query head; follow-up blocks are sparse too",
        lossless=Lossless.at("budget=100000"),
        exceeds="the bounds of the keys of every page, beside all keys and values",
        exempt={
            "where_a_text_begins_does_not_matter": (
                "it bounds the numbers of rotated keys, which depend on where they stand"
            ),
        },
    )

    page: int = 16
    budget: float | int = 0.125
    dense_layers: int = 2

    def __post_init__(self) -> None:
        """Raise SpecError for values out of range."""
        checks.whole(self.name(), "page", self.page, 1, 16)
        checks.budget(self.name(), "budget", self.budget)
        checks.whole(self.name(), "dense_layers", self.dense_layers, 0, 2)

    def pages(self, prompt: int) -> int:
        """K for a prompt of this length."""
        return max(FEWEST, -(-checks.tokens(self.budget, prompt, least=1) // self.page))

    def layer(self, shape: ModelShape, index: int) -> CacheLayer:
        """A layer with bounds per page."""
        return QuestLayer(shape, index, self)

    def kv_bytes(self, shape: ModelShape, batch: int, prompt: int, decoded: int) -> int:
        """Keys and values, and two bounds per page."""
        seen = prompt + decoded
        return shape.dense_bytes(batch, seen) + shape.dense_bytes(batch, -(-seen // self.page))

    def reads(self, shape: ModelShape, prompt: int, decoded: int) -> tuple[int, ...]:
        """K - 1 whole pages and what there is of the newest one; everything in the dense layers.

        From the budget itself, not by `pages`, whose slips it would repeat.
        """
        seen, budget = prompt + decoded, checks.tokens(self.budget, prompt, least=1)
        most = max(FEWEST * self.page, -(-budget // self.page) * self.page)
        chosen = seen if seen <= most else most - self.page + (seen - 1) % self.page + 1
        return tuple(seen if index < self.dense_layers else chosen for index in range(shape.layers))


class QuestLayer(retrieve.LookupLayer):
    """The full cache with bounds: low, high (B, G, pages, d), of which the last may be of an incomplete page."""

    method: Quest
    low: GrowableBuffer | None
    high: GrowableBuffer | None

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self.low = self.high = None

    @property
    def dense(self) -> bool:
        """The prompt, the first layers, and as long as K pages hold everything."""
        if self.prompt is None or self.index < self.method.dense_layers:
            return True
        return self.seen <= self.method.pages(self.prompt) * self.method.page

    def compress(self, queries: torch.Tensor) -> None:
        """Bound the pages of the prompt."""
        self.low, self.high = (GrowableBuffer(bound) for bound in self.bounds(self.keys))

    def write(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Store new tokens, and let them widen the open page's bounds or open new pages."""
        before = self.stored
        super().write(keys, values)
        if self.low is None or self.high is None:
            return
        fits = min(-before % self.method.page, keys.shape[2])  # what the open page still takes
        if fits:
            late = keys[:, :, :fits]
            for bound, found in ((self.low, late.amin(2)), (self.high, late.amax(2))):
                wider = torch.minimum if bound is self.low else torch.maximum
                bound.used[:, :, -1] = wider(bound.used[:, :, -1], found)
        if fits < keys.shape[2]:
            for bound, block in zip((self.low, self.high), self.bounds(keys[:, :, fits:]), strict=True):
                bound.append(block)

    def bounds(self, keys: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Channel-wise smallest and largest key of every page of (B, G, n, d) -> two (B, G, ceil(n/S), d)."""
        page = self.method.page
        short = (0, 0, 0, -keys.shape[2] % page)
        low, high = (pad(keys, short, value=end).unflatten(2, (-1, page)) for end in (torch.inf, -torch.inf))
        return low.amin(3), high.amax(3)

    def look(self, query: torch.Tensor) -> torch.Tensor:
        """Attend to the chosen pages."""
        page, count = self.method.page, query.shape[2]
        tokens = torch.arange(self.seen - count, self.seen, device=query.device)
        pages = self.choose(query, tokens // page)
        slots = (pages.unsqueeze(-1) * page + torch.arange(page, device=query.device)).flatten(-2)
        hidden = slots > tokens.unsqueeze(-1)  # later tokens of the own page, and pages there are not yet
        slots = slots.clamp(max=self.seen - 1)
        out = torch.empty_like(query)
        for at in retrieve.row_chunks(query, slots.shape[-1] * query.shape[-1]):
            keys, values = (retrieve.gather(each, slots[:, :, at]).float() for each in (self.keys, self.values))
            scores = torch.matmul(keys, query[:, :, at].float().unsqueeze(-1)).squeeze(-1) * self.scaling
            weights = scores.masked_fill(hidden[:, :, at], -torch.inf).softmax(-1)
            out[:, :, at] = torch.matmul(weights.unsqueeze(-2), values).squeeze(-2)
        return out

    def choose(self, query: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        """The K pages of every query head and token, ascending: (B, H, q, d), own pages (q,) -> (B, H, q, K)."""
        upper = self.bound(query)
        behind = torch.arange(upper.shape[-1], device=query.device) - own.unsqueeze(-1)
        upper = upper.masked_fill(behind > 0, -torch.inf).masked_fill(behind == 0, torch.inf)
        return scoring.top(upper, self.method.pages(self.prompt or self.seen))

    def bound(self, query: torch.Tensor) -> torch.Tensor:
        """u of every page, as if it were complete: (B, H, q, d) -> (B, H, q, pages)."""
        if self.low is None or self.high is None:
            raise KvcheckError("no page has been bounded yet: the prompt is not in")
        above = retrieve.scores(query.clamp(min=0), self.high.used, 1.0)
        return above + retrieve.scores(query.clamp(max=0), self.low.used, 1.0)


METHOD = Quest
