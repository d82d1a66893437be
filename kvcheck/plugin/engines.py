"""A run on a real engine: its reference, the same engine with its KV cache at full, is one of its methods."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from kvcheck.backends.engines import specs
from kvcheck.conformance import base as conformance
from kvcheck.core.settings import Settings
from kvcheck.models import names
from kvcheck.plugin import cases
from kvcheck.store.baselines import ModelId, open_store


def joined(settings: Settings, root: Path) -> Settings:
    """The settings with the reference as the first method where it has to be measured in this run.

    Raises SpecError for methods that are not of one engine, and for an engine that is not installed.
    """
    chosen = specs.chosen(settings)
    if chosen is None or specs.FULL in settings.methods or settings.against == "self":
        return settings
    if not settings.record and _on_record(chosen, settings, root):
        return settings
    return replace(settings, methods=(specs.FULL, *settings.methods))


def property_names(settings: Settings) -> tuple[str, ...]:
    """The properties that methods of a run may be tried on, in order."""
    if specs.chosen(settings) is None:
        return conformance.names()
    from kvcheck.backends.engines.properties import PROPERTIES

    return tuple(PROPERTIES)


def _on_record(chosen: specs.Chosen, settings: Settings, root: Path) -> bool:
    """Whether every case of the run has a record of the reference: of this engine, version, dtype and settings."""
    from kvcheck.backends.engines.session import model_id
    from kvcheck.models.fingerprint import fingerprint

    source = names.find(settings.model)
    if not source.local or source.gguf is not None:  # what it is unpacked to is not known yet
        return False
    folder = Path(source.path)
    model = ModelId.of(*model_id(chosen.met(folder), settings, fingerprint(folder)))
    store = open_store(settings.baselines, root)
    found = [(case, store.get(model, specs.FULL, case)) for case in cases.cases(settings, None)]
    return all(one is not None and len(one.samples) >= case.n for case, one in found)
