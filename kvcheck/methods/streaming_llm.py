"""StreamingLLM: attention sinks and a sliding window. arXiv 2309.17453, mit-han-lab/streaming-llm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from kvcheck.cache import checks
from kvcheck.cache.kv_cache import CacheLayer
from kvcheck.cache.method import Lossless, Method, MethodInfo, Stage
from kvcheck.cache.shape import ModelShape


@dataclass(frozen=True)
class StreamingLLM(Method):
    """After every forward keep the first `sink` tokens and the newest W.

    sink: S, tokens at the start that always stay. window: W, a share of the prompt (0.5; W = floor(0.5 p), at least 1;
    fixed when the prompt is in) or a number of tokens (64). The prompt's own forward is dense, and so is that of a
    follow-up block: it attends to the stored slots and itself, then S + W slots remain. The rule is the same for all
    layers, heads and rows.

    Bytes: 2·L·B·G·min(n, S + W)·d·2 after n tokens. Errors: SpecError for values out of range.
    Differences from the official code: cached keys stay post-RoPE at their ORIGINAL positions (as SCBench and kvpress
    do); the official code re-rotates them to their slot each step, which needs the model's rotary table, out of a cache
    layer's reach. So the distance between sinks and query grows with the text, and nothing is gained beyond the
    model's context limit. Unlike SCBench and kvpress, and like the official code, it also evicts while decoding.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        summary="keeps the first tokens and a sliding window",
        stage=Stage.COMPRESSION,
        paper="arXiv 2309.17453",
        formula="2·L·B·G·min(n, S + W)·d·2",
        knob="window",
        evicts_in_decode=True,
        variant="original positions, no re-rotation to slots; dense prefill; evicts after every forward",
        lossless=Lossless.at("window=100000"),
        exempt={"a_block_is_its_tokens_one_by_one": "a block is attended to whole, then the window moves on"},
        latents="keeps those of sinks and window",
    )

    sink: int = 4
    window: float | int = 0.5

    def __post_init__(self) -> None:
        """Raise SpecError for values out of range."""
        checks.whole(self.name(), "sink", self.sink, 0, 4)
        checks.budget(self.name(), "window", self.window)

    def width(self, prompt: int) -> int:
        """W for a prompt of this length."""
        return checks.tokens(self.window, prompt, least=1)

    def layer(self, shape: ModelShape, index: int) -> CacheLayer:
        """A layer that evicts after every forward."""
        return StreamingLayer(shape, index, self)

    def slots(self, shape: ModelShape, prompt: int, decoded: int) -> tuple[int, ...]:
        """min(n, S + W) in every layer."""
        return (min(prompt + decoded, self.sink + self.width(prompt)),) * shape.layers

    def protected(self, prompt: int) -> frozenset[int]:
        """The sinks and the window."""
        return frozenset(range(min(self.sink, prompt))) | frozenset(range(max(0, prompt - self.width(prompt)), prompt))


class StreamingLayer(CacheLayer):
    """Keeps sinks and window."""

    method: StreamingLLM

    def compress(self, queries: torch.Tensor) -> None:
        """Evict after the prompt."""
        self.evict()

    def step(self, query: torch.Tensor) -> None:
        """Evict after every later forward."""
        self.evict()

    def evict(self) -> None:
        """Drop what lies between the sinks and the window, which moves on in place once the prompt has been cut."""
        sink, width = self.method.sink, self.method.width(self.prompt or self.seen)
        over = self.stored - sink - width
        if over > 0 and self.seen == self.prompt:
            self.without(sink, over)
        elif over > 0:
            self.slide(sink, over)


METHOD = StreamingLLM
