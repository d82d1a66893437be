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
GATHERED = 8  # keys and values that are gathered at a time are as many numbers as weights held at a time, over 4
MASKED_ROWS = 256  # rows of a mask, at least; with fewer heads together rather than fewer rows the kernel is faster


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

    Computed: the heads of one pattern together. a_shape and block_sparse gather the keys that a block of rows sees and
    read no others; vertical_slash is dense attention under a mask, since diagonals of a few rows cross most columns. A
    search computes all attention once more, so a prompt costs more than a dense one.

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
        """Attention in the patterns of the heads. On a CPU one sequence at a time, so that its L2 cache holds more."""
        size = 1 if query.device.type == "cpu" else len(query)
        each = zip(query.split(size), keys.split(size), strict=True)
        views = [View(*some, self.scaling, self.method) for some in each]
        if self.found is None:
            self.found = torch.cat([view.patterns() for view in views])
        parts = zip(views, values.split(size), self.found.split(size), strict=True)
        return torch.cat([view.attend(some, found, self.softmax) for view, some, found in parts])


class View:
    """What one forward of the prompt, q of c tokens, may see in each pattern.

    query (B, H, q, d), keys (B, G, c, d). Estimates are made when a pattern first asks for them.
    """

    def __init__(self, query: torch.Tensor, keys: torch.Tensor, scaling: float, method: MInference) -> None:
        self.query, self.keys, self.scaling, self.pattern = query, keys, scaling, method.pattern
        self.tokens = keys.shape[2]
        self.past = self.tokens - query.shape[2]
        self.vertical, self.slash = method.sizes(self.tokens)
        self.block = min(method.block, self.vertical + self.slash)
        self.last_q = min(method.last_q, query.shape[2])

    # -- the search ----------------------------------------------------------------------------------------------------

    def patterns(self) -> torch.Tensor:
        """The pattern of every row of the batch and query head, (B, H) int8: given, or searched."""
        heads, device = self.query.shape[:2], self.query.device
        if self.pattern != "search":
            return torch.full(heads, PATTERNS.index(self.pattern), dtype=torch.int8, device=device)
        kept = torch.zeros(len(PATTERNS), *heads, device=device)
        masks = self.a_shape_mask, self.line_mask, self.block_mask
        for start, stop in sparsity.row_blocks(self.query, self.tokens):
            weights = self.attention(start, stop)
            for code, mask in enumerate(masks):
                kept[code] += (weights * mask(self.past + start, self.past + stop)).sum(dim=(2, 3))
        return kept.argmax(dim=0).to(torch.int8)  # the first of equals

    def attention(self, start: int, stop: int) -> torch.Tensor:
        """True weights (B, H, r, past + stop) of the query's rows from start to stop, float32."""
        first = self.past + start
        keys = self.keys[:, :, : self.past + stop]
        return kernels.probabilities(self.query[:, :, start:stop], keys, self.scaling, first).flatten(1, 2)

    def a_shape_mask(self, first: int, last: int) -> torch.Tensor:
        """1.0 where the positions first..last see each of `last` columns, else 0.0; (last - first, last)."""
        columns = torch.arange(last, device=self.query.device)
        return sparsity.a_shape_mask(columns[first:], columns, self.vertical, self.slash).float()

    def line_mask(self, first: int, last: int) -> torch.Tensor:
        """The same of vertical_slash, (B, H, last - first, last), but that columns ahead may have a 1.0."""
        return _line_mask(*self.lines, first, last)

    def block_mask(self, first: int, last: int) -> torch.Tensor:
        """The same of block_sparse."""
        own = torch.arange(first, last, device=self.query.device) // self.block - self.past // self.block
        seen = self.seen_blocks[:, :, own, : -(-last // self.block), None]
        return seen.expand(-1, -1, -1, -1, self.block).flatten(3)[..., :last]

    @cached_property
    def lines(self) -> tuple[torch.Tensor, torch.Tensor]:
        """1.0 for the chosen columns and diagonals, both (B, H, c); diagonal o joins position i to i - o."""
        weights = self.attention(self.query.shape[2] - self.last_q, self.query.shape[2])
        diagonals = torch.zeros_like(weights[:, :, 0])
        for row in range(self.last_q):
            seen = self.tokens - self.last_q + row + 1
            diagonals[..., :seen] += weights[:, :, row, :seen].flip(-1)
        vertical = _chosen(weights.sum(dim=2), self.vertical, COLUMNS)
        return vertical, _chosen(diagonals, self.slash, DIAGONALS)

    @cached_property
    def blocks(self) -> torch.Tensor:
        """Blocks of keys that every block of rows sees, ascending, (B, H, blocks of rows, count).

        The last is its own, but for the prompt's first `count` - 1: these see all before them, and have some ahead.
        """
        rows, columns = _pooled(self.query, self.block, self.past), _pooled(self.keys, self.block, 0)
        grouped = rows.unflatten(1, (columns.shape[1], -1))
        scores = torch.matmul(grouped, columns.unsqueeze(2).transpose(3, 4)).flatten(1, 2)
        ahead = torch.arange(scores.shape[3], device=scores.device) - self.past // self.block
        ahead = ahead - torch.arange(scores.shape[2], device=scores.device)[:, None]
        scores = scores.masked_fill(ahead > 0, float("-inf")).masked_fill(ahead == 0, float("inf"))
        return scoring.top(scores, min(round((self.vertical + self.slash) / self.block), scores.shape[3]))

    @cached_property
    def seen_blocks(self) -> torch.Tensor:
        """The same as 1.0, and 0.0 for the others, (B, H, blocks of rows, blocks of keys)."""
        flags = torch.zeros(*self.blocks.shape[:3], -(-self.tokens // self.block), device=self.query.device)
        return flags.scatter_(3, self.blocks, 1.0)

    # -- attention -----------------------------------------------------------------------------------------------------

    def attend(self, values: torch.Tensor, found: torch.Tensor, softmax: kernels.Softmax) -> torch.Tensor:
        """Attention to values (B, G, c, e) of all heads, those of one pattern together -> (B, H, q, e)."""
        out = self.query.new_empty(*self.query.shape[:3], values.shape[3])
        for code in found.unique().tolist():
            rows, heads = (found == code).nonzero(as_tuple=True)
            of = heads // (self.query.shape[1] // self.keys.shape[1])
            part = Heads(self.query[rows, heads], self.keys[rows, of], values[rows, of], self, softmax.of_heads(heads))
            if PATTERNS[code] == "a_shape":
                out[rows, heads] = part.by_distance()
            elif PATTERNS[code] == "vertical_slash":
                out[rows, heads] = part.by_lines(*(each[rows, heads] for each in self.lines))
            else:
                out[rows, heads] = part.by_blocks(self.blocks[rows, heads])
        return out


class Heads:
    """Query heads of one pattern, each with the keys and values that it reads: query (N, q, d), keys (N, c, d)."""

    def __init__(
        self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, view: View, softmax: kernels.Softmax
    ) -> None:
        self.query, self.keys, self.values = query[None], keys[None], values[None]
        self.view, self.softmax = view, softmax

    def by_distance(self) -> torch.Tensor:
        """The a_shape: only its keys are read."""
        view, given = self.view, (self.query, self.keys, self.values)
        return sparsity.a_shape(*given, view.scaling, view.vertical, view.slash, self.softmax)[0]

    def by_lines(self, vertical: torch.Tensor, slash: torch.Tensor) -> torch.Tensor:
        """Chosen columns and diagonals (N, c), 1.0: masked, since the diagonals of a few rows cross most columns."""
        out = self.query.new_empty(*self.query.shape[:3], self.values.shape[3])
        columns, diagonals = (each.log().to(self.query.dtype)[None] for each in (vertical, slash))  # added to scores
        size = max(1, scoring.budget(out.device) // (self.view.tokens * MASKED_ROWS))
        for heads in torch.arange(len(vertical)).split(size):
            some = slice(int(heads[0]), int(heads[-1]) + 1)
            for start, stop in sparsity.row_blocks(self.query[:, some], self.view.tokens):
                first, last = self.view.past + start, self.view.past + stop
                mask = _line_mask(columns[:, some], diagonals[:, some], first, last)
                ahead = ~kernels.visible(last - first, last - first, None, mask.device)
                mask[..., first:].masked_fill_(ahead, -torch.inf)
                part = self.query[:, some, start:stop], self.keys[:, some, :last], self.values[:, some, :last]
                seen = mask if self.softmax.plain else mask == 0
                softmax = self.softmax.of_heads(some)
                out[:, some, start:stop] = kernels.attend_masked(*part, seen, self.view.scaling, softmax)
        return out[0]

    def by_blocks(self, blocks: torch.Tensor) -> torch.Tensor:
        """Chosen blocks (N, blocks of rows, count), whose keys are gathered; where rows see all before them, dense."""
        view, count = self.view, blocks.shape[2]
        dense = min(max(count * view.block - view.past, 0), self.query.shape[2])
        end, scaling = view.past + dense, view.scaling
        outs = []
        if dense:
            part = self.query[:, :, :dense], self.keys[:, :, :end], self.values[:, :, :end]
            outs.append(kernels.attend_block(*part, scaling, self.softmax)[0])
        if dense < self.query.shape[2]:
            skipped = end // view.block - view.past // view.block
            outs.append(self.gathered(dense, blocks[:, skipped:]))
        return torch.cat(outs, dim=1)

    def gathered(self, start: int, blocks: torch.Tensor) -> torch.Tensor:
        """Rows from `start`, whose blocks end with their own -> (N, rows, e)."""
        block, front = self.view.block, (self.view.past + start) % self.view.block
        rows = _in_blocks(self.query[0, :, start:], block, front).flatten(0, 1)
        keys, values = (_in_blocks(each[0], block, 0) for each in (self.keys, self.values))
        heads, count = torch.arange(len(blocks), device=blocks.device)[:, None, None], blocks.shape[2]
        flat, heads = (blocks + heads * keys.shape[1]).flatten(0, 1), heads.expand(blocks.shape)[..., 0].flatten()
        mask = kernels.visible(block, count * block, None, blocks.device)
        size = max(1, scoring.budget(blocks.device) // (GATHERED * count * block * keys.shape[3]))
        outs = []
        for some, chosen, of in zip(rows.split(size), flat.split(size), heads.split(size), strict=True):
            part = some[None], _picked(keys, chosen), _picked(values, chosen)
            outs.append(kernels.attend_masked(*part, mask, self.view.scaling, self.softmax.of_heads(of))[0])
        found = torch.cat(outs).unflatten(0, blocks.shape[:2]).flatten(1, 2)
        return found[:, front : front + self.query.shape[2] - start]


def _picked(tokens: torch.Tensor, blocks: torch.Tensor) -> torch.Tensor:
    """Blocks (n, count), numbered over all heads, of tokens (N, blocks, block, d) -> (1, n, count·block, d)."""
    picked = tokens.flatten(2).flatten(0, 1).index_select(0, blocks.flatten())  # whole blocks are copied, not numbers
    return picked.view(1, len(blocks), -1, tokens.shape[3])


def _line_mask(vertical: torch.Tensor, slash: torch.Tensor, first: int, last: int) -> torch.Tensor:
    """For rows first..last and `last` columns the higher of the flags of column and diagonal (B, H, c), ahead or not.

    Row i sees column j by the flag of diagonal i - j. So every row has the flags of the row below it, one place
    further, and all are views of one row of flags.
    """
    flags = pad(slash[:, :, :last].flip(2), (0, last - first - 1))  # i - j from last - 1 down to 0, then ahead
    rows = flags.unfold(2, last, 1).clone(memory_format=torch.contiguous_format).flip(2)
    return torch.maximum(rows, vertical[:, :, None, :last])


def _chosen(scores: torch.Tensor, count: int, forced: int) -> torch.Tensor:
    """The `count` highest of scores (B, H, c) -> 1.0, others 0.0; the first `forced` are among them, at most half."""
    scores[..., : min(forced, max(1, count // 2))] = float("inf")
    return torch.zeros_like(scores).scatter_(2, scoring.top(scores, count), 1.0)


def _pooled(tokens: torch.Tensor, block: int, first: int) -> torch.Tensor:
    """Float32 means (B, heads, blocks, d) of the blocks that tokens (B, heads, n, d) from position `first` fall in.

    An incomplete block counts zeros for what is missing. That changes no choice: it scales all scores of a block of
    rows alike, and an incomplete block of keys is seen by its own rows only, who always see it.
    """
    return _in_blocks(tokens.float(), block, first % block).mean(dim=-2)


def _in_blocks(tokens: torch.Tensor, block: int, front: int) -> torch.Tensor:
    """Tokens (…, n, d), of which `front` are missing in front -> (…, blocks, block, d), zeros for what is missing."""
    return pad(tokens, (0, 0, front, -(front + tokens.shape[-2]) % block)).unflatten(-2, (-1, block))


METHOD = MInference
