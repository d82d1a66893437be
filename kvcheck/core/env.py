"""What the run ran on: packages, machine, git state. Never imports torch; versions come from the metadata."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from datetime import datetime, timezone
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from kvcheck.core import threads
from kvcheck.core.errors import KvcheckError

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
    "openvino",
    "openvino-genai",
    "llama-cpp-py-sync",
)


class Versions(NamedTuple):
    """Of one package: the first that kvcheck runs with, the first that it does not, and those it was tried with."""

    first: str
    end: str
    tried: tuple[str, ...]

    @property
    def text(self) -> str:
        """As pip takes it."""
        return f">={self.first},<{self.end}"


SUPPORTED = {
    "torch": Versions("2.6", "3", ("2.13.0",)),
    "transformers": Versions("5.2", "6", ("5.2.0", "5.23.0", "5.24.0")),
}
"""As in pyproject.toml; CI tries the first and the newest of them."""


def refused(name: str) -> str:
    """Why kvcheck does not run with what is installed of a package; "" where it does."""
    from packaging.version import Version

    known = SUPPORTED[name]
    try:
        found = Version(metadata.version(name))
    except metadata.PackageNotFoundError:
        return f"{name} is not installed; kvcheck needs {name}{known.text}"
    if Version(known.first) <= found and found.release < Version(known.end).release:
        return ""
    return f"{name} {found} is not supported; kvcheck needs {name}{known.text}"


def expect_versions() -> None:
    """Raise KvcheckError where torch or transformers is missing, too old or too new."""
    problems = [why for why in map(refused, SUPPORTED) if why]
    if problems:
        fitting = " ".join(f"'{name}{known.text}'" for name, known in SUPPORTED.items())
        raise KvcheckError("; ".join(problems), f"pip install {fitting}")


def tried(name: str) -> str:
    """What is known of this environment's version of a package, in words."""
    from packaging.version import Version

    if why := refused(name):
        return why
    public, known = Version(metadata.version(name)).public, SUPPORTED[name]
    listed = f"that kvcheck was tried with ({', '.join(known.tried)})"
    if public in known.tried:
        return f"{name} {public} is among the versions {listed}"
    which = "newer than all" if Version(public) > max(map(Version, known.tried)) else "not among those"
    return f"{name} {public} is {which} {listed}; {name}{known.text} should do"


def processes() -> int:
    """How many processes torchrun started this program as; 1 without it. Each holds a part of the model."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "TORCHELASTIC_RUN_ID" in os.environ else 1


def rank() -> int:
    """Number of this process among them; the first, 0, reports."""
    return int(os.environ["RANK"]) if processes() > 1 else 0


def local_rank() -> int:
    """Number of this process among those on this machine."""
    return int(os.environ["LOCAL_RANK"]) if processes() > 1 else 0


def workers() -> int:
    """How many processes of pytest-xdist run tests at the same time; 1 without it."""
    return int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))


def alone() -> None:
    """Raise KvcheckError where several workers run tests: what they time is each other."""
    if workers() > 1:
        raise KvcheckError(
            "latency is not measured with several workers: they slow each other down on one device",
            "run it on its own: pytest -n 0 -k latency",
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


GPU = {
    "driver": "driver_version",
    "power limit": "power.limit",
    "max sm clock": "clocks.max.sm",
    "max memory clock": "clocks.max.mem",
}
"""What nvidia-smi is asked about a GPU, by the name that the run file gives it."""


def machine(device: str = "auto") -> dict[str, str]:
    """CPU model, cores this process may use, system, Python; the processes of torchrun, where there are several.

    When torch has been imported already also its threads and, unless `device` is cpu, the GPU that `device` names
    ("cuda:1"; the first one where it names none) with its driver, power limit and highest clocks; how many there are
    where the layers of the model lie on all of them (spread).
    """
    found = {
        "cpu": _cpu_model(),
        "cores": str(threads.cores()),
        "os": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }
    if processes() > 1:
        found["processes"] = str(processes())
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "get_num_threads"):
        found["threads"] = str(torch.get_num_threads())
    cuda = getattr(torch, "cuda", None)
    if device != "cpu" and cuda is not None and cuda.is_available():
        index = int(device.partition(":")[2] or 0)
        found["gpu"] = str(cuda.get_device_name(index))
        if device == "spread":
            found["gpus"] = str(cuda.device_count())
        found["cuda"] = str(torch.version.cuda)  # type: ignore[union-attr]
        found |= _smi(gpu_id(index))
    return found


def gpu_id(index: int) -> str:
    """How nvidia-smi names the device that torch numbers so, which CUDA_VISIBLE_DEVICES may renumber; "" if unknown."""
    properties = sys.modules["torch"].cuda.get_device_properties(index)
    unique = str(getattr(properties, "uuid", ""))
    return f"GPU-{unique.removeprefix('GPU-')}" if unique else ""


def _smi(name: str) -> dict[str, str]:
    """What nvidia-smi says of a GPU, by the names of GPU; {} where it cannot be asked. What it does not know is out."""
    if not name:
        return {}
    command = ["nvidia-smi", f"--id={name}", f"--query-gpu={','.join(GPU.values())}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return {}
    values = [value.strip() for value in done.stdout.strip().split(",")]
    if len(values) != len(GPU):
        return {}
    return {key: value for key, value in zip(GPU, values, strict=True) if value and not value.startswith("[")}


def git_state(path: str | Path) -> tuple[str, bool]:
    """(commit, dirty) of the repository that holds `path`; ("", False) outside a repository or without git."""
    commit = _git(path, "rev-parse", "HEAD")
    return (commit, bool(_git(path, "status", "--porcelain"))) if commit else ("", False)


BRANCHES = ("GITHUB_HEAD_REF", "GITHUB_REF_NAME", "CI_COMMIT_REF_NAME", "CHANGE_BRANCH", "BRANCH_NAME")
"""Where GitHub, GitLab and Jenkins name the branch: what they check out is often a commit without one."""


def git_branch(path: str | Path) -> str:
    """The branch of the repository that holds `path`; "" where there is none."""
    found = _git(path, "rev-parse", "--abbrev-ref", "HEAD")
    if found != "HEAD":
        return found
    return next((name for key in BRANCHES if (name := os.environ.get(key, ""))), "")


def now() -> str:
    """The time in UTC, to a second: that of SOURCE_DATE_EPOCH where it is set."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH", "")
    found = datetime.fromtimestamp(int(epoch), timezone.utc) if epoch.isdigit() else datetime.now(timezone.utc)
    return found.isoformat(timespec="seconds")


def _git(path: str | Path, *args: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(path), *args], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


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
