"""What a worker does: it holds a model, and measures one block of contexts of a case with a method at a time."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

from kvcheck.core import front
from kvcheck.core.errors import KvcheckError
from kvcheck.core.record import CaseId, CaseRecord
from kvcheck.core.settings import Settings

if TYPE_CHECKING:
    from kvcheck.backends.base import Engine
    from kvcheck.plugin.progress import Progress


@dataclass(frozen=True)
class Job:
    """A block of contexts to measure: of a case, with a method, on the model of the settings. so_far: what is there of
    the case; the block behind it is measured."""

    settings: Settings
    case: CaseId
    method: str
    so_far: CaseRecord | None = None


@dataclass(frozen=True)
class Code:
    """What a worker measures with; it must be what the sweep was started with. sources: digests, see RunHeader."""

    kvcheck: str
    packages: dict[str, str]
    sources: dict[str, str]

    @classmethod
    def here(cls, settings: Settings) -> Code:
        """Of this process."""
        from kvcheck import __version__
        from kvcheck.core import env
        from kvcheck.plugin import sources

        return cls(__version__, env.packages(), sources.of_methods(settings.methods) | sources.of_plugins(None))


@dataclass(frozen=True)
class Done:
    """What came of a job: the record so far, or how the method failed. pid: of the worker's process.

    model_name, fingerprint, machine: as in RunHeader. refused: (message, hint) where the model could not be opened.
    """

    pid: int
    model_name: str = ""
    fingerprint: str = ""
    machine: dict[str, str] = field(default_factory=dict)
    code: Code | None = None
    record: CaseRecord | None = None
    failure: str = ""
    refused: tuple[str, str] | None = None


class Worker:
    """Holds one model at a time. folder: where the sweep was started; methods and models may lie there.

    flags: how messages spell options, see front.flags; None: as here.
    """

    def __init__(self, folder: str, flags: Mapping[str, str] | None = None) -> None:
        from kvcheck.core import threads
        from kvcheck.core.registry import importable

        threads.wait_passively()
        importable(Path(folder))
        if os.path.isdir(folder):  # on another machine it may not be there
            os.chdir(folder)
        self._spell = None if flags is None else front.by(flags)
        self._settings: Settings | None = None
        self._engine: Engine | None = None
        self._opened = Done(os.getpid())

    def ready(self) -> None:
        """Answered as soon as the worker is there."""

    def do(self, job: Job) -> Done:
        """Measure one block. A method that raises or hangs is a failure; one that kills the process ends the worker."""
        with nullcontext() if self._spell is None else front.spelled(self._spell):
            return self._do(job)

    def _do(self, job: Job) -> Done:
        try:
            engine = self._open(job.settings)
        except KvcheckError as error:
            return Done(os.getpid(), refused=(error.message, error.hint))
        except Exception as error:  # such as CUDA out of memory
            what = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}".rstrip(": ")
            return Done(os.getpid(), refused=(f"{job.settings.model} cannot be opened: {what}", ""))
        record, failure = _measured(engine, job)
        return replace(self._opened, record=record, failure=failure)

    def _open(self, settings: Settings) -> Engine:
        """The engine with the model of the settings; another one is let go first."""
        if self._engine is None or self._settings != settings:
            from kvcheck.core import env
            from kvcheck.plugin import pytest_kvcheck_open
            from kvcheck.runner.case import driven

            self._engine = None
            opened = pytest_kvcheck_open(settings=settings)
            if expect_fed := getattr(opened, "expect_fed", None):
                expect_fed()
            self._engine, self._settings = driven(opened, settings), settings
            name, fingerprint = self._engine.model_name, self._engine.fingerprint
            self._opened = Done(os.getpid(), name, fingerprint, env.machine(settings.device), Code.here(settings))
        return self._engine


def _measured(engine: Engine, job: Job) -> tuple[CaseRecord | None, str]:
    """(the record with one block more, or None, and what went wrong), as the fixture `kv_case` measures."""
    from kvcheck.plugin.case import Measuring
    from kvcheck.plugin.item import attempt
    from kvcheck.plugin.state import State
    from kvcheck.store.journal import Kept

    before = job.so_far
    held = 0 if before is None else len(before.samples)
    kept = Kept() if before is None else Kept(records={(str(job.case), job.method): before})
    state = State(job.settings, session=engine, kept=kept)

    def look(record: CaseRecord) -> tuple[str, bool]:
        return "", len(record.samples) > held

    measuring = Measuring(state, engine, job.case, job.method, look, cast("Progress", _Silent()))
    return measuring.run(partial(attempt, timeout=job.settings.timeout))


class _Silent:
    """A worker shows nothing: whoever gives it work does."""

    def update(self, at: object) -> None:
        """Nothing to show."""
