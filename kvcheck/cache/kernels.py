"""Attention over stored keys and values. GQA heads are never repeated on CPU; query head h reads kv head h // group.

Shapes: query (B, H, q, d); keys, values (B, G, c, d) of which the last q columns are the query's own tokens.
"""

from __future__ import annotations

import torch
from torch.nn.functional import scaled_dot_product_attention

CHUNK = {"cpu": 1 << 19, "cuda": 1 << 28}
"""Elements of keys that are upcast or dequantized at a time. CPU: 2 MiB in float32, which stays in the L2 cache. CUDA:
1 GiB, so that a layer of 128k tokens is one chunk: a kernel per kv head would cost more than it saves."""


def chunk(device: torch.device) -> int:
    """CHUNK of a device."""
    return CHUNK.get(device.type, CHUNK["cuda"])


def attend_block(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scaling: float | None) -> torch.Tensor:
    """Causal attention of the newest q tokens over all c columns -> (B, H, q, d).

    Row r sees the columns < c - q + r + 1. Without past (c == q) and with one row it is the very kernel call that
    transformers' "sdpa" makes, so the result is the same bit for bit.
    """
    rows, columns = query.shape[2], keys.shape[2]
    if 1 < rows < columns:
        mask = torch.ones(rows, columns, dtype=torch.bool, device=query.device).tril(columns - rows)
        return attend_masked(query, keys, values, mask, scaling)
    causal, gqa = rows == columns and rows > 1, query.shape[1] != keys.shape[1]
    return scaled_dot_product_attention(query, keys, values, is_causal=causal, scale=scaling, enable_gqa=gqa)


def attend_masked(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, scaling: float | None
) -> torch.Tensor:
    """Attention under a mask that broadcasts against (B, H, q, c), True where a row sees a column -> (B, H, q, d).

    CUDA has no fused kernel for masked GQA, and would hold all scores; so heads are repeated there, but for one row.
    """
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
) -> torch.Tensor:
    """Attention of one new token: the query heads of a group become the rows of one small matmul per kv head.

    mask: what it sees, True, and broadcasts against (B, H, 1, c); None for everything.
    """
    batch, heads, _, dim = query.shape
    rows = batch, keys.shape[1], heads // keys.shape[1]
    if mask is not None:
        mask = mask.expand(batch, heads, 1, keys.shape[2]).reshape(*rows, keys.shape[2])
    packed = query.reshape(*rows, dim)
    return scaled_dot_product_attention(packed, keys, values, mask, scale=scaling).reshape(batch, heads, 1, dim)


def probabilities(query: torch.Tensor, keys: torch.Tensor, scaling: float, past: int) -> torch.Tensor:
    """Softmax attention of q consecutive tokens in float32 -> (B, G, group, q, c).

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
