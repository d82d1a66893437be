"""A pretended CUDA device: tensors that say they are on "cuda:0", refuse what CUDA refuses, and compute on the CPU.

A `Pretended` tensor wraps a real one on the CPU; views wrap views, so that what is written in place is seen wherever a
device would show it. `device()` is the mode under which `device="cuda"` makes such tensors; inside, `Counting` counts.

A build of torch without CUDA has no device guard for it, which indexing and `float(tensor)` ask for. So inside of torch
the device is called "cpu:1" (of cuda:0; "cpu:2" of cuda:1), which needs none and is not where plain tensors are; only
Python, where kvcheck and transformers ask, is told "cuda:0". Nor may a factory look for a driver: torch leaves that out
under a mode with the key of FakeTensorMode, which claims devices that are not there, too. `tensor.to("cuda")` without a
number asks the driver which device is current, and fails; kvcheck always names one.

It cannot show what a kernel does: its rounding, its speed, its memory, the order of its sums, and what runs when.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
CPU = torch.device("cpu")
MOVES = (aten._to_copy, aten.to, aten.copy_)
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
SCALARS = {*INDEXING, aten.masked_fill.Tensor, aten.masked_fill_.Tensor, aten.fill.Tensor, aten.fill_.Tensor}
"""Not pointwise by their tags, but a tensor without dimensions may come from the CPU."""
READS = {aten.is_nonzero.default, aten.nonzero_numpy.default, aten.repeat_interleave.self_Tensor}
"""Numbers that the host must know, too, but torch does not tag them so."""
FREE = {aten.empty.memory_format, aten.new_empty.default, aten.empty_like.default, aten.empty_strided.default}
FREE |= {aten.scalar_tensor.default, aten.detach_.default}
"""Nothing is launched for them: memory that is only allocated, and a number of Python's, which a kernel is given."""
MEMORY = 80 * 2**30


class Pretended(torch.Tensor):
    """A tensor that claims to lie on a CUDA device. inner: the real one."""

    inner: torch.Tensor
    claimed: torch.device
    __torch_function__ = torch._C._disabled_torch_function_impl
    device = property(lambda self: self.claimed)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)

    @staticmethod
    def __new__(cls, inner: torch.Tensor, claimed: torch.device) -> Pretended:
        with torch.inference_mode():  # what is made outside of it could not be viewed inside
            made = torch.Tensor._make_wrapper_subclass(
                cls,
                inner.shape,
                strides=inner.stride(),
                storage_offset=inner.storage_offset(),
                dtype=inner.dtype,
                device=torch.device("cpu", claimed.index + 1),
            )
        made.inner, made.claimed = inner, claimed
        return made

    def __repr__(self) -> str:
        return f"{self.inner!r} on {self.claimed}"

    def untyped_storage(self) -> Any:
        """The real storage, so that aliases and bytes can be told."""
        return self.inner.untyped_storage()

    def tolist(self) -> Any:
        """As lists, which any device gives."""
        return self.cpu().tolist()

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        """Refused, as by CUDA."""
        raise TypeError(f"can't convert {self.claimed} device type tensor to numpy. Use Tensor.cpu() first")

    __array__ = numpy

    def to(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Itself where it is so already; torch, which knows another name of the device, would copy."""
        copy = kwargs.pop("copy", False)
        device, dtype, _, memory_format = torch._C._nn._parse_to(*args, **kwargs)
        place, dtype = self.claimed if device is None else _place(device), dtype or self.dtype
        if not copy and memory_format is None and (place, dtype) == (self.claimed, self.dtype):
            return self
        return aten._to_copy.default(self, device=place, dtype=dtype, memory_format=memory_format)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


class Device(TorchDispatchMode):
    """Inside, factories make `Pretended` tensors where they are told a CUDA device."""

    _mode_key = torch._C._TorchDispatchModeKey.FAKE

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


class Counting(TorchDispatchMode):
    """Counts what is asked of the device.

    operations: that compute or copy on the device; neither views nor memory that is only allocated.
    waits: names of what makes the host wait: numbers it must know, or how many there are, and copies from or to it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0
        self.waits: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given, made, moves = _tensors((args, kwargs)), _tensors(out), func.overloadpacket in MOVES
        met = [*given, *made] if moves else [each for each in given if each.dim()]
        crosses = len({each.is_cuda for each in met}) > 1
        if crosses or (any(each.is_cuda for each in given) and _reads(func, args, kwargs or {})):
            self.waits.append(func.overloadpacket.__name__)
        if not (moves and crosses) and func not in FREE:
            old = set() if func._schema.is_mutable else {each.untyped_storage()._cdata for each in given}
            self.operations += any(each.is_cuda and each.untyped_storage()._cdata not in old for each in made)
        return out


def _reads(func: Any, args: Any, kwargs: Any) -> bool:
    """Whether the host must know numbers: by themselves, or how many a mask finds."""
    if func in INDEXING:  # by a mask; one number is filled in by it
        one = func is not aten.index.Tensor and not args[2].dim()
        return not one and any(each.dtype == torch.bool for each in _tensors(args[1]))
    sized = torch.Tag.dynamic_output_shape in func.tags or torch.Tag.data_dependent_output in func.tags
    return (sized or func in READS) and kwargs.get("output_size") is None


def run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """One operation, on the real tensors. Raises RuntimeError where CUDA would."""
    if func is aten._has_compatible_shallow_copy_type.default:  # Module.to asks; see `device`
        return False
    leaves = tree_leaves((args, kwargs))
    given = _tensors(leaves)
    wrapped = [each for each in given if isinstance(each, Pretended)]
    moves = func.overloadpacket in MOVES
    home = args[0].device if moves else wrapped[0].device if wrapped else CPU
    if wrapped and not moves:
        _refuse_mixed(func, args, given, home)
    home = next((_place(each) for each in leaves if isinstance(each, torch.device)), home)
    _refuse_generator(leaves, home)
    owners = {id(each.inner): each for each in wrapped}
    inside, named = _each((args, kwargs), _inner)
    out = func(*inside, **named)
    if moves and out is inside[0] and home != args[0].device:
        out = out.clone()
    if any(each.shape != each.inner.shape for each in wrapped):
        raise NotImplementedError(f"{func} changed the shape of a pretended tensor in place")

    def outer(value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or home == CPU:
            return value
        return owners[id(value)] if id(value) in owners else Pretended(value, home)

    return _each(out, outer)


def _tensors(value: Any) -> list[torch.Tensor]:
    """Those that lists, tuples and dicts hold."""
    return [each for each in tree_leaves(value) if isinstance(each, torch.Tensor)]


def _each(value: Any, change: Callable[[Any], Any]) -> Any:
    """Change all that lists, tuples and dicts hold."""
    if isinstance(value, (list, tuple)):
        return type(value)([_each(part, change) for part in value])
    if isinstance(value, dict):
        return {name: _each(part, change) for name, part in value.items()}
    return change(value)


def _place(device: torch.device) -> torch.device:
    """A device as Python is told it: "cuda" and "cpu:1" are both "cuda:0"."""
    if device.type == "cpu" and not device.index:
        return CPU
    return torch.device("cuda", (device.index or 0) - (device.type == "cpu"))


def _inner(value: Any) -> Any:
    """What an operation is really given: the tensor inside, and the CPU for every device."""
    return value.inner if isinstance(value, Pretended) else CPU if isinstance(value, torch.device) else value


def _refuse_mixed(func: Any, args: Any, given: list[torch.Tensor], home: torch.device) -> None:
    """Raise where tensors of two devices meet, and it is none of the exceptions that torch makes."""
    indices = {id(each) for each in args[1]} if func in INDEXING else set()
    scalars = torch.Tag.pointwise in func.tags or func in SCALARS
    for each in given:
        from_cpu = each.device == CPU and (id(each) in indices or (scalars and not each.dim() and each is not args[0]))
        if each.device != home and not from_cpu:
            raise RuntimeError(
                "Expected all tensors to be on the same device, but found at least two devices, "
                f"{home} and {each.device}! ({func})"
            )


def _refuse_generator(given: list[Any], home: torch.device) -> None:
    """Raise where a generator of one device is to draw on another."""
    for each in given:
        if isinstance(each, torch.Generator) and each.device.type != home.type:
            raise RuntimeError(f"Expected a '{home.type}' device type for generator but found '{each.device.type}'")


@contextmanager
def device() -> Iterator[Device]:
    """The mode. As under FakeTensorMode, torch.tensor makes its tensor on the CPU and moves it, which the mode sees.

    Module.to gives modules new parameters: one that is there cannot become another kind of tensor.
    """
    lift, overwrite = torch._C._only_lift_cpu_tensors(), torch.__future__.get_overwrite_module_params_on_conversion()
    torch._C._set_only_lift_cpu_tensors(True)
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        with Device() as mode:
            yield mode
    finally:
        torch._C._set_only_lift_cpu_tensors(lift)
        torch.__future__.set_overwrite_module_params_on_conversion(overwrite)


def driver(patch: pytest.MonkeyPatch) -> None:
    """Let torch.cuda speak of one device with MEMORY bytes, all of them free."""
    said = {"is_available": True, "device_count": 1, "memory_allocated": 0, "max_memory_allocated": 0}
    said |= {"synchronize": None, "reset_peak_memory_stats": None, "get_device_name": "pretended"}
    for name, answer in said.items():
        patch.setattr(torch.cuda, name, lambda *_, answer=answer: answer)
    patch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=MEMORY))
