"""What the engine costs on top of the forward passes.

    python -m kvcheck.backends.transformers.profile --model mini --method snapkv

Runs one task in its three modes and prints, per method and mode: processor seconds in all and inside the model, their
ratio (the target is 1.15 for a run of all modes), and the shares of the drift, of the audit and of making samples.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import ParamSpec, TypeVar
from unittest.mock import patch

from kvcheck.backends.transformers.contexts import Contexts
from kvcheck.backends.transformers.meter import Meter
from kvcheck.backends.transformers.session import Session
from kvcheck.core.record import MODES, CaseId
from kvcheck.core.settings import Settings
from kvcheck.runner.case import Runner
from kvcheck.tasks import TASKS

P = ParamSpec("P")
T = TypeVar("T")
CLOCK = time.process_time
"""Processor seconds of all threads: what else runs on the machine does not count. Meant for the CPU."""


class Clock:
    """Seconds spent in wrapped functions, by name; what one calls is counted in both."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def wrap(self, name: str, inner: Callable[P, T]) -> Callable[P, T]:
        """The same function, timed."""

        def timed(*args: P.args, **kwargs: P.kwargs) -> T:
            start = CLOCK()
            try:
                return inner(*args, **kwargs)
            finally:
                self.seconds[name] = self.seconds.get(name, 0.0) + CLOCK() - start

        return timed

    def take(self) -> dict[str, float]:
        """The seconds since the last call."""
        taken, self.seconds = self.seconds, {}
        return taken


def profile(session: Session, methods: list[str], task: str, length: int, n: int) -> None:
    """Run and print. The first method pays for the prefills that the others share."""
    clock = Clock()
    timed = (("model", session.loaded.model, "forward"), ("drift", Contexts, "drift"), ("audit", Meter, "watch"))
    with ExitStack() as stack:
        for name, owner, attribute in (*timed, ("samples", Runner, "sample")):
            stack.enter_context(patch.object(owner, attribute, clock.wrap(name, getattr(owner, attribute))))
        _run(
            Runner(session, session.settings),
            clock,
            methods,
            CaseId(task, TASKS.get(task).info.version, "", length, 0, n),
        )


def _run(runner: Runner, clock: Clock, methods: list[str], case: CaseId) -> None:
    sums: dict[str, float] = {}
    head = f"{'method':24} {'mode':14} {'total':>8} {'model':>8} ratio  shares"
    print(f"{case.task}, {case.length} tokens, {case.n} contexts\n{head}")
    for method in methods:
        for mode in MODES:
            start = CLOCK()
            runner.run_case(replace(case, mode=mode), method)
            spent = {"total": CLOCK() - start, **clock.take()}
            sums = {name: sums.get(name, 0.0) + spent.get(name, 0.0) for name in {**sums, **spent}}
            print(_line(method, mode, spent))
    print(_line("all", "", sums))


def _line(method: str, mode: str, spent: dict[str, float]) -> str:
    total, model = spent["total"], spent["model"]
    shares = ", ".join(f"{name} {spent.get(name, 0.0) / total:.1%}" for name in ("drift", "audit", "samples"))
    return f"{method:24} {mode:14} {total:7.2f}s {model:7.2f}s {total / model:.3f}  {shares}"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--method", action="append", help="repeatable; default: snapkv and fp16")
    parser.add_argument("--task", default="kv")
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--n", type=int, default=8)
    given = parser.parse_args()
    methods = given.method or ["snapkv", "fp16"]
    session = Session.open(Settings(model=given.model, methods=tuple(methods)))
    profile(session, methods, given.task, given.length, given.n)


if __name__ == "__main__":
    main()
