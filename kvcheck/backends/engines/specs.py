"""Specs of engines, `openvino:KV_CACHE_PRECISION=u8`: their settings are known without importing the engine.

In the records of a run on an engine, "fp16" is that engine with its KV cache at full and everything else alike: `full`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

from kvcheck.backends.engines.base import EngineInfo
from kvcheck.core.errors import SpecError, did_you_mean
from kvcheck.core.front import command, option
from kvcheck.core.registry import Registry
from kvcheck.core.settings import Settings
from kvcheck.core.spec import Spec, values_of

ENGINES: Registry[EngineInfo] = Registry(
    "engine",
    "kvcheck.backends.engines",
    "kvcheck.engines",
    attribute="ENGINE",
    skip=(
        *("base", "specs", "session", "noise", "bench", "properties", "lives"),
        *("openvino_ir", "llamacpp_gguf", "plain_llama", "dialects", "http", "meeting", "said", "start", "keeper"),
    ),
)
FULL = "fp16"
"""The name of the reference in records."""


def named(text: str) -> str:
    """The engine that a spec names, "" for a method."""
    name = text.partition(":")[0].partition("+")[0].strip()
    return name if name in ENGINES.names() else ""


def checked(text: str) -> Spec:
    """A spec with its settings in the order of their declaration. Raises SpecError for an unknown one, and for values
    that are none of its own or do not go together."""
    spec = Spec.parse(text)
    info = ENGINES.get(spec.name)
    if spec.then is not None:
        raise SpecError(f"{text}: nothing takes over from an engine", f"leave the +{spec.then} out")
    unknown = next((key for key, _ in spec.params if key not in info.keys), None)
    if unknown is not None:
        hint = did_you_mean(unknown, info.keys)
        every = "" if hint.startswith("known") else f"; it has {', '.join(info.keys)}"
        raise SpecError(f"{spec.name} has no setting {unknown!r}", hint + every)
    settings = values_of(spec, {name: key.kind for name, key in info.keys.items()})
    info.expect(settings)
    return replace(spec, params=tuple((name, settings[name]) for name in info.keys if name in settings))


def full(spec: Spec) -> Spec:
    """The reference of an engine spec: settings of the KV cache at full, everything else alike."""
    info = ENGINES.get(spec.name)
    keys, given = info.keys, dict(spec.params)
    if info.full is not None:
        own = info.full(given)
        return replace(spec, params=tuple((name, own[name]) for name in keys if name in own))
    found = {
        name: key.full if key.cache else given[name]
        for name, key in keys.items()
        if (key.full is not None if key.cache else name in given)
    }
    return replace(spec, params=tuple(found.items()))


def complete(spec: Spec) -> Spec:
    """What an engine is opened with for a spec: what it does not say of the KV cache is as in the reference.

    A setting that stands in the place of another one, as that of keys alone, is the engine's to sort out. One that runs
    elsewhere is what it is.
    """
    if ENGINES.get(spec.name).full is not None:
        return spec
    given = dict(spec.params)
    both = {**dict(full(spec).params), **given}
    return replace(spec, params=tuple((name, both[name]) for name in ENGINES.get(spec.name).keys if name in both))


@dataclass(frozen=True)
class Chosen:
    """The engine of a run: what it declares, and the spec of its reference."""

    info: EngineInfo
    full: Spec

    @property
    def alike(self) -> Spec:
        """What is alike in all that the reference is held against, wherever that runs."""
        keys = self.info.keys
        return replace(self.full, params=tuple(pair for pair in self.full.params if not keys[pair[0]].place))

    def met(self, folder: Path) -> Chosen:
        """The same, with what only an engine that runs can tell of itself. Raises SpecError where it is not there."""
        meet = self.info.meet
        return self if meet is None else replace(self, info=meet(self.info, folder, dict(self.full.params)))

    def settings_of(self, method: str) -> Spec:
        """The spec behind the name of a method in this run."""
        return self.full if method == FULL else complete(checked(method))


def chosen(settings: Settings) -> Chosen | None:
    """The engine that the methods of a run are at home in, None where they are kvcheck's.

    Raises SpecError where they are not of one engine, or differ in more than the KV cache.
    """
    mine = [text for text in settings.methods if named(text)]
    if not mine:
        return None
    others = [text for text in settings.methods if not named(text) and text != FULL]
    if others:
        raise SpecError(
            f"{mine[0]} runs in an engine, {others[0]} in this process: a run has one of the two",
            f"two runs: {command(mine[0])}, then {command(others[0])}",
        )
    for name, given in (("zoo", settings.zoo), ("findings", settings.findings)):
        if given:
            raise SpecError(f"{option(name)} is about kvcheck's own methods, not about {mine[0]}", "leave one out")
    references = {full(checked(text)): text for text in mine}
    if len(references) > 1:
        first, second, *_ = references.values()
        raise SpecError(
            f"{first} and {second} differ in more than the KV cache: they have no reference in common",
            f"two runs: {command(first)}, then {command(second)}",
        )
    info = ENGINES.get(named(mine[0]))
    _expect_installed(info)
    return Chosen(info, next(iter(references)))


def missing(info: EngineInfo) -> list[str]:
    """The modules of an engine that are not there to be imported."""
    return [name for name in info.modules if find_spec(name) is None]


def too_old(info: EngineInfo) -> bool:
    """Whether what is installed of an engine is a version before the first that will do."""
    from packaging.version import Version

    return bool(info.least and info.version) and Version(info.version) < Version(info.least)


def _expect_installed(info: EngineInfo) -> None:
    lacking = missing(info)
    if lacking or not info.version:
        raise SpecError(f"{info.name} is not installed (no {', '.join(lacking) or info.package})", info.pip)
    if too_old(info):
        raise SpecError(f"{info.name} needs {info.package} {info.least} or newer, this is {info.version}", info.pip)
