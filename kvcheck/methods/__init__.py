"""The methods under test: one module each, found by name, imported on demand. No torch here."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from kvcheck.registry import Registry, load_dotted
from kvcheck.spec import Spec, bind

if TYPE_CHECKING:
    from kvcheck.methods.base import Method

METHODS: Registry[type[Method]] = Registry(
    "method",
    "kvcheck.methods",
    "kvcheck.methods",
    skip=("adapters", "base", "attention", "cache", "composed", "host", "rows"),
)


def make(text: str | Spec) -> Method:
    """Build the method that a spec names: a registered one, `package.module.Class`, or two of them joined by a +.

    What is no Method (a kvpress press, a transformers cache, a function) is adapted. Raises SpecError.
    """
    from kvcheck.methods import adapters
    from kvcheck.methods.base import Method

    spec = Spec.parse(text) if isinstance(text, str) else text
    if spec.then is not None:
        from kvcheck.methods.composed import Composed

        return Composed(make(replace(spec, then=None)), make(spec.then))
    if spec.name in adapters.NAMED:
        return adapters.named(spec)
    found = METHODS.get(spec.name) if spec.name in METHODS or "." not in spec.name else load_dotted(spec.name)
    if isinstance(found, type) and issubclass(found, Method):
        return bind(spec, found)
    return adapters.adapt(spec, found)
