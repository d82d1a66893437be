"""A fake engine for tests of the plugin: no torch, no model, answers by a table. A copy becomes a conftest.py.

behaviour.json: {method: accuracy | "raise" | "flaky" | "nan" | "nothing" | a name of WAYS | "late " and such a name},
or a table of these by task. A late way is taken after a block of contexts. Beside the methods: "sleep", seconds per
block; "ledger", which file names every context whose block has been reported; "fed", "inputs": of records.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import signal
import sys
import threading
import time
import unittest
from pathlib import Path

import pytest

import kvcheck.judging.budget
from kvcheck.core.errors import MethodFailed, MethodUnsupported, MissingBaseline
from kvcheck.core.record import CaseRecord, LatencyRecord, MemoryRecord, SampleRecord, TurnRecord, prompt_digest
from kvcheck.plugin.timelimit import TimeLimit
from kvcheck.tasks import TASKS

HERE = Path(__file__).parent
BLOCK = 4
"""Contexts per block."""


def throw(error):
    raise error


def hang():
    while True:
        time.sleep(0.01)


def hang_and_swallow():
    while True:
        with contextlib.suppress(BaseException):
            time.sleep(0.01)


def recurse():
    recurse()


def judge_everything_good():
    """What a method that wants to pass could do: nobody asks for a limit any more."""
    kvcheck.judging.budget.judge = lambda *args, **kwargs: (
        kvcheck.judging.budget.Verdict("budget", "pass", 0, 0, 0, 2, 8),
    )


WAYS = {
    "bug": lambda: throw(ZeroDivisionError("deep inside")),
    "hang": hang,
    "hang and swallow": hang_and_swallow,
    "die": lambda: os._exit(3),
    "interrupt": lambda: throw(KeyboardInterrupt()),
    "exit": lambda: sys.exit(0),
    "exit 1": lambda: sys.exit(1),
    "os exit 0": lambda: os._exit(0),
    "os exit 1": lambda: os._exit(1),
    "segv": lambda: ctypes.string_at(0),
    "abort": os.abort,
    "sigterm": lambda: os.kill(os.getpid(), signal.SIGTERM),
    "sigkill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "skip": lambda: pytest.skip("this kernel is not here"),
    "xfail": lambda: pytest.xfail("a known flaw of mine"),
    "pytest exit": lambda: pytest.exit("enough for today", returncode=0),
    "pytest fail": lambda: pytest.fail("said by the method"),
    "importorskip": lambda: pytest.importorskip("no_such_kernel_package"),
    "unittest skip": lambda: throw(unittest.SkipTest("not on this machine")),
    "assertion": lambda: throw(AssertionError("the heads do not fit")),
    "base exception": lambda: throw(BaseException("at the root")),
    "generator exit": lambda: throw(GeneratorExit("the generator is gone")),
    "cancelled": lambda: throw(asyncio.CancelledError("nobody waits")),
    "stop iteration": lambda: throw(StopIteration("no more blocks")),
    "memory": lambda: throw(MemoryError("no room for keys")),
    "recursion": recurse,
    "missing baseline": lambda: throw(MissingBaseline("I have no baseline", "none")),
    "unsupported": lambda: throw(MethodUnsupported("I serve no such model", "take another")),
    "time limit": lambda: throw(TimeLimit("raised by the method")),
    "chdir": lambda: os.chdir("/"),
    "judge": judge_everything_good,
    "thread raises": lambda: threading.Thread(target=lambda: throw(OSError("a copy got lost"))).start(),
    "thread stays": lambda: threading.Thread(target=hang).start(),
}
"""What can go wrong, by name."""


class FakeSession:
    """An engine that looks its scores up."""

    fingerprint = "fake0000fake0000"
    model_name = "fake"

    def __init__(self, settings):
        self.settings = settings
        path = HERE / "behaviour.json"
        self.behaviour = json.loads(path.read_text()) if path.exists() else {}

    def _how(self, case, method):
        how = self.behaviour.get(method, 1.0)
        return how.get(case.task, 1.0) if isinstance(how, dict) else how

    def run_case(self, case, method_spec, on_block=None, progress=None, so_far=None):
        if so_far is not None and len(so_far.samples) == case.n:
            return so_far
        with (HERE / "ran.txt").open("a") as log:
            log.write(f"{case}|{method_spec}\n")
        how = self._how(case, method_spec)
        if how == "raise":
            raise MethodFailed(f"{method_spec} raised in {case}: IndexError: no slot") from IndexError("no slot")
        if how in WAYS:
            WAYS[how]()
        if how == "flaky" and (HERE / "ran.txt").read_text().count(f"{case}|{method_spec}\n") == 1:
            raise MethodFailed(f"{method_spec} raised in {case}: OSError: not at the first try")
        late = WAYS[how.removeprefix("late ")] if str(how).startswith("late ") else None
        samples = list(so_far.samples) if so_far is not None else []
        for index in range(len(samples), 0 if how == "nothing" else case.n):
            samples.append(self._sample(case, index, how))
            if progress is not None:
                progress(index + 1, case.n)
            if index % BLOCK != BLOCK - 1:
                continue
            time.sleep(self.behaviour.get("sleep", 0))
            stop = on_block is not None and on_block(self._record(case, method_spec, samples))
            self._reported(case, method_spec, samples[-BLOCK:])
            if late is not None:
                late()
            if stop:
                break
        return self._record(case, method_spec, samples)

    def _reported(self, case, method, samples):
        """Note the contexts of a block that whoever runs the case has been told of, safely on the disk."""
        if "ledger" not in self.behaviour:
            return
        lines = "".join(f"{case}|{method}|{sample.index}|{os.getpid()}\n" for sample in samples)
        file = os.open(HERE / self.behaviour["ledger"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(file, lines.encode())
        os.fsync(file)
        os.close(file)

    def _sample(self, case, index, how):
        share = how if isinstance(how, (int, float)) else float(how != "judge")
        score = float("nan") if how == "nan" else float(index < round(share * case.n))
        turns = 3 if case.mode == "multi_turn" else 1
        digest = prompt_digest(case.key, str(index))
        answer = "right" if score == 1 else "wrong"
        turn = TurnRecord(score, answer, depth=0.25, nll=0.5 - score / 4, agree=1.0, kl=0.0)
        if not TASKS.get(case.task).info.scored:  # nothing is asked: what is lost shows in the likelihood alone
            turn = TurnRecord(0.0, "", nll=2.0 - score / 4, agree=score, kl=1.0 - score)
        return SampleRecord(index, digest, (turn,) * turns, fed=self.behaviour.get("fed"))

    def _record(self, case, method, samples):
        info = TASKS.get(case.task).info
        held = 1000 if method == "fp16" else 500
        memory = MemoryRecord(held, 1000, 0, case.length * held / 1000, case.length, 4, 4)
        aware = case.mode != "multi_request"
        silent = (("accuracy", "nothing is asked"),) * (not info.scored)
        stopped = "all samples" if len(samples) == case.n else "verdict clear"
        return CaseRecord(
            case, method, self.fingerprint, info.capability, aware, info.binary, info.chance, tuple(samples), memory,
            (), stopped, silent, inputs=tuple(sorted(self.behaviour.get("inputs", {}).items())),
        )  # fmt: skip

    def measure_memory(self, method_spec, length):
        return MemoryRecord(500, 1000, 0, length / 2, length, 4, 4)

    def measure_latency(self, method_spec, length, timer=None):
        if timer is not None:
            timer(lambda: None, rounds=2)
        slow = self.behaviour.get("slow", {}).get(method_spec, 1.0)
        return tuple(
            LatencyRecord(what, length, 0.1 * slow, 0.1, slow, slow - 0.05, slow + 0.05, 9) for what in ("ttft", "tpot")
        )


def pytest_kvcheck_open(settings):
    return FakeSession(settings)
