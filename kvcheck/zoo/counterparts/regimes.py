"""A model whose rotation changes with the length of the text, as under LongRoPE or dynamic scaling."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

import torch

from kvcheck.cache import checks
from kvcheck.cache.kv_cache import CacheLayer, KVCache
from kvcheck.cache.method import Lossless, MethodInfo
from kvcheck.cache.method_runner import MethodRunner
from kvcheck.cache.rotary import rotate
from kvcheck.cache.shape import ModelShape
from kvcheck.core.errors import MethodUnsupported
from kvcheck.methods.fp16 import Fp16
from kvcheck.zoo.base import used_by


@dataclass(frozen=True)
class Regimes(Fp16):
    """The full cache of a model that turns keys and queries more slowly in long texts.

    original: tokens up to which a text is short (1040: one that begins with 1,024 tokens outgrows it). factor: by which
    all channels turn more slowly in a long one, as under linear interpolation of positions. Queries and all keys of a
    text are always turned alike: when a text outgrows `original`, its cache is computed anew from its tokens. For texts
    of at most `original` tokens it is the full cache.
    """

    info: ClassVar[MethodInfo] = replace(
        Fp16.info,
        summary="the full cache of a model whose rotation changes when the text grows long",
        refuses="models whose rotation of keys cannot be undone",
        stage="architecture",
        verbatim=False,
        evicts_in_decode=True,  # nothing leaves; but tokens are turned by what is fed in one group with them
        shares_prefill=False,
        variant="two sets of frequencies; the cache is computed anew when a text crosses the length",
        lossless=Lossless.at("original=1000000"),
        exempt={"a_block_is_its_tokens_one_by_one": "what is fed together with a crossing is turned like the rest"},
    )

    original: int = 1040
    factor: float = 1.05

    def __post_init__(self) -> None:
        """Raise SpecError for values out of range."""
        checks.whole(self.name(), "original", self.original, 1, 1040)
        checks.share(self.name(), "factor", self.factor, 1, 64, 1.05)

    def check(self, shape: ModelShape) -> None:
        """The rotation must be known."""
        if shape.rope is None:
            raise MethodUnsupported("regimes: how this model rotates keys is not known", "use a model such as llama")


@used_by(Regimes)
class RegimeLayer(CacheLayer):
    """Turns on what comes from the model, which rotates by its own base. tokens (B, n): the text; in layer 0 only."""

    meta = ("kept", "tokens")
    method: Regimes
    tokens: torch.Tensor | None

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self.tokens = None

    def is_long(self, length: int) -> bool:
        """Whether a text of this length is turned by the slower frequencies."""
        return length > self.method.original

    @property
    def extra(self) -> tuple[float, ...]:
        """What a long text turns by beyond the model's own frequencies."""
        return tuple(each * (1 / self.method.factor - 1) for each in self.shape.rope or ())

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Take in keys, turned as the text demands."""
        after = self.seen + key_states.shape[2]
        if self.is_long(after):
            key_states = rotate(key_states, torch.arange(self.seen, after, device=key_states.device), self.extra)
        return super().update(key_states, value_states, *args, **kwargs)

    def attend(self, query: torch.Tensor, scaling: float | None = None) -> torch.Tensor:
        """Attend with queries that are turned like the keys."""
        if self.is_long(self.seen):
            positions = torch.arange(self.seen - query.shape[2], self.seen, device=query.device)
            query = rotate(query, positions, self.extra)
        return super().attend(query, scaling)


@used_by(Regimes)
class RegimeRunner(MethodRunner):
    """Keeps the text beside the cache, and starts over where the regime changes."""

    method: Regimes

    def feed(self, cache: Any, ids: torch.Tensor, keep: int = 1) -> torch.Tensor:
        """As MethodRunner.feed; a text that becomes long is fed from its start."""
        first = cast(RegimeLayer, cache.layers[0])
        before = cache.seen
        text = ids if first.tokens is None else torch.cat([first.tokens, ids], dim=1)
        if before and before <= self.method.original < text.shape[1]:
            logits = self.crossing(cache, text, ids, keep)
        else:
            logits = super().feed(cache, ids, keep)
        cache.layers[0].tokens = text
        return logits

    def crossing(self, cache: KVCache, text: torch.Tensor, ids: torch.Tensor, keep: int) -> torch.Tensor:
        """The text has outgrown its regime with the newest ids: compute its cache anew."""
        prompt = cache.layers[0].prompt
        cache.layers = self.build().layers
        logits = super().feed(cache, text, keep)
        for layer in cache.layers:
            layer.prompt = prompt
        return logits
