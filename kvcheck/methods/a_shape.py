"""A-shape: the prompt attends to its first tokens and a window. SCBench, arXiv 2412.10319, microsoft/MInference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from kvcheck.cache import checks, sparsity
from kvcheck.cache.full import KeepsAll
from kvcheck.cache.kv_cache import CacheLayer
from kvcheck.cache.method import Lossless, MethodInfo, Stage
from kvcheck.cache.shape import ModelShape
from kvcheck.core.front import option


@dataclass(frozen=True)
class AShape(KeepsAll):
    """While prefilling, the token at position i sees position j <= i if i - j < n_local or j < n_init.

    n_init, n_local: a share of the prompt of p tokens (0.01 and 0.25; rounded down, at least 4 sinks and a window of 1)
    or a number of tokens (the official 128 and 3968, which are dense on prompts of up to 4,096). The rule is the same
    for all layers, heads and rows. Where n_init + n_local >= p the attention is that of the full cache, bit for bit.

    All keys and values are kept, post-RoPE at their true positions. Decoding and follow-up blocks are dense over them;
    but in deeper layers they are what the sparse prompt made of them, so the prompt has to run through this cache.

    Computed by gathering: a block of rows reads the sinks and its own windows, in O(p·(n_init + n_local)). No speed-up
    is claimed on CPU.

    A prompt that is fed in chunks gives the same result where both sizes are tokens. A share is refused then, since the
    length of the prompt is not known before its end.

    Bytes: 2·L·B·G·n·d·2 after n tokens, those of the full cache. Errors: SpecError for values out of range,
    KvcheckError for a share of a prompt in chunks.
    Differences from the official code: sizes may be shares; at least one sink; rows are blocks of a masked torch kernel
    instead of a Triton one. The sets of keys are the same.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        summary="lets the prompt attend to its first tokens and a local window only",
        stage=Stage.GENERATION,
        paper="arXiv 2412.10319",
        formula="2·L·B·G·n·d·2",
        frees_memory=False,
        shares_prefill=False,
        variant="the prompt's attention only; decoding and follow-ups are dense over the full cache, as in SCBench",
        lossless=Lossless.at("n_local=100000"),
        latents="keeps them whole; the prompt attends to the keys that are made of them",
    )

    n_init: float | int = 0.01
    n_local: float | int = 0.25

    def __post_init__(self) -> None:
        """Raise SpecError for values out of range."""
        checks.budget(self.name(), "n_init", self.n_init)
        checks.budget(self.name(), "n_local", self.n_local)

    def sizes(self, prompt: int) -> tuple[int, int]:
        """(n_init, n_local) in tokens for a prompt of this length."""
        return checks.tokens(self.n_init, prompt, least=4), checks.tokens(self.n_local, prompt, least=1)

    def layer(self, shape: ModelShape, index: int) -> CacheLayer:
        """A full cache layer whose prompt attends in the A-shape."""
        return AShapeLayer(shape, index, self)


class AShapeLayer(sparsity.SparsePrefillLayer):
    """Attends to sinks and window while prefilling."""

    method: AShape

    def sparse(self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """The A-shape of rows behind what is stored already."""
        tokens, method = keys.shape[2], self.method
        if isinstance(method.n_init, float) or isinstance(method.n_local, float):
            self.refuse_chunks(
                tokens - query.shape[2],
                "a share of it is not known before its end",
                f"feed it in one forward, or give tokens: {option('methods')}={method.name()}:n_init=128,n_local=3968",
            )
        n_init, n_local = method.sizes(tokens)
        if n_init + n_local >= tokens:
            return self.dense(query, keys, values)
        return sparsity.a_shape(query, keys, values, self.scaling, n_init, n_local, self.softmax)


METHOD = AShape
