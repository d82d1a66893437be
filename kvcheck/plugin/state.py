"""What the hooks and fixtures of one process share, kept on pytest's config. `opening.activate` puts it there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kvcheck.core import env
from kvcheck.core.errors import KvcheckError
from kvcheck.store import journal
from kvcheck.store.run_file import dumps

if TYPE_CHECKING:
    from kvcheck.backends.base import Engine
    from kvcheck.core.record import CaseRecord
    from kvcheck.core.settings import Settings
    from kvcheck.store.journal import Ended, Item, Journal, Kept

DEATHS = 2
"""Workers that may die of a method: it is not tried again then. One may have been killed by something else."""


@dataclass
class State:
    """Settings, the engine once it is open or why it cannot be, and the records that this process already has.

    run_file: where the run is kept, None for nowhere; md_file, html_file: its summaries. kept: what an earlier run has,
    for --kv-resume; anew: of which of its methods the code has changed since. journal: where this process writes what
    it has finished. failed: what an item failed with, by node id. began: when, see RunHeader.time.
    """

    settings: Settings
    session: Engine | None = None
    refusal: str = ""
    run_file: Path | None = None
    md_file: Path | None = None
    html_file: Path | None = None
    kept: Kept | None = None
    anew: tuple[str, ...] = ()
    journal: Journal | None = None
    records: dict[tuple[str, str], CaseRecord] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    began: str = field(default_factory=env.now)

    @property
    def model(self) -> dict[str, str]:
        """Name and fingerprint of the model, once it is open."""
        if self.session is None:
            return {}
        return {"name": self.session.model_name, "fingerprint": self.session.fingerprint}

    def start(self, item: Item | None) -> None:
        """An item begins: written down, so that it can be named should the process die."""
        if self.journal is not None and item is not None:
            self.journal.start(item)

    def end(self, ended: Ended) -> tuple[str, str]:
        """An item is over: written down -> (what rides on its report, why it could not be written, else "")."""
        lost = ""
        if self.journal is not None:
            try:
                self.journal.end(ended)
            except KvcheckError as error:
                lost = ended.failure or str(error)
                ended = replace(ended, failure=lost)
        return dumps(ended), lost

    def died(self, method: str) -> str:
        """Where workers have died of this method in this session, "" where it may be tried. The controller tells."""
        if self.journal is None or self.journal.path.stem == "main":
            return ""
        found = journal.read_file(self.journal.folder / "main.jsonl").died.get(method, [])
        return " and ".join(item.case for item in found[:DEATHS]) if len(found) >= DEATHS else ""


STATE: pytest.StashKey[State] = pytest.StashKey()


def of(config: pytest.Config) -> State:
    """The state of this process, in a session that uses kvcheck."""
    return config.stash[STATE]


def settings(config: pytest.Config) -> Settings:
    """The settings of this session."""
    return of(config).settings


@contextmanager
def in_place(folder: Path | None = None) -> Iterator[None]:
    """Work in a folder, or in the one where this process is; then come back to where it was."""
    before = os.getcwd()
    try:
        if folder is not None:
            os.chdir(folder)
        yield
    finally:
        os.chdir(before)
