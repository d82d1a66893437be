"""Checks of hyper-parameters and of what a method returns, and the rule that turns a budget into a number of slots."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

from kvcheck.core.errors import MethodUnsupported, SpecError
from kvcheck.core.front import option

if TYPE_CHECKING:
    from torch import Tensor


def whole(method: str, name: str, value: object, low: int, example: object) -> None:
    """Raise SpecError unless value is a whole number of at least `low`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise SpecError(
            f"{method}: {name}={value!r} is not a whole number of at least {low}",
            f"type {option('methods')}={method}:{name}={example}",
        )


def share(method: str, name: str, value: object, low: float, high: float, example: object) -> None:
    """Raise SpecError unless value is a number in [low, high]."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise SpecError(
            f"{method}: {name}={value!r} is not a number from {low:g} to {high:g}",
            f"type {option('methods')}={method}:{name}={example}",
        )


def one_of(method: str, name: str, value: object, known: Iterable[object]) -> None:
    """Raise SpecError unless value is one of the known ones."""
    known = tuple(known)
    if isinstance(value, bool) or value not in known:
        choices = " or ".join(str(each) for each in known)
        raise SpecError(
            f"{method}: {name}={value!r}; it must be {choices}", f"type {option('methods')}={method}:{name}={known[0]}"
        )


def budget(method: str, name: str, value: object) -> None:
    """Raise SpecError unless value is a share of the prompt in (0, 1] (a float) or a number of tokens >= 1 (an int)."""
    good = isinstance(value, float) and 0 < value <= 1
    if isinstance(value, int) and not isinstance(value, bool):
        good = value >= 1
    if not good:
        raise SpecError(
            f"{method}: {name}={value!r} is neither a share of the prompt (a decimal above 0, at most 1.0) "
            "nor a number of tokens (a whole number of at least 1)",
            f"type {option('methods')}={method}:{name}=0.5 for half of the prompt, or {name}=1024 for 1024 tokens",
        )


def room(method: str, budget: float | int, window: int) -> None:
    """Raise SpecError where a window of tokens that stay leaves nothing to choose in a budget that is a number."""
    if isinstance(budget, int) and window >= budget:
        raise SpecError(
            f"{method}: window={window} leaves nothing to choose in a budget of {budget} tokens",
            f"type {option('methods')}={method}:budget={budget},window={max(1, budget // 2)}",
        )


def odd(method: str, kernel: int) -> None:
    """Raise SpecError unless a kernel has a middle."""
    if kernel % 2 == 0:
        raise SpecError(
            f"{method}: kernel={kernel} is even; pooling around a token needs an odd one",
            f"type {option('methods')}={method}:kernel={kernel + 1}",
        )


def rotation(method: str, needs: str, rope: tuple[float, ...] | None) -> None:
    """Raise MethodUnsupported for a model whose keys cannot be moved or un-rotated. rope: of its ModelShape."""
    if rope is None:
        raise MethodUnsupported(
            f"{method}: {needs}, and how this model rotates them is not known, depends on the length of the text, or "
            "scales them",
            "use a model such as llama, mistral or qwen2 with default, linear or llama3 RoPE",
        )


def tokens(value: float | int, prompt: int, least: int) -> int:
    """Slots that a budget means for a prompt: an int as it is, a float its share of the prompt, rounded down.

    A share is never less than `least`, so that a short prompt keeps what the method needs to work.

    >>> tokens(0.29, 100, 1), tokens(0.5, 3, 9), tokens(64, 1000, 1)
    (29, 9, 64)
    """
    return value if isinstance(value, int) else max(least, math.floor(value * prompt + 1e-6))


def tensor(found: object, what: str, shape: tuple[int, ...] | None = None) -> Tensor:
    """What a method's own code returned, where it is a tensor (of this shape). Raises TypeError. what: its name."""
    from torch import Tensor

    if not isinstance(found, Tensor):
        raise TypeError(f"{what} returned {type(found).__name__}, not a tensor")
    if shape is not None and tuple(found.shape) != shape:
        raise TypeError(f"{what} returned a tensor of shape {tuple(found.shape)}, not {shape}")
    return found


def pair(found: object, what: str) -> tuple[Tensor, Tensor]:
    """Keys and values (b, G, slots, d) that a method's own code returned. Raises TypeError for anything else."""
    if not isinstance(found, (tuple, list)) or len(found) != 2:
        count = f" of {len(found)}" if isinstance(found, (tuple, list)) else ""
        raise TypeError(f"{what} returned {type(found).__name__}{count}, not keys and values")
    keys, values = tensor(found[0], f"{what} (keys)"), tensor(found[1], f"{what} (values)")
    if keys.dim() != 4 or keys.shape[:3] != values.shape[:3]:
        shapes = f"keys of shape {tuple(keys.shape)} and values of shape {tuple(values.shape)}"
        raise TypeError(f"{what} returned {shapes}: both are (rows, kv heads, slots, head_dim), with equal slots")
    return keys, values


def grouped(method: str, group: int, head_dim: int) -> None:
    """Raise MethodUnsupported unless groups of channels fill the head_dim of the model."""
    if head_dim % group:
        fits = next(each for each in range(min(head_dim, group), 0, -1) if head_dim % each == 0)
        raise MethodUnsupported(
            f"{method}: group={group} does not divide the model's head_dim of {head_dim}",
            f"type {option('methods')}={method}:group={fits}",
        )
