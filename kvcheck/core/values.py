"""Checks of what a user gave for an option: the raw value in, the value of the setting out, or a SpecError.

A raw value is a text of the command line, or what TOML has of it. An error does not say which option it is about: that
is said by whoever asked (kvcheck/plugin/parse.py).
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from kvcheck.core.errors import SpecError, did_you_mean
from kvcheck.core.formats import Json

Check = Callable[[Json], Json]
DEVICE = r"auto|cpu|spread|cuda(:\d+)?"


def text(value: object) -> str:
    """Any text but an empty one."""
    if not isinstance(value, str) or not value.strip():
        raise SpecError(f"expected a text, not {value!r}", "give a value, or leave the option out")
    return value.strip()


def text_file(value: object) -> str:
    """The path of a text in UTF-8."""
    found = text(value)
    utf8_text(Path(found).expanduser())
    return found


def utf8_text(path: Path) -> str:
    """What is in a file of UTF-8, its line breaks as `\\n`. Raises SpecError."""
    try:
        found = path.read_text("utf-8-sig")
    except OSError as error:
        raise SpecError(f"{path} cannot be read: {error.strerror or error}", "give a file of natural text") from None
    except UnicodeDecodeError as error:
        raise SpecError(
            f"{path} is not UTF-8: byte {error.start} is {error.object[error.start]:#04x}",
            f"iconv -f LATIN1 -t UTF-8 {shlex.quote(str(path))} > text.txt",
        ) from None
    if not found.strip():
        raise SpecError(f"{path} is empty", "give a file of natural text")
    return found


def flag(value: object) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise SpecError(f"expected true or false, not {value!r}")
    return value


def choice(known: Sequence[str], others: Mapping[str, str] | None = None) -> Check:
    """One of these. others: how else people write them, for the hint."""

    def check(value: object) -> str:
        if value not in known:
            meant = (others or {}).get(str(value), str(value))
            raise SpecError(f"unknown value {value!r}", did_you_mean(meant, known))
        return str(value)

    return check


def words(value: object) -> tuple[str, ...]:
    """Texts by commas, or a list of them, each once."""
    if isinstance(value, str):
        value = value.split(",")
    if not isinstance(value, (list, tuple)):
        raise SpecError(f"expected a list, not {value!r}")
    found = tuple(dict.fromkeys(str(word).strip() for word in value))
    if not found or "" in found:
        raise SpecError(f"empty name in {value!r}", "separate names by commas, without spaces")
    return found


def joined(value: object) -> str:
    """The same, by commas."""
    return ",".join(words(value))


def words_of(known: Sequence[str], what: str) -> Check:
    """Some of these. what: what one is called."""

    def check(value: object) -> tuple[str, ...]:
        found = words(value)
        for word in found:
            if word not in known:
                raise SpecError(f"unknown {what} {word!r}", did_you_mean(word, known))
        return found

    return check


def number(value: object, hint: str) -> float:
    """A finite number. hint: what would be right."""
    with suppress(ValueError, OverflowError):
        if isinstance(value, (str, int, float)) and not isinstance(value, bool) and math.isfinite(float(value)):
            return float(value)
    raise SpecError(f"not a number: {value!r}", hint)


def integer(least: int, most: int) -> Callable[[object], int]:
    """A whole number from least to most."""
    hint = f"a whole number from {least} to {most}"

    def check(value: object) -> int:
        try:
            exact = int(value) if isinstance(value, str) else None  # where a float would round
        except ValueError:
            exact = None
        found = number(value, hint) if exact is None else exact
        if found != int(found) or not least <= found <= most:
            raise SpecError(f"out of range: {value}", hint)
        return int(found)

    return check


AUTO = "auto"
TIMES = 8
"""How many times as many contexts `auto` takes at most, where it does not say."""


def contexts(value: object) -> int | str:
    """A number of contexts, or auto:TIMES."""
    if not isinstance(value, str) or value.partition(":")[0] != AUTO:
        try:
            return integer(1, 10**6)(value)
        except SpecError as error:
            raise SpecError(error.message, f"{error.hint}, or auto") from None
    _, colon, times = value.partition(":")
    return f"{AUTO}:{integer(2, 1000)(times) if colon else TIMES}"


def integers(least: int, most: int) -> Check:
    """Whole numbers by commas, or a list of them; in order, each once."""
    one = integer(least, most)

    def check(value: object) -> tuple[int, ...]:
        return tuple(sorted({one(word) for word in words([value] if isinstance(value, int) else value)}))

    return check


def level(value: object) -> float:
    """The level of a test."""
    hint = "a number above 0, at most 0.5, such as 0.05"
    found = number(value, hint)
    if not 0 < found <= 0.5:
        raise SpecError(f"out of range: {value}", hint)
    return found


def seconds(value: object) -> float:
    """A time limit."""
    hint = "seconds per case, 0 for no limit"
    found = number(value, hint)
    if found < 0:
        raise SpecError(f"out of range: {value}", hint)
    return found


def gigabytes(value: object) -> float:
    """A size on disk."""
    hint = "GB, a number above 0, such as 4"
    found = number(value, hint)
    if found <= 0:
        raise SpecError(f"out of range: {value}", hint)
    return found


def device(value: object) -> str:
    """Where a model computes, as torch writes it, or `spread`."""
    found = text(value)
    if not re.fullmatch(DEVICE, found):
        usual = found.lower().replace("gpu", "cuda")
        known = [usual] if re.fullmatch(DEVICE, usual) else ["auto", "cpu", "cuda", "cuda:0", "spread"]
        raise SpecError(f"unknown device {found!r}", did_you_mean(usual, known))
    return found


def limits(value: object) -> str | dict[str, Json]:
    """Limits as a text or a table; what may be limited, and to what, is the budget's business."""
    if not isinstance(value, (str, dict)):
        raise SpecError(f"expected limits, not {value!r}", "such as drop=2,bytes=0.30")
    return value
