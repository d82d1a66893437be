"""The `kv_latency` fixture: seconds to the first token and per output token, throughput, and memory, beside fp16."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import NoReturn

import pytest

from kvcheck.core import env
from kvcheck.core.errors import KvcheckError
from kvcheck.core.record import LatencyRecord, MemoryRecord, Verdict, cost_case, cost_record
from kvcheck.judging.budget import Budget, judge_ratios
from kvcheck.plugin import commands
from kvcheck.plugin.item import KvItem, hangs, said, tail
from kvcheck.plugin.timelimit import TimeLimit
from kvcheck.report import explain
from kvcheck.store.journal import Ended


class KvLatency(KvItem):
    """The latency of one method at one length: `check(run(benchmark))`."""

    def __init__(self, request: pytest.FixtureRequest, method: str, length: int) -> None:
        super().__init__(request, method)
        self.length = length
        self.verdicts: tuple[Verdict, ...] = ()
        self.latency: tuple[LatencyRecord, ...] = ()
        self.memory: MemoryRecord | None = None
        self._not_measured: tuple[tuple[str, str], ...] = ()

    def run(self, benchmark: Callable[..., object]) -> tuple[LatencyRecord, ...]:
        """Measure. With several workers: a failure where a budget asks for it, a counted skip elsewhere."""
        self._refuse_workers()
        where = self._state.died(self.method)
        if where:
            self._fail(f"latency of {self.method} was not measured: its process died in {where}")
        session = self._engine
        lacks = getattr(session, "lacks", {})
        if "latency" in lacks:
            self._leave_out(f"latency ({lacks['latency']})")
        timer = getattr(benchmark, "pedantic", None)

        def measure() -> None:
            self.latency = tuple(session.measure_latency(self.method, self.length, timer))
            self.memory = None if "memory" in lacks else session.measure_memory(self.method, self.length)

        gc.collect()  # what a test that failed left behind; not within the limit, where a collection swallows its end
        _, problem = self._attempt(measure, self._problem)
        if problem:
            self._fail(problem)
        if not self.latency:
            self._fail(f"{self.method} at {self.length} tokens: no latency was measured")
        extra = getattr(benchmark, "extra_info", {})
        for one in self.latency:
            extra[f"{one.what}_ratio"] = one.ratio
        return self.latency

    def _problem(self, error: BaseException) -> str:
        what = f"latency of {self.method} at {self.length} tokens"
        if isinstance(error, TimeLimit):
            return f"{what} took longer than {self.settings.timeout:g} s\n  {hangs()}"
        return f"{what}\n{error}" if isinstance(error, KvcheckError) else f"{tail(error)}{what}\n{said(error)}"

    def _refuse_workers(self) -> None:
        """Before the model is loaded: fail or skip where several workers would time each other."""
        try:
            env.alone()
        except KvcheckError as error:
            self._leave_out(commands.completer(self._config)(f"{error.message}; {error.hint}"))

    def _leave_out(self, why: str) -> NoReturn:
        """What is not measured fails where a budget asks for it, and is a counted skip elsewhere."""
        self._not_measured = (("latency", why),)
        if {"ttft", "tpot"} & set(self.settings.budget):
            self._fail(f"{self.method} at {self.length} tokens: {why}")
        raise pytest.skip.Exception(f"not measured: {why}") from None

    def check(self, latency: tuple[LatencyRecord, ...]) -> tuple[Verdict, ...]:
        """Judge the ratios; a ratio whose whole interval lies above its limit fails the test."""
        self.verdicts = judge_ratios(latency, Budget(**self.settings.budget))
        bad = [one for one in self.verdicts if explain.fails(one, self.settings.strict)]
        if bad:
            self._fail("\n".join(explain.latency_failure(self.method, self.length, bad, self.settings.strict)))
        return self.verdicts

    def _ended(self) -> Ended:
        """What rides on the report."""
        case = cost_case(self.length, self.settings.seed)
        model = self._state.model
        print_of = model.get("fingerprint", "")
        record = cost_record(self.method, print_of, case, self.memory, self.latency, self._not_measured)
        return Ended(str(case), self.method, model, record, self.verdicts, self.failure)
