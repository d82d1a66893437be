"""Bytes that a cache holds, counted from the distinct storages that can be reached from it.

A view counts with all of the storage that it keeps alive: evicting by slicing frees nothing, and is seen to.
The only discount is the unused part of a GrowableBuffer. Works on any object: kvcheck's caches, transformers' caches,
a user's class. It does not matter what holds the bytes: tensors and numpy arrays; bytes, buffers, maps and long texts;
files that were written since the process began; numbers in containers, where they are many; whatever of it closures,
partials, generators, bound methods, keys of mappings, modules and classes made on the way hold. Weights of the model
under test are no part of a cache. The globals of a module are out of reach from here: what a prompt leaves there is
measured by elsewhere.py. What a model itself keeps in its modules, StateRunner takes out of them after every forward.
"""

from __future__ import annotations

import array
import ctypes
import dataclasses
import gc
import io
import mmap
import os
import stat
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import (
    AsyncGeneratorType,
    CodeType,
    CoroutineType,
    FrameType,
    FunctionType,
    GeneratorType,
    MethodType,
    ModuleType,
    TracebackType,
)

import numpy as np
import torch
from transformers import Cache, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from kvcheck.cache.growable import GrowableBuffer
from kvcheck.cache.method import Method
from kvcheck.cache.method_runner import MODELS
from kvcheck.cache.shape import ModelShape
from kvcheck.cache.view import Holder, LayerView

Key = tuple[str, int]
"""What names memory: a device and an address, or a kind and the number of an object or a file."""
NUMBERS, SHARE = 4096, 0.25
"""Plain numbers that a cache may have as counters and tables of places. More of them are contents, 8 bytes each, where
they would take more than this share of what else is held."""
LONG = 1024
"""Bytes from which on a text or an integer is no name or number any more."""
SHARED = "shared"
"""The role of what a method itself holds: hyper-parameters, which all of its caches have in common."""
_START = time.time()
_CLOSED = (
    *(bool, float, complex, torch.dtype, torch.device, BaseException, CodeType, FrameType, TracebackType),
    *(PreTrainedModel, PreTrainedConfig, PreTrainedTokenizerBase),
)
_CONTAINERS = (list, tuple, set, frozenset, deque)
_LIVING = (LayerView, Cache)
"""What functions refer to without holding it: the layer that they belong to, or the one that it was copied from."""
_PAUSED = (GeneratorType, CoroutineType, AsyncGeneratorType)
_BUFFERS = (bytes, bytearray, array.array, mmap.mmap, ctypes.Array, ctypes.Structure, ctypes.Union)
_BUILT_IN = ("builtins", "functools", "itertools", "types", "collections")
KNOWN = {"kvcheck", "torch", "transformers", "numpy", *sys.stdlib_module_names}
"""Packages whose functions hold nothing of a cache."""


@dataclasses.dataclass(frozen=True)
class Held:
    """Bytes. kv: keys, values, codes, scales and whatever else is not declared otherwise; meta: positions and scores
    that a layer declares in `meta`; spare: allocated ahead by GrowableBuffers and not used yet (in none of the others);
    host: what a layer declares in `host` and is on the CPU, so that kv is what the device must hold. On a CPU machine
    both are in the same memory."""

    kv: int
    meta: int
    spare: int
    host: int = 0


@dataclasses.dataclass(frozen=True)
class Piece:
    """Memory that was found: what names it, its bytes, how many of them are spare, the tensor where it is one, else
    what holds it."""

    key: Key
    size: int
    role: str
    spare: int = 0
    tensor: torch.Tensor | None = None
    source: object = None


def held(cache: object) -> Held:
    """Count what `cache` holds."""
    sizes: dict[Key, int] = {}
    spare: dict[Key, int] = {}
    roles: dict[Key, set[str]] = {}  # storage -> what those who reach it declare it to be
    for piece in pieces(cache):
        sizes[piece.key] = piece.size
        spare[piece.key] = min(spare.get(piece.key, piece.spare), piece.spare)
        roles.setdefault(piece.key, set()).add(piece.role)
    numbers = sum(size for (kind, _), size in sizes.items() if kind == "numbers")
    few = numbers <= max(8 * NUMBERS, SHARE * (sum(sizes.values()) - numbers))
    total = dict.fromkeys(("kv", "meta", "host"), 0)
    for key, size in sizes.items():
        if key[0] == "numbers" and few:
            continue
        agreed = roles[key].pop() if len(roles[key]) == 1 else "kv"
        total[agreed] += size - spare[key]
    return Held(spare=sum(spare.values()), **total)


def tensors(cache: object) -> Iterator[torch.Tensor]:
    """Every tensor that can be reached from `cache`; a GrowableBuffer as its used part."""
    for piece in pieces(cache):
        if piece.tensor is not None:
            yield piece.tensor


def kept_alive(cache: object) -> int:
    """Bytes of storages that no tensor of the cache covers, and that it keeps alive by views of the rest."""
    sizes: dict[Key, int] = {}
    covered: dict[Key, dict[tuple[int, tuple[int, ...]], int]] = {}
    for piece in pieces(cache):
        if (tensor := piece.tensor) is not None:
            sizes[piece.key] = piece.size - piece.spare
            covered.setdefault(piece.key, {})[tensor.data_ptr(), tuple(tensor.shape)] = tensor.nbytes
    return sum(max(0, size - sum(covered[key].values())) for key, size in sizes.items())


def parts_of(tensor: torch.Tensor) -> list[torch.Tensor]:
    """The plain tensors that a tensor is made of: itself, or those of a wrapper such as a quantized one."""
    inner = _inner(tensor)
    return [part for each in inner for part in parts_of(each)] if inner else [tensor]


def parts_of_models() -> set[int]:
    """The ids of the modules and parameters of all models that methods are at home on: they are part of no cache."""
    return {id(part) for each in MODELS for part in (*each.modules(), *each.parameters())}


def pieces(root: object, left_out: set[int] | None = None) -> Iterator[Piece]:
    """All that can be reached, "kv", "meta" or "host" as declared. Of a method, which is shared, its tensors only.

    left_out: ids of what is not entered, `parts_of_models` where they are not given.
    """
    done: dict[tuple[int, str], object] = {}  # keeps what it has seen alive, so that no id is given out twice
    todo: list[tuple[object, str]] = [(root, "kv")]
    while todo:
        value, role = todo.pop()
        if value is None or isinstance(value, _CLOSED) or (id(value), role) in done:
            continue
        done[id(value), role] = value
        if isinstance(value, (torch.nn.Module, torch.nn.Parameter)):
            left_out = left_out or parts_of_models()
            if id(value) in left_out:
                continue
        if isinstance(value, GrowableBuffer):
            yield _piece(value.tensor, role, value)
        elif isinstance(value, np.ndarray):
            yield _piece(_bytes_of(value), role)
        elif isinstance(value, torch.Tensor):
            inner = _inner(value)
            if not inner:
                yield _piece(value, role)
            own = [part for part in vars(value).values() if not _same_memory(part, value)]
            todo.extend((part, role) for part in (*inner, *own))
        elif (raw := _raw(value)) is not None:
            if role != SHARED:
                yield Piece(*raw, role, source=value)
        else:
            declared = _declared(value) if isinstance(value, Holder) else {}
            role = SHARED if isinstance(value, (Method, ModelShape)) else role
            parts = list(_parts(value))
            large = [(name, part) for name, part in parts if not _small(part)]
            todo.extend((part, declared.get(name, role)) for name, part in large)
            if isinstance(value, (*_CONTAINERS, Mapping)) and len(parts) > len(large) and role != SHARED:
                yield Piece(("numbers", id(value)), 8 * (len(parts) - len(large)), role, source=value)


def _same_memory(part: object, tensor: torch.Tensor) -> bool:
    """Whether an attribute of a tensor is but another name for what the tensor holds."""
    if not isinstance(part, torch.Tensor) or _inner(part) or _inner(tensor):  # a wrapper has no memory of its own
        return False
    return part.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr()


def _small(value: object) -> bool:
    """Whether it is a plain number."""
    return isinstance(value, (float, complex)) or (isinstance(value, int) and value.bit_length() <= 64)


def _piece(tensor: torch.Tensor, role: str, buffer: GrowableBuffer | None = None) -> Piece:
    """The storage of a plain tensor, or of a GrowableBuffer."""
    storage = tensor.untyped_storage()
    if role == SHARED or (role == "host" and tensor.device.type != "cpu"):
        role = "kv"
    key = (str(tensor.device), storage.data_ptr() if storage.nbytes() else 0)
    if buffer is None:
        return Piece(key, storage.nbytes(), role, 0, tensor)
    return Piece(key, storage.nbytes(), role, buffer.unused_bytes, buffer.used)


def _raw(value: object) -> tuple[Key, int] | None:
    """(what names it, bytes) of memory that is no tensor, and of files; None for all that has parts instead."""
    with suppress(ValueError):  # closed meanwhile
        if isinstance(value, _BUFFERS):
            return ("raw", id(value)), memoryview(value).nbytes
        if isinstance(value, io.BytesIO):
            return ("raw", id(value)), value.getbuffer().nbytes
        if isinstance(value, torch.UntypedStorage):
            return (str(value.device), value.data_ptr()), value.nbytes()
        if isinstance(value, int):
            size = sys.getsizeof(value)
            return ("raw", id(value)), size if size >= LONG else 0
        if isinstance(value, (str, Path)):
            size = sys.getsizeof(value) if isinstance(value, str) else 0
            return _file(value) or (("raw", id(value)), size if size >= LONG else 0)
        if isinstance(value, io.IOBase):
            return _file(value.fileno()) or (("raw", id(value)), 0)
    return None


def _file(place: str | Path | int) -> tuple[Key, int] | None:
    """A regular file that was written since the process began: a path, which must be a whole one, or a descriptor."""
    if not isinstance(place, int) and not os.path.isabs(place):
        return None
    with suppress(OSError, ValueError):
        found = os.stat(place)
        if stat.S_ISREG(found.st_mode) and found.st_mtime >= _START:
            return ("file", found.st_ino), found.st_size
    return None


def _declared(owner: Holder) -> dict[str, str]:
    """What a layer or a cache declares its attributes to be."""
    return dict.fromkeys(owner.host, "host") | dict.fromkeys(owner.meta, "meta")


def _bytes_of(array: np.ndarray) -> torch.Tensor:
    """All bytes of the memory that a numpy array keeps alive."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    if array.dtype.hasobject:
        return torch.empty(array.nbytes, dtype=torch.uint8)
    array = array if array.flags.writeable else array.copy()
    return torch.from_numpy(array.reshape(-1).view(np.uint8))


def _inner(tensor: torch.Tensor) -> list[torch.Tensor]:
    """The tensors that a wrapper such as a quantized tensor is made of; none for a plain one."""
    if type(tensor) in (torch.Tensor, torch.nn.Parameter) or not hasattr(tensor, "__tensor_flatten__"):
        return []
    inner = (getattr(tensor, name) for name in tensor.__tensor_flatten__()[0])
    return [each for each in inner if isinstance(each, torch.Tensor)]  # a DTensor names its mesh of devices, too


def _parts(value: object) -> Iterable[tuple[str, object]]:
    """What a value is made of, by name where it has names."""
    if isinstance(value, ModuleType):
        return [] if sys.modules.get(value.__name__) is value else list(vars(value).items())
    if isinstance(value, type):
        return list(vars(value).items()) if _made_on_the_way(value) else []
    if isinstance(value, FunctionType):
        return [("", part) for part in _captured(value) if not isinstance(part, _LIVING)]
    if isinstance(value, MethodType):
        return [("", part) for part in (value.__self__, value.__func__) if not isinstance(part, _LIVING)]
    if isinstance(value, _PAUSED):
        frame = getattr(value, "gi_frame", None) or getattr(value, "cr_frame", None) or getattr(value, "ag_frame", None)
        return [] if frame is None else list(frame.f_locals.items())
    if isinstance(value, memoryview):
        return [("", value.obj)]
    return [*_items(value), *_attributes(value)]


def _items(value: object) -> list[tuple[str, object]]:
    """Of a mapping its keys too; of what Python itself is made of (partials, iterators), all that it refers to."""
    if isinstance(value, Mapping):
        named = [(str(key) if isinstance(key, str) else "", part) for key, part in value.items()]
        return named + [("", key) for key in value]
    if isinstance(value, _CONTAINERS):
        return [("", part) for part in value]
    built_in = type(value).__module__ in _BUILT_IN
    return [("", part) for part in gc.get_referents(value) if part is not type(value)] if built_in else []


def _attributes(value: object) -> list[tuple[str, object]]:
    """Attributes and slots of an object."""
    names = list(vars(value)) if hasattr(value, "__dict__") else []
    for kind in type(value).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        names += [slots] if isinstance(slots, str) else list(slots)
    return [(name, getattr(value, name)) for name in names if hasattr(value, name)]


def _captured(function: FunctionType) -> list[object]:
    """What a function holds: its closure, its defaults, its attributes. Its globals are its module's."""
    if (function.__module__ or "").partition(".")[0] in KNOWN:
        return []
    cells = []
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # an empty one
            cells.append(cell.cell_contents)
    return [*cells, function.__defaults__, function.__kwdefaults__, *vars(function).values()]


def _made_on_the_way(kind: type) -> bool:
    """Whether a class was made while a method ran: its module has none of that name."""
    if kind.__module__.partition(".")[0] in KNOWN:
        return False
    found: object = sys.modules.get(kind.__module__)
    for name in kind.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is not kind
