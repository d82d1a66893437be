"""What a property test is, and the register of shipped and own ones. Imports no torch and no Hypothesis."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvcheck.cache.method import Lossless, Stage
from kvcheck.conformance import NAMES
from kvcheck.core.errors import SpecError

if TYPE_CHECKING:
    from kvcheck.cache.method import MethodInfo
    from kvcheck.conformance.subject import Subject

    Check = Callable[[Subject], None]
    SkipReason = Callable[[MethodInfo], str]

LONGEST = 300
LONGER = 1100
"""Tokens of the longest prompt, as drawn for most properties and for those that are cheap or see nearly every fault."""


@dataclass(frozen=True)
class PropertyTest:
    """check(subject) raises Violation where it does not hold, NotServed where the trial says nothing about the method.

    skip_reason: why it does not follow from what a method declares, "" where it does. longest, steps: of the texts
    drawn. share: of the number of trials, for those that take long.
    """

    check: Check
    skip_reason: SkipReason
    longest: int
    steps: int
    share: float

    @property
    def name(self) -> str:
        """That of the function."""
        return self.check.__name__

    @property
    def claim(self) -> str:
        """What holds, in words."""
        return " ".join(inspect.cleandoc(self.check.__doc__ or "").partition("\n\n")[0].split())

    def exemption(self, info: MethodInfo) -> str:
        """Why the property does not apply to a method, "" where it does."""
        return info.exempt.get(self.name) or self.skip_reason(info)


PROPERTIES: dict[str, PropertyTest] = {}
"""Those whose modules were imported. `kvcheck.conformance.properties` imports the shipped ones."""
SHIPPED = "kvcheck.conformance.properties."
_listed: set[str] = set()  # the names that tests were collected from


def property_test(
    skip_reason: SkipReason = lambda info: "", longest: int = LONGEST, steps: int = 8, share: float = 1.0
) -> Callable[[Check], PropertyTest]:
    """Make a function of a Subject a property that is tried on every method, beside the shipped ones.

    An own one is put into conftest.py or a pytest plugin: tests are collected after those were read. It raises where it
    does not hold, an assert will do. Parameters: see PropertyTest. Raises SpecError for a name that is taken, and for
    an own one that comes too late to be tried.
    """

    def register(check: Check) -> PropertyTest:
        one, known = PropertyTest(check, skip_reason, longest, steps, share), PROPERTIES.get(check.__name__)
        shipped = check.__module__.startswith(SHIPPED)
        if (one.name in NAMES and not shipped) or (known and _file(known.check) != _file(check)):
            raise SpecError(f"there is a property {one.name!r} already", "give the function another name")
        if _listed and not shipped and one.name not in _listed:
            raise SpecError(
                f"the property {one.name!r} comes too late: tests were collected already",
                "move it to conftest.py or to a plugin that pytest loads with -p",
            )
        PROPERTIES[one.name] = one
        return one

    return register


def _file(check: Check) -> str:
    """Where a function is written: a file that is read again replaces what it registered."""
    return inspect.unwrap(check).__code__.co_filename


def names() -> tuple[str, ...]:
    """All properties: the shipped ones in their order, then the user's own as they were registered."""
    found = NAMES + tuple(name for name in PROPERTIES if name not in NAMES)
    _listed.update(found)
    return found


def not_lossless(info: MethodInfo) -> str:
    """Excuses methods that never hold everything."""
    looked_at = info.foreign or info.lossless != Lossless.NEVER
    return "" if looked_at else "it declares no parameters with which everything is held"


def other_prompt(info: MethodInfo) -> str:
    """Excuses methods that change the text or the model."""
    if info.stage == Stage.PROMPT:
        return "it changes the prompt"
    return "it is another model" if info.stage == Stage.ARCHITECTURE else ""
