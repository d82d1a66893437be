"""KVzip: keep what the model needs to repeat the prompt, whatever will be asked. arXiv 2505.23416, snu-mllab/KVzip."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch.nn.functional import pad

from kvcheck.cache import checks, scoring
from kvcheck.cache.kv_cache import CacheLayer, KVCache
from kvcheck.cache.method import Lossless, Method, MethodInfo, Stage
from kvcheck.cache.method_runner import MethodRunner
from kvcheck.cache.ragged import RaggedLayer
from kvcheck.cache.shape import ModelShape, Prefilled
from kvcheck.core.errors import KvcheckError, MethodUnsupported, SpecError
from kvcheck.core.front import option
from kvcheck.methods.adakv import highest

if TYPE_CHECKING:
    from kvcheck.models import LoadedModel

WHOLE = "\n\nRepeat the previous context exactly."
PART = "\n\nRepeat the part of the previous context exactly, starting with "
ANSWER = "\n"
"""What stands between the question and the answer, where no chat template says it."""
LEAD = 8
"""Tokens before a chunk that the question for it ends with."""


@dataclass(frozen=True)
class KVzip(Method):
    """After a prompt of p tokens, have the model read it once more as the answer to "repeat the previous context", and
    keep the keys and values that this pays the most attention to, in any head of any layer.

    budget: C, the mean over all kv heads of all layers, first tokens included: a share of the prompt (0.5; C =
    floor(0.5 p), at least sink + 1) or a number of tokens. Prompts of at most C tokens are kept whole, and not read
    again. sink: S, first tokens, which every head keeps (4, at least 1). chunk: tokens behind the sinks that are
    repeated at a time (2000; fewer, where the model's longest text leaves room for fewer).

    For each chunk of the prompt, the question and the chunk are fed behind the prompt; those of later chunks name the 8
    tokens before them. The score of a token of the chunk, per kv head, is the largest weight that any of these queries
    of its group gives it, by a softmax over the S first tokens, the chunk, and what is fed itself, causally. Nothing
    of this is kept. Of all scores of a row, over layers, heads and tokens, the L·G·(C - S) highest stay, beside the
    sinks; among equal ones the older tokens. So heads hold different numbers of slots, end to end, without padding.
    Decoded tokens are appended to every head and never leave. The question asked later plays no part.

    Bytes: 2·L·B·G·(min(p, C) + decoded)·d·2. A prompt takes two to three times the time of reading it once.
    Errors: SpecError for values out of range; MethodUnsupported for a prompt that leaves no room for a repetition;
    KvcheckError for a cache by itself, without the runner, that is to choose.
    Differences from the official code: the budget is met exactly (there: what is above a threshold, so that ties go);
    sinks are the first tokens (there: the system prompt); no chat template between question and answer but a line
    break, as kvpress has it without one; the softmax is in float32.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        summary="keeps what the model attends to while it repeats the prompt, in any head of any layer",
        stage=Stage.COMPRESSION,
        paper="arXiv 2505.23416",
        formula="2·L·B·G·(min(p, C) + decoded)·d·2",
        refuses="prompts that leave no room for a repetition in the model's longest text",
        knob="budget",
        shares_prefill=False,
        variant="non-uniform over all heads and layers (official default); the first tokens as sinks; no chat template",
        lossless=Lossless.at("budget=1.0"),
        cross_head="the heads of all layers share one budget",
        exempt={"a_reset_cache_is_as_a_fresh_one": "neither chooses without its runner, and says so"},
    )

    budget: float | int = 0.5
    sink: int = 4
    chunk: int = 2000

    def __post_init__(self) -> None:
        """Raise SpecError for values out of range."""
        name = self.name()
        checks.budget(name, "budget", self.budget)
        checks.whole(name, "sink", self.sink, 1, 4)
        checks.whole(name, "chunk", self.chunk, 1, 2000)
        if isinstance(self.budget, int) and self.sink >= self.budget:
            raise SpecError(
                f"{name}: sink={self.sink} leaves nothing to choose in a budget of {self.budget} tokens",
                f"type {option('methods')}={name}:budget={self.sink + 1},sink={self.sink}",
            )

    def cap(self, prompt: int) -> int:
        """C: slots per kv head, in the mean over all of them, for a prompt of this length."""
        return checks.tokens(self.budget, prompt, least=self.sink + 1)

    def layer(self, shape: ModelShape, index: int) -> CacheLayer:
        """A layer that keeps what it is told to."""
        return ZipLayer(shape, index, self)

    def runner(self, loaded: LoadedModel) -> MethodRunner:
        """Reads prompts twice."""
        return ZipRunner(self, loaded)

    def kv_bytes(self, shape: ModelShape, batch: int, prompt: int, decoded: int) -> int:
        """Of all heads together."""
        return shape.dense_bytes(batch, min(prompt, self.cap(prompt)) + decoded)

    def protected(self, prompt: int) -> frozenset[int]:
        """The first tokens, or all of a short prompt."""
        return frozenset(range(prompt if prompt <= self.cap(prompt) else self.sink))


class ZipLayer(RaggedLayer):
    """Keeps what its runner chose. wanted (B, G, p) bool: only while the prompt is being compressed."""

    method: KVzip
    wanted: torch.Tensor | None

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self.wanted = None

    def compress(self, queries: torch.Tensor) -> None:
        """Keep what is wanted; all of a short prompt."""
        if self.stored <= self.method.cap(self.stored):
            return
        if self.wanted is None:
            raise KvcheckError(
                f"{self.method.spec} chooses by having the model read the prompt again, which a cache cannot do",
                "cache, logits = method.runner(loaded).prefill(ids)",
            )
        self.keep_where(self.wanted)
        self.wanted = None


class ReaderLayer(CacheLayer):
    """The full cache of a prompt, behind which a chunk of it is repeated, in one forward.

    chunk: the slots of it. scores (B, G, tokens of the chunk): the most attention that was paid to them.
    """

    method: KVzip
    chunk: slice
    scores: torch.Tensor

    def step(self, query: torch.Tensor) -> None:
        """Score the chunk by what was fed."""
        keys, sink = self.keys, self.method.sink
        seen = torch.cat([keys[:, :, :sink], keys[:, :, self.chunk], keys[:, :, -query.shape[2] :]], dim=2)
        self.scores = most(query, seen, self.scaling)[:, :, sink:]


class ZipRunner(MethodRunner):
    """Reads every prompt once as the full cache does, and once to choose."""

    method: KVzip

    def prefill(self, ids: torch.Tensor) -> tuple[KVCache, torch.Tensor]:
        """The prompts (R, p), compressed, and the logits of the full cache."""
        cache = self.build()
        with cache.prefilling():
            logits = self.feed(cache, ids)[:, -1]
            if ids.shape[1] > self.method.cap(ids.shape[1]):
                self.choose(cache, ids)
        return cache, logits

    def choose(self, cache: KVCache, ids: torch.Tensor) -> None:
        """Tell every layer what it is to keep of the prompts (R, p), which the cache holds whole."""
        layers, heads, sink = len(cache.layers), self.shape.kv_heads, self.method.sink
        budget = self.method.cap(ids.shape[1]) - sink
        chosen = highest(self.scores(cache, ids), layers * heads * budget)
        wanted = pad(chosen, (sink, 0), value=True).unflatten(1, (layers, heads))
        for layer, mine in zip(cache.layers, wanted.unbind(dim=1), strict=True):
            layer.wanted = mine.to(layer.keys.device)  # type: ignore[attr-defined]

    def scores(self, cache: KVCache, ids: torch.Tensor) -> torch.Tensor:
        """(R, L·G, p - S): of all tokens but the first, layer by layer and head by head."""
        prompt, found = ids.shape[1], []
        size = self.size(prompt)
        for start in range(self.method.sink, prompt, size):
            chunk = slice(start, min(start + size, prompt))
            readers = self.readers(cache, chunk)
            self.feed(readers, self.repetition(ids, chunk))
            found.append(torch.cat([layer.scores.to(ids.device) for layer in readers.layers], dim=1))  # type: ignore[attr-defined]
        return torch.cat(found, dim=2)

    def readers(self, cache: KVCache, chunk: slice) -> KVCache:
        """The full cache of the same prompts, in layers that score this chunk."""
        made = KVCache([ReaderLayer(self.shape, index, self.method) for index in range(len(cache.layers))])
        for layer, reader in zip(cache.layers, made.layers, strict=True):
            reader.store_dtype, reader.chunk = layer.dtype, chunk  # type: ignore[attr-defined]
        made.absorb([Prefilled(layer.keys, layer.values) for layer in cache.layers])
        return made

    def size(self, prompt: int) -> int:
        """Tokens of a chunk of a prompt of this length. Raises MethodUnsupported."""
        most = self.loaded.max_length
        asked = max(len(self.question(WHOLE)), len(self.question(PART)) + LEAD) + len(self.question(ANSWER))
        if most is None or prompt + asked + self.method.chunk <= most:
            return self.method.chunk
        if prompt + asked >= most:
            raise MethodUnsupported(
                f"kvzip has the model repeat the prompt behind itself: {prompt} tokens and a question of {asked} leave "
                f"no room for it in the model's {most}",
                f"shorter texts, {option('lengths')}={max(1, most // 2 - asked)}",
            )
        return most - prompt - asked

    def question(self, text: str) -> list[int]:
        """The tokens of a question."""
        return self.loaded.tokenizer.encode(text)

    def repetition(self, ids: torch.Tensor, chunk: slice) -> torch.Tensor:
        """What is fed behind the prompts (R, p) to repeat a chunk: the question, and the chunk as its answer."""
        first = chunk.start == self.method.sink
        asked = torch.tensor(self.question(WHOLE if first else PART), device=ids.device).expand(len(ids), -1)
        lead = ids[:, :0] if first else ids[:, max(0, chunk.start - LEAD) : chunk.start]
        answer = torch.tensor(self.question(ANSWER), device=ids.device).expand(len(ids), -1)
        return torch.cat([asked, lead, answer, ids[:, chunk]], dim=1)


def most(queries: torch.Tensor, keys: torch.Tensor, scaling: float) -> torch.Tensor:
    """The largest weight that any of q causal queries of a group pays to each key before them, (B, G, n).

    queries (B, H, q, d), keys (B, G, n + q, d), of which the last q are the queries' own.
    """
    past = keys.shape[2] - queries.shape[2]
    found = torch.zeros(*keys.shape[:2], past, device=keys.device)
    for weights in scoring.in_blocks(queries, keys, scaling, past):
        found = torch.maximum(found, weights[..., :past].amax(dim=(2, 3)))
    return found


METHOD = KVzip
