"""Records for tests, in one line each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kvcheck.core.record import (
    CaseId,
    CaseRecord,
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
