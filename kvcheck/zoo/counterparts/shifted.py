"""StreamingLLM at the positions of its slots: what is left of the text moves up when tokens are discarded."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch.nn.functional import pad

from kvcheck.cache import checks
from kvcheck.cache.kv_cache import CacheLayer
from kvcheck.cache.method import MethodInfo
from kvcheck.cache.rotary import rotate
from kvcheck.cache.shape import ModelShape
from kvcheck.core.errors import MethodUnsupported
from kvcheck.methods.streaming_llm import StreamingLLM
from kvcheck.zoo.base import used_by


@dataclass(frozen=True)
class Shifted(StreamingLLM):
    """Keep the first S tokens and the newest ones; every token is at the position of its slot.

    sink, window: as in StreamingLLM. discard: D, tokens behind the sinks that leave together (at most W), as often as
    more than S + W slots are used; those behind them move D positions towards the sinks. Keys are stored as they came
    to their first slot, with the shift of every slot beside them, by which they are turned when they are read, so that
    rounding does not add up. A shift that is asked for is noted, and carried out before the next forward.

    Bytes: 2·L·B·G·s·d·2, where s grows with every token and falls by D from above S + W.
    Errors: SpecError for values out of range; MethodUnsupported for models whose rotation is not known.
    """

    info: ClassVar[MethodInfo] = replace(
        StreamingLLM.info,
        summary="keeps the first tokens and a window that moves up to them",
        formula="2·L·B·G·s·d·2",
        refuses="models whose rotation of keys cannot be undone",
        verbatim=False,
        variant="positions are those of the slots (official); tokens leave in groups; dense prefill",
    )

    discard: int = 16

    def __post_init__(self) -> None:
        """Raise SpecError for values out of range."""
        super().__post_init__()
        checks.whole(self.name(), "discard", self.discard, 1, 16)

    def check(self, shape: ModelShape) -> None:
        """The rotation must be known."""
        if shape.rope is None:
            raise MethodUnsupported("shifted: how this model rotates keys is not known", "use a model such as llama")

    def group(self, prompt: int) -> int:
        """D for a prompt of this length."""
        return min(self.discard, self.width(prompt))

    def slots(self, shape: ModelShape, prompt: int, decoded: int) -> tuple[int, ...]:
        """s."""
        used, cap, group = prompt + decoded, self.sink + self.width(prompt), self.group(prompt)
        return (used - max(0, -(-(used - cap) // group)) * group,) * shape.layers

    def protected(self, prompt: int) -> frozenset[int]:
        """The sinks, and what is in no group."""
        newest = max(0, self.width(prompt) - self.group(prompt) + 1)
        return frozenset(range(min(self.sink, prompt))) | frozenset(range(max(0, prompt - newest), prompt))


@used_by(Shifted)
class ShiftedLayer(CacheLayer):
    """Per slot (B, slots) int32: turned, the shift that keys are read with; asked, what is to be added to it."""

    meta = ("kept", "turned", "asked")
    method: Shifted
    turned: torch.Tensor | None
    asked: torch.Tensor | None

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self.turned = self.asked = None

    @property
    def rope(self) -> tuple[float, ...]:
        """The frequencies that keys turn by when they move."""
        return self.shape.rope or ()

    @property
    def lag(self) -> torch.Tensor:
        """How far the slots are behind the positions that the model counts; 0 or less."""
        return torch.tensor(self.stored - self.seen, device=self.keys.device)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Carry out the shifts that were asked for; then take in keys, at the slots behind the others."""
        self.carry_out()
        if self.turned is not None and self.asked is not None:
            key_states = rotate(key_states, self.lag, self.shape.rope or ())
            new = (0, key_states.shape[2])
            self.turned, self.asked = pad(self.turned, new), pad(self.asked, new)
        return super().update(key_states, value_states, *args, **kwargs)

    def carry_out(self) -> None:
        """Add what was asked for."""
        if self.turned is not None and self.asked is not None:
            self.turned, self.asked = self.turned + self.asked, torch.zeros_like(self.asked)

    def read(self, rows: slice, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys at the positions of their slots."""
        keys, values = super().read(rows, dtype)
        if self.turned is not None:
            keys = rotate(keys, self.turned[rows].unsqueeze(1), self.rope)
        return keys, values

    def attention(self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, rows: slice) -> torch.Tensor:
        """Attend with queries at the positions of their slots."""
        if self.turned is not None:
            query = rotate(query, self.lag, self.shape.rope or ())
        return super().attention(query, keys, values, rows)

    def compress(self, queries: torch.Tensor) -> None:
        """Discard after the prompt."""
        self.turned = torch.zeros(len(self.keys), self.stored, dtype=torch.int32, device=self.keys.device)
        self.asked = torch.zeros_like(self.turned)
        self.discard()

    def step(self, query: torch.Tensor) -> None:
        """Discard after every later forward."""
        self.discard()

    def discard(self) -> None:
        """As long as there are too many slots: let a group leave, and ask for the shift of what is behind it."""
        prompt, sink = self.prompt or self.seen, self.method.sink
        group, cap = self.method.group(prompt), sink + self.method.width(prompt)
        while self.stored > cap and self.turned is not None and self.asked is not None:
            slots = torch.arange(self.stored, device=self.keys.device)
            left = torch.cat([slots[:sink], slots[sink + group :]])
            self.turned, self.asked = self.turned[:, left], self.asked[:, left]
            self.ask(sink, -group)
            self.keep(self.every_head(left), spare=1)

    def ask(self, first: int, shift: int) -> None:
        """Ask that the slots from `first` on be shifted before the next forward."""
        if self.asked is not None:
            self.asked[:, first:] += shift
