"""Expected Attention: keep what future queries are expected to look at. arXiv 2510.00636, NVIDIA/kvpress."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from kvcheck.cache import checks, scoring
from kvcheck.cache.kv_cache import CacheLayer
from kvcheck.cache.method import Lossless, Method, MethodInfo, Stage
from kvcheck.cache.rotary import unrotate
from kvcheck.cache.shape import ModelShape
from kvcheck.core.errors import SpecError
from kvcheck.core.front import option


@dataclass(frozen=True)
class ExpectedAttention(Method):
    """After the prompt of p tokens, keep the C tokens per layer and kv head that later queries are expected to ask for.

    budget: C, first tokens included: a share of the prompt (0.5; C = floor(0.5 p), at least sink + 1) or a number of
    tokens. Prompts of at most C tokens are kept whole. sink: S, first tokens, which stay, and whose queries and keys
    are left out of what follows (4). future: F, positions behind the prompt that are averaged over (512). covariance:
    whether the spread of the queries counts, or their mean alone. vnorm: whether scores are times the norm of the
    value; epsilon: what is added to them before.

    Queries before RoPE are taken to be normal, with the mean μ and the covariance Σ (over n, not n - 1) of those of the
    prompt behind the first S, per query head. R is the rotation averaged over the positions p to p + F - 1: later
    queries are N(Rμ, RΣRᵀ), and the expectation of exp(q·k·s), s the scaling, is exp(s·k·Rμ + s²·kᵀRΣRᵀk / 2). These,
    over the p - S keys, are normalized to shares, averaged over the query heads of a kv head, plus epsilon, times |v|.
    The S first tokens and the C - S highest stay. Decoded tokens are appended and never leave.

    Bytes: 2·L·B·G·(min(p, C) + decoded)·d·2. Errors: SpecError for values out of range; MethodUnsupported for models
    whose rotation of keys is not known.
    Differences from the official code: the queries of the model themselves, without their rotation (there: hidden
    states times the weight of the projection, so the bias of Qwen 2 is left out of the mean, and Qwen 3, which norms
    its queries, is refused); in float32; kept tokens are in order; ties go to the older token.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        summary="keeps the tokens that later queries are expected to attend to",
        stage=Stage.COMPRESSION,
        paper="arXiv 2510.00636",
        formula="2·L·B·G·(min(p, C) + decoded)·d·2",
        refuses="models whose rotation of keys is not known",
        knob="budget",
        needs=("queries",),
        variant="kvpress's ExpectedAttentionPress, once after the prompt, by the norm of values (the paper: what the "
        "output projection makes of them); queries with their biases",
        lossless=Lossless.at("budget=1.0"),
    )

    budget: float | int = 0.5
    sink: int = 4
    future: int = 512
    covariance: bool = True
    vnorm: bool = True
    epsilon: float = 0.0

    def __post_init__(self) -> None:
        """Raise SpecError for values out of range."""
        name = self.name()
        checks.budget(name, "budget", self.budget)
        checks.whole(name, "sink", self.sink, 0, 4)
        checks.whole(name, "future", self.future, 1, 512)
        checks.share(name, "epsilon", self.epsilon, 0, 1, 0.01)
        if isinstance(self.budget, int) and self.sink >= self.budget:
            raise SpecError(
                f"{name}: sink={self.sink} leaves nothing to choose in a budget of {self.budget} tokens",
                f"type {option('methods')}={name}:budget={self.budget},sink={self.budget - 1}",
            )

    def check(self, shape: ModelShape) -> None:
        """Queries must be un-rotatable."""
        checks.rotation(self.name(), "needs queries without their rotation", shape.rope)

    def cap(self, prompt: int) -> int:
        """C: slots per layer and kv head for a prompt of this length."""
        return checks.tokens(self.budget, prompt, least=self.sink + 1)

    def layer(self, shape: ModelShape, index: int) -> CacheLayer:
        """A layer that compresses once, after the prompt."""
        return ExpectedLayer(shape, index, self)

    def slots(self, shape: ModelShape, prompt: int, decoded: int) -> tuple[int, ...]:
        """min(p, C) and everything decoded."""
        return (min(prompt, self.cap(prompt)) + decoded,) * shape.layers

    def protected(self, prompt: int) -> frozenset[int]:
        """The first tokens, or all of a short prompt."""
        return frozenset(range(prompt if prompt <= self.cap(prompt) else self.sink))


class ExpectedLayer(CacheLayer):
    """Chooses by the queries that are expected."""

    method: ExpectedAttention

    def compress(self, queries: torch.Tensor) -> None:
        """Keep the first tokens and the best of the others."""
        method, prompt, sink = self.method, self.stored, self.method.sink
        if prompt <= method.cap(prompt):
            return
        chosen = scoring.top(self.scores(queries), method.cap(prompt) - sink) + sink
        first = self.every_head(torch.arange(sink, device=chosen.device))
        self.keep(torch.cat([first, chosen], dim=2))

    def scores(self, queries: torch.Tensor) -> torch.Tensor:
        """(B, G, p - S) of all tokens but the first."""
        keys, sink = self.keys[:, :, self.method.sink :].float(), self.method.sink
        mean, covariance = self.expected(queries[:, :, sink:].float())
        logits = torch.matmul(mean, keys.transpose(2, 3)) * self.scaling
        if self.method.covariance:
            spread = [(torch.matmul(keys, each) * keys).sum(dim=3) for each in covariance.unbind(dim=2)]
            logits += torch.stack(spread, dim=2) * (self.scaling**2 / 2)
        shares = logits.softmax(dim=3).mean(dim=2)
        if not self.method.vnorm:
            return shares
        return (shares + self.method.epsilon) * self.values[:, :, sink:].float().norm(dim=3)

    def expected(self, queries: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean (B, G, group, d) and covariance (B, G, group, d, d) of later queries. queries (B, H, p - S, d)."""
        rope, first = self.shape.rope or (), self.method.sink  # `check` refuses a model without
        places = torch.arange(first, first + queries.shape[2], device=queries.device)
        plain = unrotate(queries, places, rope).unflatten(1, (-1, self.shape.group))
        mean = plain.mean(dim=3)
        around = plain - mean.unsqueeze(3)
        turn = self.average_rotation(queries.device)
        covariance = torch.matmul(around.transpose(3, 4), around) / queries.shape[2]
        return torch.matmul(mean, turn.T), turn @ covariance @ turn.T

    def average_rotation(self, device: torch.device) -> torch.Tensor:
        """R (d, d): the mean of the rotations to the positions behind the prompt."""
        places = torch.arange(self.seen, self.seen + self.method.future, device=device, dtype=torch.float32)
        angles = places.unsqueeze(1) * torch.tensor(self.shape.rope, device=device)
        cos, sin = angles.cos().mean(dim=0).diag(), angles.sin().mean(dim=0).diag()
        return torch.cat([torch.cat([cos, -sin], dim=1), torch.cat([sin, cos], dim=1)])


METHOD = ExpectedAttention
