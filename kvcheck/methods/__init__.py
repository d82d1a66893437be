"""The methods under test: one module each, found by name, imported on demand. No torch here."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from kvcheck.errors import SpecError
from kvcheck.registry import Registry, load_dotted
from kvcheck.spec import Spec, bind

if TYPE_CHECKING:
    from kvcheck.methods.base import Method

METHODS: Registry[type[Method]] = Registry(
    "method", "kvcheck.methods", "kvcheck.methods", skip=("base", "attention", "cache", "composed", "host", "rows")
)


def make(text: str | Spec) -> Method:
    """Build the method that a spec names: a registered one, `package.module.Class`, or two of them joined by a +.

    Raises SpecError.
    """
    from kvcheck.methods.base import Method

    spec = Spec.parse(text) if isinstance(text, str) else text
    if spec.then is not None:
        from kvcheck.methods.composed import Composed

        return Composed(make(replace(spec, then=None)), make(spec.then))
    found = load_dotted(spec.name) if spec.is_path else METHODS.get(spec.name)
    if not (isinstance(found, type) and issubclass(found, Method)):
        raise SpecError(
            f"{spec.name} is not a method: {found!r} is no subclass of kvcheck.methods.base.Method",
            "write a frozen dataclass that derives from Method and defines layer(shape, index)",
        )
    return bind(spec, found)
