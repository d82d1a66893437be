"""CacheBlend: reused keys and values of chunks, repaired where it matters. arXiv 2405.16444, YaoJiayi/CacheBlend."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import torch
from torch.utils.hooks import RemovableHandle

from kvcheck.cache import checks, kernels, scoring
from kvcheck.cache.full import KeepsAll
from kvcheck.cache.growable import GrowableBuffer
from kvcheck.cache.kv_cache import CacheLayer, KVCache
from kvcheck.cache.method import Lossless, MethodInfo, Stage
from kvcheck.cache.method_runner import MethodRunner
from kvcheck.cache.rotary import rotate, unrotate
from kvcheck.cache.shape import ModelShape
from kvcheck.core.errors import KvcheckError
from kvcheck.methods.fp16 import Fp16

if TYPE_CHECKING:
    from kvcheck.models import LoadedModel

States = TypeVar("States", torch.Tensor, tuple[torch.Tensor, ...])

CHECK = 1
"""The layer at which the deviation of reused keys and values is measured."""


@dataclass(frozen=True)
class CacheBlend(KeepsAll):
    """Prefill chunks of the prompt alone, put their keys and values together, and recompute those of some tokens.

    Each chunk of `chunk` tokens is computed without the others and stored with its keys un-rotated; they are rotated to
    their true positions when the chunks are put together. Layers 0 and 1 are computed for all tokens. There the
    deviation of a reused token is |new - old|² of its keys and values; the `recompute` share of reused tokens with the
    largest, and the last `fresh` tokens of the prompt, go on through the deeper layers, where their keys and values
    replace the reused ones. Queries attend by true positions.

    chunk: tokens. recompute: ρ (official 0.16). fresh: tokens at the end that are never reused (the question; at
    least 1, a share of the prompt or a number of tokens).

    Bytes: 2·L·B·G·n·d·2 after n tokens, those of the full cache; stored chunks are not part of it.
    Errors: SpecError for values out of range; MethodUnsupported for models whose rotation of keys is not known.
    Differences from the official code: the causal mask is that of the true positions (there: of the place among the
    chosen); all fresh tokens are computed (its example passes 1); chunks are not kept for the next prompt.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        summary="reuses keys and values of chunks computed alone, and recomputes those that deviate most",
        stage=Stage.LOADING,
        paper="arXiv 2405.16444",
        formula="2·L·B·G·n·d·2",
        refuses="models whose rotation of keys is not known",
        knob="recompute",
        frees_memory=False,
        shares_prefill=False,
        variant="one check layer (official; the paper filters layer by layer)",
        lossless=Lossless.at("recompute=1.0"),
        cross_head="it computes anew the tokens that differ most over all heads",
    )

    chunk: int = 256
    recompute: float = 0.16
    fresh: float | int = 32

    def __post_init__(self) -> None:
        """Raise SpecError for values out of range."""
        checks.whole(self.name(), "chunk", self.chunk, 1, 256)
        checks.share(self.name(), "recompute", self.recompute, 0, 1, 0.16)
        checks.budget(self.name(), "fresh", self.fresh)

    def check(self, shape: ModelShape) -> None:
        """Keys must be rotatable."""
        checks.rotation(self.name(), "moves keys to other positions", shape.rope)

    def layer(self, shape: ModelShape, index: int) -> CacheLayer:
        """A full cache layer that can be given a prompt with holes."""
        return BlendLayer(shape, index, self)

    def runner(self, loaded: LoadedModel) -> MethodRunner:
        """Prefills by blending."""
        return BlendRunner(self, loaded)


@dataclass
class Blend:
    """One prompt on its way: which tokens are computed in the layers above CHECK.

    reused: tokens at the front that have reused keys and values; count: how many of them are recomputed. chosen (B, s):
    ascending positions, known once layer CHECK has seen everything.
    """

    tokens: int
    reused: int
    count: int
    chosen: torch.Tensor | None = None

    @property
    def picked(self) -> torch.Tensor:
        """The chosen tokens. Raises KvcheckError before layer CHECK has seen the prompt."""
        if self.chosen is None:
            raise KvcheckError("a layer above the check layer ran before it", "feed the prompt through the runner")
        return self.chosen

    def choose(self, deviation: torch.Tensor) -> None:
        """deviation (B, tokens): of every token; fresh ones are all taken."""
        worst = scoring.top(deviation[:, : self.reused], self.count)
        fresh = torch.arange(self.reused, self.tokens, device=worst.device).expand(len(worst), -1)
        self.chosen = torch.cat([worst, fresh], dim=1)


class BlendLayer(CacheLayer):
    """Takes in a prompt of which it has most keys and values already. blend and old only while that goes on."""

    method: CacheBlend
    blend: Blend | None = None
    old: tuple[torch.Tensor, torch.Tensor] | None = None

    def write(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Everything in the first layers; in deeper ones new keys and values replace old ones at the chosen tokens."""
        if self.blend is None or self.old is None:
            return super().write(keys, values)
        if self.index <= CHECK:
            if self.index == CHECK:
                changes = (new.float() - old.float() for new, old in zip((keys, values), self.old, strict=True))
                self.blend.choose(sum(change.square().sum(dim=(1, 3)) for change in changes))  # type: ignore[arg-type]
            return super().write(keys, values)
        at = self.blend.picked.to(keys.device)[:, None, :, None].expand_as(keys)
        self.k, self.v = (
            GrowableBuffer(old.scatter(2, at, new)) for old, new in zip(self.old, (keys, values), strict=True)
        )
        self.seen += self.blend.tokens - keys.shape[2]
        return None

    def attention(self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, rows: slice) -> torch.Tensor:
        """A chosen token sees everything up to its own position."""
        if self.blend is None or self.index <= CHECK:
            return super().attention(query, keys, values, rows)
        column = torch.arange(keys.shape[2], device=keys.device)
        mask = (column <= self.blend.picked[rows].to(keys.device).unsqueeze(-1)).unsqueeze(1)
        return kernels.attend_masked(query, keys, values, mask, self.scaling, self.softmax)


class BlendRunner(MethodRunner):
    """Prefills chunk by chunk, then blends."""

    method: CacheBlend

    def prefill(self, ids: torch.Tensor) -> tuple[KVCache, torch.Tensor]:
        """Blend the prompts (R, n)."""
        method, tokens = self.method, ids.shape[1]
        fresh = max(1, min(tokens, checks.tokens(method.fresh, tokens, least=1)))
        blend = Blend(tokens, tokens - fresh, int(method.recompute * (tokens - fresh)))
        cache = self.build()
        for layer, old in zip(cache.layers, self.together(ids), strict=True):
            layer.blend, layer.old = blend, old
        handles = self._narrow(blend)
        try:
            logits = self.feed(cache, ids)[:, -1]
        finally:
            for handle in handles:
                handle.remove()
            for layer in cache.layers:
                layer.blend = layer.old = None
        return cache, logits

    def together(self, ids: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Per layer the keys, at their true positions, and values of chunks that were computed alone: (R, G, n, d)."""
        rope = self.shape.rope or ()  # `check` refuses a model without
        parts: list[list[tuple[torch.Tensor, torch.Tensor]]] = [[] for _ in range(self.shape.layers)]
        start = 0
        for chunk in ids.split(self.method.chunk, dim=1):
            cache = Fp16().build(self.shape)
            self.feed(cache, chunk)
            for layer, found in zip(cache.layers, parts, strict=True):
                here = torch.arange(chunk.shape[1], device=layer.keys.device)
                stored = unrotate(layer.keys.float(), here, rope)
                found.append((rotate(stored, here + start, rope).to(layer.dtype), layer.values))
            start += chunk.shape[1]
        return [(torch.cat([k for k, _ in each], dim=2), torch.cat([v for _, v in each], dim=2)) for each in parts]

    def _narrow(self, blend: Blend) -> list[RemovableHandle]:
        """Let only the chosen tokens go on above layer CHECK."""
        layers = self.model.get_decoder().layers
        if len(layers) <= CHECK + 1:
            return []

        def narrow(
            module: torch.nn.Module, args: tuple[torch.Tensor, ...], kwargs: dict[str, Any]
        ) -> tuple[tuple[torch.Tensor, ...], dict[str, Any]]:
            chosen = blend.picked
            if args[0].shape[1] == blend.tokens:
                args = (_rows(args[0], chosen), *args[1:])
            for name in ("position_embeddings", "position_ids"):
                if kwargs.get(name) is not None:
                    kwargs[name] = _of(kwargs[name], chosen, blend.tokens)
            return args, kwargs

        return [layer.register_forward_pre_hook(narrow, with_kwargs=True) for layer in layers[CHECK + 1 :]]


def _rows(states: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """The chosen tokens (B, s) of states (B or 1, n, ...)."""
    wide = states.expand(chosen.shape[0], *states.shape[1:])
    index = chosen.to(states.device).view(*chosen.shape, *(1 for _ in states.shape[2:]))
    return wide.gather(1, index.expand(*chosen.shape, *states.shape[2:]))


def _of(value: States, chosen: torch.Tensor, tokens: int) -> States:
    """The same of a tensor or a pair of them, where they are of all tokens."""
    if isinstance(value, tuple):
        return tuple(_of(each, chosen, tokens) for each in value)
    return _rows(value, chosen) if value.shape[1] == tokens else value


METHOD = CacheBlend
