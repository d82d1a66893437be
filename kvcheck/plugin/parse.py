"""Raw option values into Settings. Every refusal names the option, the value and what would be right."""

from __future__ import annotations

import dataclasses
import math
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kvcheck.core.errors import KvcheckError, SpecError, did_you_mean
from kvcheck.core.record import CAPABILITIES, MODES
from kvcheck.core.settings import AGAINST, ATTENTION, CHAT, DTYPES, HISTORY, PROFILES, QUERY_AWARE, RECORD, Settings

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
DTYPE = {"fp16": "float16", "half": "float16", "bf16": "bfloat16", "fp32": "float32", "single": "float32"}
"""How others write what is meant by a dtype."""
LARGEST = {"lengths": 10**8, "n": 10**6, "seed": 2**63 - 1}


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
        raise SpecError(f"{where}: expected a text, not {value!r}", f"give a value, or leave {where} out")
    return value.strip()


def _choice(value: Any, where: str, name: str) -> str:
    known = CHOICES[name]
    if value not in known:
        meant = DTYPE.get(str(value), str(value)) if name == "dtype" else str(value)
        raise SpecError(f"{where}: unknown value {value!r}", did_you_mean(meant, known))
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


def _whole(value: Any, where: str, name: str, least: int) -> int:
    hint = f"a whole number from {least} to {LARGEST[name]}"
    try:
        number = int(value) if isinstance(value, str) else None  # exactly, where a float would round
    except ValueError:
        number = None
    found = _number(value, where, hint) if number is None else number
    if found != int(found) or not least <= found <= LARGEST[name]:
        raise SpecError(f"{where}: out of range: {value}", hint)
    return int(found)


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
        other = "capability" if word in CAPABILITIES else "mode" if word in MODES else ""
        if other and word not in TASKS:
            raise SpecError(f"{where}: unknown task {word!r}", f"that is a {other}: -m {word}")
        if word not in TASKS and word not in public:
            raise SpecError(f"{where}: unknown task {word!r}", did_you_mean(word, public or TASKS.around(word)))
    return words


def _lengths(value: Any, where: str, name: str) -> tuple[int, ...]:
    if isinstance(value, int):
        value = [value]
    return tuple(sorted({_whole(word, where, name, 64) for word in _words(value, where)}))


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
    from kvcheck.core.spec import Spec, flag, split_specs
    from kvcheck.methods import METHODS, canonical

    if "," in text.partition(":")[0]:
        each = " ".join(map(flag, split_specs(text)))
        raise SpecError(f"one method at a time, not {text!r}", f"give the option again for each: {each}")
    spec = Spec.parse(text)
    part: Spec | None = spec
    while part is not None:
        if "." not in part.name and part.name not in METHODS.names():
            hint = did_you_mean(part.name, METHODS.names())
            hint += "" if hint.startswith("did") else "; a class of your own is package.module.Class"
            raise SpecError(f"unknown method {part.name!r}", hint)
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
    from kvcheck.core.spec import read_pair
    from kvcheck.judging.budget import Budget

    if not isinstance(value, (str, dict)):
        raise SpecError(f"{where}: expected limits, not {value!r}", "such as drop=2,bytes=0.30")
    try:
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
    except SpecError as error:
        raise SpecError(f"{where}: {error.message}", error.hint) from None
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


def _alpha(value: Any, where: str, name: str) -> float:
    hint = "a number above 0, at most 0.5, such as 0.05"
    number = _number(value, where, hint)
    if not 0 < number <= 0.5:
        raise SpecError(f"{where}: out of range: {value}", hint)
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
    "n": lambda value, where, name: _whole(value, where, name, 1),
    "seed": lambda value, where, name: _whole(value, where, name, 0),
    "budget": _budget,
    "alpha": _alpha,
    "device": _device,
    "rope": _rope,
    "timeout": _timeout,
}
