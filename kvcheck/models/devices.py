"""Where a model computes and in what dtype, as `--kv-device` and `--kv-dtype` say."""

from __future__ import annotations

import os
from importlib.util import find_spec

import torch

from kvcheck.core import env, threads, values
from kvcheck.core.errors import SpecError, did_you_mean
from kvcheck.core.front import option

SPREAD = "spread"
"""The word of --kv-device that puts the layers of one model on all CUDA devices."""


DTYPES = {
    "auto": torch.bfloat16, "bfloat16": torch.bfloat16, "bf16": torch.bfloat16, "float16": torch.float16,
    "fp16": torch.float16,
}  # fmt: skip
"""What models compute in on CUDA."""


def pick_device(wanted: str) -> torch.device:
    """The device that `--kv-device` names: auto, cpu, cuda, cuda:1; of `spread`, the first one, which takes the tokens.

    A pytest-xdist worker and a process of torchrun take the one of their number. Raises SpecError for another word or a
    device that is not there.
    """
    values.device(wanted)
    count = torch.cuda.device_count() if wanted != "cpu" and torch.cuda.is_available() else 0
    if env.processes() > 1:
        _expect_own(wanted)
    if wanted == "cpu" or (wanted == "auto" and not count):
        return torch.device("cpu")
    if wanted == SPREAD and not count:
        raise SpecError(
            f"{option('device')}=spread: torch sees no CUDA device to put layers on", f"{option('device')}=cpu"
        )
    if wanted == SPREAD and "PYTEST_XDIST_WORKER" in os.environ:
        raise SpecError(
            f"{option('device')}=spread: workers of pytest-xdist would load the model once each, on the same devices",
            "leave -n out",
        )
    if wanted == SPREAD:
        return torch.device("cuda", 0)
    index = int(wanted[5:]) if ":" in wanted else env.local_rank() or _worker() % max(count, 1)
    if index >= count:
        wanted = wanted if ":" in wanted else f"cuda:{index}"
        raise SpecError(f"device {wanted!r} is not there: torch sees {count} CUDA devices", f"{option('device')} cpu")
    return torch.device("cuda", index)


def _expect_own(wanted: str) -> None:
    """Raise SpecError for a device that a process of torchrun does not take."""
    if wanted not in ("auto", "cpu", "cuda"):
        raise SpecError(
            f"{option('device')}={wanted}: each process of torchrun takes the device of its own number",
            f"{option('device')}=auto",
        )
    if wanted == "cpu" and torch.cuda.is_available():
        raise SpecError(
            f"{option('device')}=cpu: transformers shares a model out over CUDA devices where there are some",
            "hide them: CUDA_VISIBLE_DEVICES= torchrun …",
        )


def layout(wanted: str) -> str | None:
    """How `--kv-device` spreads a model: accelerate's device_map, None for one device. Raises SpecError."""
    if wanted != SPREAD:
        return None
    if find_spec("accelerate") is None:
        raise SpecError(
            f"{option('device')}=spread: layers are put on several devices through accelerate, which is not here",
            "pip install accelerate",
        )
    return "auto"


def pick_dtype(wanted: str, device: torch.device) -> torch.dtype:
    """What the model computes in. On the CPU float32 (portable; K/V are rounded to 16 bits in the cache), or bfloat16.

    On CUDA `--kv-dtype`: auto and bfloat16 (bf16), float16 (fp16). Raises SpecError.
    """
    if device.type == "cpu":
        if wanted in ("auto", "float32"):
            return torch.float32
        if wanted != "bfloat16":
            raise SpecError(
                f"dtype {wanted!r} is for CUDA",
                f"on the CPU the model computes in float32 and keys and values are stored in 16 bits: "
                f"{option('dtype')} auto",
            )
    if wanted not in DTYPES:
        raise SpecError(f"unknown dtype {wanted!r}", did_you_mean(wanted, DTYPES))
    return DTYPES[wanted]


def share_threads() -> None:
    """Let torch have no more threads than this process has cores for; under pytest-xdist, than its part of them."""
    fitting = max(1, threads.cores() // env.workers())
    if fitting < torch.get_num_threads():
        torch.set_num_threads(fitting)


def _worker() -> int:
    """Number of this worker of pytest-xdist, 0 without it."""
    return int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw") or 0)
