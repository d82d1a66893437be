"""Which code grades an answer, in twelve hex digits: another digest may give the same answer another score.

Of a function and of all that it uses of kvcheck: its source without comments and docstrings, and the constants that it
reads. A function of another package counts by its name.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import inspect
import re
import textwrap
import types
from collections.abc import Iterator

from kvcheck.tasks.metrics import METRICS

BESIDE = ("ctx", "kind", "type_comment", "type_params")
"""Fields of syntax trees that say nothing of what a function does, or that some versions of Python lack."""
PLAIN = (str, int, float, bool, tuple, frozenset, set, dict, list, type(None))


@functools.cache
def of_metric(name: str) -> str:
    """Of a metric, by name; the name alone where there is none of it here."""
    known = METRICS.get(name)
    return of_code(known.rule) if known is not None else name


def of_code(*functions: object) -> str:
    """Of some functions together."""
    parts: dict[str, str] = {}
    todo: list[tuple[str, object]] = [(str(at), function) for at, function in enumerate(functions)]
    while todo:
        name, value = todo.pop()
        if isinstance(value, functools.partial):
            parts[name] = ascii(sorted(value.keywords.items()))
            todo.append((f"{name}()", value.func))
            continue
        value = inspect.unwrap(value) if callable(value) else value
        if isinstance(value, types.FunctionType) and value.__module__.startswith("kvcheck."):
            key = f"{value.__module__}.{value.__qualname__}"
            if key not in parts or value.__closure__:
                parts[key if not value.__closure__ else f"{name} {key}"] = _source(value)
                todo += _used(value)
        elif isinstance(value, re.Pattern):
            parts[name] = f"{value.pattern!a} {value.flags}"
        elif isinstance(value, PLAIN):
            parts[name] = ascii(sorted(value, key=repr) if isinstance(value, (set, frozenset)) else value)
        else:
            parts[name] = getattr(value, "__qualname__", type(value).__qualname__)
    return hashlib.sha256(ascii(sorted(parts.items())).encode()).hexdigest()[:12]


def _used(function: types.FunctionType) -> Iterator[tuple[str, object]]:
    """(name, what it is) of the globals that a function reads, those of kvcheck's modules too, and of its closure."""
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        yield f"{function.__qualname__}.{name}", cell.cell_contents
    words = set(_words(function.__code__))
    for word in sorted(words & function.__globals__.keys()):
        value = function.__globals__[word]
        if isinstance(value, types.ModuleType):
            inside = sorted(words & vars(value).keys()) if value.__name__.startswith("kvcheck.") else []
            yield from ((f"{value.__name__}.{one}", vars(value)[one]) for one in inside)
        else:
            yield f"{function.__module__}.{word}", value


def _words(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _words(constant)


def _source(function: types.FunctionType) -> str:
    """The source without comments and docstrings, as every Python has it."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(node, ast.FunctionDef) and body and ast.get_docstring(node) is not None:
            node.body = body[1:] or [ast.Pass()]
    return _written(tree)


def _written(node: object) -> str:
    """A syntax tree, or part of one, as text that is the same in every Python from 3.10 on; `ast.unparse` is not."""
    if isinstance(node, ast.AST):
        parts = [
            (name, value) for name, value in ast.iter_fields(node) if name not in BESIDE and value not in (None, [])
        ]
        return f"{type(node).__name__}({', '.join(f'{name}={_written(value)}' for name, value in parts)})"
    return f"[{', '.join(map(_written, node))}]" if isinstance(node, list) else ascii(node)
