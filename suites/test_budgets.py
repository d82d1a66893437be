"""Latency: time to first token and per output token, and tokens per second of a batch, in turns with fp16.

As ratios to fp16, measured in this process; with the bytes that the cache holds and, on a GPU, the peak.

Runs where a budget for it is set (`--kv-budget ttft=1.2,tpot=1.2`) or with `--kv-profile full`, and in one process
only: several workers on one device slow each other down, and the ratio would mean nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kvcheck.plugin.latency import KvLatency


def test_latency(kv_latency: KvLatency, benchmark: Callable[..., Any]) -> None:
    """The method is not slower than its budget allows."""
    kv_latency.check(kv_latency.run(benchmark))
