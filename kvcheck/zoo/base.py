"""What a bug of the zoo is: a class that breaks a correct method as a public project once broke its own.

One module per family. A bug is a subclass of its counterpart's class, with the same parameters and the same
declarations, so that it is the method after a bad commit. Its docstring says what is broken, where it was
found, and when it shows.

    @bug("nkept-floors-to-zero", "https://github.com/NVIDIA/kvpress/pull/264")
    class NkeptFloorsToZero(TOVA):
        # what is broken, as a docstring

    @used_by(NkeptFloorsToZero)
    class FlooringLayer(TOVALayer):
        def evict(self, queries): ...
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from kvcheck.cache.kv_cache import CacheLayer, KVCache
from kvcheck.cache.method import Method
from kvcheck.cache.method_runner import MethodRunner
from kvcheck.core.errors import SpecError, did_you_mean
from kvcheck.core.spec import Spec

FAMILIES = (
    "accounting",
    "batching",
    "beam",
    "chunked_prefill",
    "config",
    "eviction",
    "loading",
    "long_generation",
    "masking",
    "merging",
    "positions",
    "prefix_reuse",
    "quantization",
    "sparse_attention",
    "state_leak",
)

Faulty = TypeVar("Faulty", bound=type[Method])
Part = TypeVar("Part", bound=type[CacheLayer] | type[MethodRunner] | type[KVCache])


@dataclass(frozen=True)
class Bug:
    """A faulty method. name: its id in the catalogue; counterpart: the spec of the correct method that it breaks."""

    name: str
    url: str
    counterpart: str
    faulty: type[Method]

    @property
    def family(self) -> str:
        """The module that it is in."""
        return self.faulty.__module__.rpartition(".")[2]

    @property
    def mechanism(self) -> str:
        """What is broken: the first paragraph of the docstring."""
        return " ".join(inspect.cleandoc(self.faulty.__doc__ or "").partition("\n\n")[0].split())

    @property
    def spec(self) -> str:
        """The spec of the faulty method: its import path, with the parameters of its counterpart."""
        return str(Spec(self.faulty.name(), Spec.parse(self.counterpart).params))


_KNOWN: dict[str, Bug] = {}


def bug(name: str, url: str, params: str = "") -> Callable[[Faulty], Faulty]:
    """Put a faulty method into the zoo. params: those that its counterpart, the class that it is derived from, has."""

    def add(faulty: Faulty) -> Faulty:
        counterpart: type[Method] = faulty.__mro__[1]
        _KNOWN[name] = Bug(name, url, ":".join(filter(None, (counterpart.name(), params))), faulty)
        return faulty

    return add


def used_by(method: type[Method]) -> Callable[[Part], Part]:
    """Have a method use the decorated class in place of what it inherits: for its layers, as its runner, or as cache.

    It is what most bugs come down to: all of a method is as before, and one function of its layer or runner is not.
    """

    def use(part: Part) -> Part:
        new: Callable[..., object] = part
        build = method.build
        changed: dict[str, Callable[..., object]] = {
            "layer": lambda self, shape, index: new(shape, index, self),
            "runner": lambda self, loaded: new(self, loaded),
            "build": lambda self, shape, store_dtype=None: new(build(self, shape, store_dtype).layers, store_dtype),
        }
        name = "layer" if issubclass(part, CacheLayer) else "runner" if issubclass(part, MethodRunner) else "build"
        setattr(method, name, changed[name])
        return part

    return use


def bugs(names: tuple[str, ...] = ()) -> tuple[Bug, ...]:
    """All bugs, or those of these names or families, by family and name. Raises SpecError for an unknown name."""
    for family in FAMILIES:
        importlib.import_module(f"kvcheck.zoo.{family}")
    known = sorted(_KNOWN.values(), key=lambda one: (one.family, one.name))
    for name in names:
        if name not in _KNOWN and name not in FAMILIES:
            raise SpecError(f"no bug and no family is called {name!r}", did_you_mean(name, [*_KNOWN, *FAMILIES]))
    return tuple(one for one in known if not names or one.name in names or one.family in names)
