"""On a pretended CUDA device: every method, the engine in each mode, and a model whose layers lie on two devices.

No tensor of the CPU meets one of the device, caches lie where they say, and answers are those of the CPU.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import numpy as np
import pytest
import torch
from pretended import Counting, Pretended, device
from tiny import runner_of
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from kvcheck.backends.transformers import Session
from kvcheck.core.record import MODES, CaseId, CaseRecord
from kvcheck.core.settings import Settings
from kvcheck.measure.audit import audit
from kvcheck.measure.memory import held, tensors
from kvcheck.methods import METHODS, make
from kvcheck.methods.fp16 import Fp16
from kvcheck.models import LoadedModel, load
from kvcheck.tasks import TASKS

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here: see test_on_cuda")

HERE, THERE = torch.device("cuda:0"), torch.device("cuda:1")
SLOT = 5
CHANGED = {
    "cacheblend": "cacheblend:chunk=48",
    "cake": "cake:chunk=32,computed=0.5",
    "look_m": f"look_m:image_token={SLOT}",
}
SPECS = (
    *(CHANGED.get(name, name) for name in METHODS.names()),
    "kivi:bits=4",
    "fp8:scale=token",
    "snapkv+kivi:bits=4",
    "look_m:text_prior=false",
    "cake:chunk=32,computed=0.0",
)
ACROSS = (
    *CHANGED.values(), "cake:chunk=32,computed=0.0", "duo_attention", "mixattention", "offload", "retrieval_attention",
    "snapkv",
)  # fmt: skip
IN_MODES = ("snapkv", "kivi:bits=4", "offload")
ON_HOST = {"offload": {"cpu"}, "inf_llm": {"cpu", "cuda"}, "retrieval_attention": {"cpu", "cuda"}}
PACKED = ("adakv", "corm", "duo_attention", "kvmerger", "kvzip", "look_m", "mixattention")
"""Their steps have masks."""
PROMPT, FED = 150, 8


@pytest.fixture(scope="module")
def plain() -> LoadedModel:
    """The embedded model on the CPU."""
    return load("mini", torch.device("cpu"), torch.float32)


@pytest.fixture(scope="module")
def pretended(plain: LoadedModel) -> LoadedModel:
    """The same on the pretended device."""
    model = copy.deepcopy(plain.model)
    with device():
        model.to(HERE)
    model.tie_weights()
    return replace(plain, model=model)


@pytest.fixture(scope="module")
def spread(pretended: LoadedModel) -> LoadedModel:
    """The same with its later layers on a second device, as by --kv-device=spread."""
    model = copy.deepcopy(pretended.model)
    layers = model.model.layers[len(model.model.layers) // 2 :]
    with device():
        layers.to(THERE)
    for layer in layers:
        layer.register_forward_pre_hook(partial(_moved, THERE), with_kwargs=True)
    model.model.norm.register_forward_pre_hook(partial(_moved, HERE), with_kwargs=True)
    return replace(pretended, model=model)


def _moved(place: torch.device, module: Any, args: Any, kwargs: Any) -> Any:
    return tree_map(lambda each: each.to(place) if isinstance(each, torch.Tensor) else each, (args, kwargs))


@pytest.fixture(scope="module")
def ids() -> torch.Tensor:
    """Two rows of tokens, some of which stand for slots of an image."""
    drawn = torch.randint(3, 400, (2, PROMPT + 2 * FED), generator=torch.Generator().manual_seed(0))
    drawn[:, 20:60] = SLOT
    return drawn


@dataclass
class Run:
    """What a method did. outs: logits behind a prompt, a block, single tokens and in forks, on the CPU. problems: of
    its audit after the prompt. masked: for each attention whether a mask met query heads that share keys."""

    outs: list[torch.Tensor]
    problems: tuple[str, ...]
    cache: Any
    masked: list[bool]


@torch.inference_mode()
def run(loaded: LoadedModel, spec: str, ids: torch.Tensor) -> Run:
    """A prompt, a block, single tokens, forks of two rows and of one, and on with the first cache."""
    fed = ids.to(loaded.device)
    runner, full = make(spec).runner(loaded), Fp16().build(loaded.shape)
    with full.recording() as dense:
        loaded.model(fed[:, :PROMPT], past_key_values=full, logits_to_keep=1)
    with Masked() as masked:
        cache, logits = runner.prefill(fed[:, :PROMPT])
        problems = audit(cache, dense, runner.method).problems
        outs = [logits, runner.feed(cache, fed[:, PROMPT : PROMPT + 5], 5)]
        outs += [runner.feed(cache, fed[:, at : at + 1]) for at in range(PROMPT + 5, PROMPT + FED)]
        fork = cache.select([1, 0, 1])
        outs.append(runner.feed(fork, fed[[1, 0, 1], PROMPT + FED : PROMPT + FED + 2], 2))
        outs.append(runner.feed(fork.select([2]), fed[1:, PROMPT + FED : PROMPT + FED + 1]))
        outs.append(runner.feed(cache, fed[:, PROMPT + FED : PROMPT + FED + 1]))
    return Run([out.cpu() for out in outs], problems, cache, masked.seen)


class Masked(TorchDispatchMode):
    """Notes for every attention whether a mask meets fewer heads of keys than of queries."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[bool] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.scaled_dot_product_attention.default:
            query, keys, *_ = args
            mask = args[3] if len(args) > 3 else None
            self.seen.append(mask is not None and query.shape[1] != keys.shape[1])
        return func(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def runs(plain: LoadedModel, pretended: LoadedModel, ids: torch.Tensor) -> Callable[[str, str], Run]:
    """What every method does on the CPU and on the pretended device, each run once."""
    models = {"cpu": plain, "cuda": pretended}
    return cache(lambda spec, where: run(models[where], spec, ids))


def same(one: Run, other: Run, spec: str) -> bool:
    """Bit for bit, but where heads of a group are packed into rows on CUDA alone (_kernels.attend_masked)."""
    error = 2e-3 if spec.startswith(PACKED) else 0.0  # what they keep is rounded to 16 bits
    return all(
        torch.allclose(mine, theirs, atol=error, rtol=0.0) for mine, theirs in zip(one.outs, other.outs, strict=True)
    )


# -- the device itself -------------------------------------------------------------------------------------------------


REFUSED: dict[str, Callable[[torch.Tensor], Any]] = {
    "a sum with the CPU": lambda x: x + torch.ones(2, 3),
    "a product with the CPU": lambda x: x @ torch.ones(3, 3),
    "concatenation with the CPU": lambda x: torch.cat([x, torch.ones(2, 3)]),
    "concatenation with one number of the CPU": lambda x: torch.stack([x[0, 0], torch.tensor(1.0)]),
    "selection by numbers of the CPU": lambda x: x.index_select(0, torch.tensor([0])),
    "gathering by numbers of the CPU": lambda x: x.gather(1, torch.zeros(2, 1, dtype=torch.long)),
    "the CPU indexed by the device": lambda x: torch.ones(3)[torch.zeros(1, dtype=torch.long, device=HERE)],
    "writing the CPU's numbers by a mask": lambda x: x.__setitem__(x > 0, torch.ones(6)),
    "writing to one number of the CPU": lambda x: torch.tensor(1.0).add_(x[0, 0]),
    "another device": lambda x: x + torch.ones(2, 3, device=THERE),
    "attention to the CPU's keys": lambda x: torch.nn.functional.scaled_dot_product_attention(
        x.view(1, 1, 2, 3), torch.ones(1, 1, 2, 3), torch.ones(1, 1, 2, 3)
    ),
    "a numpy array": lambda x: x.numpy(),
    "a numpy array by its protocol": lambda x: np.asarray(x),
    "a generator of the CPU": lambda x: torch.rand(3, device=HERE, generator=torch.Generator()),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cuda_refuses_is_refused(cuda: None, what: str) -> None:
    with pytest.raises((RuntimeError, TypeError), match="device"):
        REFUSED[what](torch.ones(2, 3, device=HERE))


def test_what_cuda_allows_between_devices_goes_and_lands_where_it_would(cuda: None) -> None:
    there = torch.ones(2, 3, device=HERE)
    there[:, 1].add_(2)
    there[0, torch.tensor([2])] = 7.0
    there.copy_(there.cpu() + torch.ones(2, 3))
    results = [there[torch.tensor([0])], there + torch.tensor(1.0), there.masked_fill(there > 5, torch.tensor(0.0))]
    results += [torch.tensor([1, 2], device=HERE), torch.zeros_like(there), there.new_empty(3), torch.ones(3).to(HERE)]
    assert all(isinstance(each, Pretended) and each.device == HERE for each in results)
    assert there.tolist() == [[2.0, 4.0, 8.0], [2.0, 4.0, 2.0]]
    assert type(there.cpu()) is torch.Tensor
    assert there.to(HERE) is there
    assert torch.ones(3).device.type == "cpu"


def waits(work: Callable[[], Any]) -> list[str]:
    with Counting() as counting:
        work()
    return counting.waits


def test_what_makes_the_host_wait_is_seen(cuda: None) -> None:
    """Every way in which numbers, or how many there are, must be known, and copies between host and device."""
    numbers, mask = torch.arange(4.0, device=HERE), torch.tensor([True, False, True, False], device=HERE)
    looks: list[Callable[[], Any]] = [numbers[0].item, numbers.tolist, lambda: int(numbers[0]), lambda: bool(mask[0])]
    looks += [mask.nonzero, lambda: mask.nonzero(as_tuple=True), numbers.unique, lambda: numbers.equal(numbers)]
    looks += [lambda: numbers[mask], lambda: numbers.clone().__setitem__(mask, numbers[:2])]
    looks += [lambda: mask.repeat_interleave(mask.long()), lambda: numbers[[0, 1]]]
    looks += [lambda: torch.tensor([1.0], device=HERE), lambda: torch.arange(4).to(HERE), numbers.cpu]
    looks += [lambda: numbers.copy_(torch.ones(4)), lambda: torch.ones(4).copy_(numbers)]
    assert [len(waits(look)) for look in looks] == [1] * len(looks)


def test_what_lets_the_host_run_ahead_is_no_wait(cuda: None) -> None:
    numbers, mask = torch.arange(4.0, device=HERE), torch.arange(4, device=HERE) > 1
    goes: list[Callable[[], Any]] = [
        lambda: numbers.clone().__setitem__(mask, 0.0),
        lambda: numbers + torch.tensor(1.0),
    ]
    goes += [lambda: mask.repeat_interleave(2), lambda: numbers.repeat_interleave(mask.long(), output_size=2)]
    goes += [
        lambda: numbers[mask.long()],
        lambda: numbers.to(torch.bfloat16),
        lambda: torch.ones(4, dtype=bool).nonzero(),
    ]
    assert [waits(go) for go in goes] == [[]] * len(goes)


def test_views_allocations_transfers_and_what_the_host_does_are_no_operations(cuda: None) -> None:
    numbers = torch.arange(8.0, device=HERE)
    with Counting() as counting:
        numbers.view(2, 4).transpose(0, 1)[1:].expand(3, 2)
        numbers.reshape(4, 2).to(torch.float32)
        torch.empty(3, device=HERE)
        (numbers.cpu() + torch.ones(8)).to(HERE)
    assert counting.operations == 0


def test_what_computes_or_copies_on_the_device_is_an_operation(cuda: None) -> None:
    numbers = torch.arange(8.0, device=HERE)
    with Counting() as counting:
        numbers + 1
        numbers.clone().mul_(2)
        numbers.view(2, 4).t().reshape(8)
        numbers.to(torch.bfloat16)
        numbers[:2].copy_(numbers[2:4])
    assert counting.operations == 6


# -- methods and engine ------------------------------------------------------------------------------------------------


every_method = pytest.mark.parametrize("spec", SPECS)


@every_method
def test_a_method_answers_on_the_device_as_on_the_cpu(cuda: None, runs: Callable[..., Run], spec: str) -> None:
    assert same(runs(spec, "cuda"), runs(spec, "cpu"), spec)


@every_method
def test_the_audit_finds_nothing_wrong_on_the_device(cuda: None, runs: Callable[..., Run], spec: str) -> None:
    assert runs(spec, "cuda").problems == ()


@every_method
def test_a_cache_lies_on_the_device_and_in_host_memory_where_it_says_so(
    cuda: None, runs: Callable[..., Run], spec: str
) -> None:
    found = runs(spec, "cuda").cache
    assert {each.device.type for each in tensors(found)} == ON_HOST.get(spec, {"cuda"})
    assert (held(found).host > 0) == (spec in ON_HOST)


@every_method
def test_masked_attention_is_never_left_to_the_kernel_that_holds_all_scores(
    cuda: None, runs: Callable[..., Run], spec: str
) -> None:
    """CUDA has no fused kernel where a mask meets GQA: torch falls back to plain products, quadratic in memory."""
    found = runs(spec, "cuda").masked
    assert bool(found) == (spec != "inf_llm")  # which attends by products of its own, some tokens at a time
    assert not any(found)


@pytest.mark.parametrize("spec", ACROSS)
def test_a_method_answers_on_two_devices_as_on_one(
    cuda: None, spread: LoadedModel, runs: Callable[..., Run], ids: torch.Tensor, spec: str
) -> None:
    found = run(spread, spec, ids)
    assert same(found, runs(spec, "cpu"), spec)
    assert found.problems == ()


def ran(loaded: LoadedModel, spec: str, mode: str) -> CaseRecord:
    """One small case, without its peak of memory, which a device can tell and the CPU cannot."""
    case = CaseId("kv", TASKS.get("kv").info.version, mode, 200, 0, 1)
    record = runner_of(loaded, methods=(spec,)).run_case(case, spec)
    assert record.memory is not None
    return replace(record, memory=replace(record.memory, peak_bytes=None))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("spec", IN_MODES)
def test_the_engine_records_on_the_device_what_it_records_on_the_cpu(
    plain: LoadedModel, pretended: LoadedModel, request: pytest.FixtureRequest, spec: str, mode: str
) -> None:
    wanted = ran(plain, spec, mode)
    request.getfixturevalue("cuda")
    assert ran(pretended, spec, mode) == wanted


@pytest.mark.parametrize("spec", ["snapkv", "offload"])
def test_memory_is_measured_on_the_device(cuda: None, pretended: LoadedModel, spec: str) -> None:
    memory = Session.of(pretended, Settings(methods=(spec,))).measure_memory(spec, 200)
    assert memory.peak_bytes is not None
    assert memory.kv_bytes == make(spec).kv_bytes(pretended.shape, 1, 200, 0)


def test_latency_is_measured_on_the_device(cuda: None, pretended: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTEST_XDIST_WORKER_COUNT", raising=False)  # this test may be running under xdist
    timed = Session.of(pretended, Settings(methods=("fp16",))).measure_latency("fp16", 16, rounds=1, batch=2)
    assert [one.what for one in timed] == ["ttft", "tpot", "throughput"]


def test_cake_takes_the_next_chunk_only_when_the_device_has_computed_one(
    cuda: None, pretended: LoadedModel, ids: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[Any] = []
    monkeypatch.setattr(torch.cuda, "synchronize", waits.append)
    make("cake:chunk=32,computed=0.5").runner(pretended).prefill(ids[:, :PROMPT].to(HERE))
    assert waits == [HERE] * 2
