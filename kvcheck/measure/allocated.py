"""Memory that is in use, by those who give it out: the C library's allocator, and that of CUDA.

Unlike the resident size of a process, it does not depend on what was freed before and lies ready to be used again, so
it moves by what is allocated, to the page.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable
from functools import cache

import torch


class _Info(ctypes.Structure):
    """struct mallinfo2 of the GNU C library."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    ]


@cache
def _mallinfo() -> Callable[[], _Info] | None:
    """The C library's count; None where it has none: on macOS, with musl, before glibc 2.33."""
    try:
        found = ctypes.CDLL(None).mallinfo2
    except (AttributeError, OSError, TypeError):
        return None
    found.restype = _Info
    return found  # type: ignore[no-any-return]


def in_use(devices: Iterable[torch.device]) -> int | None:
    """Bytes of host memory and of CUDA devices that are given out now; None where the C library does not tell."""
    count = _mallinfo()
    if count is None:
        return None
    info = count()
    on_devices = sum(int(torch.cuda.memory_allocated(each)) for each in devices if each.type == "cuda")
    return int(info.uordblks + info.hblkhd) + on_devices
