"""The process that a session runs under, so that a run that ends in the middle is red.

A method can end its process without a word (`os._exit(0)`, a crash in a kernel, the kernel's out-of-memory killer), and
with status 0 that looks like success. So `pytest`, where it was given something of kvcheck, goes on in a child and
waits for it. The child says over a pipe where the run is kept and, at the very end, that it is over and with which
status. Where it does not, or says so while its journal has items without an end, the parent reads the journal, writes
the run file with a failure for every item that did not come to an end, says so, and exits with 1 (or 128 and the
signal). A process of the run that is stopped (SIGSTOP) cannot keep its own time limit: the parent does, and kills it.
What the main thread forks ends with the process that it came from.

Not where there is no fork (Windows), in workers of pytest-xdist, which have their controller, under torchrun, with a
debugger, and where pytest is called from another program (`pytest.main`), whose process it is.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TypedDict

import pytest

if TYPE_CHECKING:
    from kvcheck.store.journal import Kept

_PIPE = "_kvcheck_guardian"
LINGER = 25.0
"""Seconds that a process may take to end when its run is over."""
TICK = 1.0
"""Seconds after which the parent looks for processes that are stopped."""
_PDEATHSIG = 1
"""Of Linux' prctl: the signal that a process gets when its parent ends."""


class Facts(TypedDict, total=False):
    """What the child says of the run: it began, where it is kept, seconds that an item may take, its exit status."""

    began: bool
    journal: str
    run_file: str
    md_file: str
    html_file: str
    timeout: float
    finished: int


def guard(config: pytest.Config) -> None:
    """Go on in a child; the parent waits for it and never returns. Nothing happens where that cannot be."""
    if not _applies(config):
        return
    sys.stdout.flush()
    sys.stderr.flush()
    told, tell = os.pipe()
    alive, hold = os.pipe()
    child = os.fork()
    if child:
        os.close(tell)
        os.close(alive)
        _wait(child, told)
    os.close(told)
    os.close(hold)
    setattr(config, _PIPE, tell)
    os.register_at_fork(before=_see_thread, after_in_child=partial(_follow, os.getpid(), tell))
    threading.Thread(target=_end_with_parent, args=(alive,), daemon=True).start()


def _applies(config: pytest.Config) -> bool:
    known = config.known_args_namespace
    return (
        hasattr(os, "fork")
        and tuple(sys.argv[1:]) == tuple(map(str, config.invocation_params.args))
        and Path(sys.argv[0]).name in ("pytest", "py.test", "__main__.py")
        and not {"PYTEST_XDIST_WORKER", "TORCHELASTIC_RUN_ID"} & set(os.environ)
        and sys.gettrace() is None
        and not any(getattr(known, name, False) for name in ("help", "version", "usepdb", "trace"))
    )


def _end_with_parent(alive: int) -> None:
    """A child without its parent, which was killed, ends too."""
    with suppress(OSError):
        os.read(alive, 1)
    os.kill(os.getpid(), signal.SIGTERM)


_forks = {"main": True}
"""Whether it is the main thread that forks."""


def _see_thread() -> None:
    _forks["main"] = threading.current_thread() is threading.main_thread()


def _follow(parent: int, handle: int) -> None:
    """In a process that was forked in the run: it says nothing to the guardian, and ends with its parent (on Linux).

    Not what another thread forks: to Linux the parent is that thread, which may end long before the run.
    """
    with suppress(OSError):
        os.close(handle)
    if sys.platform == "linux" and _forks["main"]:
        ctypes.CDLL(None).prctl(_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it is over already
            os._exit(1)


def guarded(config: pytest.Config) -> bool:
    """Whether this process has a guardian."""
    return hasattr(config, _PIPE)


def tell(config: pytest.Config, **facts: object) -> None:
    """Say something to the parent, where there is one."""
    handle = getattr(config, _PIPE, None)
    if handle is not None:
        with suppress(OSError):
            os.write(handle, json.dumps(facts).encode() + b"\n")


def _wait(child: int, told: int) -> NoReturn:
    """Wait for the child, as if it was this process; end as it should have."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the child has got it too
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, lambda number, frame: os.kill(child, number))
    facts = _listen(child, told)
    status = _reap(child, LINGER if "finished" in facts else None)
    sys.stdout.flush()
    os._exit(_verdict(facts, status))


def _listen(child: int, told: int) -> Facts:
    """What the child says until it is over, while its processes that are stopped are counted out."""
    facts: Facts = {}
    rest = b""
    stopped: dict[int, float] = {}
    while "finished" not in facts:
        if not select.select([told], [], [], TICK)[0]:
            stopped = _end_stopped(child, stopped, facts.get("timeout", 0))
            continue
        said = os.read(told, 65536)
        if not said:
            break
        *lines, rest = (rest + said).split(b"\n")
        for line in lines:
            with suppress(ValueError):
                facts |= json.loads(line)
    return facts


def _end_stopped(child: int, before: dict[int, float], limit: float) -> dict[int, float]:
    """Kill what has been stopped for longer than an item may take -> the stopped processes, with the seconds of each.

    Time is counted in ticks of the parent, which stands still itself where a terminal suspends the whole run.
    """
    from kvcheck.plugin.timelimit import PATIENCE

    now = {pid: before.get(pid, 0.0) + TICK for pid in _family(child) if _state(pid) == "T"}
    for pid, seconds in now.items():
        if 0 < limit < seconds - PATIENCE:
            print(f"\nkvcheck: process {pid} was stopped for {seconds:g} s and is ended", file=sys.stderr)
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    return now


def _family(pid: int) -> Iterator[int]:
    """A process and all that it started, as far as /proc tells."""
    yield pid
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            for each in path.read_text().split():
                yield from _family(int(each))


def _state(pid: int) -> str:
    """The letter that /proc has for what a process does, T for stopped; "" where it does not tell."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return ""


def _reap(child: int, linger: float | None) -> int | None:
    """The exit status of the child; None for one that is over and lives on, in a thread of a method: it is killed."""
    end = None if linger is None else time.monotonic() + linger
    while True:
        found, status = os.waitpid(child, 0 if end is None else os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if end is not None and time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return None
        time.sleep(0.01)


def _verdict(facts: Facts, status: int | None) -> int:
    """The exit status of the run."""
    if status is None:
        print(f"\nkvcheck: the process lived on for {LINGER:g} s after the run and was ended", file=sys.stderr)
        return int(facts["finished"])
    known = status if status >= 0 else 128 - status
    if "finished" in facts and (known or facts["finished"] or not _left(facts)):
        return known or int(facts["finished"])
    if "began" not in facts:
        return known
    try:
        say = _close(facts, status)
    except Exception as error:  # whatever is wrong with what it left, the run is red
        say = [f"its results could not be read: {error}"]
    how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
    print(f"\nkvcheck: failed: the process {how} before the run was over", file=sys.stderr)
    from kvcheck.core.escape import plain

    for line in say:
        print(f"  {plain(line)}", file=sys.stderr)
    return known or 1


def _left(facts: Facts) -> bool:
    """Whether the journal is still there, with items that have no end: a run that is over has written its run file."""
    from kvcheck.store import journal

    folder = Path(facts.get("journal", ""))
    if not (facts.get("journal") and folder.is_dir()):
        return False
    kept = journal.read(folder)
    return any(name not in kept.ended and name not in kept.properties for name in kept.items)


def _close(facts: Facts, status: int) -> list[str]:
    """Write the files of a run that did not end: what was finished, and a failure for everything else."""
    from kvcheck.core.files import write_atomically
    from kvcheck.core.record import RunHeader
    from kvcheck.report import markdown, rows
    from kvcheck.store import journal
    from kvcheck.store.run_file import write_run

    if "journal" not in facts:
        return []
    kept = journal.close(Path(facts["journal"]))
    lines = _fail(kept, status, facts)
    run = kept.run(kept.header or RunHeader("", "", False, {}, {}, "", "", {}))  # it ended before a model was open
    if facts.get("run_file"):
        write_run(facts["run_file"], run)
        journal.drop(Path(facts["journal"]))
        lines.append(f"what was finished is kept: --kv-resume={facts['run_file']}")
    if facts.get("md_file"):
        write_atomically(facts["md_file"], "\n".join(markdown.lines(run)) + "\n")
    if facts.get("html_file"):
        from kvcheck.report.html.page import page

        write_atomically(facts["html_file"], page([(run, rows.references(run))], finished=False))
    return lines


def _fail(kept: Kept, status: int, facts: Facts) -> list[str]:
    """Give every item that did not end a failure. Returns what is to be said of them."""
    from kvcheck.plugin.timelimit import PATIENCE
    from kvcheck.store.journal import Ended

    why = f"ended with status {status}" if status >= 0 else f"was killed by {signal.Signals(-status).name}"
    limit = f"; what swallows its time limit of {facts.get('timeout', 0):g} s is ended {PATIENCE:g} s later"
    running, never = [], 0
    for item in kept.items.values():
        name = (item.case, item.method)
        if name in kept.ended or name in kept.properties:
            continue
        if name in kept.running:
            running.append(f"in {item.case} of {item.method}{limit}")
            text = f"its process {why} in the middle: os._exit, a crash, no memory{limit}"
        else:
            never += 1
            text = "it was selected and never ran"
        kept.ended[name] = Ended(item.case, item.method, {}, failure=text)
    return running + ([f"{never} selected items never ran"] if never else [])
