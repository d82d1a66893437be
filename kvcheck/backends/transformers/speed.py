"""What a context costs with a method: one row of the table of `kvcheck speed`."""

from __future__ import annotations

import gc
import traceback
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from kvcheck.backends.transformers.guard import TRACED
from kvcheck.backends.transformers.session import Session, find_method
from kvcheck.cache.method import Stage
from kvcheck.core.errors import KvcheckError
from kvcheck.core.record import CaseRecord, LatencyRecord, MemoryRecord, cost_case, cost_record
from kvcheck.measure import roofline


@dataclass(frozen=True)
class Limits:
    """What the device and the model allow: the roofline. Both are None where `reason` says why it is not known."""

    device: roofline.Device | None = None
    model: roofline.Model | None = None
    reason: str = ""

    @classmethod
    def of(cls, session: Session, bandwidth: float | None = None, peak: float | None = None) -> Limits:
        """Of the session's device (GB/s, TFLOP/s; see roofline.device_of) and model.

        Raises KvcheckError where only one of the two figures is given, or one that is not above 0.
        """
        where = session.loaded.device
        name = torch.cuda.get_device_name(where) if where.type == "cuda" else ""
        given = roofline.device_of(name, bandwidth, peak) if (bandwidth, peak) != (None, None) else None
        try:
            return cls(given or roofline.device_of(name), roofline.Model.of(session.loaded))
        except KvcheckError as error:
            return cls(reason=f"{error.message}; {error.hint}".rstrip("; "))

    def __str__(self) -> str:
        return f"not known: {self.reason}" if self.device is None else str(self.device)

    def on(self, latency: Iterable[LatencyRecord], memory: MemoryRecord, method: str) -> tuple[LatencyRecord, ...]:
        """The records with their floors."""
        return tuple(replace(one, floor=self._floor(one, memory, method)) for one in latency)

    def _floor(self, one: LatencyRecord, memory: MemoryRecord, method: str) -> float | None:
        """Seconds; None where the method may do less: read its prompt in a way of its own, or a part of its cache."""
        if self.device is None or self.model is None:
            return None
        info = find_method(method).info
        if one.what == "ttft":
            return self.model.prefill(one.length).seconds(self.device) if info.shares_prefill else None
        if info.stage == Stage.RETRIEVAL:
            return None
        step = self.model.decode(one.batch, memory.kv_bytes, memory.kept, memory.host_bytes)
        return step.seconds(self.device)


@dataclass
class Row:
    """A method at one length while it is measured: what there is, and what is missing with the reason."""

    session: Session
    method: str
    length: int
    memory: MemoryRecord | None = None
    latency: tuple[LatencyRecord, ...] = ()
    missing: tuple[tuple[str, str], ...] = ()

    def measure(self, how: tuple[int, int], limits: Limits) -> None:
        """Weigh and time; how: (rounds, sequences decoded together at most). What is refused or fails is no error."""
        rounds, batch = how
        try:
            self.memory = self.session.measure_memory(self.method, self.length)
            timed = self.session.measure_latency(self.method, self.length, rounds=rounds, batch=batch)
            self.latency = limits.on(timed, self.memory, self.method)
        except KvcheckError as error:
            self.give_up(_why(error))

    def give_up(self, why: str) -> None:
        """What has not been measured by now is missing."""
        found = {"memory": self.memory, "latency": self.latency}
        self.missing = tuple((name, why) for name, value in found.items() if not value)

    def record(self) -> CaseRecord:
        """The row."""
        case = cost_case(self.length)
        return cost_record(self.method, self.session.fingerprint, case, self.memory, self.latency, self.missing)


def _why(error: KvcheckError) -> str:
    """Message and hint; in the place of a traceback, which a table has not, the line."""
    hint, cause = error.hint, error.__cause__
    if hint == TRACED and cause is not None:
        last = traceback.extract_tb(cause.__traceback__)[-1]
        hint = f"{Path(last.filename).name}, line {last.lineno}"
    return f"{error.message}; {hint}".rstrip("; ")


def let_go() -> None:
    """Free what the method before left behind. To be called outside of a time limit: a collection swallows its end."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
