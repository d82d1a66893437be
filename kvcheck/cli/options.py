"""Options that commands share with pytest: declared in kvcheck/core/settings.py, here without their `kv-`."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping
from typing import Any

from kvcheck.core.front import Spell, for_pytest, typed
from kvcheck.core.settings import OPTIONS, Settings


def add(command: argparse.ArgumentParser, *names: str, **how: Any) -> None:
    """Let a command take these options. how: what is otherwise there than declared, such as a default."""
    for name in names:
        option = OPTIONS[name]
        kind = {"metavar": option.metavar} if option.metavar else {"action": "store_true"}
        flag = typed(name.replace("_", "-"), "")
        command.add_argument(flag, **{"dest": name, "default": None, "help": option.help, **kind, **how})


def check(given: Mapping[str, object], names: Iterable[str]) -> Settings:
    """What a command was given for options, checked as pytest's. Raises SpecError."""
    from kvcheck.plugin import parse

    raw = {name: value for name in names if (value := given[name]) is not None}
    return parse.settings(raw, {name: typed(name.replace("_", "-"), "") for name in raw})


def spelling(names: Iterable[str], **others: Spell) -> Spell:
    """How a command spells options in messages: these as `add` does, others their own way, the rest as pytest."""
    known = set(names)

    def spell(name: str, value: str) -> str:
        if name in others:
            return others[name](name, value)
        return typed(name.replace("_", "-"), value) if name in known else for_pytest(name, value)

    return spell


def renamed(word: str) -> Spell:
    """An option that a command calls otherwise."""
    return lambda name, value: typed(word, value)
