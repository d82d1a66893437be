"""What a field of a record may hold, declared at the field: `score: Annotated[float, number(0, 1)]`.

Whoever reads a file checks its values by these rules (kvcheck/store/validate.py), whoever wrote it.
"""

from __future__ import annotations

import re
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Annotated

SIZE = 2**60
"""Bytes."""


@dataclass(frozen=True)
class Rule:
    """What a value must be, in words, as a test, and as JSON Schema has it."""

    say: str
    allows: Callable[[object], bool]
    schema: Mapping[str, object] = field(hash=False)


def integer(low: int = 0, high: int = SIZE) -> Rule:
    """Never true or false."""

    def allows(value: object) -> bool:
        return type(value) is int and low <= value <= high

    bounds = {"minimum": low, "maximum": high}
    return Rule(f"a whole number from {low} to {high}", allows, {"type": "integer", **bounds})


def number(low: float = 0.0, high: float = 1e300) -> Rule:
    """Never NaN, never infinite, never longer than a float."""

    def allows(value: object) -> bool:
        return type(value) in (int, float) and low <= typing.cast(float, value) <= high

    return Rule(f"a number from {low:g} to {high:g}", allows, {"type": "number", "minimum": low, "maximum": high})


def text(most: int = 1000, least: int = 1) -> Rule:
    """A text of so many characters."""

    def allows(value: object) -> bool:
        return isinstance(value, str) and least <= len(value) <= most

    bounds = {"minLength": least, "maxLength": most}
    return Rule(f"a text of {least} to {most} characters", allows, {"type": "string", **bounds})


def pattern(pattern: str, say: str) -> Rule:
    """A text of this form."""

    def allows(value: object) -> bool:
        return isinstance(value, str) and re.fullmatch(pattern, value, re.ASCII) is not None

    return Rule(say, allows, {"type": "string", "pattern": f"^({pattern})$"})


def one_of(*known: str) -> Rule:
    """One of these texts."""
    return Rule(
        f"one of {', '.join(known)}", lambda value: isinstance(value, str) and value in known, {"enum": list(known)}
    )


def _are_pairs(value: object) -> bool:
    allows = text().allows
    return (
        isinstance(value, tuple)
        and all(isinstance(pair, tuple) and len(pair) == 2 and all(map(allows, pair)) for pair in value)
        and len(dict(value)) == len(value)
    )


FLAG = Rule("true or false", lambda value: type(value) is bool, {"type": "boolean"})
_PAIR = {"type": "array", "items": text().schema, "minItems": 2, "maxItems": 2}
_PAIRS = Rule("pairs of texts under different names", _are_pairs, {"type": "array", "items": _PAIR})
Flag = Annotated[bool, FLAG]
Bytes = Annotated[int, integer()]
Share = Annotated[float, number(0, 1)]
Nats = Annotated[float, number(0, 1e6)]
"""Logits of 16 bits cannot be farther apart."""
Positive = Annotated[float, number()]
Pairs = Annotated[tuple[tuple[str, str], ...], _PAIRS]


@cache
def rules(kind: type) -> dict[str, Rule]:
    """The rules of a dataclass by field; fields of other kinds (parts, which have rules of their own) are left out."""
    hints = typing.get_type_hints(kind, include_extras=True)
    return {name: rule for name, hint in hints.items() if (rule := _rule(hint)) is not None}


def _rule(hint: object) -> Rule | None:
    declared = [one for one in getattr(hint, "__metadata__", ()) if isinstance(one, Rule)]
    if declared:
        return declared[0]
    inner = [found for one in typing.get_args(hint) if (found := _rule(one)) is not None]
    if type(None) not in typing.get_args(hint) or not inner:
        return None
    rule = inner[0]
    return Rule(
        f"{rule.say} or nothing",
        lambda value: value is None or rule.allows(value),
        {"anyOf": [rule.schema, {"type": "null"}]},
    )
