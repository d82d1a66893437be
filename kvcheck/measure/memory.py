"""Bytes that a cache holds, counted from the distinct storages that can be reached from it.

A view counts with all of the storage that it keeps alive: evicting by slicing frees nothing, and is seen to.
The only discount is the unused part of append Rooms. Works on any object: kvcheck's caches, transformers' caches,
a user's class. What a cache hides in a module, a closure or a global is out of reach; what a model itself keeps in its
modules, StateHost takes out of them after every forward.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from types import FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch

from kvcheck.methods._room import Room
from kvcheck.methods.cache import KVLayer
from kvcheck.methods.rows import Row

_CLOSED = (str, bytes, int, float, complex, type, ModuleType, FunctionType, MethodType, torch.nn.Module, torch.dtype)
_CONTAINERS = (list, tuple, set, frozenset, deque)


@dataclasses.dataclass(frozen=True)
class Held:
    """Bytes. kv: keys, values, codes, scales and whatever else is not declared otherwise; meta: positions and scores
    that a KVLayer declares in `meta`; room: allocated ahead by append Rooms and not used yet (in none of the others);
    host: what a KVLayer declares in `host` and is on the CPU, so that kv is what the device must hold. On a CPU machine
    both are in the same memory."""

    kv: int
    meta: int
    room: int
    host: int = 0


def held(cache: Any) -> Held:
    """Count what `cache` holds."""
    sizes: dict[tuple[str, int], int] = {}
    spare: dict[tuple[str, int], int] = {}
    roles: dict[tuple[str, int], set[str]] = {}  # storage -> what those who reach it declare it to be
    for tensor, room, role in _tensors(cache):
        storage = tensor.untyped_storage()
        key = (str(tensor.device), storage.data_ptr())
        if not storage.nbytes():
            continue
        sizes[key] = storage.nbytes()
        unused = 0 if room is None else room.unused_bytes
        spare[key] = min(spare.get(key, unused), unused)
        roles.setdefault(key, set()).add("kv" if role == "host" and tensor.device.type != "cpu" else role)
    total = dict.fromkeys(("kv", "meta", "host"), 0)
    for key, size in sizes.items():
        agreed = roles[key].pop() if len(roles[key]) == 1 else "kv"
        total[agreed] += size - spare[key]
    return Held(room=sum(spare.values()), **total)


def tensors(cache: Any) -> Iterator[torch.Tensor]:
    """Every tensor that can be reached from `cache`; the buffer of a Room as its used part."""
    for tensor, room, _ in _tensors(cache):
        yield tensor if room is None else room.used


def parts_of(tensor: torch.Tensor) -> list[torch.Tensor]:
    """The plain tensors that a tensor is made of: itself, or those of a wrapper such as a quantized one."""
    inner = _inner(tensor)
    return [part for each in inner for part in parts_of(each)] if inner else [tensor]


def _tensors(root: Any) -> Iterator[tuple[torch.Tensor, Room | None, str]]:
    """(tensor, the Room whose buffer it is, "kv", "meta" or "host" as declared) for all that can be reached."""
    done: dict[tuple[int, str], Any] = {}  # keeps what it has seen alive, so that no id is given out twice
    todo: list[tuple[Any, str]] = [(root, "kv")]
    while todo:
        value, role = todo.pop()
        if value is None or isinstance(value, _CLOSED) or (id(value), role) in done:
            continue
        done[id(value), role] = value
        if isinstance(value, Room):
            yield value.buffer, value, role
        elif isinstance(value, np.ndarray):
            yield _bytes_of(value), None, role
        elif isinstance(value, torch.Tensor):
            inner = _inner(value)
            if inner:
                todo.extend((part, role) for part in inner)
            else:
                yield value, None, role
        else:
            declared = _declared(value) if isinstance(value, (KVLayer, Row)) else {}
            todo.extend((part, declared.get(name, role)) for name, part in _parts(value))


def _declared(owner: KVLayer | Row) -> dict[str, str]:
    """What a layer or a foreign row declares its attributes to be."""
    return dict.fromkeys(getattr(owner, "host", ()), "host") | dict.fromkeys(owner.meta, "meta")


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
    return [getattr(tensor, name) for name in tensor.__tensor_flatten__()[0]]


def _parts(value: Any) -> Iterable[tuple[str, Any]]:
    """What an object, mapping or sequence is made of, by name."""
    if isinstance(value, Mapping):
        items = [(str(key), part) for key, part in value.items()]
    else:
        items = [("", part) for part in value] if isinstance(value, _CONTAINERS) else []
    names = list(vars(value)) if hasattr(value, "__dict__") else []
    for kind in type(value).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        names += [slots] if isinstance(slots, str) else list(slots)
    return items + [(name, getattr(value, name)) for name in names if hasattr(value, name)]
