"""The text form of a method: `NAME:key=value,…`. Values are literals; nothing is evaluated."""

from __future__ import annotations

import ast
import inspect
import re
import shlex
import traceback
import types
import typing
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

from kvcheck.core.errors import KvcheckError, SpecError, did_you_mean
from kvcheck.core.formats import Json
from kvcheck.core.front import for_pytest

Value = int | float | bool | str | None
T = TypeVar("T")

JOINED = 16
"""Methods that may take over from each other in one spec."""

_NAME = re.compile(r"[A-Za-z_]\w*(?:[./-]\w+)*")
_KEY = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*")
_BARE = re.compile(r"[\w./-]+")
_COMMA = re.compile(",")
_OTHER = re.compile(r",(?!\s*[A-Za-z_][\w.]*\s*=)")  # what stands before a key is of the same method
_NEXT = re.compile(r"\+(?=\s*(?:[A-Za-z_]|$))")  # not the sign of a number: 1e+5
_WORDS: dict[str, Value] = {"true": True, "false": False, "none": None}
_FORM = "write NAME or NAME:key=value,key=value, for example snapkv:budget=0.25,window=32"


@dataclass(frozen=True)
class Spec:
    """A name and its parameters, in the order they were given; `then`: the method that takes over what this one keeps.

    >>> str(Spec.parse("snapkv:budget=0.25, window=32"))
    'snapkv:budget=0.25,window=32'
    >>> Spec.parse("snapkv:budget=0.25+kivi:bits=4").then
    Spec(name='kivi', params=(('bits', 4),), then=None)
    """

    name: str
    params: tuple[tuple[str, Value], ...] = ()
    then: Spec | None = None

    def __str__(self) -> str:
        params = ",".join(f"{key}={write_value(value)}" for key, value in self.params)
        first = f"{self.name}:{params}" if params else self.name
        return f"{first}+{self.then}" if self.then is not None else first

    @classmethod
    def parse(cls, text: str) -> Spec:
        """Read the text form. Raises SpecError that quotes the part that cannot be read."""
        first, *others = _split(text, text, _NEXT)
        if others and not "".join(others).strip():
            raise SpecError(f"nothing stands behind the + in {text!r}", "leave the + out, or name a second method")
        if len(others) >= JOINED:
            raise SpecError(f"{len(others) + 1} methods are joined by +: {text[:60]}…", f"join at most {JOINED}")
        then = cls.parse(text[len(first) + 1 :]) if others else None
        name, colon, rest = first.strip().partition(":")
        name = name.strip()
        if _NAME.fullmatch(name) is None:
            raise SpecError(f"not a method name: {name!r} in {text!r}", _FORM)
        if not colon:
            return cls(name, then=then)
        if rest.strip().isidentifier() and rest.strip()[0].isupper():
            raise SpecError(f"no class is written {text!r}", f"with a dot: {name.removesuffix('.py')}.{rest.strip()}")
        params: dict[str, Value] = {}
        for part in _split(rest, text):
            key, value = read_pair(part, text)
            if key in params:
                raise SpecError(f"{key!r} is given twice in {text!r}", "keep one of the two")
            params[key] = value
        return cls(name, tuple(params.items()), then)


def read_pair(part: str, text: str) -> tuple[str, Value]:
    """Read one `key=value` of `text`. Raises SpecError."""
    key, equals, value = part.partition("=")
    key, value = key.strip(), value.strip()
    if not part.strip():
        raise SpecError(f"an empty parameter in {text!r}: a comma or colon with nothing after it", _FORM)
    if not equals:
        raise SpecError(f"{part.strip()!r} in {text!r} has no value", f"write {part.strip()}=VALUE")
    if _KEY.fullmatch(key) is None:
        raise SpecError(f"not a parameter name: {key!r} in {text!r}", _FORM)
    if not value:
        raise SpecError(f"{key!r} has an empty value in {text!r}", f"write {key}=VALUE, or leave {key} out")
    return key, read_value(value, text)


def read_value(word: str, text: str = "") -> Value:
    """Read a literal: int, float, true/false, none, a quoted or a bare string. Raises SpecError."""
    if word.lower() in _WORDS:
        return _WORDS[word.lower()]
    try:
        value = ast.literal_eval(word)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        if _BARE.fullmatch(word):
            return word
        hint = "values are numbers, true, false, none, or text; put text with other characters in quotes"
        raise SpecError(f"cannot read the value {word!r} in {text or word!r}", hint) from None
    if not isinstance(value, (int, float, str)):
        raise SpecError(
            f"the value {word!r} in {text or word!r} is a {type(value).__name__}", "give one number or text"
        )
    return value


def write_value(value: Value) -> str:
    """Write a literal so that read_value gives it back."""
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, str):
        try:
            plain = _BARE.fullmatch(value) is not None and read_value(value) == value
        except SpecError:
            plain = False
        return value if plain else repr(value)
    return repr(value).replace("inf", "1e999")


def flag(spec: Spec | str) -> str:
    """The option of pytest that names a method, as one types it into a shell."""
    return for_pytest("methods", shlex.quote(str(spec)))


def split_specs(text: str) -> list[str]:
    """The methods of a list with commas. Raises SpecError for an open quote.

    >>> split_specs("fp16,snapkv:budget=0.25,window=32")
    ['fp16', 'snapkv:budget=0.25,window=32']
    """
    return [part.strip() for part in _split(text, text, _OTHER)]


def _split(rest: str, text: str, separator: re.Pattern[str] = _COMMA) -> list[str]:
    """Split at the separators, one character each, that stand outside quotes."""
    parts, quote, start, escaped = [], "", 0, False
    for at, char in enumerate(rest):
        if escaped:
            escaped = False
        elif quote:
            escaped = char == "\\"
            quote = "" if char == quote else quote
        elif char in "'\"":
            quote = char
        elif separator.match(rest, at):
            parts.append(rest[start:at])
            start = at + 1
    if quote:
        raise SpecError(f"a quote is opened and not closed in {text!r}", f"add the closing {quote}")
    return [*parts, rest[start:]]


def bind(spec: Spec, factory: Callable[..., T]) -> T:
    """Build a dataclass (or any class with named parameters) from a spec.

    Names and types are checked first: an int is taken where a float is wanted, a bool is never taken for a number.
    Raises SpecError; one raised by `__post_init__` comes through as it is, whatever else is raised becomes one.
    """
    given = arguments(spec, factory)
    with building(spec):
        return factory(**given)


@contextmanager
def building(spec: Spec) -> Iterator[None]:
    """Run the code that builds what a spec names: whatever it raises becomes a SpecError that names the spec."""
    try:
        yield
    except (KvcheckError, KeyboardInterrupt):
        raise
    except ValueError as error:
        raise SpecError(f"{spec}: {error}") from error
    except BaseException as error:  # sys.exit and pytest.skip of the user's code too: not to be built is no skip
        raise SpecError(f"{spec} cannot be built: {raised(error)}", "mend its __init__ or __post_init__") from error


def raised(error: BaseException) -> str:
    """What was raised and where: "RuntimeError: no kernel (mine.py, line 7)"."""
    frames = [] if isinstance(error, SyntaxError) else traceback.extract_tb(error.__traceback__)  # it says it itself
    where = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}".rstrip(": ") + where


def canonical(spec: Spec, factory: Callable[..., object]) -> Spec:
    """The one form of what a spec says: parameters in the order of their declaration, none that says the default.

    Parameters that the factory does not have stay behind the others, for `bind` to refuse. A factory that does not say
    what it takes, as some that are not written in Python, leaves a spec as it is.
    """
    try:
        declared, types = _parameters(factory), parameter_types(factory)
    except (TypeError, ValueError):
        return spec

    def meant(key: str, value: Value) -> Value:
        return float(value) if isinstance(value, int) and _is_float(types[key], value) else value

    def says(key: str, value: Value) -> bool:
        usual = meant(key, declared[key].default)
        return type(usual) is not type(value) or usual != value

    given = dict(spec.params)
    known = [(key, meant(key, given.pop(key))) for key in declared if key in given]
    return replace(spec, params=(*((key, value) for key, value in known if says(key, value)), *given.items()))


def arguments(spec: Spec, factory: Callable[..., object], ready: Mapping[str, object] | None = None) -> dict[str, Json]:
    """The checked parameters of a spec for a factory. ready: values that need no check. Raises SpecError."""
    ready = ready or {}
    given = values_of(spec, parameter_types(factory), ready) | dict(ready)
    missing = [name for name in _required(factory) if name not in given]
    if missing:
        raise SpecError(f"{spec.name} needs {', '.join(missing)}", f"write {spec.name}:{missing[0]}=VALUE")
    return given


def values_of(spec: Spec, kinds: Mapping[str, object], ready: Container[str] = ()) -> dict[str, Json]:
    """The checked parameters of a spec by their names and types. ready: names whose values need no check.

    Raises SpecError.
    """
    given: dict[str, Json] = {}
    for key, value in spec.params:
        if key not in kinds:
            hint = did_you_mean(key, kinds) if kinds else f"it takes none: {spec.name}"
            raise SpecError(f"{spec.name} has no parameter {key!r}", hint)
        wanted = kinds[key]
        if key not in ready and not accepts(wanted, value):
            hint = _type_hint(wanted, value)
            raise SpecError(f"{spec.name}: {key}={write_value(value)} is not {_describe(wanted)}", hint)
        given[key] = float(value) if isinstance(value, int) and _is_float(wanted, value) else value
    return given


def parameter_types(factory: Callable[..., object]) -> dict[str, object]:
    """Parameter names and their types (Any where none is declared)."""
    hints: dict[str, object] = {}
    owners = (factory, getattr(factory, "__init__", None)) if isinstance(factory, type) else (factory,)
    for owner in owners:
        try:
            hints |= typing.get_type_hints(owner)
        except (NameError, AttributeError, TypeError):
            continue
    return {name: hints.get(name, Any) for name in _parameters(factory)}


def _required(factory: Callable[..., object]) -> list[str]:
    return [name for name, parameter in _parameters(factory).items() if parameter.default is parameter.empty]


def _parameters(factory: Callable[..., object]) -> dict[str, inspect.Parameter]:
    star = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    found = inspect.signature(factory).parameters
    return {name: parameter for name, parameter in found.items() if parameter.kind not in star}


def _choices(wanted: object) -> tuple[Value, ...] | None:
    return typing.get_args(wanted) if typing.get_origin(wanted) is Literal else None


def _options(wanted: object) -> tuple[object, ...]:
    """The members of a union, or the type alone."""
    if typing.get_origin(wanted) in (Union, types.UnionType):
        return typing.get_args(wanted)
    return (wanted,)


def accepts(wanted: object, value: Value) -> bool:
    """Whether a literal is of a declared type."""
    return any(_accepts_one(option, value) for option in _options(wanted))


def _accepts_one(option: object, value: Value) -> bool:
    choices = _choices(option)
    if choices is not None:
        return any(value == choice and type(value) is type(choice) for choice in choices)
    if option is Any or option is object:
        return True
    if option is type(None):
        return value is None
    if option is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return option in (int, str, bool) and type(value) is option


def _is_float(wanted: object, value: Value) -> bool:
    """Whether an int was given where only a float is declared."""
    options = _options(wanted)
    return type(value) is int and float in options and int not in options


def _describe(wanted: object) -> str:
    names: dict[object, str] = {
        int: "an int",
        float: "a float",
        bool: "true or false",
        str: "a text",
        type(None): "none",
    }
    words = []
    for option in _options(wanted):
        choices = _choices(option)
        words += (
            [write_value(choice) for choice in choices] if choices is not None else [names.get(option, str(option))]
        )
    return " or ".join(words)


def _type_hint(wanted: object, value: Value) -> str:
    choices = [str(choice) for option in _options(wanted) for choice in _choices(option) or ()]
    if choices:
        return did_you_mean(str(value), choices)
    return f"give {_describe(wanted)}"
