"""What a forward would do on a GPU, counted on a CPU: kernels, and where host and device wait for each other.

A CPU stands for both. Every tensor is on the device except those that were brought to the host (`.cpu()`), made there
(a factory that is told no device), or computed from such.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

aten = torch.ops.aten
HOST = torch.device("cpu")
GPU = torch.device("cuda", 99)
READS = {torch.Tensor.item, torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.__bool__, torch.Tensor.__int__}
READS |= {torch.Tensor.__float__, torch.Tensor.__index__, torch.equal, torch.allclose, torch.Tensor.equal}
SIZED_BY_NUMBERS = {torch.nonzero, torch.Tensor.nonzero, torch.masked_select, torch.Tensor.masked_select}
SIZED_BY_NUMBERS |= {torch.unique, torch.Tensor.unique, torch.unique_consecutive, torch.Tensor.unique_consecutive}
WRITES = {torch.Tensor.__setitem__, torch.Tensor.copy_}
ALLOCATES = {aten.empty.memory_format, aten.new_empty.default, aten.empty_like.default, aten.empty_strided.default}


class Kernels(TorchDispatchMode):
    """Counts operations that compute or copy; neither views nor memory that is only allocated."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        view = any(one.alias_info is not None and not one.alias_info.is_write for one in func._schema.returns)
        if not view and func not in ALLOCATES:
            self.count += 1
        return func(*args, **(kwargs or {}))


class Device(TorchFunctionMode):
    """Counts what makes the host wait. `mixed`: operations on tensors of both, which a GPU would refuse.

    Python code is told that tensors are on a GPU, so that it goes the ways that it goes there.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        self.mixed: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [each for each in _parts(args, kwargs) if isinstance(each, torch.Tensor)]
        if func == torch.Tensor.device.__get__:
            return HOST if on_host(args[0]) else GPU
        if func == torch.Tensor.is_cuda.__get__:
            return not on_host(args[0])
        wanted, args, kwargs = _really(args, kwargs)
        if func in (torch.Tensor.cpu, torch.Tensor.to):
            return self._moved(func, args, kwargs, HOST if func is torch.Tensor.cpu else wanted)
        result = func(*args, **kwargs)
        if not given or wanted is not None:
            return self._made(func, result, wanted or HOST)
        if (_reads(func, args) or _unsized(func, args, kwargs)) and not all(on_host(each) for each in given):
            self.waits.append(func.__name__)
        places = {on_host(each) for each in given if each.dim()}
        if len(places) > 1:
            (self.waits if func in WRITES else self.mixed).append(func.__name__)
        return _each(result, mark) if places == {True} and func not in WRITES else result

    def _moved(self, func: Any, args: Any, kwargs: Any, to: torch.device | None) -> Any:
        """`.cpu()`, `.to(device)`, or a change of dtype where it stays."""
        source, result = args[0], func(*args, **kwargs)
        others = [each for each in args[1:] if isinstance(each, torch.Tensor)]
        there = on_host(source) if to is None else to == HOST
        there = on_host(others[0]) if others else there
        if there != on_host(source):
            self.waits.append("to the host" if there else "to the device")
        if there == on_host(result):
            return result
        result = aten.alias(result)
        return mark(result) if there else result

    def _made(self, func: Any, result: Any, where: torch.device) -> Any:
        """A new tensor. Numbers of Python's get to the device by a copy that is waited for."""
        if where == HOST:
            return _each(result, mark)
        if func in (torch.tensor, torch.as_tensor):
            self.waits.append("to the device")
        return result


def _really(args: Any, kwargs: Any) -> tuple[torch.device | None, Any, Any]:
    """The device that is asked for, and arguments that name the CPU in its place."""
    places = [torch.device(each) for each in _parts(args, kwargs) if _is_place(each)]
    if not places:
        return None, args, kwargs
    args, kwargs = tree_map(lambda each: HOST if _is_place(each) else each, (args, kwargs))
    return places[0], args, kwargs


def _is_place(value: Any) -> bool:
    return isinstance(value, torch.device) or (isinstance(value, str) and value == "cpu")


def _parts(args: Any, kwargs: Any) -> Iterator[Any]:
    """Arguments, and what tuples and lists among them hold."""
    for each in (*args, *kwargs.values()):
        if isinstance(each, (tuple, list)):
            yield from each
        else:
            yield each


def on_host(tensor: torch.Tensor) -> bool:
    """Whether it has been marked."""
    return getattr(tensor, "on_host", False)


def mark(tensor: torch.Tensor) -> torch.Tensor:
    """It is on the host from now on."""
    tensor.on_host = True  # type: ignore[attr-defined]
    return tensor


def _each(result: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    for tensor in tree_leaves(result):
        if isinstance(tensor, torch.Tensor):
            change(tensor)
    return result


def _reads(func: Any, args: Any) -> bool:
    """Whether the host must know numbers: by themselves, or how many a mask finds."""
    if func in READS or func in SIZED_BY_NUMBERS:
        return True
    if func not in (torch.Tensor.__getitem__, torch.Tensor.__setitem__):
        return False
    picks = func is torch.Tensor.__getitem__ or isinstance(args[2], torch.Tensor)  # one number is filled in by the mask
    return picks and any(isinstance(each, torch.Tensor) and each.dtype is torch.bool for each in tree_leaves(args[1]))


def _unsized(func: Any, args: Any, kwargs: Any) -> bool:
    """repeat_interleave by a tensor, whose sum is the size of the result."""
    if func not in (torch.repeat_interleave, torch.Tensor.repeat_interleave) or kwargs.get("output_size") is not None:
        return False
    return any(isinstance(each, torch.Tensor) for each in args[1:])
