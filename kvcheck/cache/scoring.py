"""Scores of stored tokens, in float32, per kv head. GQA is block-wise: query head h belongs to kv head h // group."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.nn.functional import avg_pool1d, max_pool1d

from kvcheck.cache.kernels import probabilities

WEIGHTS = {"cpu": 1 << 20, "cuda": 1 << 27}  # weights held at a time: what stays in the L2 cache; what fills a GPU


def budget(device: torch.device) -> int:
    """WEIGHTS of a device."""
    return WEIGHTS.get(device.type, WEIGHTS["cuda"])


def window_scores(queries: torch.Tensor, keys: torch.Tensor, scaling: float) -> torch.Tensor:
    """Attention that the last w queries pay to each of n keys: summed over queries, mean over the group.

    queries (B, H, w, d), keys (B, G, n, d) -> (B, G, n). The softmax runs over all n keys, causal in the last w x w
    block, so the scores of a kv head add up to w.
    """
    return probabilities(queries, keys, scaling, keys.shape[2] - queries.shape[2]).sum(dim=3).mean(dim=2)


def column_sums(
    queries: torch.Tensor, keys: torch.Tensor, scaling: float, past: int = 0, rows: int | None = None
) -> torch.Tensor:
    """Attention that each of past + q keys receives from q consecutive causal queries, summed over rows and the group.

    queries (B, H, q, d), keys (B, G, past + q, d) -> (B, G, past + q). Holds the weights of `rows` query rows at once;
    on CPU those of one sequence.
    """
    if keys.device.type == "cpu" and len(keys) > 1:
        each = zip(queries.split(1), keys.split(1), strict=True)
        return torch.cat([column_sums(query, key, scaling, past, rows) for query, key in each])
    keys = keys.float()
    sums = keys.new_zeros(keys.shape[:3])
    for weights in in_blocks(queries, keys, scaling, past, rows):
        sums[:, :, : weights.shape[-1]] += weights.sum(dim=(2, 3))
    return sums


def in_blocks(
    queries: torch.Tensor, keys: torch.Tensor, scaling: float, past: int, rows: int | None = None
) -> Iterator[torch.Tensor]:
    """The weights (B, G, group, some rows, what the last of them sees) of q causal queries, `rows` of them at once.

    queries (B, H, q, d), keys (B, G, past + q, d). rows: None for as many as WEIGHTS allows.
    """
    if rows is None:
        rows = max(1, budget(keys.device) // (queries.shape[0] * queries.shape[1] * keys.shape[2]))
    for start in range(0, queries.shape[2], rows):
        block = queries[:, :, start : start + rows]
        yield probabilities(block, keys[:, :, : past + start + block.shape[2]], scaling, past + start)


def pool(scores: torch.Tensor, kernel: int, how: str) -> torch.Tensor:
    """Smooth scores (B, G, n) along n with stride 1 and padding kernel // 2; "avg" counts the zeros of the padding."""
    smooth = avg_pool1d if how == "avg" else max_pool1d
    return smooth(scores, kernel, stride=1, padding=kernel // 2)


def top(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Indices (B, G, count) of the highest scores, ascending; among equal scores the lowest index wins."""
    if count == scores.shape[-1] - 1:  # a step of decoding: the last of the lowest leaves, and nothing is sorted
        least = count - scores.flip(-1).argmin(dim=-1, keepdim=True)
        others = torch.arange(count, device=scores.device)
        return others + (others >= least)
    order = torch.sort(scores, dim=-1, descending=True, stable=True).indices
    return order[..., :count].sort(dim=-1).values
