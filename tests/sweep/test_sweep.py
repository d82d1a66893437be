"""`kvcheck sweep`: who measures what changes no number, and nothing that was measured is lost or measured twice."""

from __future__ import annotations

import os
import random
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import pytest

from kvcheck.backends.transformers import Session
from kvcheck.cli import sweep as command
from kvcheck.cli.commands import main
from kvcheck.core import files
from kvcheck.core.record import CaseRecord
from kvcheck.core.settings import OPTIONS, Settings
from kvcheck.plugin import cases
from kvcheck.runner.case import Runner
from kvcheck.store import journal
from kvcheck.store.run_file import read_run
from kvcheck.sweep.book import Book
from kvcheck.sweep.pools import GIVE_UP, Pool
from kvcheck.sweep.worker import Code, Done, Job, Worker

SETTINGS = Settings(methods=("fp16", "snapkv:budget=0.25"), tasks=("kv",), lengths=(192,), n=5)
GRID = ("sweep", "--methods=fp16,snapkv:budget=0.25", "--tasks=kv", "--lengths=192", "--n=5", "--models=mini")
"""2 cases, of 4 contexts and one more each."""


class Here(Pool):
    """Workers in this process, one after the other in random order, that share what is loaded and, unless `fresh`, what
    was measured for other tests. fate: what becomes of a job, by their number: None lets a worker die in it, or a
    function makes something else of what it has done."""

    served: ClassVar[dict[str, Worker]] = {}
    known: ClassVar[dict[Any, Done]] = {}

    def __init__(
        self, count: int, fate: Callable[[int], Any] = lambda number: True, seed: int = 0, fresh: bool = False
    ) -> None:
        super().__init__(count)
        self.fresh = fresh
        self.jobs: dict[int, Job] = {}
        self.seen: list[tuple[int, Job]] = []
        self.fate, self.random = fate, random.Random(seed)
        self.start()

    def _start(self, slot: int) -> None:
        self._ready(slot)

    def submit(self, slot: int, job: Job) -> None:
        self.idle.discard(slot)
        self.jobs[slot] = job
        self.seen.append((slot, job))

    def wait(self) -> list[tuple[int, Done | None]]:
        slot = self.random.choice(sorted(self.jobs))
        job, fate = self.jobs.pop(slot), self.fate(len(self.seen))
        if fate is None:
            self._died(slot, "killed")
            return [(slot, None)]
        key = (job.settings.model, job.settings.device, job.case, job.method, job.so_far)
        worker = self.served.setdefault(job.settings.model, Worker(os.getcwd()))
        done = worker.do(job) if self.fresh else self.known.get(key) or worker.do(job)
        self.known[key] = done
        self._ready(slot)
        return [(slot, fate(done) if callable(fate) else done)]

    def close(self) -> None:
        pass


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Here]:
    """Lets the command take these workers."""
    monkeypatch.chdir(tmp_path)

    def make(*given: Any, **more: Any) -> Here:
        pool = Here(*given, **more)
        monkeypatch.setattr(command, "_pool", lambda *_: pool)
        return pool

    return make


@pytest.fixture(scope="module")
def alone() -> dict[tuple[str, str], CaseRecord]:
    """Every case measured at one go, without a sweep."""
    runner = Runner(Session.open(SETTINGS), SETTINGS)
    pairs = [(case, method) for case in cases.cases(SETTINGS, None) for method in SETTINGS.methods]
    return {(str(case), method): runner.run_case(case, method) for case, method in pairs}


def measured(path: Path) -> dict[tuple[str, str], CaseRecord]:
    """The records of a run file, without what judging adds."""
    found = [
        replace(one, not_measured=tuple(p for p in one.not_measured if p[0] != "regression"))
        for one in read_run(path).cases
    ]
    return {(str(one.case), one.method): one for one in found}


@pytest.mark.parametrize(("count", "seed"), [(1, 0), (2, 1)])
def test_records_are_those_of_one_process_whoever_measures_what(
    here: Callable[..., Here], alone: dict[tuple[str, str], CaseRecord], count: int, seed: int
) -> None:
    here(count, seed=seed, fresh=True)
    assert main([*GRID, "--json=run.json"]) == 0
    assert measured(Path("run.json")) == alone
    assert not journal.folder_of(Path("run.json")).exists()


def test_cases_of_the_same_contexts_are_measured_together_block_by_block(here: Callable[..., Here]) -> None:
    pool = here(1)
    assert main([*GRID[:3], "--lengths=192,256", *GRID[4:], "--json=run.json"]) == 0
    done = [(job.case.length, 0 if job.so_far is None else len(job.so_far.samples)) for _, job in pool.seen]
    blocks = [(256, 0)] * 4 + [(256, 4)] * 4 + [(192, 0)] * 4 + [(192, 4)] * 4
    assert done == blocks, (
        "the largest group first; of each the first block of all cases and methods, then the next one"
    )


def test_workers_with_nothing_to_do_take_a_part_of_the_methods_of_another_one(here: Callable[..., Here]) -> None:
    pool = here(2)
    assert main([*GRID, "--json=run.json"]) == 0
    places = {(job.case, job.method, slot) for slot, job in pool.seen}
    assert Counter(slot for _, _, slot in places) == {0: 2, 1: 2}, "each case with a method at one worker"


def test_a_worker_keeps_the_model_that_it_holds(here: Callable[..., Here]) -> None:
    pool = here(2)
    options = ["--lengths=192,256", "--n=1", "--modes=multi_request", "--models=mini,mini_window"]
    assert main([*GRID[:3], *options, "--json=run.json"]) == 0
    models = {slot: [job.settings.model for at, job in pool.seen if at == slot] for slot in (0, 1)}
    changes = {slot: sum(a != b for a, b in pairwise(found)) for slot, found in models.items()}
    assert max(changes.values()) <= 1, models
    assert {read_run(f"run-{name}.json").header.model_name for name in ("mini", "mini_window")} == {
        "mini",
        "mini_window",
    }


def test_the_block_of_a_worker_that_died_is_measured_by_another_one(
    here: Callable[..., Here], alone: dict[tuple[str, str], CaseRecord]
) -> None:
    pool = here(2, lambda number: None if number == 3 else True)
    assert main([*GRID, "--json=run.json"]) == 0
    assert measured(Path("run.json")) == alone
    again = [
        count for count in Counter((job.case, job.method, job.so_far) for _, job in pool.seen).values() if count > 1
    ]
    assert again == [2], "one block was begun twice, no other one"


def test_a_case_in_which_workers_keep_dying_is_given_up_and_the_others_are_measured(
    here: Callable[..., Here], alone: dict[tuple[str, str], CaseRecord], capsys: pytest.CaptureFixture[str]
) -> None:
    pool = here(1)
    pool.fate = lambda _: None if pool.seen[-1][1].method.startswith("snapkv") and _first(pool) else True
    assert main([*GRID, "--json=run.json"]) == 1
    run = read_run("run.json")
    (name,) = run.failures
    assert "2 workers died in it" in run.failures[name]
    assert measured(Path("run.json")) == {key: one for key, one in alone.items() if "|".join(key) != name}
    here(1)
    assert main([*GRID, "--json=run.json", "--resume"]) == 0, "it is tried again"
    assert measured(Path("run.json")) == alone


def _first(pool: Here) -> bool:
    """Whether the newest job is of the first case that snapkv was tried on."""
    mine = [job.case for _, job in pool.seen if job.method.startswith("snapkv")]
    return mine[-1] == mine[0]


def test_two_methods_that_kill_the_only_worker_fail_alone(
    here: Callable[..., Here], capsys: pytest.CaptureFixture[str]
) -> None:
    pool = here(1)
    pool.fate = lambda _: True if pool.seen[-1][1].method == "fp16" else None
    words = ["--methods=snapkv:budget=0.25,snapkv:budget=0.5,fp16", "--modes=multi_request", *GRID[2:]]
    assert main(["sweep", *words, "--json=run.json"]) == 1
    run = read_run("run.json")
    assert {name.partition("|")[2] for name in run.failures} == {"snapkv:budget=0.25", "snapkv"}
    assert [one.method for one in run.cases] == ["fp16"]
    said = capsys.readouterr().err
    assert "3 of 3 cases; worker 0" in said
    assert said.count("died: killed") == 4
    assert said.count("the case is given up") == 2
    pool = here(1)
    assert main(["sweep", *words, "--json=run.json", "--resume"]) == 0


def test_what_failed_before_is_tried_last(here: Callable[..., Here]) -> None:
    pool = here(1)
    pool.fate = lambda number: None if pool.seen[-1][1].method == "fp16" else _stop(number > 5)
    words = ["--modes=multi_request", "--json=run.json"]
    assert main([*GRID[:3], "--lengths=192,256", *GRID[4:], *words]) == command.INTERRUPTED
    pool = here(1)
    assert main([*GRID[:3], "--lengths=192,256", *GRID[4:], *words, "--resume"]) == 0
    failed = [job.case.length for _, job in pool.seen if job.method == "fp16"]
    assert failed, pool.seen
    assert [job.method for _, job in pool.seen][-2:] == ["fp16", "fp16"]


def _stop(now: bool) -> bool:
    if now:
        raise KeyboardInterrupt
    return True


class Stillborn(Here):
    """Workers that die before they are ready."""

    def _start(self, slot: int) -> None:
        pass

    def wait(self) -> list[tuple[int, Done | None]]:
        self._died(0, "killed by SIGKILL")
        return [(0, None)]


def test_a_sweep_ends_where_workers_die_before_they_are_ready(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "_pool", lambda *_: Stillborn(1))
    assert main([*GRID, "--json=run.json"]) == 2
    said = capsys.readouterr().err
    assert f"all 1 workers died {GIVE_UP} times in a row before they were ready" in said
    assert "out of memory?" in said


@pytest.mark.parametrize("stop", [KeyboardInterrupt, RuntimeError, signal.SIGTERM])
def test_an_interrupted_sweep_goes_on_behind_what_is_there(
    here: Callable[..., Here], alone: dict[tuple[str, str], CaseRecord], stop: type[BaseException] | signal.Signals
) -> None:
    def fate(number: int) -> bool:
        if number == 4:
            if isinstance(stop, signal.Signals):
                os.kill(os.getpid(), stop)
                time.sleep(10)
            else:
                raise stop
        return True

    here(1, fate)
    if stop is not RuntimeError:
        assert main([*GRID, "--json=run.json"]) == command.INTERRUPTED
    else:
        with pytest.raises(RuntimeError):
            main([*GRID, "--json=run.json"])
    assert len(read_run("run.json").partial) == 3
    pool = here(1)
    assert main([*GRID, "--json=run.json", "--resume"]) == 0
    assert len(pool.seen) == 5, "8 blocks, of which 3 are there"
    assert measured(Path("run.json")) == alone


def test_a_killed_sweep_goes_on_from_its_journal(
    here: Callable[..., Here], alone: dict[tuple[str, str], CaseRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fate(number: int) -> bool:
        if number == 6:
            raise KeyboardInterrupt
        return True

    here(1, fate)
    with monkeypatch.context() as killed:  # nothing is written at the end
        killed.setattr(Book, "close", lambda self: None)
        main([*GRID, "--json=run.json"])
    assert not Path("run.json").exists()
    pool = here(1)
    assert main([*GRID, "--json=run.json", "--resume"]) == 0
    assert len(pool.seen) == 3
    assert measured(Path("run.json")) == alone


def test_verdicts_are_the_gates_and_a_report_and_a_comparison_read_the_file(
    here: Callable[..., Here], capsys: pytest.CaptureFixture[str]
) -> None:
    here(1)
    assert main([*GRID, "--json=run.json"]) == 0
    run = read_run("run.json")
    assert run.verdicts["run|snapkv:budget=0.25"][0].outcome == "fail", "a quarter of 192 tokens holds no key"
    assert {name.partition("|")[2] for name in run.verdicts} == {"snapkv:budget=0.25"}, "fp16 is what it is judged by"
    assert main(["report", "run.json"]) == 0
    assert main(["compare", "run.json", "run.json", "--fail-on-regression"]) == 0
    assert "snapkv:budget=0.25" in capsys.readouterr().out


def test_a_finished_sweep_needs_no_worker_to_be_resumed(here: Callable[..., Here]) -> None:
    here(1)
    assert main([*GRID, "--json=run.json"]) == 0
    before = measured(Path("run.json"))
    pool = here(1)
    assert main([*GRID, "--json=run.json", "--resume"]) == 0
    assert not pool.seen
    assert measured(Path("run.json")) == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--methods=fp16,snapkw"], "did you mean snapkv?"),
        (["--methods=snapkv:budgt=1"], "budgt"),
        (["--models=minj"], "unknown model 'minj'"),
        (["--lengths=long"], "--lengths"),
        (["--tasks=kw"], "unknown task 'kw'"),
        (["--n=auto"], "give a number: --n=16"),
        (["--models=mini,"], "--models=mini,: a name is empty"),
        (["--methods="], "--methods=: a method is empty"),
        (["--workers=0"], "--workers is a number from 1 up"),
        (["--models=random:tiny"], "random weights"),
    ],
)
def test_what_cannot_be_swept_is_refused_before_anything_is_measured(
    here: Callable[..., Here], capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    pool = here(1)
    assert main([*GRID, *words, "--json=run.json"]) == 2
    assert said in capsys.readouterr().err
    assert not pool.seen
    assert not list(Path().iterdir())


def test_a_run_that_is_there_is_not_overwritten_nor_gone_on_with_by_another_grid(
    here: Callable[..., Here], capsys: pytest.CaptureFixture[str]
) -> None:
    here(1)
    assert main([*GRID, "--json=run.json"]) == 0
    before = Path("run.json").read_bytes()
    assert main([*GRID, "--json=run.json"]) == 2
    refused = capsys.readouterr().err
    assert "holds a run already" in refused
    typed = refused.rpartition("go on with it: ")[2]
    assert main(shlex.split(typed)[1:]) == 0, typed
    capsys.readouterr()
    before = Path("run.json").read_bytes()
    assert main([*GRID, "--lengths=256", "--json=run.json", "--resume"]) == 2
    refused = capsys.readouterr().err
    assert "is of another grid" in refused
    assert Path("run.json").read_bytes() == before
    typed = next(line.partition(": ")[2] for line in refused.splitlines() if "to go on with it" in line)
    assert main(shlex.split(typed)[1:]) == 0, typed
    assert main([*GRID, "--json=run.json", "--seed=1", "--resume"]) == 2
    assert main([*GRID, "--json=run.json", "--dtype=bfloat16", "--resume"]) == 2
    assert "was measured with dtype=auto, this session has dtype=bfloat16" in capsys.readouterr().err


def test_two_sweeps_do_not_write_one_file(here: Callable[..., Here], capsys: pytest.CaptureFixture[str]) -> None:
    pool = here(1)
    with files.alone(Path("run.json").absolute()):
        assert main([*GRID, "--json=run.json", "--resume"]) == 2
    assert "another process writes" in capsys.readouterr().err
    assert not pool.seen
    assert not list(Path().iterdir())


def test_a_sweep_that_is_refused_for_one_model_leaves_nothing_of_the_others(
    here: Callable[..., Here], capsys: pytest.CaptureFixture[str]
) -> None:
    here(1)
    Path("run-mini_window.json").write_text('{"schema": 0}')
    assert main([*GRID, "--models=mini,mini_window", "--json=run.json"]) == 2
    assert [path.name for path in Path().iterdir()] == ["run-mini_window.json"]


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"code": Code("0.0.1", {}, {})}, "a worker measures with other code than this: kvcheck"),
        ({"fingerprint": "another"}, "is another model on a worker"),
    ],
)
def test_a_worker_of_another_state_ends_the_sweep(
    here: Callable[..., Here], capsys: pytest.CaptureFixture[str], other: dict[str, Any], said: str
) -> None:
    here(1, lambda number: (lambda done: replace(done, **other)) if number == 2 else True)
    assert main([*GRID, "--json=run.json"]) == 2
    assert said in capsys.readouterr().err


def test_a_model_that_a_worker_cannot_open_ends_the_sweep_with_its_reason(
    here: Callable[..., Here], capsys: pytest.CaptureFixture[str]
) -> None:
    here(1)
    assert main([*GRID, "--device=cuda:7", "--json=run.json"]) == 2
    assert "cuda:7" in capsys.readouterr().err
    assert not Path("run.json").exists()


def test_a_file_of_something_else_is_refused_before_anything_is_measured(
    here: Callable[..., Here], capsys: pytest.CaptureFixture[str]
) -> None:
    pool = here(1)
    Path("notes.txt").write_text("notes")
    for more in ([], ["--resume"]):
        assert main([*GRID, "--json=notes.txt", *more]) == 2
        assert "--json: " in (said := capsys.readouterr().err)
        assert "holds something else and would be overwritten" in said
    assert not pool.seen
    assert Path("notes.txt").read_text() == "notes"


def test_a_worker_spells_options_as_the_sweep_does() -> None:
    flags = {name: option.flag.replace("--kv-", "--") for name, option in OPTIONS.items()}
    settings = replace(SETTINGS, model="/nowhere", timeout=1e-3)
    case = cases.cases(SETTINGS, None)[0]
    done = Worker(os.getcwd(), flags).do(Job(settings, case, "fp16"))
    assert done.refused is not None
    assert done.refused[0].startswith("--model: there is no folder")
    done = Worker(os.getcwd(), flags).do(Job(replace(settings, model="mini"), case, "fp16"))
    assert "--timeout=SECONDS" in done.failure


@pytest.mark.parametrize("at", [1, 2])
def test_a_model_that_cannot_be_opened_fails_alone(
    here: Callable[..., Here], capsys: pytest.CaptureFixture[str], at: int
) -> None:
    """At the first block of it, or later, when there is a run file for its failures."""
    pool = here(1)

    def lost(done: Done) -> Done:
        return replace(done, record=None, refused=("no memory on this device", ""))

    def fate(number: int) -> Any:
        models = [job.settings.model for _, job in pool.seen]
        return lost if models[-1] == "mini" and models.count("mini") >= at else True

    pool.fate = fate
    options = ["--n=1", "--modes=multi_request", "--models=mini,mini_window"]
    assert main([*GRID[:4], *options, "--json=run.json"]) == 1
    said = capsys.readouterr()
    assert "no memory on this device" in said.err
    assert "4 of 4 cases" in said.err
    assert "run-mini_window.json: written" in said.out
    assert not read_run("run-mini_window.json").failures
    assert Path("run-mini.json").exists() == (at == 2)
    if at == 2:
        (why,) = read_run("run-mini.json").failures.values()
        assert "no memory on this device" in why
        assert "kvcheck report" in said.out or "in full" not in said.out
    assert not list(Path().glob("*.journal"))


def test_what_is_raised_while_a_model_is_opened_is_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(settings: Settings) -> None:
        raise RuntimeError("CUDA out of memory\nTried to allocate")

    monkeypatch.setattr("kvcheck.plugin.pytest_kvcheck_open", broken)
    done = Worker(os.getcwd()).do(Job(SETTINGS, cases.cases(SETTINGS, None)[0], "fp16"))
    assert done.refused == ("mini cannot be opened: RuntimeError: CUDA out of memory", "")


def killing(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Kill the worker that has done the second block, while it has the next one; returns whom."""
    killed: list[int] = []
    take = Book.take

    def taken(self: Book, case: Any, method: str, done: Done) -> bool:
        found = take(self, case, method, done)
        if not killed and self.done(case, method) and len(self.kept.records) == 2:
            killed.append(done.pid)
            os.kill(done.pid, signal.SIGKILL)
        return found

    monkeypatch.setattr(Book, "take", taken)
    return killed


def test_two_processes_of_which_one_is_killed_give_the_records_of_one(
    alone: dict[tuple[str, str], CaseRecord], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    killed = killing(monkeypatch)
    assert main([*GRID, "--json=run.json", "--workers=2"]) == 0
    assert len(killed) == 1
    assert measured(Path("run.json")) == alone


SLEEPER = """
import sys, time
from kvcheck.sweep import pools
class Sleeps:
    def __init__(self, folder, flags): time.sleep(100)
pools.Worker = Sleeps
if __name__ == "__main__":
    pool = pools.Processes(1)
    print(*(process.pid for _, process in pool._live.values()), flush=True)
    time.sleep(100)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="it looks into /proc")
def test_a_worker_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    (tmp_path / "sleeper.py").write_text(SLEEPER)
    parent = subprocess.Popen([sys.executable, tmp_path / "sleeper.py"], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    worker = int(parent.stdout.readline())
    time.sleep(0.5)
    parent.kill()
    parent.wait()
    until = time.monotonic() + 60
    while _lives(worker) and time.monotonic() < until:
        time.sleep(0.2)
    assert not _lives(worker)


def _lives(pid: int) -> bool:
    """Whether a process runs; one that has ended and that nobody waited for does not."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


@pytest.mark.nightly
def test_two_actors_of_ray_of_which_one_is_killed_give_the_records_of_one(
    alone: dict[tuple[str, str], CaseRecord], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("ray")
    monkeypatch.chdir(tmp_path)
    killed = killing(monkeypatch)
    assert main([*GRID, "--json=run.json", "--ray=local", "--workers=2"]) == 0
    assert len(killed) == 1
    assert measured(Path("run.json")) == alone


def test_without_ray_the_line_that_installs_it_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("kvcheck.sweep.cluster.find_spec", lambda name: None)
    assert main([*GRID, "--json=run.json", "--ray=auto"]) == 2
    assert "pip install 'kvcheck[ray]'" in capsys.readouterr().err
