"""How messages spell options: as the front end that runs takes them, whoever raises.

    raise SpecError("the context is too short", f"ask for a longer {option('lengths')}")

says `--kv-lengths` under pytest and `--lengths` under a command that has that one.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from kvcheck.core.settings import OPTIONS

ANY = "…"
"""In a command: the methods of this session, where a message does not know which one it is about."""
Spell = Callable[[str, str], str]
"""(name of a setting, its value or "") -> what is typed."""


def typed(word: str, value: str) -> str:
    """`--lengths=512`, or `--lengths` without a value."""
    return f"--{word}={value}" if value else f"--{word}"


def for_pytest(name: str, value: str = "") -> str:
    """What is typed for pytest."""
    return OPTIONS[name].flag + (f"={value}" if value else "")


_spell: Spell = for_pytest


def option(name: str, value: object = "") -> str:
    """An option by the name of its setting, with a value where one is given."""
    return _spell(name, str(value))


def flags() -> dict[str, str]:
    """How the front end that runs spells each option, for another process: see `by`."""
    return {name: option(name) for name in OPTIONS}


def by(spelled: Mapping[str, str]) -> Spell:
    """How another process spells options, by its `flags`."""
    return lambda name, value: spelled[name] + (f"={value}" if value else "")


def words(**values: object) -> str:
    """Options as they stand in a command of pytest, whatever front end runs, quoted for a shell."""
    return " ".join(shlex.quote(for_pytest(name, str(value))) for name, value in values.items())


def command(*methods: str, **values: object) -> str:
    """A command of pytest with these methods, quoted for a shell, and options."""
    typed = (for_pytest("methods", method if method == ANY else shlex.quote(method)) for method in methods)
    return " ".join(["pytest", *typed, *([words(**values)] if values else [])])


@contextmanager
def spelled(by: Spell) -> Iterator[None]:
    """In the block, options are spelled by another front end than pytest."""
    global _spell
    before, _spell = _spell, by
    try:
        yield
    finally:
        _spell = before
