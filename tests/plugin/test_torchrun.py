"""One model in two processes on the CPU: the answers, bytes and files of one process, and no process that hangs."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from kvcheck.core.paths import bundle

NEW = tuple(map(int, version("transformers").split(".")[:2])) >= (5, 16)
pytestmark = [
    pytest.mark.skipif(not (dist.is_available() and dist.is_gloo_available()), reason="this torch has no gloo"),
    pytest.mark.skipif(find_spec("torch.distributed.run") is None, reason="this torch has no torchrun"),
    pytest.mark.skipif(
        NEW and find_spec("accelerate") is None, reason="transformers loads models in parts through accelerate only"
    ),
]
CASES = ["--kv-tasks=kv", "--kv-lengths=256", "--kv-n=2"]
OWN = """
import os
from dataclasses import dataclass
from typing import ClassVar
from kvcheck.cache.method import Method, MethodInfo
from kvcheck.cache.kv_cache import CacheLayer
from kvcheck.cache.method_runner import MethodRunner

class Broken(CacheLayer):
    def compress(self, queries):
        if self.method.when == "compress" and os.environ.get("RANK") == "1":
            raise IndexError("no slot in the second process")

    def step(self, query):
        if self.method.when == "step" and os.environ.get("RANK") == "1" and self.index == 1:
            raise IndexError("no step in the second process")

@dataclass(frozen=True)
class Fails(Method):
    info: ClassVar = MethodInfo(summary="fails in one process", stage="compression", frees_memory=False)
    when: str = "compress"

    def layer(self, shape, index):
        return Broken(shape, index, self)

class Straying(MethodRunner):
    def feed(self, cache, ids, keep=1):
        return super().feed(cache, ids + int(os.environ["RANK"]), keep)

class Strays(Fails):
    def layer(self, shape, index):
        return CacheLayer(shape, index, self)

    def runner(self, loaded):
        return Straying(self, loaded)
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny random Llama of 4 query heads on 2 kv heads, and a method that fails in one process."""
    from transformers import LlamaConfig, LlamaForCausalLM

    path = tmp_path_factory.mktemp("torchrun")
    (path / "tiny").mkdir()
    for file in bundle("fixtures").joinpath("mini").glob("*token*"):
        shutil.copy(file, path / "tiny")
    torch.manual_seed(0)
    words = json.loads((bundle("fixtures") / "mini" / "config.json").read_text())["vocab_size"]
    config = LlamaConfig(
        vocab_size=words, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=1024, initializer_range=0.2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(path / "tiny")
    (path / "own.py").write_text(OWN)
    (path / "impatient.py").write_text("from kvcheck.models import parallel\nparallel.WAIT = 3.0\n")
    return path


def run(place: Path, start: list[str], *options: str) -> subprocess.CompletedProcess[str]:
    """pytest on the string retrieval suite with the tiny model."""
    command = [sys.executable, "-m", *start, "pytest", "--pyargs", "kvcheck.suites.test_string_retrieval", *CASES]
    command += ["--kv-model=tiny", "--kv-against=fp16", "--kv-strict", "-p", "no:cacheprovider", *options]
    with pytest.MonkeyPatch.context() as patch:
        for name in ("CI", "GITHUB_STEP_SUMMARY", "PYTEST_ADDOPTS", "PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT"):
            patch.delenv(name, raising=False)
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        return subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=240, check=False)


TWO = ["torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"]
METHODS = ["--kv-modes=multi_turn", "--kv-method=fp16", "--kv-method=streaming_llm:window=64,sink=4"]


@pytest.fixture(scope="module")
def one(place: Path) -> dict[str, Any]:
    """The run of one process."""
    done = run(place, [], *METHODS, "--kv-json=one.json")
    assert "kvcheck" in done.stdout, done.stdout + done.stderr
    return json.loads((place / "one.json").read_text())


@pytest.fixture(scope="module")
def both(place: Path) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    """The run of two, with a method that needs all heads and one that fails in the second process."""
    methods = [*METHODS[:2], *(f"--kv-method={name}" for name in ("own.Fails", "own.Strays", "tova")), METHODS[2]]
    done = run(place, TWO, *methods, "--kv-json=two.json", "--junitxml=two.xml", "--kv-record=new", "--kv-baselines=b")
    assert (place / "two.json").is_file(), done.stdout + done.stderr
    return done, json.loads((place / "two.json").read_text())


def cases(run: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(case["case"], case["method"]): case for case in run["cases"]}


def turns(case: dict[str, Any]) -> list[dict[str, Any]]:
    return [turn for sample in case["samples"] for turn in sample["turns"]]


def test_two_processes_give_the_answers_of_one(one: dict[str, Any], both: tuple[Any, dict[str, Any]]) -> None:
    mine, theirs = cases(one), cases(both[1])
    assert len(mine) == 2
    for key, case in mine.items():
        for turn, other in zip(turns(case), turns(theirs[key]), strict=True):
            assert (turn["answer"], turn["score"]) == (other["answer"], other["score"])
            assert turn["nll"] == pytest.approx(other["nll"], abs=1e-3)


def test_bytes_and_slots_are_those_of_the_whole_model(one: dict[str, Any], both: tuple[Any, dict[str, Any]]) -> None:
    mine, theirs = cases(one), cases(both[1])
    for key, case in mine.items():
        held, other = case["memory"], theirs[key]["memory"]
        assert other.pop("apart") == pytest.approx(held.pop("apart"), abs=1e-3)  # of log-probabilities
        assert other == held


def test_two_processes_are_the_same_model_on_another_machine(
    one: dict[str, Any], both: tuple[Any, dict[str, Any]]
) -> None:
    assert one["header"]["model"] == both[1]["header"]["model"]
    assert both[1]["header"]["machine"]["processes"] == "2"
    assert "processes" not in one["header"]["machine"]


def test_only_the_first_process_prints_and_writes(place: Path, both: tuple[Any, dict[str, Any]]) -> None:
    done, _ = both
    assert done.stdout.count("test session starts") == 1
    assert done.stdout.count("fp16 on tiny") == 1
    assert (place / "two.xml").read_text().count("<testcase") == 6, "five tests, and the run"
    assert done.stdout.count("recorded 1 case of fp16") == 1


def test_a_failure_in_one_process_fails_its_case_with_its_reason_and_the_next_one_runs(
    both: tuple[Any, dict[str, Any]],
) -> None:
    failures = both[1]["failures"]
    broken = [text for name, text in failures.items() if name.endswith("|own.Fails")]
    assert len(broken) == 1
    assert "process 2 of 2: own.Fails raised while compressing" in broken[0]
    assert "no slot in the second process" in broken[0]


def test_processes_that_are_fed_different_tokens_are_told_so(both: tuple[Any, dict[str, Any]]) -> None:
    strayed = [text for name, text in both[1]["failures"].items() if name.endswith("|own.Strays")]
    assert len(strayed) == 1
    assert "they were fed different tokens" in strayed[0]


def test_a_method_that_looks_at_all_heads_is_refused(both: tuple[Any, dict[str, Any]]) -> None:
    refused = [text for name, text in both[1]["failures"].items() if name.endswith("|tova")]
    assert len(refused) == 1
    assert "all heads of a layer keep the same tokens" in refused[0]


@pytest.mark.nightly
def test_a_failure_within_a_forward_ends_the_wait_of_the_others(place: Path) -> None:
    methods = ["--kv-method=fp16", "--kv-method=own.Fails:when=step", "--kv-modes=multi_turn,multi_request"]
    done = run(place, TWO, "-p", "impatient", *methods, "--kv-json=3.json")
    failures = json.loads((place / "3.json").read_text())["failures"]
    assert done.returncode != 0
    first, later = (
        next(text for name, text in failures.items() if "multi_turn" in name and "own" in name),
        next(text for name, text in failures.items() if "multi_request" in name and name.endswith("|fp16")),
    )
    assert "no step in the second process" in first
    assert "the processes have lost each other" in later


@pytest.mark.parametrize(
    ("option", "says"), [("-n2", "workers of pytest-xdist cannot"), ("--kv-zoo=all", "the zoo tries methods")]
)
def test_what_does_not_go_with_torchrun_is_refused(
    place: Path, monkeypatch: pytest.MonkeyPatch, option: str, says: str
) -> None:
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    done = run(place, [], "--kv-method=fp16", option)
    assert done.returncode == 4
    assert says in done.stderr
