"""DuoAttention: some kv heads see all, others sinks and a window. arXiv 2410.10819, mit-han-lab/duo-attention."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch

from kvcheck.cache import checks, forward, kernels
from kvcheck.cache.kv_cache import CacheLayer
from kvcheck.cache.method import Lossless, Method, MethodInfo, Stage
from kvcheck.cache.method_runner import MethodRunner
from kvcheck.cache.ragged import RaggedLayer
from kvcheck.cache.shape import ModelShape
from kvcheck.core.errors import KvcheckError, MethodUnsupported, SpecError
from kvcheck.core.front import option
from kvcheck.methods.fp16 import Fp16

if TYPE_CHECKING:
    from kvcheck.core.spec import Spec
    from kvcheck.models import LoadedModel

SEARCH = "search"
PROBE = 512
"""Tokens of the random text that is repeated once to find the retrieval heads."""
BLOCK = 8192
"""Tokens of a prompt that a streaming head attends for at a time: masks over all pairs of a long one would not fit."""


@dataclass(frozen=True)
class DuoAttention(Method):
    """Retrieval heads hold every token; streaming heads hold S sinks and the newest R: a token sees these and itself.

    heads: which kv heads are retrieval heads. "search": measured on the model, the sparsity share with the lowest
    scores streams; a text such as "0110/1111": one digit per kv head, layers separated by slashes, 1 for retrieval; or
    a JSON file of gates, one list of numbers per layer (the official pattern files hold such), of which the sparsity
    share with the lowest gates streams. sparsity: the share of streaming heads among all. sink: S, recent: R (a share
    of the prompt or a number of tokens). All query heads of a kv head follow it.

    Bytes: 2·B·d·2·Σ_l [G_r(l)·n + G_s(l)·min(n, S + R)] after n tokens, for G_r and G_s retrieval and streaming heads.
    Errors: SpecError for values out of range or a pattern that cannot be read, MethodUnsupported for a pattern of
    another model.
    Differences from the official code: the search. There, a gate per head is trained by distillation on synthetic
    passkeys; here a random text is fed twice in a row, and a head's score is the attention that its queries in the
    second copy pay to the first one behind the sinks, in the mean over the group. Heads are not re-ordered.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        summary="keeps everything in retrieval heads, sinks and a window in the others",
        stage=Stage.COMPRESSION,
        paper="arXiv 2410.10819",
        formula="2·B·d·2·Σ_l [G_r(l)·n + G_s(l)·min(n, S + R)]",
        knob="sparsity",
        evicts_in_decode=True,
        shares_prefill=False,
        variant="heads found by attention on a repeated random text (official: gates trained by distillation)",
        lossless=Lossless.at("sparsity=0.0"),
        exempt={"a_block_is_its_tokens_one_by_one": "a block is attended to whole, then the window moves on"},
        cross_head="its pattern and its search number the heads of the whole model",
    )

    heads: str = SEARCH
    sparsity: float = 0.5
    sink: int = 4
    recent: float | int = 0.25

    def __post_init__(self) -> None:
        """Raise SpecError for values out of range."""
        checks.share(self.name(), "sparsity", self.sparsity, 0, 1, 0.5)
        checks.whole(self.name(), "sink", self.sink, 0, 4)
        checks.budget(self.name(), "recent", self.recent)

    def check(self, shape: ModelShape) -> None:
        """A given pattern must be of this model."""
        if self.heads != SEARCH:
            found = self.pattern()
            if len(found) != shape.layers or any(len(row) != shape.kv_heads for row in found):
                raise MethodUnsupported(
                    f"duo_attention: the pattern is of {len(found)} layers with {len(found[0])} kv heads, "
                    f"the model has {shape.layers} with {shape.kv_heads}",
                    f"{option('methods')}=duo_attention:heads=search finds one for this model",
                )

    def pattern(self) -> tuple[tuple[bool, ...], ...]:
        """Per layer and kv head, whether it is a retrieval head. Raises SpecError, and KvcheckError before a search."""
        if self.heads == SEARCH:
            raise KvcheckError("duo_attention has not searched for retrieval heads yet", "use method.runner(loaded)")
        if re.fullmatch(r"[01]+(/[01]+)*", self.heads):
            return tuple(tuple(digit == "1" for digit in row) for row in self.heads.split("/"))
        return self.split(_gates(Path(self.heads)))

    def split(self, scores: list[list[float]]) -> tuple[tuple[bool, ...], ...]:
        """The sparsity share with the lowest scores streams; among equal ones the last ones do."""
        order = sorted((-score, layer, head) for layer, row in enumerate(scores) for head, score in enumerate(row))
        kept = {(layer, head) for _, layer, head in order[: len(order) - round(self.sparsity * len(order))]}
        return tuple(tuple((at, head) in kept for head in range(len(row))) for at, row in enumerate(scores))

    def width(self, prompt: int) -> int:
        """R for a prompt of this length."""
        return checks.tokens(self.recent, prompt, least=1)

    def layer(self, shape: ModelShape, index: int) -> CacheLayer:
        """A layer of two kinds of heads."""
        return DuoLayer(shape, index, self)

    def runner(self, loaded: LoadedModel) -> MethodRunner:
        """Searches where no pattern was given."""
        if self.heads != SEARCH:
            return MethodRunner(self, loaded)
        found = self.split(retrieval_scores(loaded, self.sink))
        text = "/".join("".join("1" if kept else "0" for kept in row) for row in found)
        return MethodRunner(replace(self, heads=text), loaded)

    def kv_bytes(self, shape: ModelShape, batch: int, prompt: int, decoded: int) -> int | None:
        """Those of all heads; None before the search."""
        if self.heads == SEARCH:
            return None
        seen = prompt + decoded
        held = min(seen, self.sink + self.width(prompt))
        slots = sum(seen if kept else held for row in self.pattern() for kept in row)
        return 2 * batch * slots * shape.head_dim * shape.itemsize

    def lossless(self) -> Spec | None:
        """None where a pattern is given, to which sparsity means nothing."""
        return super().lossless() if self.heads == SEARCH else None

    def protected(self, prompt: int) -> frozenset[int]:
        """Sinks and window."""
        return frozenset(range(min(self.sink, prompt))) | frozenset(range(max(0, prompt - self.width(prompt)), prompt))


class DuoLayer(RaggedLayer):
    """Evicts from streaming heads after every forward, and hides from them what they will not hold."""

    method: DuoAttention

    def __init__(self, shape: ModelShape, index: int, method: DuoAttention) -> None:
        super().__init__(shape, index, method)
        self.retrieval = method.pattern()[index]

    def attention(self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, rows: slice) -> torch.Tensor:
        """The prompt of streaming heads sees sinks and window only."""
        if self.prompt is not None:
            return super().attention(query, keys, values, rows)
        out = torch.empty_like(query)
        for head, whole in enumerate(self.retrieval):
            if whole:
                mine, at = self._of(head)
                part, softmax = (query[:, mine], keys[:, at], values[:, at]), self.softmax.of_heads(mine)
                out[:, mine] = kernels.attend_block(*part, self.scaling, softmax)
        if not all(self.retrieval):
            self._stream(query, keys, values, out)
        return out

    def _of(self, head: int) -> tuple[slice, slice]:
        """The query heads of a kv head, and itself."""
        return slice(head * self.shape.group, (head + 1) * self.shape.group), slice(head, head + 1)

    def _stream(self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, out: torch.Tensor) -> None:
        """Write the attention of streaming heads to sinks and window into out, BLOCK tokens at a time."""
        tokens, columns, sink = query.shape[2], keys.shape[2], self.method.sink
        width = self.method.width(columns)
        for start in range(0, tokens, BLOCK):
            rows = slice(start, min(start + BLOCK, tokens))
            end = columns - tokens + rows.stop
            mask = kernels.visible(rows.stop - start, end, width + 1, query.device)
            mask[:, :sink] |= kernels.visible(rows.stop - start, end, None, query.device)[:, :sink]
            for head, whole in enumerate(self.retrieval):
                if not whole:
                    mine, at = self._of(head)
                    near = keys[:, at, :end], values[:, at, :end]
                    part, softmax = (query[:, mine, rows], *near), self.softmax.of_heads(mine)
                    out[:, mine, rows] = kernels.attend_masked(*part, mask, self.scaling, softmax)

    def compress(self, queries: torch.Tensor) -> None:
        """Evict after the prompt."""
        self.evict()

    def step(self, query: torch.Tensor) -> None:
        """Evict after every later forward."""
        self.evict()

    def evict(self) -> None:
        """Keep all of retrieval heads, sinks and window of the others."""
        width = self.method.width(self.prompt or self.seen)
        if self.seen > self.method.sink + width and not all(self.retrieval):
            positions = self.positions
            wanted = (positions < self.method.sink) | (positions >= self.seen - width)
            for head, whole in enumerate(self.retrieval):
                if whole:
                    wanted[:, head] = True
            self.keep_where(wanted)


def retrieval_scores(loaded: LoadedModel, sink: int) -> list[list[float]]:
    """Per layer and kv head: the attention that the second copy of a random text of PROBE tokens pays to the first one.

    The sinks are left out. Seeded, so the same on every call.
    """
    shape = ModelShape.of(loaded.model.config)
    tokens = min(PROBE, (loaded.max_length or 2 * PROBE) // 2)
    vocabulary = loaded.model.get_input_embeddings().num_embeddings
    text = torch.randint(vocabulary, (1, tokens), generator=torch.Generator().manual_seed(0))
    cache = Fp16().build(shape)
    with cache.recording() as layers:
        forward.feed(loaded.model, torch.cat([text, text], dim=1).to(loaded.device), cache)
    far = slice(sink, tokens)
    scores = []
    for part in layers:
        queries = torch.empty(0) if part.queries is None else part.queries  # `recording` keeps them
        scaling = shape.head_dim**-0.5 if part.scaling is None else part.scaling
        weights = kernels.probabilities(queries[:, :, tokens:], part.keys, scaling, tokens)
        scores.append(weights[..., far].sum(dim=-1).mean(dim=(0, 2, 3)).tolist())
    return scores


def _gates(path: Path) -> list[list[float]]:
    """The numbers of a pattern file. Raises SpecError."""
    try:
        found = json.loads(path.expanduser().read_text("utf-8"))
        return [[float(gate) for gate in row] for row in found]
    except (OSError, ValueError, TypeError) as error:
        raise SpecError(
            f"duo_attention: heads={path} is no pattern: {error}",
            "give search, digits such as 0110/1111, or a JSON file with a list of gates per layer",
        ) from error


METHOD = DuoAttention
