"""Tri-shape: A-shape, and the last rows of the prompt are dense. SCBench, arXiv 2412.10319, microsoft/MInference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from kvcheck.cache import checks, sparsity
from kvcheck.cache.kv_cache import CacheLayer
from kvcheck.cache.method import Lossless, MethodInfo, Stage
from kvcheck.cache.shape import ModelShape
from kvcheck.methods.a_shape import AShape


@dataclass(frozen=True)
class TriShape(AShape):
    """While prefilling, the last n_last of p tokens see everything before them, the others their A-shape.

    n_init, n_local: as for a_shape (official 128 and 3968): position i < p - n_last sees j <= i if i - j < n_local or
    j < n_init. n_last: dense rows, a number of tokens (the official 100) or a share of the prompt (0.1; at least 1);
    never more than p - 1. So prompts of up to n_last + 1 tokens are dense.

    The dense rows repair their own outputs. What deeper layers store of earlier tokens is still made by the A-shape.
    Everything is kept, and decoding and follow-up blocks are dense, as for a_shape.

    Computed as a_shape (by gathering) for the first p - n_last rows and densely for the rest, O(p·n_last) more. No
    speed-up is claimed on CPU. A prompt that is fed in chunks is refused, whatever the sizes: which rows are its last
    is not known before its end.

    Bytes: 2·L·B·G·n·d·2 after n tokens, those of the full cache. Errors: SpecError for values out of range,
    KvcheckError for a prompt in chunks.
    Differences from the official code: sizes may be shares; at least one sink; where n_init + n_local >= p all rows are
    those of the full cache, bit for bit (official: the same sets of keys in two kernels).
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        summary="lets the prompt attend to its first tokens and a window, and its last tokens to all",
        stage=Stage.GENERATION,
        paper="arXiv 2412.10319",
        formula="2·L·B·G·n·d·2",
        frees_memory=False,
        shares_prefill=False,
        variant="the prompt's attention only; decoding and follow-ups are dense over the full cache, as in SCBench",
        lossless=Lossless.at("n_local=100000"),
        latents="keeps them whole; the prompt attends to the keys that are made of them",
    )

    n_last: float | int = 100

    def __post_init__(self) -> None:
        """Raise SpecError for values out of range."""
        super().__post_init__()
        checks.budget(self.name(), "n_last", self.n_last)

    def rows(self, prompt: int) -> int:
        """Dense rows of a prompt of this length."""
        return min(checks.tokens(self.n_last, prompt, least=1), prompt - 1)

    def layer(self, shape: ModelShape, index: int) -> CacheLayer:
        """A full cache layer whose prompt attends in the tri-shape."""
        return TriShapeLayer(shape, index, self)


class TriShapeLayer(sparsity.SparsePrefillLayer):
    """Attends to sinks and window, densely at the end of the prompt."""

    method: TriShape

    def sparse(self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """The A-shape of the first rows, then the dense ones."""
        tokens, method = keys.shape[2], self.method
        self.refuse_chunks(
            tokens - query.shape[2],
            "which rows are its last is not known before its end",
            "feed it in one forward, or take a_shape with sizes in tokens",
        )
        n_init, n_local = method.sizes(tokens)
        if n_init + n_local >= tokens:
            return self.dense(query, keys, values)
        first = tokens - method.rows(tokens)
        early = query[:, :, :first], keys[:, :, :first], values[:, :, :first]
        upper = sparsity.a_shape(*early, self.scaling, n_init, n_local, self.softmax)
        return torch.cat([upper, self.dense(query[:, :, first:], keys, values)], dim=2)


METHOD = TriShape
