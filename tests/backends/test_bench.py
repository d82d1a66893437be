"""What is timed and weighed: a batch that fits, one prefill for bytes and peak, and nothing that grows with n²."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from kvcheck.backends.transformers import Session, bench
from kvcheck.backends.transformers import session as engine_session
from kvcheck.backends.transformers.meter import weigh
from kvcheck.cache.method_runner import MethodRunner
from kvcheck.core.errors import MethodFailed
from kvcheck.core.settings import Settings
from kvcheck.measure import latency
from kvcheck.methods import make
from kvcheck.models import LoadedModel, load

METHODS = (
    "fp16",
    "snapkv",
    "streaming_llm",
    "kivi:bits=4",
    "quest",
    "h2o",
    "tova",
    "flexgen:group=32",
    "offload",
    "think",
)
ONE_PASS = [name for name in METHODS if name != "h2o"]
"""H2O sums the weights of all queries of a prompt, some rows at a time."""


@pytest.fixture(scope="module", autouse=True)
def no_worker() -> Iterator[None]:
    """These tests may be running under xdist, where latency is refused."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PYTEST_XDIST_WORKER_COUNT", raising=False)
        yield


@pytest.fixture(scope="module")
def shape() -> LoadedModel:
    """2 layers, 4 query heads on 2 kv heads of 32 and a vocabulary of 1024."""
    return load("random:tiny", torch.device("cpu"), torch.float32)


class Watch(TorchDispatchMode):
    """Counts operations, and notes the largest tensor that one of them made."""

    def __init__(self) -> None:
        super().__init__()
        self.count = self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.count += 1
        for each in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(each, torch.Tensor):
                self.largest = max(self.largest, each.numel())
        return result


def watched(loaded: LoadedModel, method: str, tokens: int) -> Watch:
    """A prompt and a step."""
    runner = make(method).runner(loaded)
    with torch.inference_mode(), Watch() as watch:
        cache, logits = runner.prefill(bench.prompt(loaded, tokens))
        runner.feed(cache, logits.argmax(-1, keepdim=True))
    return watch


@pytest.mark.parametrize("method", METHODS)
def test_a_prompt_makes_no_square_mask_and_no_logits_of_all_positions(shape: LoadedModel, method: str) -> None:
    """4096 x 4096 and 4096 x 1024 would both be larger than what is allowed here."""
    assert watched(shape, method, 4096).largest < 4096 * 1024


@pytest.mark.parametrize("method", ONE_PASS)
def test_a_longer_prompt_takes_no_more_operations(shape: LoadedModel, method: str) -> None:
    """There is no loop over its tokens."""
    short, long = (watched(shape, method, tokens).count for tokens in (1024, 4096))
    assert long == short


class Counting(MethodRunner):
    """Counts what it is asked for."""

    prompts = 0
    fed: list[int]

    def prefill(self, ids: torch.Tensor) -> tuple[Any, torch.Tensor]:
        self.prompts += 1
        self.fed = []
        return super().prefill(ids)

    def feed(self, cache: Any, ids: torch.Tensor, keep: int = 1) -> torch.Tensor:
        self.fed.append(len(ids))
        return super().feed(cache, ids, keep)


def test_bytes_and_peak_take_one_prefill(shape: LoadedModel) -> None:
    runner = Counting(make("fp16"), shape)
    memory = weigh(runner, bench.prompt(shape, 64))
    assert runner.prompts == 1
    assert (memory.kv_bytes, memory.kept, memory.seen) == (shape.shape.dense_bytes(1, 64), 64, 64)


def test_a_round_times_steps_alone_and_then_in_a_batch(shape: LoadedModel) -> None:
    runner = Counting(make("fp16"), shape)
    with torch.inference_mode():
        seconds = bench.side(runner, bench.prompt(shape, 64), batch=4)()
    steps = latency.STEPS + 1
    assert runner.fed == [1] + [1] * steps + [4] * steps
    assert len(runner.fed) == 1 + bench.DECODED
    assert set(seconds) == {"ttft", "tpot", "throughput"}
    assert min(seconds.values()) > 0


def test_the_context_itself_is_let_go_before_the_batch_decodes(shape: LoadedModel) -> None:
    """Else the memory of one sequence more would be taken."""

    class Looking(Counting):
        context: weakref.ref[Any]
        there: list[bool]

        def prefill(self, ids: torch.Tensor) -> tuple[Any, torch.Tensor]:
            cache, logits = super().prefill(ids)
            self.context, self.there = weakref.ref(cache), []
            return cache, logits

        def feed(self, cache: Any, ids: torch.Tensor, keep: int = 1) -> torch.Tensor:
            if len(ids) > 1:
                self.there.append(self.context() is not None)
            return super().feed(cache, ids, keep)

    runner = Looking(make("fp16"), shape)
    with torch.inference_mode():
        bench.side(runner, bench.prompt(shape, 64), batch=2)()
    assert runner.there == [False] * (latency.STEPS + 1)


def test_the_batch_is_as_large_as_fits_beside_the_context(shape: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    each = shape.shape.dense_bytes(1, 1000)
    found = []
    for caches in (1, 3, 4, 5, 9, 100):
        monkeypatch.setattr(bench, "CPU_BYTES", caches * each)
        found.append(bench.rows(shape, 1000, most=8))
    assert found == [1, 2, 2, 4, 8, 8]


def test_on_a_gpu_the_weights_take_their_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """80 GB less 16 GB leave 51.2 GB in four fifths: two caches of 17 GB beside the context's own."""
    card = SimpleNamespace(total_memory=80 * 10**9)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    model = SimpleNamespace(parameters=lambda: [SimpleNamespace(nbytes=16 * 10**9)])
    sizes = SimpleNamespace(dense_bytes=lambda batch, tokens: 17 * 10**9)
    where = torch.device("cuda", 0)
    loaded: Any = SimpleNamespace(device=where, devices=(where,), model=model, shape=sizes)
    assert bench.rows(loaded, 131072, most=8) == 2
    loaded.devices = (where, torch.device("cuda", 1))
    assert bench.rows(loaded, 131072, most=8) == 4, "layers on two: 115.2 GB for six caches, and not for nine"


def test_a_shape_without_training_has_no_limit_of_context(shape: LoadedModel) -> None:
    bench.fits(shape, 131072)


def test_fp16_that_runs_out_of_memory_beside_a_method_is_named(
    shape: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A method that fits where the full cache does not has not failed."""
    prefill = MethodRunner.prefill

    def full(self: MethodRunner, ids: torch.Tensor) -> Any:
        if self.method.name() == "fp16":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 17.18 GiB")
        return prefill(self, ids)

    session = Session.of(replace(shape), Settings(model="random:tiny"))
    monkeypatch.setattr(MethodRunner, "prefill", full)
    with pytest.raises(MethodFailed, match=r"fp16 ran out of .* being timed in .* of snapkv"):
        session.measure_latency("snapkv", 64, rounds=1)


@pytest.mark.parametrize(("kind", "kept"), [("cuda", False), ("cpu", True)])
def test_prefills_of_cases_make_room_on_a_gpu(
    shape: LoadedModel, monkeypatch: pytest.MonkeyPatch, kind: str, kept: bool
) -> None:
    """They may take a quarter of it, which the batch does not leave."""
    session = Session.of(shape, Settings(model="random:tiny"))
    session.memo.put("a context", object(), 1)
    monkeypatch.setattr(LoadedModel, "device", torch.device(kind))
    monkeypatch.setattr(bench, "prompt", lambda loaded, length: torch.zeros(1, length, dtype=torch.long))
    monkeypatch.setattr(engine_session, "weigh", lambda runner, ids: session.memo.get("a context"))
    assert (session.measure_memory("fp16", 64) is not None) is kept


def test_running_out_of_device_memory_is_a_failure_of_the_method_that_says_so(
    shape: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*given: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 17.18 GiB")

    session = Session.of(replace(shape), Settings(model="random:tiny"))
    monkeypatch.setattr(MethodRunner, "prefill", full)
    with pytest.raises(MethodFailed, match=r"fp16 ran out of device memory while being weighed.*17\.18 GiB"):
        session.measure_memory("fp16", 64)
