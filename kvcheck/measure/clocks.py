"""The clocks of a GPU while something is measured on it, sampled by nvidia-smi beside it.

A GPU that is hot or short of power lowers its clocks, and a later run with other clocks is another measurement.
"""

from __future__ import annotations

import statistics
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO

import torch

from kvcheck.core import env

FIELDS = "clocks.sm,clocks.mem"
EVERY = 500
"""Milliseconds between two samples: often enough for a prefill of seconds, and no load for the device."""


@dataclass
class Clocks:
    """Median clocks in MHz; None until the block has ended, and where there is no nvidia-smi to ask."""

    sm_mhz: int | None = None
    memory_mhz: int | None = None


@contextmanager
def sampling(device: torch.device) -> Iterator[Clocks]:
    """Sample the clocks of the device while the block runs. On a CPU nothing is sampled."""
    found = Clocks()
    name = env.gpu_id(device.index or 0) if device.type == "cuda" else ""
    if not name:
        yield found
        return
    with tempfile.TemporaryFile("w+", encoding="utf-8") as lines:
        sampler = _start(name, lines)
        try:
            yield found
        finally:
            if sampler is not None:
                sampler.terminate()
                sampler.wait()
        lines.seek(0)
        found.sm_mhz, found.memory_mhz = medians(lines)


def medians(lines: Iterable[str]) -> tuple[int | None, int | None]:
    """Medians of lines such as "1980, 2619"; a line that was cut off, or that is no numbers, does not count.

    >>> medians(iter(["1980, 2619", "1755, 2619", "[N/A], 2619", "19"]))
    (1868, 2619)
    """
    samples = [parts for line in lines if len(parts := line.split(",")) == 2]
    numbers = [(int(sm), int(memory)) for sm, memory in samples if sm.strip().isdigit() and memory.strip().isdigit()]
    if not numbers:
        return None, None
    sm, memory = (round(statistics.median(column)) for column in zip(*numbers, strict=True))
    return sm, memory


def _start(name: str, lines: IO[str]) -> subprocess.Popen[bytes] | None:
    """nvidia-smi in a loop; None where it is not installed."""
    command = ["nvidia-smi", f"--id={name}", f"--query-gpu={FIELDS}", "--format=csv,noheader,nounits"]
    try:
        return subprocess.Popen([*command, f"--loop-ms={EVERY}"], stdout=lines, stderr=subprocess.DEVNULL)
    except OSError:
        return None
