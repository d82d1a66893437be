"""What every prompt leaves outside of its cache counts as held, wherever it lies."""

from __future__ import annotations

import ctypes
import functools
import mmap
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from kvcheck.backends.transformers import meter
from kvcheck.cache.kv_cache import CacheLayer
from kvcheck.cache.method_runner import MethodRunner
from kvcheck.cache.shape import ModelShape
from kvcheck.core.errors import MethodFailed
from kvcheck.core.record import CaseId, MemoryRecord
from kvcheck.judging.budget import Budget, judge
from kvcheck.measure.elsewhere import SHM, census
from kvcheck.methods import make
from kvcheck.methods.fp16 import Fp16
from kvcheck.models import LoadedModel
from kvcheck.runner.case import Runner

Keep = Callable[[CacheLayer, torch.Tensor], None]
BY_LAYER: dict[int, Any] = {}
ALL: list[torch.Tensor] = []
THREAD = threading.local()
MODEL: list[torch.nn.Module] = []
FILES: list[Path] = []
TABLE: list[torch.Tensor] = []


class Box:
    kept: Any = None


@functools.cache
def remembered(layer: CacheLayer) -> torch.Tensor:
    return torch.stack([layer.keys, layer.values])


def on_the_model(layer: CacheLayer, both: torch.Tensor) -> None:
    setattr(MODEL[0].model.layers[layer.index], "kept", both)  # noqa: B010


def in_a_class(layer: CacheLayer, both: torch.Tensor) -> None:
    Box.kept = [both, *(Box.kept or [])][:3]


def in_a_cached_function(layer: CacheLayer, both: torch.Tensor) -> None:
    remembered(layer)


def in_a_thread_local(layer: CacheLayer, both: torch.Tensor) -> None:
    setattr(THREAD, f"layer{layer.index}", both)


def in_a_map(layer: CacheLayer, both: torch.Tensor) -> None:
    raw = both.contiguous().numpy().tobytes()
    BY_LAYER[layer.index] = mmap.mmap(-1, len(raw))
    BY_LAYER[layer.index].write(raw)


def in_shared_memory(layer: CacheLayer, both: torch.Tensor) -> None:
    FILES.append(SHM / f"kvcheck-test-{uuid.uuid4()}")
    FILES[-1].write_bytes(both.contiguous().numpy().tobytes())


def in_c(layer: CacheLayer, both: torch.Tensor) -> None:
    ctypes.CDLL(None).malloc(ctypes.c_size_t(both.nbytes))


WAYS: dict[str, Keep] = {
    "a global, in place of the last": lambda layer, both: BY_LAYER.__setitem__(layer.index, both),
    "a global that grows": lambda layer, both: ALL.append(both),
    "bytes": lambda layer, both: BY_LAYER.__setitem__(layer.index, both.contiguous().numpy().tobytes()),
    "the model": on_the_model,
    "a class": in_a_class,
    "a thread-local": in_a_thread_local,
    "a cached function": in_a_cached_function,
    "a map": in_a_map,
    "a file in shared memory": in_shared_memory,
}


@pytest.fixture(autouse=True)
def cleared(loaded: LoadedModel) -> Iterator[None]:
    MODEL[:] = [loaded.model]
    yield
    for layer in loaded.model.model.layers:
        vars(layer).pop("kept", None)
    for store in (BY_LAYER, ALL, MODEL, TABLE):
        store.clear()
    for file in FILES:
        file.unlink()
    FILES.clear()
    Box.kept = None
    vars(THREAD).clear()
    remembered.cache_clear()


def leaving(keep: Keep) -> type[Fp16]:
    """The full cache, which keeps a second one of the prompt."""

    class Layer(CacheLayer):
        def compress(self, queries: torch.Tensor) -> None:
            keep(self, torch.stack([self.keys, self.values]))

    def layer(self: Fp16, shape: ModelShape, index: int) -> CacheLayer:
        return Layer(shape, index, self)

    return type("Leaving", (Fp16,), {"layer": layer, "__module__": __name__})


def memory(runner: Runner, case: CaseId) -> MemoryRecord:
    found = runner.run_case(case, "mine").memory
    assert found is not None
    return found


@pytest.mark.parametrize("way", WAYS)
def test_a_second_copy_of_the_prompt_counts_wherever_it_lies(
    runner: Runner, methods: dict[str, Any], case: Callable[..., CaseId], way: str
) -> None:
    if way == "a file in shared memory" and not SHM.is_dir():
        pytest.skip("this system has no shared memory in files")
    methods["mine"] = leaving(WAYS[way])
    for length in (200, 200, 300):
        found = memory(runner, case(mode="multi_request", length=length, n=2))
        assert (found.kv_bytes, found.elsewhere_bytes) == (2 * found.dense_bytes, found.dense_bytes)


def test_more_than_fp16_because_of_what_lies_elsewhere_fails_and_says_so(
    runner: Runner, methods: dict[str, Any], case: Callable[..., CaseId]
) -> None:
    methods["mine"] = leaving(WAYS["a global that grows"])
    record = runner.run_case(case(mode="multi_request", length=200, n=1), "mine")
    (verdict,) = judge(record, None, None, Budget(drop=None))
    assert (verdict.question, verdict.outcome) == ("bytes", "fail")
    assert "outside of its cache" in verdict.reason
    assert "200% of what fp16 holds" in verdict.reason


def test_what_is_made_once_is_no_growth(runner: Runner, methods: dict[str, Any], case: Callable[..., CaseId]) -> None:
    def table(layer: CacheLayer, both: torch.Tensor) -> None:
        TABLE[:] = TABLE or [torch.zeros(10**6)]
        BY_LAYER["count"] = BY_LAYER.get("count", 0) + 1

    methods["mine"] = leaving(table)
    assert memory(runner, case(mode="multi_request", length=200, n=1)).elsewhere_bytes == 0


def test_what_the_import_leaves_in_a_module_is_not_gone_through() -> None:
    module = ModuleType("mine")
    before = census(torch.nn.Identity(), (), [module])
    module.__loader__ = SimpleNamespace(session=bytes(5000))  # of a test file: all tests, in every look
    assert census(torch.nn.Identity(), (), [module]).growth(before, None) == 0
    module.kept = bytes(5000)  # type: ignore[attr-defined]
    assert census(torch.nn.Identity(), (), [module]).growth(before, None) == 5000


class Prompts(MethodRunner):
    """Keeps every prompt that it has not seen before."""

    def prefill(self, ids: torch.Tensor) -> tuple[Any, torch.Tensor]:
        cache, logits = super().prefill(ids)
        for row, words in enumerate(ids.tolist()):
            self.store = {**getattr(self, "store", {})}
            self.store.setdefault(str(words), torch.stack([one.keys[row] for one in cache.layers]))
        return cache, logits


class PromptStore(Fp16):
    info = replace(Fp16.info, shares_prefill=False)

    def runner(self, loaded: LoadedModel) -> MethodRunner:
        return Prompts(self, loaded)


def test_a_store_of_prompts_grows_by_each_that_it_has_not_seen(
    runner: Runner, methods: dict[str, Any], case: Callable[..., CaseId]
) -> None:
    methods["mine"] = PromptStore
    found = memory(runner, case(mode="multi_request", length=200, n=2))
    assert found.elsewhere_bytes >= found.dense_bytes / 2, "the keys"


def test_memory_that_nothing_leads_to_fails(
    runner: Runner, methods: dict[str, Any], case: Callable[..., CaseId], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(meter, "LOOSE", 2**14)
    methods["mine"] = leaving(in_c)
    with pytest.raises(MethodFailed, match=r"a prompt takes .* neither in its cache nor found elsewhere"):
        runner.run_case(case(mode="multi_request", length=400, n=1), "mine")


class Twice(DynamicCache):
    """A cache of transformers' that keeps what it is given in a global, too."""

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if key_states.shape[2] > 1:
            ALL.append(torch.stack([key_states, value_states]))
        return super().update(key_states, value_states, *args, **kwargs)


class Nothing(DynamicCache):
    """A cache of transformers' that does nothing."""


@pytest.mark.parametrize(("kind", "copies"), [(Twice, 1), (Nothing, 0)])
def test_caches_of_another_make_are_looked_at_too(
    runner: Runner, methods: dict[str, Any], case: Callable[..., CaseId], kind: type, copies: int
) -> None:
    methods["mine"] = lambda: make(f"{__name__}.{kind.__name__}")
    found = memory(runner, case(mode="multi_request", length=200, n=1))
    assert found.elsewhere_bytes == copies * found.dense_bytes
    assert found.end_kv_bytes == found.end_dense_bytes + copies * found.dense_bytes
