"""How many threads torch gets on this machine, and how they wait for each other. Never imports torch."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path

PASSIVE = {"OMP_WAIT_POLICY": "passive", "KMP_BLOCKTIME": "0"}
"""What lets the threads of GNU's OpenMP, and those of LLVM's and Intel's, sleep while they wait.

As they come they spin, which keeps cores from whoever else has work for them, and from the thread that is waited for.
"""
OWN = (*PASSIVE, "GOMP_SPINCOUNT", "KMP_LIBRARY")
"""Variables by which a user says how threads wait."""
CGROUPS = Path("/sys/fs/cgroup")
ROOMY = 1 << 20


def wait_passively() -> None:
    """Let OpenMP's threads sleep while they wait, unless the user says how they wait. For torch that is yet to come."""
    if "torch" not in sys.modules and not any(name in os.environ for name in OWN):
        os.environ.update(PASSIVE)


def policy() -> str:
    """How threads wait, as far as the environment says it."""
    said = [f"{name}={os.environ[name]}" for name in OWN if name in os.environ]
    return ", ".join(said) or "they spin, for torch was imported before kvcheck"


def cores() -> int:
    """Cores that this process may use: by its affinity, and by the CPU quota of its control group, rounded up."""
    mine = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(mine, math.ceil(quota())))


def quota(root: Path = CGROUPS, membership: Path = Path("/proc/self/cgroup")) -> float:
    """CPUs by the quota of the control group and of those around it; many where there is none, or none can be read."""
    try:
        groups = [line.split(":", 2) for line in membership.read_text("utf-8").splitlines()]
    except (OSError, UnicodeDecodeError):
        return ROOMY
    found: list[float] = [ROOMY]
    for _, controllers, path in (group for group in groups if len(group) == 3):
        if controllers and "cpu" not in controllers.split(","):
            continue
        for base in [root / controllers, root / "cpu"] if controllers else [root, root / "unified"]:
            inner = base / path.lstrip("/")
            found += [_limit(folder) for folder in (inner, *inner.parents) if folder.is_relative_to(base)]
    return min(found)


def _limit(group: Path) -> float:
    """CPUs of one control group, in the files of version 2 or 1."""
    try:
        if (group / "cpu.max").is_file():
            allowed, period = (group / "cpu.max").read_text("utf-8").split()
        else:
            allowed, period = ((group / f"cpu.cfs_{name}_us").read_text("utf-8") for name in ("quota", "period"))
        return int(allowed) / int(period) if allowed.strip() != "max" and int(allowed) > 0 else ROOMY
    except (OSError, ValueError, ZeroDivisionError):
        return ROOMY
