"""Runs a command and ends all of it: `python keeper.py PARENT GRACE COMMAND…`. Standard library only.

It stands between kvcheck and an engine so that nothing outlives kvcheck, also where SIGKILL ends that and no handler of
its own can run. It asks several times a second whether its parent is still there; a prctl(PR_SET_PDEATHSIG) on the
engine alone would end that one, and leave what it started itself. The engine has a session and a process group of its
own, so a Ctrl-C in the terminal reaches neither it nor this process: kvcheck alone decides. On Linux this process also
adopts what the engine leaves behind (PR_SET_CHILD_SUBREAPER), and should it be killed itself, the engine gets SIGKILL
(PR_SET_PDEATHSIG). What opens a session of its own, as daemons do, is not followed.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

TICK = 0.1
"""Seconds between two looks."""
_PDEATHSIG, _SUBREAPER = 1, 36
"""Of Linux' prctl."""
NOT_RUN = 127
"""The status of a command that could not be run, as shells have it."""


def keep(parent: int, grace: float, command: Sequence[str]) -> int:
    """Run the command until it ends, SIGTERM arrives here or the parent is gone; then end its group. Its exit status.

    grace: seconds between SIGTERM and SIGKILL. 128 + N for a command that signal N ended.
    """
    asked: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda number, frame: asked.append(number))
    _prctl(_SUBREAPER, 1)
    try:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=lambda: _prctl(_PDEATHSIG, 9)
        )
    except OSError as error:
        print(f"{command[0]}: {error.strerror}", file=sys.stderr)
        return NOT_RUN
    while child.poll() is None and not asked and os.getppid() == parent:
        time.sleep(TICK)
    _end(child, grace)
    status = child.wait()
    return 128 - status if status < 0 else status


def _end(child: subprocess.Popen[bytes], grace: float) -> None:
    """End the group of a child: SIGTERM, after so many seconds SIGKILL."""
    for number, until in ((signal.SIGTERM, time.monotonic() + grace), (signal.SIGKILL, time.monotonic() + 2 * grace)):
        if _sent(child.pid, number):
            while time.monotonic() < until and _left(child):
                time.sleep(TICK / 2)


def _left(child: subprocess.Popen[bytes]) -> bool:
    """Whether anything of its group is left, after what has ended was taken note of."""
    if child.poll() is None:
        return True
    try:
        while os.waitpid(-child.pid, os.WNOHANG)[0]:  # adopted
            pass
    except ChildProcessError:
        pass
    return _sent(child.pid, 0)


def _sent(group: int, number: int) -> bool:
    """Send a signal to a group; False where there is none any more."""
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):  # the latter on macOS, for one that has ended
        return False
    return True


def _prctl(what: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(what, value, 0, 0, 0)


if __name__ == "__main__":
    sys.exit(keep(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]))
