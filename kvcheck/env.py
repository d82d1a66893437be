"""What the run ran on: packages, machine, git state. Never imports torch; versions come from the metadata."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from functools import lru_cache
from importlib import metadata
from pathlib import Path

PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "numpy",
    "scipy",
    "pytest",
    "pytest-xdist",
    "pytest-benchmark",
    "kvpress",
)


def packages() -> dict[str, str]:
    """Versions of the installed packages that can change a result, sorted by name; a missing one is left out."""
    found: dict[str, str] = {}
    for name in sorted(PACKAGES):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, str]:
    """CPU model, cores this process may use, system, Python; and the GPU when torch has been imported already."""
    found = {
        "cpu": _cpu_model(),
        "cores": str(_cores()),
        "os": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }
    torch = sys.modules.get("torch")
    cuda = getattr(torch, "cuda", None)
    if cuda is not None and cuda.is_available():
        found["gpu"] = str(cuda.get_device_name(0))
        found["cuda"] = str(torch.version.cuda)  # type: ignore[union-attr]
    return found


def git_state(path: str | Path) -> tuple[str, bool]:
    """(commit, dirty) of the repository that holds `path`; ("", False) outside a repository or without git."""
    commit = _git(path, "rev-parse", "HEAD")
    return (commit, bool(_git(path, "status", "--porcelain"))) if commit else ("", False)


def _git(path: str | Path, *args: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(path), *args], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@lru_cache(maxsize=1)
def _cpu_model() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            for line in lines:
                if line.lower().startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
