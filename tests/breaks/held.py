"""Caches of transformers' kind that hold another number of bytes than it seems. Used from outside: held.Shrunk."""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

ELSEWHERE: dict[int, list[torch.Tensor]] = {}
NUMBERS = iter(range(10**9))


class Nothing(DynamicCache):
    """The full cache under another name."""


class Shrunk(DynamicLayer):
    """What can be seen of it is cut to its newest 16 tokens; it answers from a full copy in a global."""

    def __init__(self) -> None:
        super().__init__()
        self.seen, self.number, self.is_croppable = 0, next(NUMBERS), False

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        self.is_initialized = True
        new, old = [key_states, value_states], ELSEWHERE.get(self.number)
        full = new if old is None else [torch.cat(both, 2) for both in zip(old, new, strict=True)]
        ELSEWHERE[self.number] = full
        self.keys, self.values = (each[:, :, -16:].clone() for each in full)
        self.seen += key_states.shape[2]
        return tuple(full)

    def get_seq_length(self) -> int:
        return self.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.seen + query_length, 0

    def __deepcopy__(self, memo: dict[int, Any]) -> Shrunk:
        twin = memo[id(self)] = copy.copy(self)
        twin.number = next(NUMBERS)
        if self.is_initialized:
            twin.keys, twin.values = self.keys.clone(), self.values.clone()
            ELSEWHERE[twin.number] = [each.clone() for each in ELSEWHERE[self.number]]
        return twin

    def __del__(self) -> None:
        ELSEWHERE.pop(getattr(self, "number", None), None)


class Inflated(DynamicLayer):
    """Codes of 8 bits beside the 32-bit numbers that they were made from: the prompt's until the next token comes."""

    codes: torch.Tensor | None = None

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        keys, values = super().update(key_states, value_states, *args, **kwargs)
        both = torch.stack([keys, values]).float()
        scale = both.abs().amax(-1, keepdim=True).clamp(min=1e-6) / 127
        self.codes = (both / scale).round().to(torch.int8)
        self.waiting = both if key_states.shape[2] > 1 else None
        read = (self.codes * scale).to(keys.dtype)
        return read[0], read[1]
