"""RetrievalAttention: keys in host memory, found by vector search. arXiv 2409.10516, microsoft/RetrievalAttention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from kvcheck.cache import checks, retrieve
from kvcheck.cache.full import KeepsAll
from kvcheck.cache.kv_cache import CacheLayer
from kvcheck.cache.method import MethodInfo, Stage
from kvcheck.cache.shape import ModelShape


@dataclass(frozen=True)
class RetrievalAttention(KeepsAll):
    """Keep sinks and a window on the device, the rest in host memory; attend to both, of the rest to the top k only.

    sink: S, tokens at the start (4; SCBench 128). window: W, newest tokens, a share of the prompt (rounded down, at
    least 1; fixed when the prompt is in) or a number (64; SCBench 512). top_k: tokens that every query head retrieves,
    a share of the prompt or a number (0.05; the paper scans 1 to 3 % of 128k tokens, SCBench retrieves 4096 of them).

    The prompt is dense. After it, a token at position t attends on the device to the sinks and to itself and the W - 1
    before it; on the host to the k highest inner products with post-RoPE keys among the positions S to t - W (all of
    them where there are fewer); the two are merged by their log-sum-exp. A new token enters the window and the oldest
    there moves to the index. A follow-up block answers as token by token: of the tokens that leave the window with the
    block, each row sees those as retrievable that are behind its own window.

    Index: exact (flat), one per layer and kv head, searched by each of its query heads; keys in float32, values as
    stored, (B, G, m, d) on the CPU, declared in `host`.
    Bytes on the device: 2·L·B·G·min(n, S + W)·d·2 after n tokens; in host memory (`host_bytes`), with m = n - S - W:
    L·B·G·m·d·(4 + 2). On a CPU machine both are in RAM. Errors: SpecError for values out of range.
    Differences from the paper: an exact index in place of an attention-aware graph. Differences from SCBench: the
    merge subtracts the maximum; blocks of several tokens are causal and search per row; top_k may exceed the index.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        summary="keeps sinks and a window on the device and retrieves the rest from host memory",
        stage=Stage.RETRIEVAL,
        paper="arXiv 2409.10516",
        formula="2·L·B·G·min(n, S + W)·d·2 on the device, 6·L·B·G·max(0, n - S - W)·d in host memory",
        knob="top_k",
        exceeds="the index in host memory holds keys in float32",
        variant="exact (flat) index in place of the paper's graph, as in SCBench; device bytes, host bytes apart",
    )

    sink: int = 4
    window: float | int = 64
    top_k: float | int = 0.05

    def __post_init__(self) -> None:
        """Raise SpecError for values out of range."""
        checks.whole(self.name(), "sink", self.sink, 0, 4)
        checks.budget(self.name(), "window", self.window)
        checks.budget(self.name(), "top_k", self.top_k)

    def width(self, prompt: int) -> int:
        """W for a prompt of this length."""
        return checks.tokens(self.window, prompt, least=1)

    def most(self, prompt: int) -> int:
        """k for a prompt of this length."""
        return checks.tokens(self.top_k, prompt, least=1)

    def layer(self, shape: ModelShape, index: int) -> CacheLayer:
        """A layer with an index."""
        return RetrievalLayer(shape, index, self)

    def kv_bytes(self, shape: ModelShape, batch: int, prompt: int, decoded: int) -> int:
        """On the device: min(n, S + W) tokens."""
        return shape.dense_bytes(batch, min(prompt + decoded, self.sink + self.width(prompt)))

    def host_bytes(self, shape: ModelShape, batch: int, prompt: int, decoded: int) -> int:
        """In host memory: the other tokens, keys in float32."""
        away = max(0, prompt + decoded - self.sink - self.width(prompt))
        return shape.layers * batch * shape.kv_heads * away * shape.head_dim * (4 + shape.itemsize)

    def reads(self, shape: ModelShape, prompt: int, decoded: int) -> tuple[int, ...]:
        """Sinks, window, and k of the others."""
        seen, near = prompt + decoded, self.sink + self.width(prompt)
        return (min(seen, near) + min(self.most(prompt), max(0, seen - near)),) * shape.layers


class RetrievalLayer(retrieve.OffloadLayer):
    """Sinks and window in k and v; the index in hk and hv."""

    method: RetrievalAttention

    @property
    def first(self) -> int:
        """S."""
        return self.method.sink

    @property
    def width(self) -> int:
        """W."""
        return self.method.width(self.prompt or self.seen)

    @property
    def over(self) -> int:
        """Tokens on the device that are no longer in the window."""
        return max(0, self.keys.shape[2] - self.first - self.width)

    def compress(self, queries: torch.Tensor) -> None:
        """Move what is outside of the window to the index."""
        self.copy_out(self.over, torch.float32)
        self.drop(self.over, spare=1)

    def write(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Store new tokens, and index those that leave the window for them."""
        super().write(keys, values)
        if self.prompt is not None:
            self.copy_out(self.over, torch.float32)

    def step(self, query: torch.Tensor) -> None:
        """What was indexed leaves the device."""
        if self.over:
            over = self.over
            for buffer in self._buffers():
                buffer.slide(self.first, over)

    def look(self, query: torch.Tensor) -> torch.Tensor:
        """Attend to both parts and merge them."""
        near = self.near(query)
        far = self.far(query.cpu())
        out, log_sum = near if far is None else retrieve.merge(near, (far[0].to(query.device), far[1].to(query.device)))
        return self.softmax.less_sinks(out, log_sum)

    def near(self, query: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Attention to the sinks and to each row's window -> (B, H, q, d), log-sums (B, H, q, 1)."""
        slots = torch.arange(self.keys.shape[2], device=query.device)
        positions = torch.where(slots < self.first, slots, slots + self.seen - len(slots))
        age = self.tokens(query).unsqueeze(1) - positions
        hidden = (age < 0) | ((age >= self.width) & (positions >= self.first))
        scores = self.softmax.capped(retrieve.scores(query, self.keys, self.scaling)).masked_fill(hidden, -torch.inf)
        weights, log_sum = retrieve.soften(scores)
        return retrieve.weigh(weights, self.values), log_sum

    def far(self, query: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Attention to each row's top k of the index -> the same; None while the index is empty."""
        if self.hk is None or self.hv is None:
            return None
        behind = self.tokens(query) - self.width - self.first + 1  # how many of the index are behind a row's window
        count = min(self.method.most(self.prompt or self.seen), self.away)
        outs, log_sums = [], []
        for at in retrieve.row_chunks(query, max(self.away, count * query.shape[3])):
            scores = self.softmax.capped(retrieve.scores(query[:, :, at], self.hk.used, self.scaling))
            ahead = torch.arange(self.away) >= behind[at].unsqueeze(1)
            found, slots = scores.masked_fill(ahead, -torch.inf).topk(count, dim=-1)
            weights, log_sum = retrieve.soften(found)
            values = retrieve.gather(self.hv.used, slots).float()
            outs.append(torch.matmul(weights.unsqueeze(-2), values).squeeze(-2))
            log_sums.append(log_sum)
        return torch.cat(outs, dim=2), torch.cat(log_sums, dim=2)

    def tokens(self, query: torch.Tensor) -> torch.Tensor:
        """Positions of the newest tokens, whose query this is, (q,)."""
        return torch.arange(self.seen - query.shape[2], self.seen, device=query.device)


METHOD = RetrievalAttention
