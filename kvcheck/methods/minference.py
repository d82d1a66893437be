"""MInference: each head of the prompt attends in its own sparse pattern. arXiv 2407.02490, microsoft/MInference."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch.nn.functional import pad

from kvcheck.cache import checks, kernels, scoring, sparsity
from kvcheck.cache.full import KeepsAll
from kvcheck.cache.kv_cache import CacheLayer
from kvcheck.cache.method import MethodInfo, Stage
from kvcheck.cache.shape import ModelShape

PATTERNS = ("a_shape", "vertical_slash", "block_sparse")
COLUMNS, DIAGONALS = 30, 100  # first columns and nearest diagonals that vertical_slash always keeps, as officially


@dataclass(frozen=True)
class MInference(KeepsAll):
    """While prefilling, every query head sees about v + s keys per row, in one of three patterns.

    vertical, slash: v and s, a share of the prompt (0.05 and 0.2, rounded down, at least 1) or a number of tokens (the
    official fallback, 1000 and 6096, is dense on prompts of up to 6,096); never more than the prompt.

    a_shape: the row at position i sees j <= i if i - j < s or j < v.
    vertical_slash: it sees j <= i if column j or diagonal i - j was chosen: the v columns and s diagonals with most
    attention of the last Q = min(last_q, p) queries (float32 softmax over all keys, summed along columns and diagonals,
    per query head). The first columns and the nearest diagonals are always among them: 30 and 100, but at most half of
    v and of s, and at least one, so that every token sees itself. Ties go to the older column and the nearer diagonal.
    block_sparse: rows and keys in blocks of min(block, v + s) tokens, mean-pooled (32, as in the official search; 64 in
    the official kernel); a block of rows sees, causally, its own block and those with the highest product of means,
    (v + s) / block together, rounded.

    pattern: one of them for all heads, or "search": per layer, row of the batch and query head, the one that keeps the
    largest share of the prompt's true attention, mean over all rows; a_shape, then vertical_slash win ties. It is
    searched in the first forward of the prompt and kept by the layer (`found`, (B, H) int8, an index into PATTERNS); a
    fresh cache searches again, on its own prompt.

    All keys and values are kept, post-RoPE at their true positions; decoding and follow-up blocks are dense over them.
    In chunks, every chunk makes its own estimate with its own last queries, a share is one of the tokens fed so far,
    and a search sees the first chunk only; so chunks need not give what one pass gives. Blocks start at multiples of
    their size in the prompt, wherever a chunk starts.

    Computed: dense attention under the pattern's mask, by blocks of rows that bound the memory, after a search that
    computes all attention once more. It shows what the pattern does to the answers; no speed-up is claimed.

    Bytes: 2·L·B·G·n·d·2 after n tokens, those of the full cache; B·H per layer for `found` are bookkeeping.
    Errors: SpecError for values out of range.
    Differences from the official code: the search is online and by prompt (official: offline on one long sample,
    several sizes per pattern, rows from 2,500 on), its candidates cost the same by construction, and its result is used
    as it is (official: heads found to be a_shape or block_sparse run as vertical_slash); exact diagonals (official:
    rounded up to 64-token blocks, a superset); sizes are taken as given (official: v >= 30, s >= 50); a block of rows
    always sees its own block (official: only if it is among the highest).
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        summary="lets each head of the prompt attend in the sparse pattern that suits it",
        stage=Stage.GENERATION,
        paper="arXiv 2407.02490",
        formula="2·L·B·G·n·d·2",
        frees_memory=False,
        shares_prefill=False,
        variant="patterns searched on the prompt itself, masks at token level; decoding is dense over the full cache",
        exempt={
            "a_later_token_of_the_prompt_never_changes_earlier_logits": (
                "its lines are those that the last queries of the prompt look at"
            ),
        },
        latents="keeps them whole; the prompt attends to the keys that are made of them",
    )

    pattern: str = "search"
    vertical: float | int = 0.05
    slash: float | int = 0.2
    block: int = 32
    last_q: int = 64

    def __post_init__(self) -> None:
        """Raise SpecError for values out of range."""
        name = self.name()
        checks.one_of(name, "pattern", self.pattern, ("search", *PATTERNS))
        checks.budget(name, "vertical", self.vertical)
        checks.budget(name, "slash", self.slash)
        checks.whole(name, "block", self.block, 1, 32)
        checks.whole(name, "last_q", self.last_q, 1, 64)

    def sizes(self, prompt: int) -> tuple[int, int]:
        """(v, s) for a prompt of this length."""
        vertical, slash = (checks.tokens(size, prompt, least=1) for size in (self.vertical, self.slash))
        return min(vertical, prompt), min(slash, prompt)

    def layer(self, shape: ModelShape, index: int) -> CacheLayer:
        """A full cache layer whose prompt attends in patterns."""
        return MInferenceLayer(shape, index, self)


class MInferenceLayer(sparsity.SparsePrefillLayer):
    """Attends in patterns while prefilling. `found` (B, H) int8: the pattern of each head, None before the prompt."""

    meta = ("kept", "found")
    method: MInference

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self.found: torch.Tensor | None = None

    def sparse(self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """Attention under the masks of the heads' patterns, some rows at a time."""
        view = View(query, keys, self.scaling, self.method)
        if self.found is None:
            self.found = self.patterns(view)
        heads = {PATTERNS[code]: (self.found == code)[:, :, None, None] for code in self.found.unique().tolist()}
        out = query.new_empty(*query.shape[:3], values.shape[3])
        for start, stop in sparsity.row_blocks(query, view.tokens):
            first, last = view.past + start, view.past + stop
            masks = [view.mask(pattern, first, last) & its for pattern, its in heads.items()]
            mask = torch.stack(masks).any(dim=0)
            seen = keys[:, :, :last], values[:, :, :last]
            part = query[:, :, start:stop], *seen
            out[:, :, start:stop] = kernels.attend_masked(*part, mask, self.scaling, self.softmax)
        return out

    def patterns(self, view: View) -> torch.Tensor:
        """The pattern of every row of the batch and query head, (B, H) int8: given, or searched."""
        batch, heads = view.query.shape[:2]
        if self.method.pattern != "search":
            code = PATTERNS.index(self.method.pattern)
            return torch.full((batch, heads), code, dtype=torch.int8, device=view.query.device)
        kept = torch.zeros(len(PATTERNS), batch, heads, device=view.query.device)
        for start, stop in sparsity.row_blocks(view.query, view.tokens):
            first, last = view.past + start, view.past + stop
            weights = view.attention(start, stop)
            for code, pattern in enumerate(PATTERNS):
                kept[code] += (weights * view.mask(pattern, first, last)).sum(dim=(2, 3))
        return kept.argmax(dim=0).to(torch.int8)  # the first of equals


class View:
    """What one forward of the prompt, q of c tokens, may see in each pattern.

    query (B, H, q, d), keys (B, G, c, d). Estimates are made when a pattern first asks for them.
    """

    def __init__(self, query: torch.Tensor, keys: torch.Tensor, scaling: float, method: MInference) -> None:
        self.query, self.keys, self.scaling = query, keys, scaling
        self.tokens = keys.shape[2]
        self.past = self.tokens - query.shape[2]
        self.vertical, self.slash = method.sizes(self.tokens)
        self.block = min(method.block, self.vertical + self.slash)
        self.last_q = min(method.last_q, query.shape[2])

    def attention(self, start: int, stop: int) -> torch.Tensor:
        """True weights (B, H, r, past + stop) of the query's rows from start to stop, float32."""
        first = self.past + start
        keys = self.keys[:, :, : self.past + stop]
        return kernels.probabilities(self.query[:, :, start:stop], keys, self.scaling, first).flatten(1, 2)

    def mask(self, pattern: str, first: int, last: int) -> torch.Tensor:
        """Whether the positions first..last see each of `last` columns, (1 or B, 1 or H, last - first, last)."""
        columns = torch.arange(last, device=self.query.device)
        rows = columns[first:]
        if pattern == "a_shape":
            return sparsity.a_shape_mask(rows, columns, self.vertical, self.slash)[None, None]
        distance = rows[:, None] - columns
        if pattern == "vertical_slash":
            vertical, slash = self.lines
            seen = vertical[:, :, None, :last] | slash[:, :, distance.clamp(min=0)]
        else:
            own = rows // self.block - self.past // self.block
            seen = self.blocks[:, :, own][..., columns // self.block]
        return seen & (distance >= 0)

    @cached_property
    def lines(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Chosen columns and chosen diagonals, both (B, H, c) bool; diagonal o joins position i to i - o."""
        weights = self.attention(self.query.shape[2] - self.last_q, self.query.shape[2])
        diagonals = torch.zeros_like(weights[:, :, 0])
        for row in range(self.last_q):
            seen = self.tokens - self.last_q + row + 1
            diagonals[..., :seen] += weights[:, :, row, :seen].flip(-1)
        vertical = _chosen(weights.sum(dim=2), self.vertical, COLUMNS)
        return vertical, _chosen(diagonals, self.slash, DIAGONALS)

    @cached_property
    def blocks(self) -> torch.Tensor:
        """Blocks of keys that every block of rows sees, (B, H, blocks of rows, blocks of keys) bool; not yet causal."""
        rows, columns = _pooled(self.query, self.block, self.past), _pooled(self.keys, self.block, 0)
        grouped = rows.unflatten(1, (columns.shape[1], -1))
        scores = torch.matmul(grouped, columns.unsqueeze(2).transpose(3, 4)).flatten(1, 2)
        ahead = torch.arange(scores.shape[3], device=scores.device) - self.past // self.block
        ahead = ahead - torch.arange(scores.shape[2], device=scores.device)[:, None]
        scores = scores.masked_fill(ahead > 0, float("-inf")).masked_fill(ahead == 0, float("inf"))
        count = min(round((self.vertical + self.slash) / self.block), scores.shape[3])
        return torch.zeros_like(scores, dtype=torch.bool).scatter_(3, scoring.top(scores, count), True)


def _chosen(scores: torch.Tensor, count: int, forced: int) -> torch.Tensor:
    """The `count` highest of scores (B, H, c) -> bool; the first `forced` are among them, at most half of the count."""
    scores[..., : min(forced, max(1, count // 2))] = float("inf")
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(2, scoring.top(scores, count), True)


def _pooled(tokens: torch.Tensor, block: int, first: int) -> torch.Tensor:
    """Float32 means (B, heads, blocks, d) of the blocks that tokens (B, heads, n, d) from position `first` fall in.

    An incomplete block counts zeros for what is missing. That changes no choice: it scales all scores of a block of
    rows alike, and an incomplete block of keys is seen by its own rows only, who always see it.
    """
    front = first % block
    ends = (0, 0, front, -(front + tokens.shape[2]) % block)
    return pad(tokens.float(), ends).unflatten(2, (-1, block)).mean(dim=3)


METHOD = MInference
