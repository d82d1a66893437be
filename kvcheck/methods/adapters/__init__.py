"""What people have already, as a method: kvpress presses, transformers' caches, a class or function of their own.

    kvpress.SnapKVPress:compression_ratio=0.5       a press, or anything with `with thing(model):`
    transformers.quanto:nbits=4                     a cache of transformers, by name (NAMED)
    my_package.my_module.MyCache:window=64          a Cache or cache layer class
    my_package.my_module.make_cache:window=64       a function (model) -> Cache

A foreign method runs row by row and prefills by itself. kvcheck measures the bytes that its cache really holds and the
answers that it gives; it cannot look at positions, which only kvcheck's own layers know. No torch is imported here
until something is adapted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from kvcheck.methods.adapters.known import NAMED

if TYPE_CHECKING:
    from kvcheck.cache.method import Method
    from kvcheck.core.spec import Spec
__all__ = ["NAMED", "adapt", "factory", "named"]


def named(spec: Spec) -> Method:
    """The cache of transformers that a name in NAMED stands for. Raises SpecError."""
    from kvcheck.methods.adapters import hf

    return hf.named(spec)


def factory(name: str) -> Callable[..., object]:
    """What a name in NAMED is built by."""
    from kvcheck.methods.adapters import hf

    return hf.CACHES[name]


def adapt(spec: Spec, found: object) -> Method:
    """A method made of what an import path led to, recognised by what it is. Raises SpecError."""
    from kvcheck.methods.adapters import recognise

    return recognise.adapt(spec, found)
