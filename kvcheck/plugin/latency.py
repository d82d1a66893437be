"""The `kv_latency` fixture: seconds to the first token and per output token, throughput, and memory, beside fp16."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any, NoReturn

import pytest

from kvcheck.core import env
from kvcheck.core.errors import KvcheckError
from kvcheck.core.record import LatencyRecord, MemoryRecord, Verdict, cost_case, cost_record
from kvcheck.plugin import commands, gate, items, options, state
from kvcheck.plugin.case import said, tail
from kvcheck.plugin.timelimit import TimeLimit, time_limit
from kvcheck.report import explain
from kvcheck.store.journal import Ended


class KvLatency:
    """The latency of one method at one length: `check(run(benchmark))`."""

    def __init__(self, request: pytest.FixtureRequest, method: str, length: int) -> None:
        self.method = method
        self.length = length
        self.settings = state.settings(request.config)
        self._request = request
        self._session: Any = None
        self.failure = ""
        self.verdicts: tuple[Verdict, ...] = ()
        self.latency: tuple[LatencyRecord, ...] = ()
        self.memory: MemoryRecord | None = None
        self._not_measured: tuple[tuple[str, str], ...] = ()
        request.node.stash[options.RESULT] = self._ended

    def run(self, benchmark: Callable[..., Any]) -> tuple[LatencyRecord, ...]:
        """Measure. With several workers: a failure where a budget asks for it, a counted skip elsewhere."""
        self._refuse_workers()
        mine = state.of(self._request.config)
        where = mine.died(self.method)
        if where:
            self._fail(f"latency of {self.method} was not measured: its process died in {where}")
        self._session = self._request.getfixturevalue("kv_session")
        timer = getattr(benchmark, "pedantic", None)
        problem = ""
        gc.collect()  # what a test that failed left behind; not within the limit, where a collection swallows its end
        try:
            mine.start(items.of(self._request.node))
            with time_limit(self.settings.timeout):
                self.latency = tuple(self._session.measure_latency(self.method, self.length, timer))
                self.memory = self._session.measure_memory(self.method, self.length)
        except TimeLimit:
            problem = (
                f"latency of {self.method} at {self.length} tokens took longer than {self.settings.timeout:g} s\n"
                "  does it hang? A slow one gets more time with --kv-timeout=SECONDS (0: no limit)"
            )
        except KvcheckError as error:
            problem = f"latency of {self.method} at {self.length} tokens\n{error}"
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # also what pytest raises to skip
            problem = f"{tail(error)}latency of {self.method} at {self.length} tokens\n{said(error)}"
        if problem:
            self._fail(problem)
        if not self.latency:
            self._fail(f"{self.method} at {self.length} tokens: no latency was measured")
        extra = getattr(benchmark, "extra_info", {})
        for one in self.latency:
            extra[f"{one.what}_ratio"] = one.ratio
        return self.latency

    def _refuse_workers(self) -> None:
        """Before the model is loaded: fail or skip where several workers would time each other."""
        refused = ""
        try:
            env.alone()
        except KvcheckError as error:
            refused = commands.completer(self._request.config)(f"{error.message}; {error.hint}")
        if not refused:
            return
        self._not_measured = (("latency", refused),)
        if {"ttft", "tpot"} & set(self.settings.budget):
            self._fail(f"{self.method} at {self.length} tokens: {refused}")
        pytest.skip(f"not measured: {refused}")

    def check(self, latency: tuple[LatencyRecord, ...]) -> tuple[Verdict, ...]:
        """Judge the ratios; a ratio whose whole interval lies above its limit fails the test."""
        self.verdicts = gate.judge_latency(latency, self.settings)
        bad = [one for one in self.verdicts if explain.fails(one, self.settings.strict)]
        if bad:
            self._fail("\n".join(explain.latency_failure(self.method, self.length, bad, self.settings.strict)))
        return self.verdicts

    def _fail(self, message: str) -> NoReturn:
        message = commands.completer(self._request.config)(message)
        self.failure = message
        pytest.fail(message, pytrace=False)

    def _ended(self) -> Ended:
        session = self._session
        model = {
            "fingerprint": session.fingerprint if session else "",
            "name": session.model_name if session else self.settings.model,
        }
        case = cost_case(self.length, self.settings.seed)
        record = cost_record(self.method, model["fingerprint"], case, self.memory, self.latency, self._not_measured)
        return Ended(str(case), self.method, model, record, self.verdicts, self.failure)
