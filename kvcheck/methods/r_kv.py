"""R-KV: evict what is redundant and not looked at, while decoding. arXiv 2505.24133, Zefan-Cai/R-KV."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn.functional import normalize

from kvcheck.cache import checks, scoring
from kvcheck.cache.kv_cache import CacheLayer
from kvcheck.cache.method import Lossless, Method, MethodInfo, Stage
from kvcheck.cache.shape import ModelShape
from kvcheck.core.errors import KvcheckError, SpecError
from kvcheck.core.front import option

ALIKE = 0.5
"""Cosine from which on a key is a repetition of another (official)."""
ROWS = 256
"""Keys that are compared with all others at a time."""


@dataclass(frozen=True)
class RKV(Method):
    """Keep C slots per layer and kv head, chosen again whenever `buffer` tokens have come, by attention and redundancy.

    budget: C, window included: a share of the prompt (0.5; C = floor(0.5 p), at least window + 1; fixed when the prompt
    is in) or a number of tokens. buffer: b, tokens that are let in between two choices, likewise (0.125, at least
    window; official 128 tokens). window: w, the newest tokens, which stay, and the queries that vote (8). kernel: of
    the max pooling of the votes (7). weight: λ (0.07, as in the code; the paper 0.1).

    Chosen when the prompt is in, where it has more than C tokens, and whenever C + b slots are held. Of n slots the
    newest w stay, and of the others the C - w with the highest λ·A - (1 - λ)·R. A: scores of the last w queries, the
    highest of the query heads of a kv head, softmax over the n - w slots, mean over the w queries, max pooled. R: the
    mean over the n slots i of cos(k_i, k_j), where i = j counts 0, and so does of every i the newest j whose cosine is
    above 0.5, the copy to be kept (the first slot where there is none, as in the code); softmax over the n slots. Keys
    are compared as they are stored, post-RoPE. Tokens that a block brings beyond the last border are let in.

    Bytes, with m = min(p, C) + decoded: 2·L·B·G·s·d·2, s = m while m < C + b, else C + (m - C) mod b; and those of the
    last w queries, which are kept beside: L·B·H·min(n, w)·d·2. Errors: SpecError for values out of range.
    Differences from the official code: the choice follows the slots that are held (its serving code the number of
    decoded tokens; its Hugging Face code every so many steps, or a line break); kept tokens are in order; ties go to
    the older token; in float32.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        summary="keeps what recent queries look at and what is no repetition, chosen again while decoding",
        stage=Stage.COMPRESSION,
        paper="arXiv 2505.24133",
        formula="2·L·B·G·s·d·2 + L·B·H·min(n, w)·d·2, s = m while m < C + b, else C + (m - C) mod b, with "
        "m = min(p, C) + decoded",
        knob="budget",
        evicts_in_decode=True,
        needs=("queries",),
        variant="R1KV of the official code (of keys alike the newest is spared); the prompt is chosen from, too",
        lossless=Lossless.at("budget=100000"),
        exempt={"a_block_is_its_tokens_one_by_one": "a block is attended to whole, then evicted from once"},
    )

    budget: float | int = 0.5
    buffer: float | int = 0.125
    window: int = 8
    kernel: int = 7
    weight: float = 0.07

    def __post_init__(self) -> None:
        """Raise SpecError for values out of range."""
        name = self.name()
        checks.budget(name, "budget", self.budget)
        checks.whole(name, "window", self.window, 1, 8)
        checks.whole(name, "kernel", self.kernel, 1, 7)
        checks.share(name, "weight", self.weight, 0, 1, 0.07)
        checks.budget(name, "buffer", self.buffer)
        if isinstance(self.buffer, int) and self.buffer < self.window:
            raise SpecError(
                f"{name}: buffer={self.buffer} is smaller than the window of {self.window} queries that vote",
                f"type {option('methods')}={name}:buffer={self.window}",
            )
        checks.odd(name, self.kernel)
        checks.room(name, self.budget, self.window)

    def cap(self, prompt: int) -> int:
        """C for a prompt of this length."""
        return checks.tokens(self.budget, prompt, least=self.window + 1)

    def let_in(self, prompt: int) -> int:
        """b for a prompt of this length."""
        return checks.tokens(self.buffer, prompt, least=self.window)

    def layer(self, shape: ModelShape, index: int) -> CacheLayer:
        """A layer that chooses after the prompt and while decoding."""
        return RKVLayer(shape, index, self)

    def slots(self, shape: ModelShape, prompt: int, decoded: int) -> tuple[int, ...]:
        """s in every layer."""
        cap, buffer = self.cap(prompt), self.let_in(prompt)
        come = min(prompt, cap) + decoded
        return (come if come < cap + buffer else cap + (come - cap) % buffer,) * shape.layers

    def kv_bytes(self, shape: ModelShape, batch: int, prompt: int, decoded: int) -> int:
        """Slots, and the last w queries."""
        asked = shape.layers * batch * shape.heads * min(prompt + decoded, self.window)
        slots = sum(self.slots(shape, prompt, decoded))
        return slots * shape.token_bytes(batch) + asked * shape.head_dim * shape.itemsize

    def protected(self, prompt: int) -> frozenset[int]:
        """The window, or all of a short prompt."""
        return frozenset(range(0 if prompt <= self.cap(prompt) else prompt - self.window, prompt))


class RKVLayer(CacheLayer):
    """asked (B, H, up to w, d): the newest queries."""

    method: RKV

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self.asked: torch.Tensor | None = None

    def compress(self, queries: torch.Tensor) -> None:
        """Choose from the prompt."""
        window = self.method.window
        self.asked = queries[:, :, -window:].clone()
        if self.stored > self.method.cap(self.stored):
            self.choose(self.asked, 0)

    def step(self, query: torch.Tensor) -> None:
        """Choose when the buffer is full."""
        if self.asked is None:
            raise KvcheckError("no query is known yet: the prompt is not in")
        method, known = self.method, torch.cat([self.asked, query.to(self.asked.dtype)], dim=2)
        prompt = self.prompt or self.seen
        over, buffer = self.stored - method.cap(prompt), method.let_in(prompt)
        if over >= buffer:
            later = over % buffer
            self.choose(known[:, :, : known.shape[2] - later][:, :, -method.window :], later)
        self.asked = known[:, :, -method.window :].clone()

    def choose(self, queries: torch.Tensor, later: int) -> None:
        """Keep C of the slots before the `later` newest, and these. queries: the last w before them."""
        method, held = self.method, self.stored - later
        old = held - method.window
        keys = self.keys[:, :, :held].float()
        scores = method.weight * self.attended(queries.float(), keys[:, :, :old])
        scores -= (1 - method.weight) * redundancy(keys)[:, :, :old]
        best = scoring.top(scores, method.cap(self.prompt or self.seen) - method.window)
        newest = self.every_head(torch.arange(old, self.stored, device=best.device))
        self.keep(torch.cat([best, newest], dim=2))

    def attended(self, queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        """A of these keys (B, G, n, d) -> (B, G, n)."""
        grouped = queries.unflatten(1, (-1, self.shape.group))
        logits = torch.matmul(grouped, keys.transpose(2, 3).unsqueeze(2)).amax(dim=2) * self.scaling
        return scoring.pool(logits.softmax(dim=3).mean(dim=2), self.method.kernel, "max")


def redundancy(keys: torch.Tensor) -> torch.Tensor:
    """R of keys (B, G, n, d) -> (B, G, n): how much each is like the others, the newest of those alike spared."""
    unit, count = normalize(keys, dim=3), keys.shape[2]
    places, sums = torch.arange(count, device=keys.device), keys.new_zeros(keys.shape[:3])
    for start in range(0, count, ROWS):
        rows = places[start : start + ROWS]
        alike = torch.matmul(unit[:, :, rows], unit.transpose(2, 3))
        alike[:, :, places[: len(rows)], rows] = 0
        spared = torch.where(alike > ALIKE, places, 0).amax(dim=3, keepdim=True)
        sums += alike.scatter(3, spared, 0).sum(dim=2)
    return (sums / count).softmax(dim=2)


METHOD = RKV
