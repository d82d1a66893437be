"""Latency as a ratio to fp16, the two interleaved in the same session on the same device.

Every round measures both, one right after the other, in an order that alternates: what slows the machine down for a
second slows both. The ratio is of medians; its interval comes from resampling the rounds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

import numpy as np
import torch

from kvcheck.core.errors import KvcheckError
from kvcheck.core.record import LatencyRecord
from kvcheck.core.settings import ROUNDS

Done = TypeVar("Done")
WARMUP = 1
STEPS = 8
"""Decode steps that are timed together: one alone is too short for the clock of a busy machine."""
RESAMPLES = 2000

Timer = Callable[..., object]
Side = Callable[[], Mapping[str, float]]


def stopwatch(devices: Iterable[torch.device], work: Callable[[], Done]) -> tuple[float, Done]:
    """(seconds, result) of the work, with the devices idle before and after."""
    devices = tuple(devices)
    _wait(devices)
    start = time.perf_counter()
    result = work()
    _wait(devices)
    return time.perf_counter() - start, result


def interleave(
    length: int, method: Side, fp16: Side, timer: Timer | None = None, rounds: int = ROUNDS
) -> tuple[LatencyRecord, ...]:
    """Measure both sides `rounds` times.

    method, fp16: do the work once and return seconds by what was timed ({"ttft": …, "tpot": …}). timer: is called as
    `timer(target, rounds=…, iterations=1, warmup_rounds=…)` where given (pytest-benchmark's `benchmark.pedantic`);
    it then times whole rounds, for its own table. Raises KvcheckError when nothing was timed.
    """
    seconds: list[tuple[Mapping[str, float], Mapping[str, float]]] = []

    def one_round() -> None:
        if len(seconds) % 2:
            reference = fp16()
            seconds.append((method(), reference))
        else:
            seconds.append((method(), fp16()))

    if timer is None:
        for _ in range(WARMUP + rounds):
            one_round()
    else:
        timer(one_round, rounds=rounds, iterations=1, warmup_rounds=WARMUP)
    timed = seconds[WARMUP:]
    if not timed:
        raise KvcheckError("latency: the timer ran no round", "benchmarks are switched off? try --benchmark-enable")
    names = list(timed[0][0])
    return tuple(
        summarize(name, length, [mine[name] for mine, _ in timed], [reference[name] for _, reference in timed])
        for name in names
    )


def summarize(what: str, length: int, own: list[float], fp16: list[float], seed: int = 0) -> LatencyRecord:
    """Medians, their ratio and its 95 % interval from a seeded bootstrap over the rounds (pairs stay together).

    >>> summarize("ttft", 512, [2.0, 2.0, 2.0], [1.0, 1.0, 1.0]).ratio
    2.0
    """
    mine, reference = np.asarray(own), np.asarray(fp16)
    drawn = np.random.default_rng(seed).integers(0, len(mine), size=(RESAMPLES, len(mine)))
    ratios = np.median(mine[drawn], axis=1) / np.median(reference[drawn], axis=1)
    low, high = np.quantile(ratios, (0.025, 0.975))
    seconds, against = float(np.median(mine)), float(np.median(reference))
    return LatencyRecord(what, length, seconds, against, seconds / against, float(low), float(high), len(mine))


def _wait(devices: Iterable[torch.device]) -> None:
    """Let queued kernels finish."""
    for device in devices:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
