"""What goes wrong inside a method is a failure with a name, never a score."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from kvcheck.backends.transformers import Session
from kvcheck.backends.transformers.isolation import TOKENS
from kvcheck.cache.kv_cache import CacheLayer
from kvcheck.cache.method import MethodInfo
from kvcheck.core.errors import ContextTooLong, KvcheckError, MethodFailed, SpecError
from kvcheck.core.record import CaseId
from kvcheck.core.settings import Settings
from kvcheck.methods.fp16 import Fp16
from kvcheck.runner.case import Runner
from kvcheck.tasks.base import Sample, Task


def broken(layer: type[CacheLayer], **info: Any) -> type[Fp16]:
    """A method with this layer that promises nothing."""

    class Broken(Fp16):
        def layer(self, shape: Any, index: int) -> CacheLayer:
            return layer(shape, index, self)

        def slots(self, *args: Any) -> None:
            return None

        def protected(self, prompt: int) -> None:
            return None

    Broken.info = replace(MethodInfo(summary="broken", stage="compression", frees_memory=False), **info)
    return Broken


class Overflowing(CacheLayer):
    def attention(self, *args: Any) -> torch.Tensor:
        return super().attention(*args) * float("nan")


class Crashing(CacheLayer):
    def compress(self, queries: torch.Tensor) -> None:
        raise IndexError("index 7 is out of bounds")


class CrashingLater(CacheLayer):
    def step(self, query: torch.Tensor) -> None:
        raise ZeroDivisionError("division by zero")


class Emptying(CacheLayer):
    def compress(self, queries: torch.Tensor) -> None:
        self.keep(self.every_head(torch.arange(0)))


class Unforkable(CacheLayer):
    def select(self, rows: Any) -> CacheLayer:
        raise NotImplementedError("no batches")


class Swapping(CacheLayer):
    def compress(self, queries: torch.Tensor) -> None:
        self.keys.copy_(self.keys.flip(2).clone())


class ReadingTexts(CacheLayer):
    def read(self, *args: Any) -> Any:
        return "keys", "values"


class ReadingFewerKeys(CacheLayer):
    def read(self, rows: slice, dtype: torch.dtype) -> Any:
        keys, values = super().read(rows, dtype)
        return keys[:, :, 1:], values


class AnsweringNothing(CacheLayer):
    def answer(self, *args: Any) -> Any:
        super().answer(*args)


class AttendingNothing(CacheLayer):
    def attend(self, *args: Any) -> Any:
        super().attend(*args)


class AttendingShort(CacheLayer):
    def attend(self, *args: Any) -> torch.Tensor:
        return super().attend(*args)[..., :-1]


class Poisoned(CacheLayer):
    def compress(self, queries: torch.Tensor) -> None:
        if self.index != 2:
            self.values[0, 0, 0] = float("nan")


@pytest.mark.parametrize("mode", ["single", "multi_request"])
@pytest.mark.parametrize(
    ("layer", "says", "cause"),
    [
        (Overflowing, "NaN or infinite", None),
        (Crashing, "raised while compressing in toy/v1/.*: IndexError: index 7 is out of bounds", IndexError),
        (CrashingLater, "ZeroDivisionError: division by zero", ZeroDivisionError),
        (Emptying, "the cache is empty", None),
        (Unforkable, "NotImplementedError: no batches", NotImplementedError),
        (ReadingTexts, r"read \(keys\) returned str, not a tensor", TypeError),
        (ReadingFewerKeys, r"read returned keys of shape .* and values of shape .*, with equal slots", TypeError),
        (AnsweringNothing, "answer returned NoneType, not a tensor", TypeError),
        (AttendingNothing, "attend returned NoneType, not a tensor", TypeError),
        (AttendingShort, "attend returned a tensor of shape .*, not ", TypeError),
        (Poisoned, "holds NaN in layers? 0.* in toy", None),
        (Swapping, "layer 0: keys of .* are not those of the prompt", None),
    ],
)
def test_a_broken_method_fails_by_name(
    runner: Runner,
    case: Callable[..., CaseId],
    methods: dict[str, Any],
    layer: type[CacheLayer],
    says: str,
    cause: type[Exception] | None,
    mode: str,
) -> None:
    methods["broken"] = broken(layer)
    with pytest.raises(MethodFailed, match=f"broken .*(?s:.*){says}") as caught:
        runner.run_case(case(mode), "broken")
    assert "toy/v1" in str(caught.value)
    assert cause is None or isinstance(caught.value.__cause__, cause)


def test_a_method_that_claims_to_free_memory_and_does_not_is_caught(
    runner: Runner, case: Callable[..., CaseId], methods: dict[str, Any]
) -> None:
    methods["idle"] = broken(CacheLayer, frees_memory=True)
    with pytest.raises(MethodFailed, match="did nothing"):
        runner.run_case(case(length=300, n=1), "idle")


def test_the_next_case_is_not_harmed_by_a_broken_method(
    runner: Runner, case: Callable[..., CaseId], methods: dict[str, Any]
) -> None:
    before = runner.run_case(case(), "fp16")
    for layer in (Overflowing, Crashing, CrashingLater):
        methods["broken"] = broken(layer)
        with pytest.raises(MethodFailed):
            runner.run_case(case(), "broken")
    assert runner.run_case(case(), "fp16") == before


def test_a_context_longer_than_the_model_is_refused(runner: Runner, case: Callable[..., CaseId]) -> None:
    with pytest.raises(ContextTooLong, match="the model has room for 512") as caught:
        runner.run_case(case(length=505, n=1), "fp16")
    most = int(caught.value.hint.split()[1])
    assert 500 <= most < 505
    runner.run_case(case(length=most - 2, n=1), "fp16")


def test_a_context_longer_than_the_model_is_refused_before_any_forward(
    session: Session, runner: Runner, case: Callable[..., CaseId]
) -> None:
    fed: list[int] = []
    hook = session.loaded.model.register_forward_pre_hook(lambda _, args: fed.append(args[0].shape[1]))
    with pytest.raises(ContextTooLong):
        runner.run_case(case(length=505, n=2), "fp16")
    hook.remove()
    assert not [tokens for tokens in fed if tokens != TOKENS], "but for the proof that the model is as it was"


def test_a_conversation_needs_room_for_all_of_its_turns(runner: Runner, case: Callable[..., CaseId]) -> None:
    runner.run_case(case("multi_request", length=495, n=1), "fp16")
    with pytest.raises(ContextTooLong):
        runner.run_case(case("multi_turn", length=495, n=1), "fp16")


def test_a_task_that_does_not_fill_its_context_is_named(
    runner: Runner, case: Callable[..., CaseId], tasks: dict[str, Task]
) -> None:
    full = tasks["toy"]

    def short(seed: int, index: int, length: int, tokenizer: Any) -> Sample:
        return full.generate(seed, index, length - 1, tokenizer)

    tasks["toy"] = Task(full.info, short)
    with pytest.raises(KvcheckError, match="sample 0 has 39 tokens instead of 40"):
        runner.run_case(case(), "fp16")


def test_unknown_names_are_refused_with_a_suggestion(make_session: Callable[..., Session]) -> None:
    from kvcheck.backends.transformers import session as module

    with pytest.raises(SpecError, match="did you mean snapkv"):
        module.find_method("snapkw")


def test_tasks_are_found_by_name_version_and_mode() -> None:
    from kvcheck.runner.case import find_task

    assert find_task(CaseId("kv", 1, "single", 512, 0, 1), Settings()).info.name == "kv"
    with pytest.raises(SpecError, match="unknown task 'kw'"):
        find_task(CaseId("kw", 1, "single", 512, 0, 1), Settings())
    with pytest.raises(SpecError, match="is at version 1"):
        find_task(CaseId("kv", 9, "single", 512, 0, 1), Settings())
    with pytest.raises(SpecError, match="has no mode triple"):
        find_task(CaseId("kv", 1, "triple", 512, 0, 1), Settings())
