"""What a context costs with a method: one row of the table of `kvcheck speed`."""

from __future__ import annotations

import gc
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch

from kvcheck.engine.session import Session, find_method
from kvcheck.errors import KvcheckError
from kvcheck.measure import roofline
from kvcheck.record import CaseRecord, LatencyRecord, MemoryRecord, cost_case, cost_record


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
        if info.stage == "retrieval":
            return None
        step = self.model.decode(one.batch, memory.kv_bytes, memory.kept, memory.host_bytes)
        return step.seconds(self.device)


def measure(session: Session, method: str, length: int, how: tuple[int, int], limits: Limits) -> CaseRecord:
    """Weigh and time a method at one length; how: (rounds, sequences decoded together at most).

    What is refused or fails is no error here: the record says what was not measured and why.
    """
    rounds, batch = how
    memory: MemoryRecord | None = None
    latency: tuple[LatencyRecord, ...] = ()
    missing: tuple[tuple[str, str], ...] = ()
    try:
        memory = session.measure_memory(method, length)
        timed = session.measure_latency(method, length, rounds=rounds, batch=batch)
        latency = limits.on(timed, memory, method)
    except KvcheckError as error:
        what = ("latency",) if memory is not None else ("memory", "latency")
        missing = tuple((each, error.message) for each in what)
    return cost_record(method, session.fingerprint, cost_case(length), memory, latency, missing)


def let_go() -> None:
    """Free what the method before left behind. To be called outside of a time limit: a collection swallows its end."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
