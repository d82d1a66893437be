"""Raw option values into Settings. Every refusal names the option, the value and what would be right."""

from __future__ import annotations

import dataclasses
import math
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kvcheck.errors import KvcheckError, SpecError, did_you_mean
from kvcheck.record import CAPABILITIES, MODES
from kvcheck.settings import AGAINST, ATTENTION, CHAT, DTYPES, HISTORY, PROFILES, QUERY_AWARE, RECORD, Settings

ALIASES = {"method": "methods", "length": "lengths", "task": "tasks", "mode": "modes"}
CHOICES = {
    "profile": PROFILES,
    "against": AGAINST,
    "record": RECORD,
    "query_aware": QUERY_AWARE,
    "chat": CHAT,
    "history": HISTORY,
    "dtype": DTYPES,
    "attention": ATTENTION,
}

DEVICE = r"auto|cpu|spread|cuda(:\d+)?"


def table(path: Path) -> dict[str, Any]:
    """The `[tool.kvcheck]` table of a pyproject.toml, {} where there is none. Raises SpecError."""
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        return {}
    if "kvcheck" not in text:
        return {}
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        found = tomllib.loads(text).get("tool", {}).get("kvcheck", {})
    except tomllib.TOMLDecodeError as error:
        raise SpecError(f"{path}: not a TOML file: {error}") from None
    if not isinstance(found, dict):
        raise SpecError(f"{path}: [tool.kvcheck] is not a table")
    known = Settings.names()
    result = {}
    for key, value in found.items():
        name = key.replace("-", "_")
        name = ALIASES.get(name, name)
        if name not in known:
            raise SpecError(f"{path}: unknown key {key!r} in [tool.kvcheck]", did_you_mean(name, known))
        result[name] = value
    return result


def settings(raw: Mapping[str, Any], source: Mapping[str, str]) -> Settings:
    """Check every value. `source` says where each stood, for the message. Raises SpecError."""
    result: dict[str, Any] = {}
    for name, value in raw.items():
        where = source.get(name, name)
        where = where if where.startswith("--") else f"{where} {name}"
        result[name] = READERS.get(name, _text)(value, where, name)
    found = Settings(**result)
    if found.trust_remote_code not in ("", found.model):
        raise SpecError(
            f"{source.get('trust_remote_code')}: {found.trust_remote_code} is not the model of this session, "
            f"which is {found.model}",
            f"to run the code that comes with it: --kv-model={found.model} --kv-trust-remote-code={found.model}",
        )
    return found


def _text(value: Any, where: str, name: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise SpecError(f"{where}: expected a text, not {value!r}")
    return value.strip()


def _choice(value: Any, where: str, name: str) -> str:
    known = CHOICES[name]
    if value not in known:
        raise SpecError(f"{where}: unknown value {value!r}", did_you_mean(str(value), known))
    return str(value)


def _flag(value: Any, where: str, name: str) -> bool:
    if not isinstance(value, bool):
        raise SpecError(f"{where}: expected true or false, not {value!r}")
    return value


def _number(value: Any, where: str, hint: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise SpecError(f"{where}: not a number: {value!r}", hint) from None
    if isinstance(value, bool) or not math.isfinite(number):
        raise SpecError(f"{where}: not a number: {value!r}", hint)
    return number


def _whole(value: Any, where: str, least: int) -> int:
    hint = f"a whole number of at least {least}"
    number = _number(value, where, hint)
    if number != int(number) or number < least:
        raise SpecError(f"{where}: out of range: {value}", hint)
    return int(number)


def _words(value: Any, where: str) -> tuple[str, ...]:
    if isinstance(value, str):
        value = value.split(",")
    if not isinstance(value, (list, tuple)):
        raise SpecError(f"{where}: expected a list, not {value!r}")
    words = tuple(dict.fromkeys(str(word).strip() for word in value))
    if not words or "" in words:
        raise SpecError(f"{where}: empty name in {value!r}", "separate names by commas, without spaces")
    return words


def _modes(value: Any, where: str, name: str) -> tuple[str, ...]:
    words = _words(value, where)
    for word in words:
        if word not in MODES:
            raise SpecError(f"{where}: unknown mode {word!r}", did_you_mean(word, MODES))
    return words


def _tasks(value: Any, where: str, name: str) -> tuple[str, ...]:
    from kvcheck.tasks import TASKS, members

    words = tuple(name for word in _words(value, where) for name in members(word) or [word])
    for word in words:
        public = members(word.partition("/")[0])
        if word in CAPABILITIES and word not in TASKS:
            raise SpecError(f"{where}: unknown task {word!r}", f"that is a capability: -m {word}")
        if word not in TASKS and word not in public:
            raise SpecError(f"{where}: unknown task {word!r}", did_you_mean(word, public or TASKS.around(word)))
    return words


def _lengths(value: Any, where: str, name: str) -> tuple[int, ...]:
    if isinstance(value, int):
        value = [value]
    return tuple(sorted({_whole(word, where, 64) for word in _words(value, where)}))


def _methods(value: Any, where: str, name: str) -> tuple[str, ...]:
    if not isinstance(value, (str, list, tuple)):
        raise SpecError(f"{where}: {name} is {value!r}", 'write ["snapkv", "kivi:bits=4"]')
    values: Iterable[Any] = [value] if isinstance(value, str) else value
    specs: list[str] = []
    problems: list[KvcheckError] = []
    for text in [_text(text, where, name) for text in values]:
        try:
            specs.append(_method(text))
        except SpecError as error:
            problems.append(SpecError(f"{where}: {error.message}", error.hint))
    refuse(problems)
    return tuple(dict.fromkeys(specs))


def _method(text: str) -> str:
    """The one spec of all that mean the same method. Raises SpecError for what is neither registered nor a path.

    A class whose code cannot be imported here is left as typed: `state.check_methods` says why, before the first test.
    """
    from kvcheck.methods import METHODS, canonical
    from kvcheck.spec import Spec

    spec = part = Spec.parse(text)
    while part is not None:
        if "." not in part.name and part.name not in METHODS.names():
            raise SpecError(f"unknown method {part.name!r}", did_you_mean(part.name, METHODS.names()))
        part = part.then
    try:
        return str(canonical(spec))
    except KvcheckError:
        return str(spec)


def refuse(problems: Sequence[KvcheckError]) -> None:
    """Raise one error with all that is wrong, each with its own hint, where something is."""
    if len(problems) == 1:
        raise problems[0]
    if problems:
        raise SpecError("\n".join(str(one) for one in problems))


def _budget(value: Any, where: str, name: str) -> dict[str, Any]:
    """The limits that were given, each checked by Budget; None lifts one."""
    from kvcheck.budget import Budget
    from kvcheck.spec import read_pair

    if not isinstance(value, (str, dict)):
        raise SpecError(f"{where}: expected limits, not {value!r}", "such as drop=2,bytes=0.30")
    try:
        if isinstance(value, str):
            for part in filter(None, map(str.strip, value.split(","))):
                if "=" not in part:
                    raise SpecError(f"{part!r} does not say what is limited, and to what", _limit(part))
            Budget.parse(value)
            return dict(read_pair(part, value) for part in value.split(","))
        known = [field.name for field in dataclasses.fields(Budget)]
        for key in value:
            if key not in known:
                raise SpecError(f"unknown budget {key!r}", did_you_mean(key, known))
        Budget(**value)
    except SpecError as error:
        raise SpecError(f"{where}: {error.message}", error.hint) from None
    return dict(value)


def _limit(word: str) -> str:
    """How one writes a limit of which only a part was given: a bare number is taken for the drop."""
    name, _, number = word.rpartition(":")
    number = number.rstrip("% ")
    try:
        return f"write {name or 'drop'}={float(number):g}"
    except ValueError:
        return f"write {word}=1" if word in ("drop", "bytes", "ttft", "tpot", "nll", "agree", "kl") else "write drop=2"


def _alpha(value: Any, where: str, name: str) -> float:
    number = _number(value, where, "between 0 and 0.5")
    if not 0 < number <= 0.5:
        raise SpecError(f"{where}: out of range: {value}", "between 0 and 0.5, such as 0.05")
    return number


def _device(value: Any, where: str, name: str) -> str:
    text = _text(value, where, name)
    if not re.fullmatch(DEVICE, text):
        usual = text.lower().replace("gpu", "cuda")
        known = [usual] if re.fullmatch(DEVICE, usual) else ["auto", "cpu", "cuda", "cuda:0", "spread"]
        raise SpecError(f"{where}: unknown device {text!r}", did_you_mean(usual, known))
    return text


def _rope(value: Any, where: str, name: str) -> str:
    from kvcheck.models import rope

    try:
        return rope.canonical(_text(value, where, name))
    except SpecError as error:
        raise SpecError(f"{where}: {error.message}", error.hint) from None


def _timeout(value: Any, where: str, name: str) -> float:
    number = _number(value, where, "seconds per case, 0 for no limit")
    if number < 0:
        raise SpecError(f"{where}: out of range: {value}", "seconds per case, 0 for no limit")
    return number


READERS: dict[str, Callable[[Any, str, str], Any]] = {
    **dict.fromkeys(CHOICES, _choice),
    **dict.fromkeys(("compat", "findings", "record_in_ci", "strict"), _flag),
    "methods": _methods,
    "zoo": lambda value, where, name: _words(value, where),
    "lengths": _lengths,
    "tasks": _tasks,
    "modes": _modes,
    "baselines": lambda value, where, name: ",".join(_words(value, where)),
    "n": lambda value, where, name: _whole(value, where, 1),
    "seed": lambda value, where, name: _whole(value, where, 0),
    "budget": _budget,
    "alpha": _alpha,
    "device": _device,
    "rope": _rope,
    "timeout": _timeout,
}
