"""Workers, each in a slot: one that dies is replaced. Here they are processes of this machine, in cluster.py actors."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import cast

from kvcheck.core import front
from kvcheck.core.errors import KvcheckError
from kvcheck.sweep.worker import Done, Job, Worker

GIVE_UP = 3
"""Deaths in a row before it was ready, after which a worker is not replaced. Those in a case are the case's: see
schedule.py."""

LOOK = 1.0
"""Seconds between two looks of a worker whether its parent lives."""
KILLED = "killed by SIGKILL"
MEMORY = "out of memory? "
"""What that may mean: the system ends a process so where there is none left."""


class Pool(ABC):
    """Some slots with a worker each. idle: those that are ready and have nothing to do. ended: how the last worker of
    a slot died."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.idle: set[int] = set()
        self.ended: dict[int, str] = {}
        self._deaths: Counter[int] = Counter()

    def start(self) -> None:
        """Start the workers."""
        for slot in range(self.count):
            self._start(slot)

    @abstractmethod
    def _start(self, slot: int) -> None:
        """Start a worker in a slot."""

    @abstractmethod
    def submit(self, slot: int, job: Job) -> None:
        """Give an idle worker something to do."""

    @abstractmethod
    def wait(self) -> list[tuple[int, Done | None]]:
        """What workers have done since, at least one of them; None for one that has died. Those that became ready are
        idle then, and not in the list. Raises KvcheckError where no worker is left."""

    @abstractmethod
    def close(self) -> None:
        """End all workers."""

    def _ready(self, slot: int) -> None:
        """It is there, or has done something."""
        self._deaths[slot] = 0
        self.idle.add(slot)

    def _died(self, slot: int, why: str) -> None:
        """Replace a worker, unless workers keep dying there before they are ready."""
        self.idle.discard(slot)
        self.ended[slot] = why
        self._deaths[slot] += 1
        if self._deaths[slot] < GIVE_UP:
            self._start(slot)
        elif all(self._deaths[one] >= GIVE_UP for one in range(self.count)):
            raise KvcheckError(
                f"all {self.count} workers died {GIVE_UP} times in a row before they were ready, the last one: {why}",
                f"{MEMORY if why == KILLED else ''}what was measured is kept: the same command with --resume goes on",
            )


class Processes(Pool):
    """Processes of this machine, which share its cores and take its CUDA devices in turn."""

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self._context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
        self._live: dict[Connection, tuple[int, multiprocessing.process.BaseProcess]] = {}
        self.start()

    def _start(self, slot: int) -> None:
        mine, theirs = self._context.Pipe()
        arguments = (theirs, slot, self.count, os.getcwd(), front.flags(), os.getpid())
        process = self._context.Process(target=_serve, args=arguments, name=f"kvcheck-sweep-{slot}", daemon=True)
        process.start()
        theirs.close()
        self._live[mine] = (slot, process)

    def submit(self, slot: int, job: Job) -> None:
        """Through its pipe. That the worker is dead is found by the next `wait`."""
        self.idle.discard(slot)
        with suppress(OSError):
            next(pipe for pipe, (at, _) in self._live.items() if at == slot).send(job)

    def wait(self) -> list[tuple[int, Done | None]]:
        """From any pipe; one that is closed belongs to a worker that has died."""
        found: list[tuple[int, Done | None]] = []
        for pipe in cast("list[Connection]", wait(list(self._live))):
            slot, process = self._live[pipe]
            try:
                done: Done | None = pipe.recv()
            except (EOFError, OSError):
                del self._live[pipe]
                process.join()
                found.append((slot, None))
                self._died(slot, _end(process.exitcode))
                continue
            self._ready(slot)
            if done is not None:
                found.append((slot, done))
        return found

    def close(self) -> None:
        """A method may not listen to a gentle signal."""
        for pipe, (_, process) in self._live.items():
            pipe.close()
            process.kill()
            process.join()
        self._live.clear()


def _end(status: int | None) -> str:
    """How a process ended, in words."""
    if status is None or status >= 0:
        return f"exit status {status}"
    with suppress(ValueError):
        return f"killed by {signal.Signals(-status).name}"
    return f"killed by signal {-status}"


def _end_with(parent: int) -> None:
    """End this process when its parent is gone, whatever it is at: nobody takes what it does."""
    while os.getppid() == parent:
        time.sleep(LOOK)
    os._exit(1)


def _serve(pipe: Connection, slot: int, count: int, folder: str, flags: dict[str, str], parent: int) -> None:
    """The life of a worker's process. It counts as one of pytest-xdist: cores and devices are shared out so."""
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for whoever gives the work
    os.environ |= {"PYTEST_XDIST_WORKER": f"gw{slot}", "PYTEST_XDIST_WORKER_COUNT": str(count)}
    with suppress(EOFError, OSError):  # whoever gives the work is gone
        worker = Worker(folder, flags)
        pipe.send(None)  # it is ready
        while True:
            pipe.send(worker.do(pipe.recv()))
