"""A fake engine for tests of the plugin: no torch, no model, answers by a table. A copy becomes a conftest.py.

behaviour.json: {method: accuracy | "raise" | "bug" | "hang" | "nan" | "nothing" | "die" | "interrupt" |
"exit"}, or a table of
these by task.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from kvcheck.errors import MethodFailed
from kvcheck.record import CaseRecord, LatencyRecord, MemoryRecord, SampleRecord, TurnRecord, prompt_digest
from kvcheck.tasks import TASKS

HERE = Path(__file__).parent


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

    def run_case(self, case, method_spec, on_block=None, progress=None):
        with (HERE / "ran.txt").open("a") as log:
            log.write(f"{case}|{method_spec}\n")
        how = self._how(case, method_spec)
        if how == "raise":
            raise MethodFailed(f"{method_spec} raised in {case}: IndexError: no slot") from IndexError("no slot")
        if how == "bug":
            raise ZeroDivisionError("deep inside")
        if how == "hang":
            while True:
                time.sleep(0.01)
        if how == "die":
            os._exit(3)
        if how == "interrupt":
            raise KeyboardInterrupt
        if how == "exit":
            raise SystemExit(0)
        samples = []
        for index in range(0 if how == "nothing" else case.n):
            samples.append(self._sample(case, index, how))
            if progress is not None:
                progress(index + 1, case.n)
            if index % 4 == 3 and on_block is not None and on_block(self._record(case, method_spec, samples)):
                break
        return self._record(case, method_spec, samples)

    def _sample(self, case, index, how):
        score = float("nan") if how == "nan" else float(index < round(how * case.n))
        turns = 3 if case.mode == "multi_turn" else 1
        digest = prompt_digest(case.key, str(index))
        answer = "right" if score == 1 else "wrong"
        turn = TurnRecord(score, answer, depth=0.25, nll=0.5 - score / 4, agree=1.0, kl=0.0)
        return SampleRecord(index, digest, (turn,) * turns)

    def _record(self, case, method, samples):
        info = TASKS.get(case.task).info
        held = 1000 if method == "fp16" else 500
        memory = MemoryRecord(held, 1000, 0, case.length * held / 1000, case.length, 4, 4)
        aware = case.mode != "multi_request"
        stopped = "all samples" if len(samples) == case.n else "verdict clear"
        return CaseRecord(
            case, method, self.fingerprint, info.capability, aware, info.binary, info.chance, tuple(samples), memory,
            (), stopped,
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
