"""What a property is."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass

from kvcheck.cache.method import MethodInfo
from kvcheck.conformance.draw import LONGEST
from kvcheck.conformance.subject import Subject

Check = Callable[[Subject], None]
SkipReason = Callable[[MethodInfo], str]


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
        return dict(info.exempt).get(self.name) or self.skip_reason(info)


def property_test(
    skip_reason: SkipReason = lambda info: "", longest: int = LONGEST, steps: int = 8, share: float = 1.0
) -> Callable[[Check], PropertyTest]:
    """Make a function a property."""
    return lambda check: PropertyTest(check, skip_reason, longest, steps, share)


def no_whole(info: MethodInfo) -> str:
    """Excuses methods that never hold everything."""
    return "it declares no parameters with which everything is held" if info.whole is None else ""


def other_prompt(info: MethodInfo) -> str:
    """Excuses methods that change the text or the model."""
    if info.stage == "prompt":
        return "it changes the prompt"
    return "it is another model" if info.stage == "architecture" else ""
