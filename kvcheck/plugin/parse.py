"""Raw option values into Settings. Every refusal names the option, the value and what would be right.

How an option is checked is declared with it (kvcheck/core/settings.py). What core cannot know, the names of methods and
of tasks, limits and kinds of RoPE, is checked here on top.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kvcheck.core.errors import KvcheckError, SpecError, did_you_mean
from kvcheck.core.formats import read_toml
from kvcheck.core.front import option
from kvcheck.core.record import CAPABILITIES, MODES
from kvcheck.core.settings import AGAINST, OPTIONS, Settings
from kvcheck.core.values import Check

TABLE = "[tool.kvcheck]"


def table(path: Path) -> dict[str, object]:
    """The `[tool.kvcheck]` table of a pyproject.toml, {} where there is none. Raises SpecError."""
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        return {}
    if "kvcheck" not in text:
        return {}
    try:
        found = read_toml(text).get("tool", {}).get("kvcheck", {})
    except ValueError as error:
        raise SpecError(f"{path}: not a TOML file: {error}") from None
    if not isinstance(found, dict):
        raise SpecError(f"{path}: [tool.kvcheck] is not a table")
    other = {option.also: name for name, option in OPTIONS.items() if option.also}
    result = {}
    for key, value in found.items():
        name = key.replace("-", "_")
        name = other.get(name, name)
        if name not in OPTIONS:
            raise SpecError(f"{path}: unknown key {key!r} in [tool.kvcheck]", did_you_mean(name, OPTIONS))
        result[name] = value
    return result


def settings(raw: Mapping[str, object], source: Mapping[str, str]) -> Settings:
    """Check every value. `source` says where each stands and how it is spelled there. Raises SpecError."""
    result: dict[str, Any] = {name: _checked(name, value, source.get(name, name)) for name, value in raw.items()}
    found = Settings(**result)
    if found.trust_remote_code not in ("", found.model):
        both = (option(name, found.model) for name in ("model", "trust_remote_code"))
        raise SpecError(
            f"{source.get('trust_remote_code')}: {found.trust_remote_code} is not the model of this session, "
            f"which is {found.model}",
            f"to run the code that comes with it: {' '.join(both)}",
            option="trust_remote_code",
        )
    return found


def _checked(name: str, value: object, where: str) -> object:
    """The value of an option; of one that is repeated, all of its values, each once."""
    if not OPTIONS[name].repeat:
        return _one(name, value, where)
    if not isinstance(value, (str, list, tuple)):
        raise SpecError(f"{where}: {name} is {value!r}", 'write ["snapkv", "kivi:bits=4"]', option=name)
    found: list[object] = []
    problems: list[KvcheckError] = []
    for one in [value] if isinstance(value, str) else value:
        try:
            found.append(_one(name, one, where))
        except SpecError as error:
            problems.append(error)
    refuse(problems)
    return tuple(dict.fromkeys(found))


def _one(name: str, value: object, where: str) -> object:
    try:
        found = OPTIONS[name].check(value)
        return ABOVE[name](found) if name in ABOVE else found
    except SpecError as error:
        raise SpecError(f"{where}: {error.message}", error.hint, option=name) from None


def refuse(problems: Sequence[KvcheckError]) -> None:
    """Raise one error with all that is wrong, each with its own hint, where something is."""
    if len(problems) == 1:
        raise problems[0]
    if problems:
        raise SpecError("\n".join(str(one) for one in problems), option=problems[0].option)


def method(text: str) -> str:
    """The one spec of all that mean the same method. Raises SpecError for what is neither registered nor a path.

    A class whose code cannot be imported here is left as typed: `opening.check_methods` says why.
    """
    from kvcheck.backends.engines import specs
    from kvcheck.core.spec import Spec, flag, split_specs
    from kvcheck.methods import METHODS, canonical

    if "," in text.partition(":")[0]:
        each = " ".join(map(flag, split_specs(text)))
        raise SpecError(f"one method at a time, not {text!r}", f"give the option again for each: {each}")
    if specs.named(text):
        return str(specs.checked(text))
    spec = Spec.parse(text)
    part: Spec | None = spec
    while part is not None:
        if "." not in part.name and part.name not in METHODS.names():
            hint = did_you_mean(part.name, (*METHODS.names(), *specs.ENGINES.names()))
            hint += "" if hint.startswith("did") else "; a class of your own is package.module.Class"
            raise SpecError(f"unknown method {part.name!r}", hint)
        part = part.then
    try:
        return str(canonical(spec))
    except KvcheckError:
        return str(spec)


def tasks(found: Sequence[str]) -> tuple[str, ...]:
    """Tasks by name; a family stands for all of its tasks. Raises SpecError."""
    from kvcheck.tasks import TASKS, members

    words = tuple(name for word in found for name in members(word) or [word])
    for word in words:
        public = members(word.partition("/")[0])
        other = "capability" if word in CAPABILITIES else "mode" if word in MODES else ""
        if other and word not in TASKS:
            raise SpecError(f"unknown task {word!r}", f"that is a {other}: -m {word}")
        if word not in TASKS and word not in public:
            raise SpecError(f"unknown task {word!r}", did_you_mean(word, public or TASKS.around(word)))
    return words


def budget(value: str | dict[str, Any]) -> dict[str, Any]:
    """The limits that were given, each checked by Budget; None lifts one. Raises SpecError."""
    from kvcheck.core.spec import read_pair
    from kvcheck.judging.budget import Budget

    if isinstance(value, str):
        for part in value.split(","):
            _expect_limit(part.strip(), value)
        Budget.parse(value)
        return dict(read_pair(part, value) for part in value.split(","))
    known = [field.name for field in dataclasses.fields(Budget)]
    for key in value:
        if key not in known:
            raise SpecError(f"unknown budget {key!r}", did_you_mean(key, known))
    Budget(**value)
    return dict(value)


def _expect_limit(part: str, text: str) -> None:
    """Raise SpecError for what is no NAME=NUMBER, with what was meant. A bare number is taken for the drop."""
    found = re.fullmatch(r"([A-Za-z]*)\s*([=: ]?)\s*([^\s,;=:]*)", part)
    if found is None or not part:
        several = ",".join(re.split(r"[;\s]+", text.strip(" ,;"))) or "drop=2,bytes=0.3"
        raise SpecError(f"cannot read the limits {text!r}", f"separate them by commas: {several}")
    name, sign, number = found[1] or "drop", found[2], found[3]
    number = "none" if number.lower() == "none" or (not sign and number == "") else number
    try:
        share = number.endswith("%") and name != "drop"
        meant = "1" if number == "none" else f"{float(number.rstrip('%')) / (100 if share else 1):g}"
    except ValueError:
        meant = "1"
    if sign != "=" or not found[1]:
        raise SpecError(f"{part!r} does not say what is limited, and to what", f"write {name}={meant}")
    if not number or number.endswith("%"):
        raise SpecError(f"{part!r} is no limit: {number!r} is not a number", f"write {name}={meant}")


def rope(text: str) -> str:
    """Another RoPE in its one spelling. Raises SpecError."""
    from kvcheck.models import rope

    return rope.canonical(text)


def against(text: str) -> str:
    """What a method is judged against: one of AGAINST, or the spec of a method. Raises SpecError."""
    from kvcheck.methods import METHODS

    known = (*AGAINST, *METHODS.names())
    if text not in known and not set(text) & set(".:+"):
        raise SpecError(f"unknown value {text!r}", did_you_mean(text, known))
    return text if text in AGAINST else method(text)


ABOVE: dict[str, Check] = {"methods": method, "tasks": tasks, "budget": budget, "rope": rope, "against": against}
"""Options that name what lives above core, with the rest of their checks."""
