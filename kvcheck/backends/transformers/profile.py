"""What the engine costs on top of the forward passes.

    python -m kvcheck.backends.transformers.profile --model mini --method snapkv

Runs one task in its three modes and prints, per method and mode, in processor seconds: all of it; the bare forwards,
which is the model without what kvcheck and the method do in its attention beside torch's kernel; those of them that
answers alone need, without what is fed for the drift (but for a reference that is fed in one forward with its question,
which the method is given); and all of it over each of the two (the target is 1.15 for the
first in a run of all modes). Then the shares of what else there is: in the attention (storing, choosing, reading), the
drift with its forwards, the audit, making samples.
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
from kvcheck.backends.transformers.prefill import Prefiller
from kvcheck.backends.transformers.session import Session
from kvcheck.cache import kernels
from kvcheck.cache.kv_cache import CacheLayer, KVCache
from kvcheck.core.record import MODES, CaseId
from kvcheck.core.settings import Settings
from kvcheck.runner.case import Runner
from kvcheck.tasks import TASKS

P = ParamSpec("P")
T = TypeVar("T")
Spent = dict[tuple[str, bool], float]
"""Seconds by name, and whether they were spent for the drift."""
TOTAL, MODEL, TAKING, ATTENDING, KERNEL, DRIFT = "total", "model", "taking in", "attending", "kernel", "drift"
CLOCK = time.process_time
"""Processor seconds of all threads: what else runs on the machine does not count. Meant for the CPU."""


class Clock:
    """Seconds spent in wrapped functions, by name; what one calls is counted in both. Twice: in all, and what of it was
    spent for the drift."""

    def __init__(self) -> None:
        self.seconds: dict[tuple[str, bool], float] = {}
        self.running: set[str] = set()

    def wrap(self, name: str, inner: Callable[P, T], inside: str = "") -> Callable[P, T]:
        """The same function, timed where it is not called by one of the same name; inside: only within that one."""

        def timed(*args: P.args, **kwargs: P.kwargs) -> T:
            drifts = name == DRIFT and kwargs.get("kv", False)  # what an answer needs, too
            if name in self.running or drifts or (inside and inside not in self.running):
                return inner(*args, **kwargs)
            key, start = (name, DRIFT in self.running), CLOCK()
            self.running.add(name)
            try:
                return inner(*args, **kwargs)
            finally:
                self.running.remove(name)
                self.seconds[key] = self.seconds.get(key, 0.0) + CLOCK() - start

        return timed

    def take(self) -> Spent:
        """The seconds since the last call."""
        taken, self.seconds = self.seconds, {}
        return taken


def profile(session: Session, methods: list[str], task: str, length: int, n: int) -> None:
    """Run and print. The first method pays for the prefills that the others share."""
    clock = Clock()
    timed = (
        (MODEL, session.loaded.model, "forward", ""),
        (TAKING, KVCache, "update", MODEL),
        (ATTENDING, CacheLayer, "attend_by", MODEL),
        (KERNEL, kernels, "scaled_dot_product_attention", ATTENDING),
        (DRIFT, Contexts, "drift", ""),
        (DRIFT, Prefiller, "tails", ""),
        ("audit", Meter, "watch", ""),
        ("samples", Runner, "sample", ""),
    )
    with ExitStack() as stack:
        for name, owner, attribute, inside in timed:
            stack.enter_context(patch.object(owner, attribute, clock.wrap(name, getattr(owner, attribute), inside)))
        _run(
            Runner(session, session.settings),
            clock,
            methods,
            CaseId(task, TASKS.get(task).info.version, "", length, 0, n),
        )


def _run(runner: Runner, clock: Clock, methods: list[str], case: CaseId) -> None:
    sums: Spent = {}
    head = f"{'method':24} {'mode':14} {'total':>8} {'bare':>8} ratio {'answers':>8} ratio  shares"
    print(f"{case.task}, {case.length} tokens, {case.n} contexts\n{head}")
    for method in methods:
        for mode in MODES:
            start = CLOCK()
            runner.run_case(replace(case, mode=mode), method)
            spent = {**clock.take(), (TOTAL, False): CLOCK() - start}
            sums = {key: sums.get(key, 0.0) + spent.get(key, 0.0) for key in {**sums, **spent}}
            print(_line(method, mode, spent))
    print(_line("all", "", sums))


def bare(spent: Spent, drift: bool) -> float:
    """Seconds of the model without what is done in its attention beside torch's kernel, for the drift or not for it."""
    model, *own, kernel = (spent.get((name, drift), 0.0) for name in (MODEL, TAKING, ATTENDING, KERNEL))
    return model - sum(own) + kernel


def _line(method: str, mode: str, spent: Spent) -> str:
    whole = {name: sum(spent.get((name, drift), 0.0) for drift in (False, True)) for name, _ in spent}
    total, needed = whole[TOTAL], bare(spent, drift=False)
    forwards = needed + bare(spent, drift=True)
    whole["attention"] = whole[MODEL] - forwards
    names = ("attention", DRIFT, "audit", "samples")
    shares = ", ".join(f"{name} {whole.get(name, 0.0) / total:.1%}" for name in names)
    ratios = f"{forwards:7.2f}s {total / forwards:.3f} {needed:7.2f}s {total / needed:.3f}"
    return f"{method:24} {mode:14} {total:7.2f}s {ratios}  {shares}"


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
