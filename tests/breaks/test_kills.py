"""kill -9 at any moment: no finished context is measured again, and the resumed run is the undisturbed one."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from outside import THREE, Foreign, Result, kill_group, nightly

METHOD = "--kv-method=snapkv"
BLOCK, BLOCKS = 4, 18
"""Contexts per block of the fake engine, and blocks of the run: 3 cases of 24 contexts."""
PACE = 0.05
"""Seconds per block."""
KINDS = (
    ("the run", (), ()),
    ("the run", ("-n", "2"), ("--kv-record=new",)),
    ("a worker", ("-n", "2"), ()),
    ("the run", (), ("--kv-record=new",)),
    ("the controller", ("-n", "2"), ()),
    ("a worker", ("-n", "2"), ("--kv-record=new",)),
)
"""Who is killed, with which workers, and what the run writes beside its file."""


@pytest.fixture(scope="module")
def undisturbed(make_fake: Callable[[], Foreign]) -> dict[bool, Result]:
    """The run that nobody kills, by whether it records."""
    found = {}
    for records in (False, True):
        fake = make_fake()
        fake.behave(snapkv=0.9)
        found[records] = fake.check(*THREE, METHOD, *(["--kv-record=new"] if records else []))
        assert found[records].status == 0, found[records].out
    return found


def ledger(fake: Foreign) -> list[tuple[str, int]]:
    """What was reported as finished: ("case|method|index", process), in order."""
    path = fake.path / "ledger.txt"
    lines = path.read_text().splitlines() if path.exists() else []
    return [(text, int(number)) for text, _, number in (line.rpartition("|") for line in lines)]


def content(result: Result) -> dict[str, Any]:
    """The run file but for the header, where the two runs differ by what was typed; and what was recorded."""
    found = json.loads(result.text("run.json"))
    header = found.pop("header")
    facts = [header[name] for name in ("kvcheck", "packages", "model", "model_name", "schema")]
    return {**found, "facts": facts, "recorded": result.text("stored/fake/snapkv.txt")}


def wait_for(what: Callable[[], Any], limit: float = 120.0) -> bool:
    """Wait until something is true; False where it has not become so."""
    end = time.monotonic() + limit
    while time.monotonic() < end:
        if what():
            return True
        time.sleep(0.005)
    return False


def is_alive(process: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def kill(fake: Foreign, process: Any, who: str, blocks: int, wait: float) -> None:
    """kill -9 some time after so many more blocks have been finished."""
    until = len(ledger(fake)) + blocks * BLOCK
    assert wait_for(lambda: process.poll() is not None or len(ledger(fake)) >= until), "nothing is measured"
    time.sleep(wait)
    if process.poll() is not None:
        return
    if who == "the run":
        kill_group(process)
    elif who == "the controller":
        workers = {number for _, number in ledger(fake)}
        os.kill(process.pid, signal.SIGKILL)
        assert wait_for(lambda: not any(map(is_alive, workers)), 20), "the workers outlive their controller"
    else:
        os.kill(ledger(fake)[-1][1], signal.SIGKILL)


@pytest.mark.parametrize("seed", [*range(4), *nightly(*range(4, 54))])
def test_a_killed_run_is_resumed_where_it_was(fake: Foreign, undisturbed: dict[bool, Result], seed: int) -> None:
    who, workers, record = KINDS[seed % len(KINDS)]
    dice = random.Random(seed)
    fake.behave(snapkv=0.9, sleep=PACE, ledger="ledger.txt")
    words, resume = (*THREE, METHOD, *record, *workers), ()
    for _ in range(dice.choice((1, 1, 2))):
        process = fake.start(*fake.words(*words, *resume))
        kill(fake, process, who, dice.randrange(1, BLOCKS // 2), dice.uniform(0, 2 * PACE))
        disturbed = fake.finish(process)
        assert disturbed.status is not None, f"still running\n{disturbed.out}"
        resume = ("--kv-resume=run.json",)
        (fake.path / "stored/fake/snapkv.txt").unlink(missing_ok=True)  # else the resumed run is judged by it, too
    finished = [text for text, _ in ledger(fake)]
    result = fake.check(*words, *resume)
    assert result.status == 0, result.out
    again = {text: times for text, times in Counter(text for text, _ in ledger(fake)).items() if times > 1}
    assert not again, f"of {len(finished)} finished contexts, measured again: {sorted(again)}"
    assert content(result) == content(undisturbed[bool(record)])


@pytest.mark.nightly
def test_a_killed_worker_costs_at_most_its_own_case(fake: Foreign) -> None:
    fake.behave(snapkv=0.9, sleep=PACE, ledger="ledger.txt")
    process = fake.start(*fake.words(*THREE, METHOD, "--kv-method=h2o", "-n", "2"))
    kill(fake, process, "a worker", 3, PACE / 2)
    result = fake.finish(process, 60)
    result.red()
    failures = result.file.failures
    assert len(failures) == 1, failures
    records = {(str(one.case), one.method) for one in result.file.cases if len(one.samples) == one.case.n}
    assert len(records) >= 5
    assert len(set(fake.tried())) == 6


def test_the_last_run_is_resumed_without_a_file_of_ones_own(fake: Foreign) -> None:
    fake.behave(snapkv=0.9, sleep=PACE, ledger="ledger.txt")
    words = tuple(word for word in fake.words(*THREE, METHOD) if not word.startswith(("--kv-json", "--kv-md")))
    process = fake.start(*words)
    kill(fake, process, "the run", 8, 0)
    result = fake.run(*words, "--kv-resume=last")
    assert result.status == 0, result.out
    assert max(Counter(text for text, _ in ledger(fake)).values()) == 1


def test_a_case_that_was_cut_short_is_completed(fake: Foreign, undisturbed: dict[bool, Result]) -> None:
    fake.behave(snapkv=0.9, ledger="ledger.txt")
    whole = json.loads(undisturbed[False].text("run.json"))
    for case in whole["cases"][:1]:
        case["samples"] = case["samples"][:8]
    fake.write("cut.json", json.dumps(whole))
    result = fake.check(*THREE, METHOD, "--kv-resume=cut.json")
    assert result.status == 0, result.out
    assert len(ledger(fake)) == 16
    assert content(result) == content(undisturbed[False])


MINE = """
from dataclasses import dataclass
from kvcheck.methods.fp16 import Fp16
from helper import SHARE

@dataclass(frozen=True)
class Mine(Fp16):
    "of one's own"
"""


@pytest.mark.parametrize("edited", ["helper.py", *nightly("mine.py", "nothing")])
def test_what_was_measured_with_other_code_is_not_taken_over(fake: Foreign, edited: str) -> None:
    fake.write("mine.py", MINE)
    fake.write("helper.py", "SHARE = 0.5\n")
    method = "--kv-method=mine.Mine"
    assert fake.check(method).status == 0
    if edited != "nothing":
        fake.add(edited, "TWICE = 2\n")
    (fake.path / "ran.txt").unlink()
    result = fake.check(method, "--kv-resume=run.json")
    if edited == "nothing":
        assert (result.status, fake.tried()) == (0, [])
    elif result.status == pytest.ExitCode.USAGE_ERROR:
        assert "mine.Mine" in result.out
    else:
        assert len(fake.tried()) == 1, "the old answers are served for the new code"


def test_a_run_with_other_packages_is_not_taken_over(fake: Foreign) -> None:
    assert fake.check(METHOD).status == 0
    run = json.loads((fake.path / "run.json").read_text())
    run["header"]["packages"]["torch"] = "2.0.0"
    fake.write("other.json", json.dumps(run))
    (fake.path / "ran.txt").unlink()
    result = fake.check(METHOD, "--kv-resume=other.json")
    if result.status == pytest.ExitCode.USAGE_ERROR:
        assert "torch" in result.out
    else:
        assert len(fake.tried()) == 1, "answers of another torch are served"
