"""The methods under test: one module each, found by name, imported on demand. No torch here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvcheck.errors import SpecError
from kvcheck.registry import Registry, load_dotted
from kvcheck.spec import Spec, bind

if TYPE_CHECKING:
    from kvcheck.methods.base import Method

METHODS: Registry[type[Method]] = Registry(
    "method", "kvcheck.methods", "kvcheck.methods", skip=("base", "attention", "cache", "host", "rows")
)


def make(text: str | Spec) -> Method:
    """Build the method that a spec names: a registered one, or `package.module.Class`. Raises SpecError."""
    from kvcheck.methods.base import Method

    spec = Spec.parse(text) if isinstance(text, str) else text
    found = load_dotted(spec.name) if spec.is_path else METHODS.get(spec.name)
    if not (isinstance(found, type) and issubclass(found, Method)):
        raise SpecError(
            f"{spec.name} is not a method: {found!r} is no subclass of kvcheck.methods.base.Method",
            "write a frozen dataclass that derives from Method and defines layer(shape, index)",
        )
    return bind(spec, found)
