"""Bytes are counted from distinct storages; nothing but spare slots are discounted."""

from __future__ import annotations

import array
import ctypes
import functools
import io
import itertools
import mmap
import os
import threading
from collections import deque, namedtuple
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from kvcheck.cache.growable import GrowableBuffer
from kvcheck.cache.kv_cache import CacheLayer
from kvcheck.cache.method import Method
from kvcheck.cache.method_runner import MODELS
from kvcheck.cache.shape import ModelShape
from kvcheck.measure.memory import Held, held, tensors


def test_a_view_counts_with_all_that_it_keeps_alive():
    full = torch.zeros(1, 2, 100, 8)
    assert held([full[:, :, :10]]).kv == full.nbytes
    assert held([full[:, :, :10].clone()]).kv == full.nbytes // 10


def test_a_storage_counts_once_however_many_reach_it():
    full = torch.zeros(100)
    pair = namedtuple("pair", "one two")(full, full[10:])
    assert held({"a": full, "b": [full.view(10, 10), (pair,)]}).kv == 400


def test_tensors_are_found_in_attributes_slots_dataclasses_and_containers():
    @dataclass
    class Codes:
        scale: torch.Tensor = field(default_factory=lambda: torch.zeros(2))

    class Slotted:
        __slots__ = ("hidden", "unset")

        def __init__(self) -> None:
            self.hidden = {1: {torch.zeros(4)}}

    class Cache:
        def __init__(self) -> None:
            self.layers = [Codes(), Slotted(), (torch.zeros(8, dtype=torch.uint8), None, "text", 3)]
            self.loop = self

    assert held(Cache()) == Held(kv=8 + 16 + 8, meta=0, spare=0)
    assert len(list(tensors(Cache()))) == 3


def test_queues_numpy_arrays_and_attributes_of_containers_count_too():
    class Named(dict):
        pass

    named = Named(keys=torch.zeros(4))
    named.values_too = torch.zeros(2)
    codes = np.zeros(100, dtype=np.uint8)
    frozen = np.zeros(3, dtype=np.float32)
    frozen.flags.writeable = False
    assert held([named, deque([torch.zeros(8)])]).kv == 16 + 8 + 32
    assert held([codes[:10], codes, frozen]).kv == 100 + 12, "a numpy view counts with all that it keeps alive"


def test_a_cache_that_refers_to_the_model_is_not_charged_its_weights():
    class Cache:
        model = torch.nn.Linear(100, 100)

        def __init__(self) -> None:
            self.owner, self.keys = self.model, torch.zeros(4)

    MODELS.add(Cache.model)
    assert held(Cache()).kv == 16
    MODELS.discard(Cache.model)
    assert held(Cache()).kv == 16 + 4 * 10_100, "of another model it holds the weights"


class Holder:
    """A cache that keeps whatever it is given; also an iterator that stands still."""

    def __init__(self, kept: Any) -> None:
        self.kept = kept


KEYS = torch.arange(10_000, dtype=torch.float32)
RAW = KEYS.numpy().tobytes()


def paused(value: Any) -> Any:
    """A generator that holds a value."""

    def run() -> Any:
        yield 0
        yield value

    found = run()
    next(found)
    return found


def mapped() -> mmap.mmap:
    """An anonymous map."""
    found = mmap.mmap(-1, len(RAW))
    found.write(RAW)
    return found


def module_of(kind: type) -> Any:
    """A module with an attribute."""
    found = kind("made") if kind is ModuleType else kind()
    found.kv = KEYS.clone()
    return found


def local() -> threading.local:
    """A thread-local with an attribute."""
    found = threading.local()
    found.kv = KEYS.clone()
    return found


def in_an_attribute() -> torch.Tensor:
    """A small tensor with a large one as its attribute."""
    small = torch.empty(0)
    small.kv = KEYS.clone()
    return small


HIDDEN: dict[str, Callable[[], Any]] = {
    "bytes": lambda: RAW,
    "bytearray": lambda: bytearray(RAW),
    "memoryview": lambda: memoryview(bytearray(RAW)),
    "array": lambda: array.array("f", KEYS.tolist()),
    "a file in memory": lambda: io.BytesIO(RAW),
    "a map": mapped,
    "a buffer of ctypes": lambda: ctypes.create_string_buffer(RAW, len(RAW)),
    "a storage": lambda: KEYS.clone().untyped_storage(),
    "a long text": lambda: RAW.decode("latin-1"),
    "a long number": lambda: int.from_bytes(RAW, "little"),
    "floats": lambda: [row.tolist() for row in KEYS.view(100, 100)],
    "integers": lambda: dict(enumerate(KEYS.int().tolist())),
    "keys of a mapping": lambda: {KEYS.clone(): 0},
    "a partial": lambda: functools.partial(print, KEYS.clone()),
    "a closure": lambda: (lambda kv: lambda: kv)(KEYS.clone()),
    "a default": lambda: eval("lambda kv=kv: kv", {"kv": KEYS.clone(), "__name__": "of_mine"}),
    "a generator": lambda: paused(KEYS.clone()),
    "an iterator": lambda: itertools.cycle([KEYS.clone()]),
    "a method of a tensor": lambda: KEYS.clone().sum,
    "a method of an object": lambda: Holder(KEYS.clone()).__eq__,
    "an attribute of a tensor": in_an_attribute,
    "a class made on the way": lambda: type("Made", (), {"kv": KEYS.clone()}),
    "a module of torch": lambda: module_of(torch.nn.Module),
    "a module of Python": lambda: module_of(ModuleType),
    "a thread-local": local,
}


@pytest.mark.parametrize("where", HIDDEN)
def test_whatever_holds_the_bytes_they_count(where):
    found = held(Holder(HIDDEN[where]())).kv
    assert KEYS.nbytes <= found <= 6 * KEYS.nbytes, "plain numbers count 8 bytes each"


def test_a_file_that_was_written_meanwhile_counts_and_an_older_one_does_not(tmp_path):
    path = tmp_path / "kv.bin"
    path.write_bytes(RAW)
    with path.open("rb") as file:
        for place in (path, str(path), file):
            assert held(Holder(place)).kv == len(RAW)
    os.utime(path, (0, 0))
    assert held(Holder(str(path))).kv == 0


def test_parameters_counters_and_names_are_no_contents():
    class Layer:
        def __init__(self) -> None:
            self.keys = torch.zeros(25_000)
            self.table, self.name = list(range(2000)), "a name"
            self.scales = {"a": 0.5, "b": [0.25] * 100}
            self.kind, self.function = CacheLayer, torch.nn.functional.softmax
            self.shape = ModelShape(1, 2, 1, 8, rope=tuple(0.5 for _ in range(10_000)))

    assert held(Layer()) == Held(kv=100_000, meta=0, spare=0)
    many = Layer()
    many.table = list(range(10_000))
    assert held(many).kv == 100_000 + 80_000 + 8 * (100 + 1), "so many are contents"


def test_only_unused_room_is_discounted():
    buffer = GrowableBuffer(torch.zeros(1, 2, 10, 8))
    assert held(buffer) == Held(kv=640, meta=0, spare=0)
    buffer.append(torch.zeros(1, 2, 1, 8))
    found = held(buffer)
    assert found.kv == 704
    assert found.spare == buffer.tensor.nbytes - 704 > 0
    kept = buffer.tensor
    assert held([buffer, kept]).kv == 704 + found.spare, "a second owner that is no GrowableBuffer sees a full buffer"


class Away(CacheLayer):
    """A layer that declares what it keeps in host memory."""

    host = ("far",)


def test_what_a_layer_declares_to_be_in_host_memory_is_counted_apart():
    layer = Away(ModelShape(1, 2, 1, 8), 0, Method())
    layer.far = [GrowableBuffer(torch.zeros(1, 1, 10, 8)), torch.zeros(4)]
    layer.near = torch.zeros(2)
    assert held(layer) == Held(kv=8, meta=0, spare=0, host=320 + 16)
    layer.far[0].append(torch.zeros(1, 1, 1, 8))
    assert held(layer).host == 352 + 16
    layer.near = layer.far[1]
    assert held(layer) == Held(kv=16, meta=0, spare=held(layer).spare, host=352), "what is also held otherwise is kv"
    layer.far = torch.zeros(4, device="meta")
    assert held(layer).host == 0, "only the CPU is host memory"


def test_a_room_that_is_only_told_to_be_shorter_still_counts():
    buffer = GrowableBuffer(torch.zeros(1, 2, 1000, 8))
    buffer.length = 10
    assert held(buffer).kv > 0.9 * buffer.tensor.nbytes
    buffer = GrowableBuffer(torch.zeros(1, 2, 1000, 8))
    for _ in range(200):
        buffer.append(torch.zeros(1, 2, 1, 8))
        assert held(buffer).kv == buffer.length * 64, "what append allocated ahead is discounted in full"


def test_transformers_caches_can_be_counted():
    cache = transformers.DynamicCache()
    for layer in range(2):
        cache.update(torch.zeros(1, 2, 5, 8), torch.zeros(1, 2, 5, 8), layer)
    assert held(cache).kv == 2 * 2 * 5 * 2 * 8 * 4


def test_an_empty_cache_holds_nothing():
    assert held(transformers.DynamicCache()) == Held(0, 0, 0)


def test_a_buffer_appends_in_place_and_seldom_moves():
    buffer, moves = GrowableBuffer(torch.zeros(1, 1, 1000, 4)), 0
    for at in range(1000):
        before = buffer.tensor
        buffer.append(torch.full((1, 1, 1, 4), float(at + 1)))
        moves += buffer.tensor is not before
    assert moves <= 8
    assert buffer.length == 2000
    assert torch.equal(buffer.used[0, 0, 1000:, 0], torch.arange(1.0, 1001.0))


def test_a_buffer_keeps_slots_per_head_in_a_new_buffer_of_exact_size():
    buffer = GrowableBuffer(torch.arange(2 * 2 * 6).view(2, 2, 6, 1).float())
    index = torch.tensor([[[0, 5], [1, 2]], [[3, 4], [0, 1]]])
    wanted = buffer.used.gather(2, index.unsqueeze(-1))
    buffer.keep(index, spare=3)
    assert torch.equal(buffer.used, wanted)
    assert buffer.tensor.shape[2] == 5
    assert buffer.unused_bytes == 3 * 2 * 2 * 4
    buffer.drop(1)
    assert torch.equal(buffer.used, wanted[:, :, 1:])
    assert buffer.unused_bytes == 0


def test_a_room_slides_without_copying_what_it_keeps():
    """First slots 0 and 1, then a window of 998: a token comes and the oldest of the window leaves."""
    buffer, moves = GrowableBuffer(torch.arange(1000.0).view(1, 1, 1000, 1)), 0
    for at in range(1000, 2000):
        buffer.append(torch.full((1, 1, 1, 1), float(at)))
        before = buffer.tensor
        buffer.slide(2, 1)
        moves += buffer.tensor is not before
        assert buffer.used.flatten().tolist() == [0, 1, *range(at - 997, at + 1)]
        assert buffer.tensor.nbytes - buffer.unused_bytes == 1000 * 4, "nothing but what is used counts"
    assert moves <= 9
    buffer.keep(torch.tensor([[[0, 999]]]))
    assert buffer.used.flatten().tolist() == [0, 1999]


def test_a_room_that_slides_by_many_gives_their_bytes_back():
    buffer = GrowableBuffer(torch.arange(1000.0).view(1, 1, 1000, 1))
    buffer.append(torch.full((1, 1, 10, 1), -1.0))
    buffer.slide(1, 900)
    assert buffer.used.flatten().tolist() == [0, *range(901, 1000), *[-1] * 10]
    assert buffer.tensor.nbytes - buffer.unused_bytes == 110 * 4


def test_a_room_does_not_write_to_what_it_adopted():
    brought = torch.arange(10.0).view(1, 1, 10, 1)
    buffer = GrowableBuffer(brought)
    buffer.slide(3, 1)
    assert buffer.used.flatten().tolist() == [0, 1, 2, *range(4, 10)]
    assert brought.flatten().tolist() == list(range(10))


def test_a_buffer_lets_go_of_a_larger_tensor():
    buffer = GrowableBuffer(torch.zeros(1, 1, 50, 4)[:, :, :10])
    buffer.own()
    assert buffer.tensor.untyped_storage().nbytes() == 160


class Wrapper(torch.Tensor):
    """A tensor that is made of another one, as quantized ones are; it has no memory of its own."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> Wrapper:
        made = torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=torch.float16)
        made.inner = inner
        return made

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["inner"], None

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        raise NotImplementedError(f"{function}: nothing is computed with it")


def test_wrappers_of_wrappers_hold_what_the_innermost_tensor_holds() -> None:
    codes = torch.zeros(6, dtype=torch.uint8)
    assert held([Wrapper(Wrapper(codes)), codes]).kv == 6
