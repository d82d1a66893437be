"""The JSON Schema of a run file, made of what record.py declares: `kvcheck schema`."""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass

from kvcheck.core.formats import Json
from kvcheck.core.record import CASE, SCHEMA, CaseId, Run
from kvcheck.core.rules import rules

DIALECT = "https://json-schema.org/draft/2020-12/schema"
PLAIN = {str: "string", int: "integer", float: "number", bool: "boolean"}


def schema() -> dict[str, Json]:
    """The schema. A file that fits it may still be refused by `read_run`, which also looks at what fits together."""
    known: dict[str, Json] = {}
    _add(Run, known)
    known["RunHeader"]["properties"]["schema"] = {"const": SCHEMA}
    top = known.pop("Run")
    return {"$schema": DIALECT, "title": "A run file of kvcheck", **top, "$defs": dict(sorted(known.items()))}


def _add(kind: type, known: dict[str, Json]) -> None:
    """The schema of a dataclass, and of those that its fields hold. A field with a default may be missing, as it is in
    files that are older than it."""
    known[kind.__name__] = {}  # it is being made
    hints, ruled = typing.get_type_hints(kind), rules(kind)
    properties = {name: dict(ruled[name].schema) if name in ruled else _of(hint, known) for name, hint in hints.items()}
    needed = [one.name for one in fields(kind) if one.default is MISSING and one.default_factory is MISSING]
    known[kind.__name__] = {
        "description": " ".join((kind.__doc__ or "").partition("\n\n")[0].split()),
        "type": "object",
        "properties": properties,
        "required": needed,
        "additionalProperties": False,
    }


def _of(hint: Json, known: dict[str, Json]) -> Mapping[str, Json]:
    """What a field of this type holds."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return {"anyOf": [_of(one, known) for one in args if one is not type(None)] + [{"type": "null"}]}
    if hint is CaseId:
        return {"type": "string", "pattern": f"^{_unnamed(CASE)}$"}
    if isinstance(hint, type) and is_dataclass(hint):
        if hint.__name__ not in known:
            _add(hint, known)
        return {"$ref": f"#/$defs/{hint.__name__}"}
    if origin is tuple:
        return {"type": "array", "items": _of(args[0], known)}
    if origin is dict:
        return {"type": "object", "additionalProperties": _of(args[1], known)}
    return {"type": PLAIN[hint]}


def _unnamed(pattern: str) -> str:
    """A regular expression without the names of its groups, which other languages spell otherwise."""
    return re.sub(r"\?P<\w+>", "", pattern)
