"""The process that a session runs under, so that a run that ends in the middle is red.

A method can end its process without a word (`os._exit(0)`, a crash in a kernel, the kernel's out-of-memory killer), and
with status 0 that looks like success. So `pytest`, where it was given something of kvcheck, goes on in a child and
waits for it. The child says over a pipe where the run is kept and, at the very end, that it is over and with which
status. Where it does not, the parent reads the journal, writes the run file with a failure for every item that did not
come to an end, says so, and exits with 1 (or 128 and the signal).

Not where there is no fork (Windows), in workers of pytest-xdist, which have their controller, under torchrun, with a
debugger, and where pytest is called from another program (`pytest.main`), whose process it is.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest

LINE: pytest.StashKey[int] = pytest.StashKey()
"""On the config of a child: the end of the pipe that it writes to."""
_PIPE = "_kvcheck_guardian"


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


def tell(config: pytest.Config, **facts: Any) -> None:
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
    text = b""
    while part := os.read(told, 65536):
        text += part
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    facts: dict[str, Any] = {}
    for line in text.splitlines():
        with suppress(ValueError):
            facts |= json.loads(line)
    os._exit(_verdict(facts, status))


def _verdict(facts: dict[str, Any], status: int) -> int:
    """The exit status of the run."""
    known = status if status >= 0 else 128 - status
    if "finished" in facts:
        return known or int(facts["finished"])
    if "began" not in facts:
        return known
    try:
        say = _close(facts, status)
    except Exception as error:  # whatever is wrong with what it left, the run is red
        say = [f"its results could not be read: {error}"]
    how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
    print(f"\nkvcheck: failed: the process {how} before the run was over", file=sys.stderr)
    from kvcheck.escape import plain

    for line in say:
        print(f"  {plain(line)}", file=sys.stderr)
    return known or 1


def _close(facts: dict[str, Any], status: int) -> list[str]:
    """Write the run file of a run that did not end: what was finished, and a failure for everything else."""
    from kvcheck import journal
    from kvcheck.runfile import write_run

    if "journal" not in facts:
        return []
    kept = journal.read(Path(facts["journal"]))
    why = (
        f"its process ended with status {status} in the middle"
        if status >= 0
        else f"its process was killed by {-status}"
    )
    lines: list[str] = []
    for item in kept.items.values():
        done = kept.properties if item.kind == "kv_property" else kept.ended
        if (item.case, item.method) in done:
            continue
        running = (item.case, item.method) in kept.running
        text = f"{why} (os._exit, a crash, or no memory)" if running else "it was selected and never ran"
        kept.ended[item.case, item.method] = journal.Ended(item.case, item.method, {}, failure=text)
        if running:
            lines.insert(0, f"in {item.case} of {item.method}")
    never = sum(one.failure == "it was selected and never ran" for one in kept.ended.values())
    lines += [f"{never} selected items never ran"] if never else []
    if kept.header is not None and facts.get("run_file"):
        run = kept.run(kept.header)
        write_run(facts["run_file"], replace(run, failures=dict(sorted(run.failures.items()))))
        journal.drop(Path(facts["journal"]))
        lines.append(f"what was finished is kept: --kv-resume={facts['run_file']}")
    return lines
