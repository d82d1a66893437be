"""The hooks that a third party can implement, in a plugin or a conftest.py.

Methods and tasks need none of them: they register through the entry-point groups kvcheck.methods and kvcheck.tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from kvcheck.backends.base import Backend, Engine
    from kvcheck.core.record import CaseRecord, Verdict
    from kvcheck.core.settings import Settings
    from kvcheck.judging.budget import Budget


@pytest.hookspec(firstresult=True)
def pytest_kvcheck_open(config: pytest.Config, settings: Settings) -> Backend | Engine | None:
    """Open what the methods run on; the first result that is not None is used.

    Called once per process that runs cases, before the first of them. The result is a `kvcheck.backends.base.Backend`,
    which kvcheck asks for answers: samples, prompts, grading and records are kvcheck's. What it cannot do, it names in
    `lacks` with the reason, and that is reported as not measured. Implement it to test a system that kvcheck reaches
    over a socket::

        def pytest_kvcheck_open(config, settings):
            return MyServer("http://localhost:8000", settings.model)

    Or it is an engine that runs cases by itself (`kvcheck.backends.base.Engine`), with `model_name`, `fingerprint`,
    `run_case(case, method_spec, on_block, progress)`, where an optional `so_far` is what an interrupted run has of the
    case, and, for latency, `measure_latency(method_spec, length, benchmark)`.
    """


@pytest.hookspec(firstresult=True)
def pytest_kvcheck_judge(
    config: pytest.Config,
    record: CaseRecord,
    fp16: CaseRecord | None,
    own: CaseRecord | None,
    budget: Budget,
    alpha: float,
    against: str,
) -> Sequence[Verdict] | None:
    """Judge a record; the first result that is not None is used, kvcheck's own judge is the last to be asked.

    `fp16` and `own` are the records to compare with, None where there is none. `alpha` is the error rate of this case,
    `against` what was asked for. A verdict whose outcome is "fail" fails the test of the case::

        def pytest_kvcheck_judge(record, fp16, own, budget, alpha, against):
            if record.case.task == "kv":
                return (*kvcheck.judge(record, fp16, own, budget, alpha, against), my_verdict(record))
    """


@pytest.hookspec
def pytest_kvcheck_record(
    config: pytest.Config, record: CaseRecord, verdicts: tuple[Verdict, ...], failure: str
) -> None:
    """A case has finished. Called in the process that prints the summary, once per case, with or without xdist.

    `failure` is the message that the case failed with, "" when it passed::

        def pytest_kvcheck_record(record, verdicts):
            my_tracker.log({f"{record.method}/{record.case}": record.accuracy})
    """


@pytest.hookspec
def pytest_kvcheck_machine_info(config: pytest.Config, machine: dict[str, str]) -> dict[str, str] | None:
    """Add to what the run file says of the machine, such as a cluster's partition. The results are merged into it::

    def pytest_kvcheck_machine_info(machine):
        return {"partition": os.environ["SLURM_JOB_PARTITION"]}
    """
