"""What every method of a process shares beside the model: settings of the process and of torch, and functions.

A method may change any of it while it runs. What it leaves changed is what the next one is measured with, so it is put
back and the method is named. Only what was there before is compared: modules that are imported late, caches and
attributes that are made at first use are no change. Random generators are put back and nobody is accused: to draw from
them is no fault.
"""

from __future__ import annotations

import operator
import os
import random
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from types import CodeType, FunctionType
from typing import Any

import numpy as np
import torch

import kvcheck.judging.budget
import kvcheck.store.run_file
import kvcheck.tasks.metrics  # noqa: F401  (what judges is there before any method runs, and so it is compared)

SHARED = (
    *("builtins", "copy", "json", "math", "time", "numpy", "pytest", "_pytest.outcomes"),
    *("torch", "torch.nn", "torch.nn.functional", "torch.linalg", "torch._C._nn"),
    *("transformers.cache_utils", "transformers.masking_utils", "transformers.modeling_utils"),
    *("transformers.integrations.sdpa_attention", "transformers.models.auto"),
)
"""Modules whose functions and classes stay what they are, beside all of kvcheck's own."""
CLASSES = (torch.Tensor, torch.nn.Module, torch.nn.Linear, torch.nn.Embedding)
REGISTERS = ("kvcheck", "kvpress")
"""Packages that may put an attention function in place of another one: kvpress wraps all that there are."""
_METHODS = (classmethod, staticmethod, property)


@dataclass(frozen=True)
class Fact:
    """One setting. wrong: whether (before, after) is a change that is held against a method."""

    name: str
    read: Callable[[], Any]
    write: Callable[[Any], Any]
    wrong: Callable[[Any, Any], bool] = operator.ne


def _flag(name: str, owner: object, attribute: str) -> Fact:
    """A setting that is an attribute."""
    return Fact(name, lambda: getattr(owner, attribute, None), lambda value: setattr(owner, attribute, value))


def _cwd() -> str:
    """The working directory, "" where it is gone."""
    with suppress(OSError):
        return os.getcwd()
    return ""


def _umask() -> int:
    """The file mode mask, which can be read only by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _handlers() -> dict[int, Any]:
    """What handles each signal."""
    return {number: signal.getsignal(number) for number in signal.valid_signals()}


def _handle(before: dict[int, Any]) -> None:
    """Put handlers back, which only the main thread may, and only those that Python has set."""
    if threading.current_thread() is not threading.main_thread():
        return
    now = _handlers()
    for number, handler in before.items():
        if now.get(number) is not handler and handler is not None:
            signal.signal(number, handler)


def _stricter(before: list[tuple[object, ...]], after: list[tuple[object, ...]]) -> bool:
    """Whether warnings became errors, or filters are gone. Modules that are imported late add harmless ones."""
    known = set(map(id, before))
    return known - set(map(id, after)) != set() or any(one[0] == "error" for one in after if id(one) not in known)


def _filter(before: list[tuple[object, ...]]) -> None:
    """Put the filters of warnings back, and drop what was decided by others."""
    warnings.filters[:] = before  # type: ignore[index]
    with warnings.catch_warnings():
        pass


def _default_device(device: torch.device) -> None:
    """The device of new tensors; None takes torch's own way to the CPU."""
    torch.set_default_device(None if device.type == "cpu" else device)


def _kernels() -> tuple[bool, ...]:
    """Which kernels of scaled_dot_product_attention may run."""
    cuda = torch.backends.cuda
    return cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled(), cuda.math_sdp_enabled(), cuda.cudnn_sdp_enabled()


def _let(kernels: tuple[bool, ...]) -> None:
    """Let these kernels run."""
    cuda = torch.backends.cuda
    enable = (cuda.enable_flash_sdp, cuda.enable_mem_efficient_sdp, cuda.enable_math_sdp, cuda.enable_cudnn_sdp)
    for turn, on in zip(enable, kernels, strict=True):
        turn(on)


def _deterministic() -> tuple[bool, bool]:
    """Whether torch takes deterministic algorithms only, and whether it warns instead of raising."""
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


def _determine(was: tuple[bool, bool]) -> None:
    """Put that back."""
    torch.use_deterministic_algorithms(was[0], warn_only=was[1])


FACTS = (
    Fact("the recursion limit", sys.getrecursionlimit, sys.setrecursionlimit, operator.gt),  # first: the rest needs it
    Fact("the filters of warnings", lambda: list(warnings.filters), _filter, _stricter),
    Fact("the working directory", _cwd, os.chdir),
    Fact("the umask", _umask, os.umask),
    Fact(
        "environment variables",
        lambda: dict(os.environ),
        os.environ.update,
        lambda before, after: any(after.get(name) != value for name, value in before.items()),
    ),
    Fact("signal handlers", _handlers, _handle),
    _flag("sys.stdin", sys, "stdin"),
    _flag("sys.stdout", sys, "stdout"),
    _flag("sys.stderr", sys, "stderr"),
    Fact("torch's grad mode", torch.is_grad_enabled, torch.set_grad_enabled),
    Fact("torch's default dtype", torch.get_default_dtype, torch.set_default_dtype),
    Fact("torch's default device", torch.get_default_device, _default_device),
    Fact("torch's number of threads", torch.get_num_threads, torch.set_num_threads),
    Fact("torch's precision of products", torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    Fact("torch's deterministic algorithms", _deterministic, _determine),
    Fact("torch's attention kernels", _kernels, _let),
    _flag("torch.backends.cudnn.benchmark", torch.backends.cudnn, "benchmark"),
    _flag("torch.backends.cudnn.deterministic", torch.backends.cudnn, "deterministic"),
)
CHANCE = (
    Fact("torch's seed", torch.get_rng_state, torch.set_rng_state),
    Fact("numpy's seed", np.random.get_state, np.random.set_state),
    Fact("random's seed", random.getstate, random.setstate),
)


class Streams:
    """The files behind descriptors 0 to 2, held open meanwhile."""

    def __init__(self) -> None:
        self.copies: dict[int, int] = {}
        for number in (0, 1, 2):
            with suppress(OSError):
                self.copies[number] = os.dup(number)

    def restored(self) -> list[str]:
        """Put back what was closed or led elsewhere -> what that was."""
        changed = []
        for number, copy in self.copies.items():
            if not _same_file(number, copy):
                os.dup2(copy, number)
                changed.append(f"file descriptor {number}")
            os.close(copy)
        return changed


def _same_file(one: int, other: int) -> bool:
    try:
        return os.path.sameopenfile(one, other)
    except OSError:
        return False


class Names:
    """Functions and classes by the names that others call them by: of modules, of classes, of attention."""

    def __init__(self, classes: Iterable[type]) -> None:
        places: dict[str, object] = {name: sys.modules[name] for name in (*SHARED, *_own()) if name in sys.modules}
        owned = [kind for name in _own() for kind in _classes(name)]
        for kind in dict.fromkeys((*CLASSES, *classes, *owned)):
            places[f"{kind.__module__}.{kind.__qualname__}"] = kind
        self.places = [(name, place, dict(vars(place))) for name, place in places.items()]
        self.registries = [(name, registry, dict(registry)) for name, registry in _registries()]
        found = (_function(value) for _, _, values in self.places for value in values.values())
        self.inside = [(one, _inside(one)) for one in dict.fromkeys(filter(None, found))]

    def restored(self) -> list[str]:
        """Put back what was replaced -> their names."""
        changed = []
        for owner, place, values in self.places:
            now = vars(place)
            for name, value in values.items():
                if now.get(name) is value or not (callable(value) or isinstance(value, _METHODS)):
                    continue
                if not _by_itself(owner, now.get(name)):
                    setattr(place, name, value)
                    changed.append(f"{owner}.{name}")
        for function, before in self.inside:
            if any(now is not then for now, then in zip(_inside(function), before, strict=True)):
                function.__code__, function.__defaults__, function.__kwdefaults__ = before
                changed.append(f"{function.__module__}.{function.__qualname__}")
        for owner, registry, entries in self.registries:
            for name, entry in entries.items():
                if registry.get(name) is not entry and not _registers(registry.get(name)):
                    registry[name] = entry
                    changed.append(f"{owner}[{name!r}]")
        return changed


def _function(value: object) -> FunctionType | None:
    """The function of Python that is called by a name, itself or as a method."""
    found = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
    return found if isinstance(found, FunctionType) else None


def _inside(function: FunctionType) -> tuple[CodeType, tuple[object, ...] | None, dict[str, object] | None]:
    """What a function does, which can be exchanged while it stays the same object."""
    return function.__code__, function.__defaults__, function.__kwdefaults__


def _by_itself(owner: str, value: object) -> bool:
    """Whether a package put a function of its own there: some parts of torch do when they are imported late."""
    package, space = owner.partition(".")[0], getattr(value, "__globals__", {})
    return package != "kvcheck" and space.get("__name__", "").partition(".")[0] == package


def _own() -> list[str]:
    """The modules of kvcheck that are there so far."""
    return [name for name in list(sys.modules) if name == "kvcheck" or name.startswith("kvcheck.")]


@cache
def _classes(module: str) -> tuple[type, ...]:
    """The classes that a module defines."""
    values = list(vars(sys.modules[module]).values())
    return tuple(value for value in values if isinstance(value, type) and value.__module__ == module)


def _registries() -> Iterator[tuple[str, MutableMapping[str, object]]]:
    """Transformers' tables of attention functions and of what makes masks for them."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    yield "ALL_ATTENTION_FUNCTIONS", ALL_ATTENTION_FUNCTIONS
    yield "ALL_MASK_ATTENTION_FUNCTIONS", ALL_MASK_ATTENTION_FUNCTIONS


def _registers(function: object) -> bool:
    """Whether it comes from a package that may replace an attention function."""
    return (getattr(function, "__module__", None) or "").partition(".")[0] in REGISTERS


class Surroundings:
    """All of it at one moment. classes: further ones whose methods stay what they are."""

    def __init__(self, classes: Iterable[type] = ()) -> None:
        self.facts: Mapping[Fact, object] = {fact: fact.read() for fact in FACTS + CHANCE}
        self.names, self.streams = Names(classes), Streams()

    def restored(self) -> list[str]:
        """Put back what was changed since -> what is held against whoever did it, in words. To be called once."""
        changed = []
        for fact, before in self.facts.items():
            if fact in CHANCE:
                fact.write(before)
            elif fact.wrong(before, fact.read()):
                fact.write(before)
                changed.append(fact.name)
        return changed + self.streams.restored() + self.names.restored()


@contextmanager
def untouched(classes: Iterable[type] = ()) -> Iterator[list[str]]:
    """A list that says, when the block is over, what it changed; all of that is put back, also where it raised."""
    changed: list[str] = []
    before = Surroundings(classes)
    try:
        yield changed
    finally:
        changed += before.restored()
