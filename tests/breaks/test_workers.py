"""Workers of pytest-xdist that die: the run ends in bounded time, everything else runs, and what failed is named."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter

import pytest
from outside import Foreign, Result, nightly

CASES = ("--kv-tasks=kv,multi_hop", "--kv-lengths=512", "--kv-n=8", "--kv-modes=single,multi_turn,multi_request")
METHODS = ("--kv-method=fp16", "--kv-method=snapkv", "--kv-method=h2o")
EACH = 6
"""Cases of a method."""
BOUND = 120.0
"""Seconds in which a run of these cases ends, on a machine that others use; alone it takes 3."""


def lost(result: Result, method: str) -> set[str]:
    """The cases of a method that failed, by task and mode."""
    names = (name.partition("|") for name in result.file.failures)
    return {" ".join(name.replace("/", " ").split()) for name, _, one in names if one == method}


def all_said(fake: Foreign, result: Result, method: str) -> None:
    """Every case of the method has a record or a failure that says why not."""
    records = {str(one.case) for one in result.file.cases if one.method == method}
    assert len(records) + len(lost(result, method)) >= EACH, (records, result.file.failures)


@pytest.mark.parametrize("way", ["sigkill", *nightly("os exit 0", "os exit 1", "segv", "abort", "sigterm")])
def test_a_method_that_kills_every_worker_is_not_given_all_of_them(fake: Foreign, way: str) -> None:
    fake.behave(snapkv=way)
    result = fake.check(*CASES, *METHODS, "-n", "2", limit=BOUND)
    result.red()
    for method in ("fp16", "h2o"):
        result.passes(method, EACH)
    tried = Counter(fake.tried())
    assert max(tried.values()) == 1, f"tried again: {tried}"
    deaths = sum(count for name, count in tried.items() if name.endswith("|snapkv"))
    assert deaths <= 3, f"{deaths} workers were given to a method that kills them"
    all_said(fake, result, "snapkv")
    assert "snapkv" in result.out


@pytest.mark.nightly
def test_one_case_that_kills_its_worker_costs_that_case(fake: Foreign) -> None:
    fake.behave(snapkv={"multi_hop": "die"})
    result = fake.check(*CASES, *METHODS, "-n", "2", limit=BOUND)
    result.red()
    for method in ("fp16", "h2o"):
        result.passes(method, EACH)
    assert all("multi_hop" in name for name in lost(result, "snapkv"))
    all_said(fake, result, "snapkv")


@pytest.mark.parametrize("dist", nightly("load", "loadscope", "loadfile", "loadgroup", "worksteal"))
def test_however_items_are_shared_out_a_dead_worker_ends_the_run_red(fake: Foreign, dist: str) -> None:
    fake.behave(snapkv={"multi_hop": "die"})
    result = fake.check(*CASES, *METHODS, "-n", "2", f"--dist={dist}", limit=BOUND)
    result.red()
    all_said(fake, result, "snapkv")
    assert len({one.case for one in result.file.cases if one.method == "h2o"}) == EACH


@pytest.mark.parametrize("dist", nightly("no", "load", "loadscope", "loadfile", "loadgroup", "worksteal"))
def test_however_items_are_shared_out_the_verdicts_are_the_same(fake: Foreign, dist: str) -> None:
    fake.behave(snapkv={"multi_hop": 0.0})
    result = fake.check(*CASES, *METHODS, "-n", "2", f"--dist={dist}", limit=BOUND)
    assert result.status == pytest.ExitCode.TESTS_FAILED, result.out
    for method in ("fp16", "h2o"):
        result.passes(method, EACH)
    assert result.outcome("snapkv").startswith("6 cases: 3 pass, 3 fail")


@pytest.mark.parametrize("option", ["--max-worker-restart=0", *nightly("--maxprocesses=1", "--max-worker-restart=1")])
def test_limits_on_workers_end_a_run_with_a_dead_one_red(fake: Foreign, option: str) -> None:
    fake.behave(snapkv={"kv": "die"})
    result = fake.check(*CASES, *METHODS, "-n", "2", option, limit=BOUND)
    result.red()
    for method in ("fp16", "snapkv", "h2o"):
        all_said(fake, result, method)


@pytest.mark.parametrize("seed", [*range(2), *nightly(*range(2, 10))])
def test_a_worker_that_is_killed_from_outside_ends_no_run_in_a_wait(fake: Foreign, seed: int) -> None:
    fake.behave(sleep=0.05, ledger="ledger.txt")
    dice = random.Random(seed)
    process = fake.start(*fake.words(*CASES, *METHODS, "-n", "2"))
    end, least = time.monotonic() + BOUND, dice.randrange(1, 12)
    ledger = fake.path / "ledger.txt"
    while time.monotonic() < end and (not ledger.exists() or len(ledger.read_text().splitlines()) < 4 * least):
        time.sleep(0.005)
    time.sleep(dice.uniform(0, 0.1))
    os.kill(int(ledger.read_text().splitlines()[-1].rpartition("|")[2]), signal.SIGKILL)
    result = fake.finish(process, BOUND)
    result.red()
    assert len(result.file.failures) == 1, result.file.failures
    assert len({(one.case, one.method) for one in result.file.cases}) >= 3 * EACH - 1
    contexts = Counter(line.rpartition("|")[0] for line in ledger.read_text().splitlines())
    assert max(contexts.values()) == 1, "finished contexts were measured again"
