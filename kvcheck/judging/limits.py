"""How near a method that calls itself lossless must be to the full cache, by model: `baselines/limits.toml`. Pure.

KL from fp16 differs from model to model by orders of magnitude for the same method, so a limit is that of one model,
known by its fingerprint, and is never carried over to another.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from kvcheck.core.errors import BaselineError
from kvcheck.core.formats import read_toml
from kvcheck.core.paths import bundle
from kvcheck.core.record import LOSSLESS, NEARLY, CaseRecord


@dataclass(frozen=True)
class Limits:
    """Of one model, in nats of KL from fp16 (mean over reference tokens); None: not known. fingerprint: the model's.

    lossless: of methods whose answers are fp16's. nearly: of those that round and call themselves nearly lossless.
    tasks: that it is asked of, () for all.
    """

    fingerprint: str
    lossless: float | None = None
    nearly: float | None = None
    tasks: tuple[str, ...] = ()

    def of(self, record: CaseRecord) -> float | None:
        """What is allowed in this case, None where nothing is claimed or known."""
        elsewhere = record.model != self.fingerprint or (self.tasks and record.case.task not in self.tasks)
        if elsewhere or record.memory is None:
            return None
        if record.memory.does(LOSSLESS):
            return self.lossless
        return self.nearly if record.memory.does(NEARLY) else None


def read(path: Path) -> tuple[Limits, ...]:
    """The limits of a file. Raises BaselineError that names what is wrong."""
    try:
        table = read_toml(path.read_text(encoding="utf-8"))
        return tuple(Limits(**{**part, "tasks": tuple(part.get("tasks", ()))}) for part in table.values())
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise BaselineError(f"{path} cannot be read: {error!r}", "see the shipped file for the format") from error


@cache
def shipped() -> tuple[Limits, ...]:
    """Those that come with kvcheck."""
    return read(bundle("baselines") / "limits.toml")


def lossless(record: CaseRecord) -> float | None:
    """KL that the method of a record may have in its case; None where it claims nothing, or nothing is known."""
    return next((limit for one in shipped() if (limit := one.of(record)) is not None), None)
