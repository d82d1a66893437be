"""The methods under test: one module each, found by name, imported on demand. No torch here.

Read `snapkv.py` first. What several methods share is in kvcheck/cache; `adapters/` makes methods of what others wrote.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Container
from dataclasses import replace
from types import ModuleType
from typing import TYPE_CHECKING

from kvcheck.core.errors import SpecError, did_you_mean
from kvcheck.core.registry import Registry, load_dotted
from kvcheck.core.spec import Spec, bind, building

if TYPE_CHECKING:
    from kvcheck.cache.method import Method

METHODS: Registry[type[Method]] = Registry("method", "kvcheck.methods", "kvcheck.methods", skip=("adapters",))


def make(text: str | Spec) -> Method:
    """Build the method that a spec names: a registered one, `package.module.Class`, or two of them joined by a +.

    What is no Method (a kvpress press, a transformers cache, a function) is adapted. Raises SpecError.
    """
    from kvcheck.cache.method import Method, expect_method
    from kvcheck.methods.adapters import NAMED

    spec = Spec.parse(text) if isinstance(text, str) else text
    if spec.then is not None:
        from kvcheck.cache.composed import Composed

        first, second = make(replace(spec, then=None)), make(spec.then)
        with building(spec):
            return Composed(first, second)
    if spec.name in NAMED:
        from kvcheck.methods.adapters import hf

        return hf.named(spec)
    found = _find(spec.name)
    if isinstance(found, type) and issubclass(found, Method):
        expect_method(found, spec.name)
        method = bind(spec, found)
        with building(spec):
            str(method.spec)  # messages name it so: one that cannot say it is refused here
        return method
    from kvcheck.methods.adapters import recognise

    return recognise.adapt(spec, found)


def canonical(text: str | Spec) -> Spec:
    """The one spec of all that mean the same method, `snapkv` for `snapkv: budget=0.5`. Raises SpecError.

    Only where parameters are given is the method's code imported. Values are not checked: `make` does that.
    """
    from kvcheck.core import spec as specs
    from kvcheck.methods.adapters import NAMED

    spec = Spec.parse(text) if isinstance(text, str) else text
    then = None if spec.then is None else canonical(spec.then)
    if spec.params:
        if spec.name in NAMED:
            from kvcheck.methods.adapters import hf

            found: object = hf.CACHES[spec.name]
        else:
            found = _find(spec.name)
        if callable(found):
            spec = specs.canonical(spec, found)
    return replace(spec, then=then)


def canonical_of(text: str, names: Container[str]) -> str:
    """The one spec of a method that a file names, where all of its parts are among these names; else as it stands.

    Code of no other method is imported: a file may name anything.
    """
    try:
        part: Spec | None = Spec.parse(text)
        while part is not None:
            if part.name not in names:
                return text
            part = part.then
        return str(canonical(text))
    except SpecError:
        return text


def _find(name: str) -> object:
    """What a name stands for: registered, or an import path. Raises SpecError."""
    from kvcheck.methods.adapters import NAMED

    if name in METHODS or "." not in name:
        return METHODS.get(name)
    try:
        return load_dotted(name)
    except SpecError as error:
        if name.startswith("transformers."):
            raise SpecError(error.message, did_you_mean(name, NAMED)) from None
        raise


def _moved(name: str) -> type:
    """What own methods imported from kvcheck.methods.base and .cache before `kvcheck` had it."""
    import kvcheck

    if name.startswith("__"):
        raise AttributeError(name)
    found = getattr(kvcheck, {"KVLayer": "CacheLayer"}.get(name, name))
    warnings.warn(f"{name} is imported from `kvcheck` now: {found.__name__}", DeprecationWarning, stacklevel=2)
    return found


for _old in ("base", "cache"):
    sys.modules[f"{__name__}.{_old}"] = _module = ModuleType(f"{__name__}.{_old}")
    _module.__getattr__ = _moved  # type: ignore[method-assign]
