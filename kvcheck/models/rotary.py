"""The rotary embeddings of a model, and a model that rotates by other positions for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, TypeGuard

import torch

if TYPE_CHECKING:
    from kvcheck.models.pretrained import RotaryEmbedding

Given = tuple[torch.Tensor, ...]


def rotaries(model: torch.nn.Module) -> list[RotaryEmbedding]:
    """The modules that turn positions into rotations; none where the model has no rotary positions."""
    return [each for each in model.modules() if _rotates(each)]


def _rotates(module: torch.nn.Module) -> TypeGuard[RotaryEmbedding]:
    return type(module).__name__.endswith("RotaryEmbedding")


@contextmanager
def moved(model: torch.nn.Module, by: int) -> Iterator[None]:
    """Rotate by positions that lie `by` tokens further."""

    def move(module: object, args: Given, kwargs: dict[str, torch.Tensor]) -> tuple[Given, dict[str, torch.Tensor]]:
        if "position_ids" in kwargs:
            return args, {**kwargs, "position_ids": kwargs["position_ids"] + by}
        return (args[0], args[1] + by, *args[2:]), kwargs

    with ExitStack() as hooks:
        for each in rotaries(model):
            hooks.enter_context(each.register_forward_pre_hook(move, with_kwargs=True))
        yield


@contextmanager
def blurred(model: torch.nn.Module, by: float) -> Iterator[None]:
    """Rotate by cosines and sines that are off by `by` times normal noise, the same every time."""

    def blur(module: object, args: Given, output: Given) -> Given:
        generator = torch.Generator().manual_seed(0)
        noise = (torch.randn(table.shape, generator=generator, dtype=torch.float64) for table in output)
        return tuple(
            (table + by * each.to(table.device)).to(table.dtype) for table, each in zip(output, noise, strict=True)
        )

    with ExitStack() as hooks:
        for each in rotaries(model):
            hooks.enter_context(each.register_forward_hook(blur))
        yield
