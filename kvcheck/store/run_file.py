"""A run as JSON and back: exact, sorted, written whole or not at all."""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TypeVar

from kvcheck import __version__
from kvcheck.core import env
from kvcheck.core.errors import BaselineError, KvcheckError
from kvcheck.core.escape import json_text
from kvcheck.core.files import expect_plain, write_atomically
from kvcheck.core.formats import Json
from kvcheck.core.front import ANY, command
from kvcheck.core.record import SCHEMA, CaseId, CaseRecord, Run, RunHeader, Verdict
from kvcheck.store.text import ModelId
from kvcheck.store.validate import check_case, shown, strict_json

T = TypeVar("T")


def dumps(value: object) -> str:
    """One line of JSON for a dataclass of record.py. A case id is written as its text. Refuses NaN and infinity."""
    text = json.dumps(value, default=_plain, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return json_text(text)


def loads(kind: type[T], text: str) -> T:
    """Read `dumps(value)` of a dataclass back. Raises TypeError, KeyError, ValueError or SpecError."""
    return typing.cast(T, _build(kind, strict_json(text)))


def case_from_json(text: str) -> CaseRecord:
    """Read `dumps(record)` back."""
    return loads(CaseRecord, text)


def verdicts_from_json(text: str) -> tuple[Verdict, ...]:
    """Read `dumps(verdicts)` back."""
    return typing.cast("tuple[Verdict, ...]", _build(tuple[Verdict, ...], json.loads(text)))


def header(
    root: Path,
    model_name: str,
    fingerprint: str,
    machine: Mapping[str, str],
    settings: Mapping[str, str],
    sources: Mapping[str, str] | None = None,
    time: str = "",
) -> RunHeader:
    """What must be known to judge a run years later. root: of the project, for its commit. time: of its begin, by
    default now.
    """
    commit, dirty = env.git_state(root)
    return RunHeader(
        kvcheck=__version__,
        git=commit,
        dirty=dirty,
        packages=env.packages(),
        machine=dict(machine),
        model=fingerprint,
        model_name=ModelId.of(model_name, fingerprint).name,
        settings=dict(settings),
        sources=dict(sources or {}),
        time=time or env.now(),
        branch=env.git_branch(root),
    )


def write_run(path: str | Path, run: Run) -> None:
    """Write a run file. The same run gives the same bytes. Raises KvcheckError when it cannot be written."""
    write_atomically(str(path), run_to_json(run))


def run_to_json(run: Run) -> str:
    """The text of a run file: header first, then one line per case, sorted, then verdicts, failures and the rest."""
    cases = sorted(run.cases, key=lambda record: (record.case, record.method))
    verdicts = [f"    {_text(key)}: {dumps(run.verdicts[key])}" for key in sorted(run.verdicts)]
    parts = [
        f'  "header": {dumps(run.header)}',
        '  "cases": [\n' + ",\n".join(f"    {dumps(case)}" for case in cases) + "\n  ]",
        '  "verdicts": {\n' + ",\n".join(verdicts) + "\n  }",
        f'  "failures": {dumps(run.failures)}',
    ]
    properties = sorted(run.properties, key=lambda one: (one.method, one.name))
    begun = sorted(run.partial, key=lambda record: (record.case, record.method))
    zoo = sorted(run.zoo, key=lambda one: (one.correct, one.family, one.name, one.counterpart))
    more: dict[str, Sequence[object]] = {
        "properties": properties,
        "partial": begun,
        "zoo": zoo,
        "findings": run.findings,
    }
    for name, found in more.items():
        if found:
            parts.append(f'  "{name}": [\n' + ",\n".join(f"    {dumps(one)}" for one in found) + "\n  ]")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def read_run(path: str | Path) -> Run:
    """Read a run file. Raises KvcheckError that names the file: missing, truncated, or of another schema."""
    try:
        expect_plain(path)
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise KvcheckError(
            f"{path} cannot be read: {error}", f"write one with: {command(ANY, json='run.json')}"
        ) from error
    return run_from_json(text, str(path))


def run_from_json(text: str, name: str = "the run") -> Run:
    """Read the text of a run file. Raises BaselineError."""
    again = f"write it again: {command(ANY, json='run.json')}, or kvcheck speed --methods … --json run.json"
    try:
        data = strict_json(text)
    except ValueError as error:
        raise BaselineError(f"{name} is not a whole run file: {error}", again) from error
    if not isinstance(data, dict) or not isinstance(data.get("header"), dict):
        raise BaselineError(f"{name} is not a kvcheck run file", again)
    schema = data["header"].get("schema")
    if schema != SCHEMA:
        raise BaselineError(f"{name} has schema {shown(schema)}; this kvcheck reads schema {SCHEMA}", again)
    try:
        run = typing.cast(Run, _build(Run, data))
        _expect_each_once(run)
        for record in (*run.cases, *run.partial):
            check_case(record)
        return run
    except KvcheckError as error:
        raise BaselineError(f"{name} cannot be read: {error.message}", again) from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise BaselineError(f"{name} cannot be read: {error}", again) from error


def _expect_each_once(run: Run) -> None:
    """Raise ValueError for a case that is there twice."""
    seen = set[tuple[CaseId, str]]()
    for record in run.cases:
        if (record.case, record.method) in seen:
            raise ValueError(f"{record.case} of {record.method} is there twice")
        seen.add((record.case, record.method))


def _text(value: str) -> str:
    return json_text(json.dumps(value, ensure_ascii=False))


def _plain(value: Json) -> object:
    """A dataclass as JSON takes it."""
    return str(value) if isinstance(value, CaseId) else {each.name: getattr(value, each.name) for each in fields(value)}


def _build(wanted: Json, value: Json) -> Json:
    """The value as the type that the dataclass declares. Raises TypeError, KeyError or ValueError."""
    origin, args = typing.get_origin(wanted), typing.get_args(wanted)
    if origin in (typing.Union, types.UnionType):
        inner = [option for option in args if option is not type(None)]
        return None if value is None else _build(inner[0], value)
    if wanted is CaseId:
        return CaseId.parse(value)
    if isinstance(wanted, type) and is_dataclass(wanted):
        hints = typing.get_type_hints(wanted)
        unknown = set(value) - hints.keys()
        if unknown:
            raise ValueError(f"unknown field {sorted(unknown)[0]!r} in {wanted.__name__}")
        return wanted(**{key: _build(hints[key], item) for key, item in value.items()})
    if origin is tuple:
        each = [args[0]] * len(value) if args[-1] is Ellipsis else list(args)
        return tuple(_build(kind, item) for kind, item in zip(each, value, strict=True))
    if origin is dict:
        return {key: _build(args[1], item) for key, item in value.items()}
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(wanted, type) and not (isinstance(value, wanted) and (wanted is bool or not isinstance(value, bool))):
        raise TypeError(f"{shown(value)} is not a {wanted.__name__}")
    return value
