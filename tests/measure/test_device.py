"""Clocks, driver and peak memory of a GPU, with an nvidia-smi and an allocator of the tests' own."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from kvcheck.core import env
from kvcheck.measure import clocks, latency
from kvcheck.measure.peak import Peak

GPU = torch.device("cuda", 1)
SMI = """#!{python}
import sys, time
arguments = " ".join(sys.argv[1:])
if "--id=GPU-abc" not in arguments:
    sys.exit(6)
if "--loop-ms" not in arguments:
    print("550.54, 700.00 W, 1980 MHz, [N/A]")
    sys.exit(0)
for line in ("1980, 2619", "1755, 2619", "[N/A], 2619", "1980, 2619"):
    print(line, flush=True)
time.sleep(60)
"""


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An nvidia-smi that knows one GPU, and a torch that numbers it 1."""
    program = tmp_path / "nvidia-smi"
    program.write_text(SMI.format(python=sys.executable))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    known = {1: SimpleNamespace(uuid="abc")}
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: known[index])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"GPU number {index}")


@pytest.mark.usefixtures("smi")
def test_the_record_names_driver_power_and_clocks_of_the_device_in_use() -> None:
    found = env.machine("cuda:1")
    assert found["gpu"] == "GPU number 1"
    assert (found["driver"], found["power limit"], found["max sm clock"]) == ("550.54", "700.00 W", "1980 MHz")
    assert "max memory clock" not in found


@pytest.mark.usefixtures("smi")
def test_layers_on_all_gpus_are_told_from_a_model_on_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid="abc"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert env.machine("spread")["gpus"] == "2"
    assert "gpus" not in env.machine("cuda:0")


@pytest.mark.usefixtures("smi")
def test_a_run_on_the_cpu_names_no_gpu() -> None:
    found = env.machine("cpu")
    assert "gpu" not in found
    assert found["threads"] == str(torch.get_num_threads())


def test_without_nvidia_smi_there_is_no_driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert env._smi("GPU-abc") == {}


@pytest.mark.usefixtures("smi")
def test_clocks_are_medians_of_what_was_sampled_in_the_block() -> None:
    with clocks.sampling(GPU) as found:
        assert found.sm_mhz is None
        time.sleep(1)
    assert (found.sm_mhz, found.memory_mhz) == (1980, 2619)


@pytest.mark.usefixtures("smi")
def test_the_sampler_ends_with_the_block_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    start = clocks._start
    monkeypatch.setattr(clocks, "_start", lambda *given: started.append(start(*given)) or started[0])
    with pytest.raises(ZeroDivisionError), clocks.sampling(GPU):
        raise ZeroDivisionError
    assert started[0].poll() is not None


def test_on_a_cpu_no_clocks_are_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clocks, "_start", lambda *given: pytest.fail("nvidia-smi was started"))
    with clocks.sampling(torch.device("cpu")) as found:
        pass
    assert (found.sm_mhz, found.memory_mhz) == (None, None)


class Allocator:
    """Stands for CUDA's: bytes there now, and the most since the last reset."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, now: int) -> None:
        self.now = self.most = now
        self.waits = 0
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: self.now)
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: self.most)
        monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", self.reset)
        monkeypatch.setattr(torch.cuda, "synchronize", self.wait)

    def reset(self, device: torch.device) -> None:
        self.most = self.now

    def wait(self, device: torch.device) -> None:
        self.waits += 1

    def take(self, count: int) -> None:
        self.now += count
        self.most = max(self.most, self.now)


def test_a_peak_counts_its_blocks_and_nothing_between_them(monkeypatch: pytest.MonkeyPatch) -> None:
    allocator = Allocator(monkeypatch, now=1000)
    peak = Peak([GPU])
    with peak.counting():
        allocator.take(300)
        allocator.take(-200)
    allocator.take(9000)
    allocator.take(-9000)
    with peak.counting():
        allocator.take(50)
    assert peak.bytes == 300


def test_what_a_block_leaves_behind_is_there_in_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    allocator = Allocator(monkeypatch, now=0)
    peak = Peak([GPU])
    for _ in range(2):
        with peak.counting():
            allocator.take(100)
    assert peak.bytes == 200


def test_a_cpu_knows_no_peak() -> None:
    peak = Peak([torch.device("cpu")])
    with peak.counting():
        torch.zeros(10)
    assert peak.bytes is None


def test_the_stopwatch_waits_for_the_device_before_and_after(monkeypatch: pytest.MonkeyPatch) -> None:
    allocator = Allocator(monkeypatch, now=0)
    _, waits = latency.stopwatch([GPU], lambda: allocator.waits)
    assert (waits, allocator.waits) == (1, 2)
