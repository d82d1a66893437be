"""The interface of an engine: what runs the cases. The in-process one is `session.Session`.

Nothing here speaks of tensors, caches or models: an engine may as well be a server at the other end of a socket.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from kvcheck.core.record import CaseId, CaseRecord, LatencyRecord, MemoryRecord

OnBlock = Callable[[CaseRecord], bool]
"""Called after every block of contexts with the record so far; True ends the case."""

Progress = Callable[[int, int], None]
"""Called with (contexts done, contexts in all)."""

Timer = Callable[..., Any]
"""Runs `timer(target, rounds=…, iterations=1, warmup_rounds=…)`, as pytest-benchmark's `benchmark.pedantic` does."""


class Engine(Protocol):
    """Runs cases with a method on one model."""

    @property
    def model_name(self) -> str:
        """What the user typed."""
        ...

    @property
    def fingerprint(self) -> str:
        """Identifies configuration, weights and tokenizer."""
        ...

    def run_case(
        self, case: CaseId, method_spec: str, on_block: OnBlock | None = None, progress: Progress | None = None
    ) -> CaseRecord:
        """Answer the questions of a case. Raises ContextTooLong, MethodFailed, MethodUnsupported, SpecError.

        An engine that also takes `so_far`, what an interrupted run has of the case, goes on behind it; of one that does
        not, such a case is measured anew.
        """
        ...

    def measure_latency(self, method_spec: str, length: int, timer: Timer | None = None) -> tuple[LatencyRecord, ...]:
        """Time to first token and per output token at this context length, as ratios to fp16."""
        ...

    def measure_memory(self, method_spec: str, length: int) -> MemoryRecord:
        """Bytes held and peak memory of one context of this length."""
        ...
