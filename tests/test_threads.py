"""Threads fit the machine, and sleep while they wait."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kvcheck.core import threads


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user who set none of the variables, and a process without torch."""
    for name in threads.OWN:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delitem(sys.modules, "torch", raising=False)


def groups(folder: Path, **files: str) -> tuple[Path, Path]:
    """A tree of control groups: a/b holds this process; files by group and name (a__cpu.max)."""
    (folder / "root" / "a" / "b").mkdir(parents=True)
    for name, text in files.items():
        group, _, file = name.rpartition("__")
        (folder / "root" / group.replace("__", "/") / file).write_text(text)
    (folder / "mine").write_text("0::/a/b\n")
    return folder / "root", folder / "mine"


def test_threads_wait_passively(monkeypatch: pytest.MonkeyPatch) -> None:
    threads.wait_passively()
    assert {name: os.environ[name] for name in threads.PASSIVE} == threads.PASSIVE
    assert "OMP_WAIT_POLICY=passive" in threads.policy()


@pytest.mark.parametrize("name", threads.OWN)
def test_what_the_user_says_of_waiting_stands(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "17")
    threads.wait_passively()
    assert {each: os.environ[each] for each in threads.OWN if each in os.environ} == {name: "17"}
    assert threads.policy() == f"{name}=17"


def test_nothing_is_set_once_torch_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", object())  # type: ignore[arg-type]
    threads.wait_passively()
    assert not any(name in os.environ for name in threads.OWN)
    assert "before kvcheck" in threads.policy()


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({"a__b__cpu.max": "150000 100000"}, 1.5),
        ({"a__cpu.max": "200000 100000", "a__b__cpu.max": "max 100000"}, 2.0),
        ({"a__cpu.max": "100000 100000", "a__b__cpu.max": "300000 100000"}, 1.0),
        ({"a__b__cpu.max": "torn"}, threads.ROOMY),
        ({}, threads.ROOMY),
    ],
)
def test_the_quota_is_that_of_the_narrowest_group_around(tmp_path: Path, files: dict[str, str], cpus: float) -> None:
    assert threads.quota(*groups(tmp_path, **files)) == cpus


def test_the_quota_of_version_1(tmp_path: Path) -> None:
    group = tmp_path / "cpu,cpuacct" / "docker"
    group.mkdir(parents=True)
    (group / "cpu.cfs_quota_us").write_text("50000\n")
    (group / "cpu.cfs_period_us").write_text("100000\n")
    (tmp_path / "mine").write_text("5:memory:/elsewhere\n4:cpu,cpuacct:/docker\n")
    assert threads.quota(tmp_path, tmp_path / "mine") == 0.5


def test_cores_are_those_that_affinity_and_quota_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    monkeypatch.setattr(threads, "quota", lambda: 5.5)
    assert threads.cores() == 6


PROBE = """
import os, sys
policy = os.environ.get("OMP_WAIT_POLICY")
def test_which(): print("POLICY", policy, "torch" in sys.modules)
"""


@pytest.mark.parametrize(("options", "policy"), [(["--kv-profile=quick"], "passive"), ([], "None")])
def test_a_session_that_uses_kvcheck_says_it_before_any_conftest(
    pytester: pytest.Pytester, options: list[str], policy: str
) -> None:
    pytester.makeconftest(PROBE)
    pytester.makepyfile(test_one="from conftest import test_which")
    result = pytester.runpytest_subprocess("-s", *options)
    result.stdout.fnmatch_lines([f"*POLICY {policy} *"])


def test_a_project_that_uses_kvcheck_says_it_too(pytester: pytest.Pytester) -> None:
    pytester.makepyprojecttoml("[tool.kvcheck]\nprofile = 'quick'\n")
    pytester.makeconftest(PROBE)
    pytester.makepyfile(test_one="from conftest import test_which")
    pytester.runpytest_subprocess("-s").stdout.fnmatch_lines(["*POLICY passive *"])


ASLEEP = """
import os, time
{first}
from kvcheck.models import load, pick_device
import torch
torch.set_num_threads(2)
one = torch.randn(256, 256)
for _ in range(3):
    one = (one @ one).tanh()
before, waited = time.process_time(), time.perf_counter()
for _ in range(200):
    one = (one @ one).tanh()
    time.sleep(0.002)
print(time.process_time() - before)
"""


def test_waiting_threads_take_no_time_of_a_core() -> None:
    """Between two matrix products the other thread sleeps; told to spin, it takes most of the time in between."""
    spent = []
    for first in ("os.environ['OMP_WAIT_POLICY'] = 'active'", ""):
        code = ASLEEP.format(first=first)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        spent.append(float(done.stdout))
    active, passive = spent
    assert passive < 0.7 * active
