"""What a property is."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass

from kvcheck.cache.method import Lossless, MethodInfo, Stage
from kvcheck.conformance.draw import LONGEST
from kvcheck.conformance.subject import Subject

Check = Callable[[Subject], None]
Unless = Callable[[MethodInfo], str]


@dataclass(frozen=True)
class Property:
    """check(subject) raises Violation where it does not hold, NotServed where the trial says nothing about the method.

    unless: why it does not follow from what a method declares, "" where it does. longest, steps: of the texts drawn.
    share: of the number of trials, for those that take long.
    """

    check: Check
    unless: Unless
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

    def excuse(self, info: MethodInfo) -> str:
        """Why the property does not apply to a method, "" where it does."""
        return info.exempt.get(self.name) or self.unless(info)


def holds(
    unless: Unless = lambda info: "", longest: int = LONGEST, steps: int = 8, share: float = 1.0
) -> Callable[[Check], Property]:
    """Make a function a property."""
    return lambda check: Property(check, unless, longest, steps, share)


def not_lossless(info: MethodInfo) -> str:
    """Excuses methods that never hold everything."""
    return "it declares no parameters with which everything is held" if info.lossless == Lossless.NEVER else ""


def other_prompt(info: MethodInfo) -> str:
    """Excuses methods that change the text or the model."""
    if info.stage == Stage.PROMPT:
        return "it changes the prompt"
    return "it is another model" if info.stage == Stage.ARCHITECTURE else ""
