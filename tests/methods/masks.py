"""What the rows of a sparse prompt see: masks written from the definitions, and what a method really attended to."""

from __future__ import annotations

from collections.abc import Callable

import torch
from toys import feed, prompt, weights

from kvcheck.cache.shape import ModelShape, Prefilled
from kvcheck.methods import make

ONE = ModelShape(layers=1, heads=4, kv_heads=2, head_dim=8)
WIDE = ModelShape(layers=1, heads=4, kv_heads=2, head_dim=64)


def masked(part: Prefilled, seen: torch.Tensor) -> torch.Tensor:
    """Attention of all rows of a prompt under a mask (n, n) or (B, H, n, n) -> (B, n, H, d), float64."""
    heads, group = part.queries.shape[1], part.queries.shape[1] // part.keys.shape[1]
    of = [head // group for head in range(heads)]
    keys, values = part.keys[:, of].double(), part.values[:, of].double()
    scores = part.queries.double() @ keys.transpose(2, 3) / keys.shape[3] ** 0.5
    return (scores.masked_fill(~seen, float("-inf")).softmax(-1) @ values).transpose(1, 2)


def grid(n: int, sees: Callable[[int, int], bool]) -> torch.Tensor:
    """The causal mask (n, n) of a rule."""
    return torch.tensor([[j <= i and sees(i, j) for j in range(n)] for i in range(n)])


def a_mask(n: int, n_init: int, n_local: int) -> torch.Tensor:
    return grid(n, lambda i, j: i - j < n_local or j < n_init)


def best(scores: list[float], count: int) -> list[int]:
    return sorted(range(len(scores)), key=lambda at: (-scores[at], at))[:count]


def line_mask(part: Prefilled, v: int, s: int, last_q: int, past: int = 0) -> torch.Tensor:
    """Vertical-slash of the rows from `past`, (B, H, n, n); rows before that are empty."""
    n, total = part.keys.shape[2], weights(part.queries, part.keys, 0)
    v, s, q = min(v, n), min(s, n), min(last_q, n - past)
    out = torch.zeros(*total.shape, dtype=torch.bool)
    for row in range(total.shape[0]):
        for head in range(total.shape[1]):
            votes = total[row, head, n - q :]
            columns = [float(votes[:, j].sum()) for j in range(n)]
            slashes = [sum(float(votes[r, n - q + r - o]) for r in range(q) if n - q + r >= o) for o in range(n)]
            for scores, forced in ((columns, min(30, max(1, v // 2))), (slashes, min(100, max(1, s // 2)))):
                scores[:forced] = [9e9] * forced
            vertical, slash = set(best(columns, v)), set(best(slashes, s))
            out[row, head] = grid(n, lambda i, j, v=vertical, s=slash: i >= past and (j in v or i - j in s))
    return out


def block_mask(part: Prefilled, count: int, block: int) -> torch.Tensor:
    """Block-sparse with `count` blocks per block of rows, (B, H, n, n)."""
    n, (rows, heads) = part.keys.shape[2], part.queries.shape[:2]
    out = torch.zeros(rows, heads, n, n, dtype=torch.bool)
    spans = [slice(start, min(start + block, n)) for start in range(0, n, block)]
    for row in range(rows):
        for head in range(heads):
            queries, keys = part.queries[row, head].double(), part.keys[row, head // (heads // 2)].double()
            for at, span in enumerate(spans):
                scores = [float(queries[span].mean(0) @ keys[other].mean(0)) for other in spans[: at + 1]]
                scores[at] = 9e9
                for chosen in best(scores, count):
                    out[row, head, span, spans[chosen]] = True
    return out & torch.ones(n, n, dtype=torch.bool).tril()


def close(out: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(out.double(), wanted, atol=1e-5, rtol=1e-5)


def run(text: str, part: Prefilled, shape: ModelShape = ONE) -> torch.Tensor:
    return feed(make(text).build(shape), [part])[0]


def tagged(n: int, seed: int = 0) -> Prefilled:
    """A prompt whose values are one-hot: what a row puts out is its attention weights."""
    part = prompt(n, WIDE, seed=seed)[0]
    return Prefilled(part.keys, torch.eye(64)[:n].half().expand(2, 2, n, 64).contiguous(), part.queries)


def seen_by(text: str, part: Prefilled) -> torch.Tensor:
    """The mask that a method's rows really attended under, (B, H, n, n)."""
    return run(text, part, WIDE).transpose(1, 2)[..., : part.keys.shape[2]] > 0
