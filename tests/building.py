"""Records for tests, in one line each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from kvcheck.core.record import (
    COSTS,
    CaseId,
    CaseRecord,
    LatencyRecord,
    MemoryRecord,
    Run,
    RunHeader,
    SampleRecord,
    TurnRecord,
    prompt_digest,
)

MODEL = "f00d"


def memory(kv_bytes: int = 500, kept: float = 50.0) -> MemoryRecord:
    return MemoryRecord(kv_bytes=kv_bytes, dense_bytes=1000, meta_bytes=10, kept=kept, seen=100, layers=4, touched=4)


def record(
    scores: Sequence[float | Sequence[float]],
    method: str = "snapkv",
    *,
    n: int | None = None,
    nll: Sequence[float] | float | None = None,
    task: str = "kv",
    held: MemoryRecord | None = None,
    **more: Any,
) -> CaseRecord:
    """A record with one context per entry of scores; an entry that is a list has several turns."""
    samples = []
    for index, entry in enumerate(scores):
        turns = [entry] if isinstance(entry, (int, float)) else list(entry)
        drift = nll[index] if isinstance(nll, (list, tuple)) else nll
        rows = (TurnRecord(s, f"answer {s}", subtask="a", depth=0.25 * at, nll=drift) for at, s in enumerate(turns))
        samples.append(SampleRecord(index, prompt_digest(task, str(index)), tuple(rows)))
    fields: dict[str, Any] = {
        "case": CaseId(task, 1, "single", 1024, 0, n or len(samples)),
        "method": method,
        "model": MODEL,
        "capability": "string_retrieval",
        "query_aware": True,
        "binary": all(s in (0, 1) for sample in samples for s in (turn.score for turn in sample.turns)),
        "chance": 0.1,
        "samples": tuple(samples),
        "memory": held or memory(1000 if method == "fp16" else 500),
    }
    return CaseRecord(**{**fields, **more})


def fp16(n: int = 16, **more: Any) -> CaseRecord:
    """A full cache that is always right."""
    return record([1.0] * n, "fp16", **more)


def header() -> RunHeader:
    return RunHeader("0.1.0", "abc", False, {"torch": "2.11"}, {"cpu": "x"}, MODEL, "mini", {"seed": "0"})


def run(*records: CaseRecord) -> Run:
    return Run(header(), records)


NIGHTLY = ("kv", "needle", "multi_hop")


def timed(ratio: float) -> CaseRecord:
    latency = (LatencyRecord("tpot", 512, 0.1 * ratio, 0.1, ratio, ratio - 0.02, ratio + 0.02, 9),)
    return CaseRecord(
        CaseId("latency", 1, "single", 512, 0, 1), "snapkv", "f00d", COSTS, True, False, 0.0, (), None, latency
    )


def night(at: int, lost: int, held: int = 500, ratio: float = 1.1) -> Run:
    """The run of a night: contexts of 16 that each task loses, bytes of 1000, time per step."""
    found = run(
        *(record([0.0] * lost + [1.0] * (16 - lost), task=task, nll=0.5, held=memory(held)) for task in NIGHTLY),
        *(fp16(16, task=task, nll=0.4) for task in NIGHTLY),
        timed(ratio),
    )
    header = replace(found.header, git=f"{at}" * 40, time=f"2026-11-1{at}T09:30:00+00:00", branch="main")
    return replace(found, header=header)
