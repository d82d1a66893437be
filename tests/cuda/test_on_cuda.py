"""On a GPU: answers are those of the CPU, caches lie where they should, and memory and time are really measured."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kvcheck.backends.transformers import Session
from kvcheck.core import env
from kvcheck.core.errors import SpecError
from kvcheck.core.settings import Settings
from kvcheck.measure import latency
from kvcheck.measure.memory import held, tensors
from kvcheck.methods import METHODS as REGISTERED
from kvcheck.methods import make
from kvcheck.models import LoadedModel, load, pick_device

pytestmark = pytest.mark.cuda

METHODS = ("fp16", "snapkv", "streaming_llm", "kivi:bits=4")
EVERY = ["look_m:text_prior=false" if name == "look_m" else name for name in REGISTERED.names()]
TOKENS, STEPS = 256, 8


@pytest.fixture(autouse=True)
def no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests may be running under xdist, where latency is refused."""
    monkeypatch.delenv("PYTEST_XDIST_WORKER_COUNT", raising=False)


@pytest.fixture(scope="module")
def both() -> dict[str, LoadedModel]:
    """The embedded model: in float32 on the CPU, in float16 on the GPU. Keys and values are in float16 on both."""
    gpu = load("mini", pick_device("cuda"), torch.float16)
    return {"cpu": load("mini", torch.device("cpu"), torch.float32), "cuda": gpu}


@pytest.fixture(scope="module")
def session() -> Session:
    """The tiny shape on the GPU."""
    return Session.open(Settings(model="random:tiny", device="cuda"))


def answered(loaded: LoadedModel, method: str) -> tuple[torch.Tensor, Any]:
    """Logits (1 + STEPS, V) behind a prompt and behind each of the tokens fed after it, and the cache."""
    runner = make(method).runner(loaded)
    ids = torch.randint(3, 400, (1, TOKENS + STEPS), generator=torch.Generator().manual_seed(0)).to(loaded.device)
    with torch.inference_mode():
        cache, logits = runner.prefill(ids[:, :TOKENS])
        rest = [runner.feed(cache, ids[:, at : at + 1])[:, -1] for at in range(TOKENS, TOKENS + STEPS)]
    return torch.cat([logits, *rest]).float().cpu(), cache


@pytest.mark.parametrize("method", METHODS)
def test_answers_are_those_of_the_cpu_within_the_error_of_the_dtype(both: dict[str, LoadedModel], method: str) -> None:
    """Float16 has 11 bits; through the layers and, where a method chooses, a choice between equals, a few percent."""
    (here, _), (there, _) = (answered(both[device], method) for device in ("cpu", "cuda"))
    probabilities = [each.softmax(-1) for each in (here, there)]
    apart = (probabilities[0] - probabilities[1]).abs().sum(-1) / 2
    assert float(apart.mean()) < (0.02 if method == "fp16" else 0.06)


@pytest.mark.parametrize("method", EVERY)
def test_every_method_answers(both: dict[str, LoadedModel], method: str) -> None:
    assert torch.isfinite(answered(both["cuda"], method)[0]).all()


@pytest.mark.parametrize("method", METHODS)
def test_a_cache_lies_on_the_device_and_holds_what_it_declares(both: dict[str, LoadedModel], method: str) -> None:
    loaded = both["cuda"]
    _, cache = answered(loaded, method)
    assert {each.device.type for each in tensors(cache)} == {"cuda"}
    assert held(cache).kv == make(method).kv_bytes(loaded.shape, 1, TOKENS, STEPS)


def test_offload_holds_nothing_on_the_device(both: dict[str, LoadedModel]) -> None:
    loaded = both["cuda"]
    _, cache = answered(loaded, "offload")
    weight = held(cache)
    assert (weight.kv, weight.host) == (0, loaded.shape.dense_bytes(1, TOKENS + STEPS))


@pytest.mark.parametrize("method", METHODS)
def test_a_fork_on_the_device_answers_as_what_it_was_forked_from(both: dict[str, LoadedModel], method: str) -> None:
    loaded = both["cuda"]
    runner = make(method).runner(loaded)
    _, cache = answered(loaded, method)
    token = torch.tensor([[5]], device=loaded.device)
    with torch.inference_mode():
        fork = runner.feed(cache.select([0, 0]), token.repeat(2, 1))[:, -1].float()
        alone = runner.feed(cache, token)[:, -1].float()
    torch.testing.assert_close(fork, alone.expand_as(fork), atol=0.05, rtol=0.05)


def test_peak_memory_is_counted_and_grows_with_the_prompt_and_not_its_square(session: Session) -> None:
    short, long = (session.measure_memory("fp16", tokens) for tokens in (4096, 16384))
    assert short.peak_bytes is not None
    assert long.peak_bytes is not None
    assert long.kv_bytes < long.peak_bytes < 16384 * 16384
    assert short.peak_bytes < long.peak_bytes < 6 * short.peak_bytes


def test_latency_waits_for_the_device(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[Any] = []
    wait = torch.cuda.synchronize
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: (waits.append(device), wait(device))[1])
    records = session.measure_latency("snapkv", 1024, rounds=3)
    assert len(waits) == 2 * 3 * 2 * (3 + latency.WARMUP)  # before and after, three times, both sides, every round
    assert [one.what for one in records] == ["ttft", "tpot", "throughput"]
    assert all(one.seconds > 0 and one.fp16_seconds > 0 for one in records)


def test_the_record_names_the_device(session: Session) -> None:
    found = env.machine(str(session.loaded.device))
    assert found["gpu"] == torch.cuda.get_device_name(session.loaded.device)
    assert found["cuda"]


def test_the_last_device_serves_and_one_more_is_refused() -> None:
    count = torch.cuda.device_count()
    last = load("random:tiny", pick_device(f"cuda:{count - 1}"), torch.bfloat16)
    assert last.device == torch.device("cuda", count - 1)
    assert torch.isfinite(answered(last, "snapkv")[0]).all()
    with pytest.raises(SpecError, match=f"torch sees {count} CUDA devices"):
        pick_device(f"cuda:{count}")
