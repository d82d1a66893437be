"""What is refused before anything is measured, of settings alone: `pytest` and `kvcheck baselines record` share it."""

from __future__ import annotations

import os
from pathlib import Path

from kvcheck.core import kept
from kvcheck.core.errors import SpecError
from kvcheck.core.front import option
from kvcheck.core.settings import Settings
from kvcheck.models import synthetic


def recording_in_ci(settings: Settings) -> None:
    """In CI a baseline is written only where that was asked for by a second option."""
    if settings.record and os.environ.get("CI") and not settings.record_in_ci:
        raise SpecError(
            f"{option('record', settings.record)} is off where CI is set: CI may not overwrite its own baselines",
            f"to record here on purpose, add {option('record_in_ci')}",
            option="record_in_ci",
        )


def more_contexts(settings: Settings) -> None:
    """Contexts are added until a run is decided: what is not judged so has none to add."""
    what = {"record": settings.record, "zoo": settings.zoo, "findings": settings.findings}
    found = [name for name, asked in what.items() if asked]
    if settings.times > 1 and found:
        raise SpecError(
            f"{option('n', settings.n)} goes on until a run is decided, and {option(found[0])} decides nothing by it",
            f"give a number: {option('n', 16)}",
            option="n",
        )


def known_place(settings: Settings) -> None:
    """Refuse an address that nobody reads or that is to be recorded into, and a folder that is not there.

    A folder that will be recorded into, or that has a store below it, need not be there yet.
    """
    if settings.baselines is None:
        return
    from kvcheck.store.baselines import open_place, places

    found = places(settings.baselines)
    for at, place in enumerate(found):
        store = open_place(place)
        if at == 0 and settings.record and not store.writable:
            store.expect_room()  # says how
        later = at == 0 and (settings.record or len(found) > 1)
        if store.writable and not later and not Path(store.root).is_dir():
            raise SpecError(
                f"{option('baselines')}: there is no folder {place}",
                f"check the spelling, or add {option('record', 'new')}",
                option="baselines",
            )


def prefill_place(settings: Settings) -> None:
    """Refuse a folder for prefills that cannot be written."""
    if settings.prefill_cache is not None:
        kept.expect_folder(Path(settings.prefill_cache).expanduser())


def expect_room(settings: Settings, root: Path) -> None:
    """Refuse to record where nothing can be written, or nothing is answered, before anything is measured."""
    from kvcheck.store.baselines import open_store

    if synthetic.is_random(settings.model):
        raise SpecError(
            f"{settings.model} has random weights: no case of it can be recorded",
            f"name a trained model, or leave {option('record')} out",
        )
    open_store(settings.baselines, root).expect_room()
