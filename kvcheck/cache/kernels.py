"""Attention over stored keys and values. GQA heads are never repeated on CPU; query head h reads kv head h // group.

Shapes: query (B, H, q, d); keys, values (B, G, c, d) of which the last q columns are the query's own tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch.nn.functional import scaled_dot_product_attention

from kvcheck.cache.shape import Shared

CHUNK = {"cpu": 1 << 19, "cuda": 1 << 28}
"""Elements of keys that are upcast or dequantized at a time. CPU: 2 MiB in float32, which stays in the L2 cache. CUDA:
1 GiB, so that a layer of 128k tokens is one chunk: a kernel per kv head would cost more than it saves."""


def chunk(device: torch.device) -> int:
    """CHUNK of a device."""
    return CHUNK.get(device.type, CHUNK["cuda"])


@dataclass(frozen=True, eq=False)
class Softmax(Shared):
    """How a layer of the model turns scores into weights, where that is not the plain softmax.

    cap: scores become cap · tanh(score / cap) before anything is masked (Gemma 2). sinks (H,): learned scores, one per
    query head, that take part in the denominator and have no value (gpt-oss); so the weights of tokens add up to less
    than 1.
    """

    cap: float | None = None
    sinks: torch.Tensor | None = None

    @classmethod
    def of(cls, given: Mapping[str, object]) -> Softmax:
        """By the arguments that transformers calls an attention function with."""
        cap, sinks = given.get("softcap"), given.get("s_aux")
        if cap is None and sinks is None:
            return PLAIN
        return cls(cap, sinks)  # type: ignore[arg-type]

    @property
    def plain(self) -> bool:
        """Whether there is neither a cap nor a sink."""
        return self.cap is None and self.sinks is None

    @property
    def what(self) -> str:
        """In words."""
        found = ["soft-capped scores"] * (self.cap is not None) + ["learned attention sinks"] * (self.sinks is not None)
        return " and ".join(found)

    def of_heads(self, heads: slice | torch.Tensor) -> Softmax:
        """The same for some of the query heads."""
        return self if self.sinks is None else replace(self, sinks=self.sinks[heads])

    def capped(self, scores: torch.Tensor) -> torch.Tensor:
        """Scores, not masked yet, with the cap."""
        return scores if self.cap is None else self.cap * torch.tanh(scores / self.cap)

    def weights(self, scores: torch.Tensor) -> torch.Tensor:
        """Capped and masked scores (B, H, q, c) -> weights of the tokens; each row sees one at least."""
        weights = scores.softmax(dim=-1)
        return weights if self.sinks is None else self.less_sinks(weights, scores.logsumexp(dim=-1, keepdim=True))

    def less_sinks(self, given: torch.Tensor, log_sum: torch.Tensor) -> torch.Tensor:
        """Weights of tokens, or what these mix, (B, H, q, …) by the share that the sinks leave to tokens.

        log_sum (B, H, q, 1): of the tokens' scores. Without sinks, what is given: a step has nothing more to do.
        """
        return given if self.sinks is None else given * (log_sum - self.sinks.to(log_sum).view(-1, 1, 1)).sigmoid()


PLAIN = Softmax()


def attend_block(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    scaling: float | None,
    softmax: Softmax = PLAIN,
) -> torch.Tensor:
    """Causal attention of the newest q tokens over all c columns -> (B, H, q, d).

    Row r sees the columns < c - q + r + 1. Without past (c == q) and with one row it is the very kernel call that
    transformers' "sdpa" makes, so the result is the same bit for bit; but for a softmax that this has not.
    """
    if not softmax.plain:
        return attend_by(softmax, query, keys, values, None, scaling)
    rows, columns = query.shape[2], keys.shape[2]
    if 1 < rows < columns:
        mask = torch.ones(rows, columns, dtype=torch.bool, device=query.device).tril(columns - rows)
        return attend_masked(query, keys, values, mask, scaling)
    causal, gqa = rows == columns and rows > 1, query.shape[1] != keys.shape[1]
    return scaled_dot_product_attention(query, keys, values, is_causal=causal, scale=scaling, enable_gqa=gqa)


def attend_masked(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor,
    scaling: float | None,
    softmax: Softmax = PLAIN,
) -> torch.Tensor:
    """Attention under a mask that broadcasts against (B, H, q, c), True where a row sees a column -> (B, H, q, d).

    CUDA has no fused kernel for masked GQA, and would hold all scores; so heads are repeated there, but for one row.
    """
    if not softmax.plain:
        return attend_by(softmax, query, keys, values, mask, scaling)
    group = query.shape[1] // keys.shape[1]
    if query.is_cuda and group > 1:
        if query.shape[2] == 1:
            return attend_one(query, keys, values, scaling, mask)
        keys, values = (each.repeat_interleave(group, dim=1) for each in (keys, values))
    gqa = query.shape[1] != keys.shape[1]
    return scaled_dot_product_attention(query, keys, values, mask, scale=scaling, enable_gqa=gqa)


def attend_one(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    scaling: float | None,
    mask: torch.Tensor | None = None,
    softmax: Softmax = PLAIN,
) -> torch.Tensor:
    """Attention of one new token: the query heads of a group become the rows of one small matmul per kv head.

    mask: what it sees, True, and broadcasts against (B, H, 1, c); None for everything.
    """
    if not softmax.plain:
        return attend_by(softmax, query, keys, values, mask, scaling)
    batch, heads, _, dim = query.shape
    rows = batch, keys.shape[1], heads // keys.shape[1]
    if mask is not None:
        mask = mask.expand(batch, heads, 1, keys.shape[2]).reshape(*rows, keys.shape[2])
    packed = query.reshape(*rows, dim)
    return scaled_dot_product_attention(packed, keys, values, mask, scale=scaling).reshape(batch, heads, 1, -1)


def attend_by(
    softmax: Softmax,
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float | None,
) -> torch.Tensor:
    """Attention by a softmax that torch has no kernel for, in float32 at least, some rows at a time -> (B, H, q, d).

    mask: broadcasts against (B, H, q, c), True where a row sees a column; None: causal, as in `attend_block`.
    """
    batch, heads, rows, dim = query.shape
    kv_heads, columns = keys.shape[1:3]
    wide = torch.promote_types(query.dtype, torch.float32)
    keys, values = keys.to(wide), values.to(wide)
    scaled = query.to(wide) * (dim**-0.5 if scaling is None else scaling)
    out = query.new_empty(batch, heads, rows, values.shape[3])
    size = max(1, chunk(query.device) // (batch * heads * columns))
    for start in range(0, rows, size):
        some = slice(start, min(start + size, rows))
        count = some.stop - some.start
        if mask is None:
            end = columns - rows + some.stop
            seen = visible(count, end, None, query.device)
        else:
            end, seen = columns, mask if mask.shape[-2] == 1 else mask[..., some, :]
        grouped = scaled[:, :, some].reshape(batch, kv_heads, -1, dim)
        scores = torch.matmul(grouped, keys[:, :, :end].transpose(2, 3)).view(batch, heads, count, end)
        weights = softmax.weights(softmax.capped(scores).masked_fill(~seen, -torch.inf))
        mixed = torch.matmul(weights.view(batch, kv_heads, -1, end), values[:, :, :end])
        out[:, :, some] = mixed.view(batch, heads, count, -1).to(out.dtype)
    return out


def probabilities(query: torch.Tensor, keys: torch.Tensor, scaling: float, past: int) -> torch.Tensor:
    """Softmax attention of q consecutive tokens in float32 -> (B, G, group, q, c), by which tokens are chosen.

    The plain softmax: without soft caps and sinks, whatever the model has, as methods' official codes compute it.
    `past` columns lie before the first row, c = past + q; row r sees the columns < past + r + 1.
    """
    batch, heads, rows, dim = query.shape
    kv_heads, columns = keys.shape[1:3]
    grouped = query.float().reshape(batch, kv_heads, heads // kv_heads * rows, dim) * scaling
    scores = torch.matmul(grouped, keys.float().transpose(2, 3)).view(batch, kv_heads, -1, rows, columns)
    if rows > 1:
        hidden = torch.ones(rows, columns - past, dtype=torch.bool, device=query.device).triu(1)
        scores[..., past:].masked_fill_(hidden, float("-inf"))
    return scores.softmax(dim=-1)


def visible(rows: int, columns: int, window: int | None, device: torch.device) -> torch.Tensor:
    """(q, c) bool: which of c consecutive columns each of the newest q tokens sees. No window: all earlier ones."""
    row = torch.arange(columns - rows, columns, device=device).unsqueeze(1)
    column = torch.arange(columns, device=device)
    seen = column <= row
    return seen if window is None else seen & (column > row - window)  # without a matrix of distances
