"""The gate on OpenVINO GenAI for real: what is sound is green, and what the release breaks is red."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import NamedTuple

import pytest
from needed import needed

from kvcheck.core.record import RUN, CaseRecord, Run, Verdict
from kvcheck.store.run_file import read_run

U8, U4 = "openvino:KV_CACHE_PRECISION=u8", "openvino:KV_CACHE_PRECISION=u4"
XATTENTION = "openvino:use_sparse_attention=true,sparse_attention_config.mode=XATTENTION"
EVICTION = "openvino:use_cache_eviction=true,cache_eviction_config.max_cache_size=448"
ROTATION = f"{EVICTION},cache_eviction_config.apply_rotation=true"
QUICK = ("--kv-tasks=kv", "--kv-lengths=512", "--kv-modes=multi_turn", "--kv-n=8", "--kv-baselines=stored")


class Gated(NamedTuple):
    """What a run came to. printed: on one line."""

    status: int
    printed: str
    run: Run

    def case(self, method: str) -> CaseRecord:
        """The one of a method."""
        (found,) = (one for one in self.run.cases if one.method == method and one.samples)
        return found

    def outcomes(self, method: str) -> set[str]:
        """Of all verdicts on a method, of cases and of the whole."""
        return {one.outcome for name, every in self._verdicts(method) for one in every}

    def pooled(self, method: str) -> list[Verdict]:
        """On the whole run: how much accuracy it loses."""
        return [
            one for name, every in self._verdicts(method) for one in every if name == RUN and one.question == "budget"
        ]

    def _verdicts(self, method: str) -> list[tuple[str, tuple[Verdict, ...]]]:
        split = ((*name.partition("|"), every) for name, every in self.run.verdicts.items())
        return [(scope, every) for scope, _, whose, every in split if whose == method]


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Gated]:
    """Types the command of the README in an empty folder, on one task."""
    needed("openvino_genai", "pip install 'kvcheck[openvino]'")
    place = tmp_path_factory.mktemp("gate")
    leave = ("CI", "GITHUB_STEP_SUMMARY", "PYTEST_ADDOPTS", "PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT")
    environ = {name: value for name, value in os.environ.items() if name not in leave}
    environ |= {"KVCHECK_CACHE": str(place / "cache"), "OMP_NUM_THREADS": "1", "COLUMNS": "250"}

    def typed(*options: str) -> Gated:
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--pyargs", "kvcheck.suites"]
        command += ["-m", "kv", *QUICK, *options, "--kv-json=run.json"]
        done = subprocess.run(command, cwd=place, env=environ, capture_output=True, text=True, timeout=900, check=False)
        printed = done.stdout + done.stderr
        assert (place / "run.json").is_file(), printed
        return Gated(done.returncode, " ".join(printed.split()), read_run(place / "run.json"))

    return typed


@pytest.fixture(scope="module")
def eight(gate: Callable[..., Gated]) -> Gated:
    """A run with 8 bits, which records what the full cache does: all settings here have the same reference."""
    return gate(f"--kv-method={U8}", "--kv-record=new")


@pytest.fixture(scope="module")
def others(eight: Gated, gate: Callable[..., Gated]) -> Gated:
    """A run with all the others, beside that record."""
    return gate(*(f"--kv-method={one}" for one in (U4, XATTENTION, EVICTION, ROTATION)))


def test_8_bits_are_green_and_hold_59_percent(eight: Gated) -> None:
    assert eight.status == 0, eight.printed
    assert eight.outcomes(U8)
    assert eight.outcomes(U8) <= {"pass", "inconclusive"}
    memory = eight.case(U8).memory
    assert memory is not None
    assert memory.ratio == 0.59375
    assert eight.case("fp16").accuracy > 0.9
    assert "It holds 59% of the KV bytes of fp16." in eight.printed


def test_what_the_release_breaks_is_red_and_says_how_much_it_loses(others: Gated) -> None:
    assert others.status == 1, others.printed
    for method, points in ((XATTENTION, 20), (ROTATION, 80)):
        (found,) = others.pooled(method)
        assert found.outcome == "fail"
        assert found.value > points
        assert f"FAILED kvcheck::run[{method}] - drop {found.value:.1f} points" in others.printed


def test_eviction_whose_positions_stay_is_not_accused(others: Gated) -> None:
    assert others.outcomes(EVICTION)
    assert "fail" not in others.outcomes(EVICTION)
    assert others.case(EVICTION).accuracy > 0.9


def test_4_bits_are_as_accurate_and_their_bytes_are_not_measured_with_the_reason(others: Gated) -> None:
    assert others.outcomes(U4)
    assert "fail" not in others.outcomes(U4)
    assert others.case(U4).accuracy > 0.9
    assert others.case(U4).memory is None
    assert dict(others.case(U4).not_measured)["memory"].startswith("openvino-genai counts u4 as a byte for each number")
