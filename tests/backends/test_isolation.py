"""What a method leaves changed fails by name, and the next method is measured as if it had never run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaMLP

from kvcheck.backends.transformers import Session
from kvcheck.cache.kv_cache import CacheLayer
from kvcheck.cache.method import MethodInfo
from kvcheck.cache.shape import ModelShape
from kvcheck.core.errors import KvcheckError, MethodFailed, MethodUnsupported
from kvcheck.core.record import CaseId
from kvcheck.core.settings import Settings
from kvcheck.methods.fp16 import Fp16
from kvcheck.runner.case import Runner

Damage = Callable[[Session], object]


def weights(session: Session) -> None:
    """In place, past the version that a tensor counts."""
    session.loaded.model.model.layers[1].self_attn.q_proj.weight.data.mul_(0.9)


def one_word(session: Session) -> None:
    """The embedding of a token that the proof does not feed."""
    session.loaded.model.model.embed_tokens.weight[40] *= 0.5


def buffer(session: Session) -> None:
    """The frequencies of the rotation."""
    session.loaded.model.model.rotary_emb.inv_freq.mul_(1.01)


def hook(session: Session) -> None:
    """On a module, for good."""
    session.loaded.model.model.layers[0].mlp.register_forward_hook(lambda module, given, out: out * 0.9)


def own_forward(session: Session) -> None:
    """In place of a module's own."""
    mlp = session.loaded.model.model.layers[0].mlp
    mlp.forward = lambda hidden: LlamaMLP.forward(mlp, hidden) * 0.9


def forward_of_all(session: Session) -> None:
    """In place of that of its class."""
    old = LlamaMLP.forward
    LlamaMLP.forward = lambda self, hidden: old(self, hidden) * 0.9


def module(session: Session) -> None:
    """Another one in its place, of the same weights."""
    layer = session.loaded.model.model.layers[0]
    layer.mlp.act_fn = torch.nn.GELU()


def scaling(session: Session) -> None:
    """A number that a module has."""
    session.loaded.model.model.layers[0].input_layernorm.variance_epsilon = 0.5


def prefills(session: Session) -> None:
    """Keys that all methods are given."""
    for prefill in session.prefiller.used:
        prefill.layers[0].keys.mul_(0.9)


def tails(session: Session) -> None:
    """What the full cache said."""
    for prefill in session.prefiller.used:
        for tail in prefill.tails.values():
            tail.log_probs.zero_()


def dtype(session: Session) -> None:
    """Of tensors to come."""
    torch.set_default_dtype(torch.float64)


DAMAGES: dict[str, Damage] = {
    "weights: model.layers.1.self_attn.q_proj.weight": weights,
    "weights: model.embed_tokens.weight": one_word,
    "weights: model.rotary_emb.inv_freq": buffer,
    "hooks or methods of model.layers.0.mlp": hook,
    "hooks or methods of model.layers.0.mlp\n": own_forward,
    "transformers.models.llama.modeling_llama.LlamaMLP.forward": forward_of_all,
    "module model.layers.0.mlp.act_fn": module,
    "what the model says of 8 fixed tokens with the full cache": scaling,
    "shared prefills": prefills,
    "shared prefills (keys, values or logits of the full cache)": tails,
    "torch's default dtype": dtype,
}
"""By what is to be said of it."""


class Damaging(Fp16):
    """The full cache, which damages what others share when the prompt is compressed."""

    damage: ClassVar[Callable[[], object]]
    raises: ClassVar[bool] = False

    def layer(self, shape: ModelShape, index: int) -> CacheLayer:
        return DamagingLayer(shape, index, self)


class DamagingLayer(CacheLayer):
    def compress(self, queries: torch.Tensor) -> None:
        if self.index == 2:
            type(self.method).damage()  # type: ignore[attr-defined]
            if type(self.method).raises:  # type: ignore[attr-defined]
                raise IndexError("and raises")


@pytest.fixture
def opened(folder: Path, tasks: Any) -> Session:
    """A session that can load its model anew."""
    return Session.open(Settings(model=str(folder), device="cpu"))


@pytest.fixture
def reopening(opened: Session) -> Runner:
    """What the gate calls, with that session."""
    return Runner(opened, opened.settings)


def damaging(session: Session, damage: Damage, **more: Any) -> type[Damaging]:
    """A method that does this damage."""
    return type("Damaging", (Damaging,), {"damage": staticmethod(lambda: damage(session)), **more})


@pytest.mark.parametrize("raises", [False, True])
@pytest.mark.parametrize("said", DAMAGES)
def test_the_method_fails_by_name_and_the_next_one_is_measured_as_before(
    opened: Session, reopening: Runner, methods: dict[str, Any], case: Callable[..., CaseId], said: str, raises: bool
) -> None:
    wanted = [reopening.run_case(case(), name) for name in ("fp16", "snapkv")]
    methods["mine"] = damaging(opened, DAMAGES[said], raises=raises)
    with pytest.raises(MethodFailed, match="mine") as failed:
        reopening.run_case(case(), "mine")
    assert "changed what other methods are measured with" in str(failed.value)
    assert said.strip() in str(failed.value)
    assert ("IndexError: and raises" in str(failed.value)) is raises
    assert [reopening.run_case(case(), name) for name in ("fp16", "snapkv")] == wanted


def test_a_refusal_that_leaves_something_changed_says_so_and_stays_a_refusal(
    opened: Session, reopening: Runner, methods: dict[str, Any], case: Callable[..., CaseId]
) -> None:
    def refuse(session: Session) -> None:
        torch.set_default_dtype(torch.float64)
        raise MethodUnsupported("not this model")

    methods["mine"] = damaging(opened, refuse)
    with pytest.raises(MethodUnsupported, match=r"(?s)not this model.*torch's default dtype"):
        reopening.run_case(case(), "mine")
    assert torch.get_default_dtype() == torch.float32


def test_a_session_that_was_given_its_model_measures_nothing_more_on_a_damaged_one(
    session: Session, runner: Runner, methods: dict[str, Any], case: Callable[..., CaseId]
) -> None:
    kept = session.loaded.model.model.layers[1].self_attn.q_proj.weight.clone()
    methods["mine"] = damaging(session, weights)
    with pytest.raises(MethodFailed, match="weights"):
        runner.run_case(case(), "mine")
    with pytest.raises(KvcheckError, match=r"mine damaged the model .* could not be brought back"):
        runner.run_case(case(), "fp16")
    session.loaded.model.model.layers[1].self_attn.q_proj.weight.copy_(kept)  # other tests have it too


def test_latency_and_memory_are_guarded_too(
    opened: Session, methods: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTEST_XDIST_WORKER_COUNT", raising=False)  # this test may run under xdist itself
    for measure in (opened.measure_memory, lambda *given: opened.measure_latency(*given, rounds=1)):
        methods["mine"] = damaging(opened, weights)
        opened.runners.clear()
        with pytest.raises(MethodFailed, match=r"weights: model\.layers\.1"):
            measure("mine", 32)


def test_nobody_is_accused_of_what_happened_between_two_cases(
    opened: Session, reopening: Runner, case: Callable[..., CaseId]
) -> None:
    wanted = reopening.run_case(case(), "snapkv")
    weights(opened)
    assert reopening.run_case(case(), "snapkv") == wanted


def test_a_prefill_that_was_written_to_after_its_case_is_made_again(
    opened: Session, reopening: Runner, case: Callable[..., CaseId]
) -> None:
    wanted = reopening.run_case(case(), "snapkv")
    with torch.inference_mode():
        prefills(opened)
    assert reopening.run_case(case(), "snapkv") == wanted


def test_what_is_changed_inside_a_context_that_puts_it_back_is_no_change(
    opened: Session, reopening: Runner, methods: dict[str, Any], case: Callable[..., CaseId]
) -> None:
    def careful(session: Session) -> None:
        mlp = session.loaded.model.model.layers[0].mlp
        handle = mlp.register_forward_hook(lambda *_: None)
        handle.remove()
        mlp.of_mine = torch.nn.Identity()  # a module more
        torch.rand(3)

    methods["mine"] = damaging(opened, careful)
    assert reopening.run_case(case(), "mine").accuracy == reopening.run_case(case(), "fp16").accuracy


# -- answers that do not come from the cache ---------------------------------------------------------------------------

ELSEWHERE: dict[Any, Any] = {}


class HalfLayer(CacheLayer):
    """Holds every second token, and answers from a full copy that is kept by the number of the layer."""

    copies: ClassVar[bool] = False
    key: Any = None

    def compress(self, queries: torch.Tensor) -> None:
        self.key = self.index
        ELSEWHERE[self.key] = [self.keys.clone(), self.values.clone()]
        self.keep(self.every_head(torch.arange(0, self.stored, 2)))
        self.base = self.stored

    def answer(self, query: torch.Tensor, rows: slice) -> torch.Tensor:
        if self.prompt is None:
            return super().answer(query, rows)
        full = zip(ELSEWHERE[self.key], (self.keys, self.values), strict=True)
        keys, values = (torch.cat([old, new[:, :, self.base :]], 2)[rows].to(query.dtype) for old, new in full)
        return self.attention(query, keys, values, rows)

    def select(self, rows: Any) -> CacheLayer:
        clone = super().select(rows)
        if clone.key is not None:
            clone.key = object()
            ELSEWHERE[clone.key] = [each[torch.as_tensor(rows)] for each in ELSEWHERE[self.key]]
        return clone


class SharedHalfLayer(HalfLayer):
    """The same; copies of the cache answer from the one copy."""

    def select(self, rows: Any) -> CacheLayer:
        ELSEWHERE[self.index] = [each[torch.as_tensor(rows)] for each in ELSEWHERE[self.index]]
        return CacheLayer.select(self, rows)


class HonestHalfLayer(CacheLayer):
    """Holds every second token, and answers from those."""

    def compress(self, queries: torch.Tensor) -> None:
        self.keep(self.every_head(torch.arange(0, self.stored, 2)))


def half(kind: type[CacheLayer]) -> type[Fp16]:
    """A method that declares every second token."""
    info = MethodInfo(summary="half", stage="compression")
    inner = {"info": info, "protected": lambda self, prompt: None, "layer": lambda self, *given: kind(*given, self)}
    slots = {"slots": lambda self, shape, prompt, decoded: ((prompt + 1) // 2 + decoded,) * shape.layers}
    return type("Half", (Fp16,), inner | slots)


def test_memory_that_copies_of_a_cache_take_and_do_not_account_for_is_a_failure(
    reopening: Runner, methods: dict[str, Any], case: Callable[..., CaseId]
) -> None:
    methods["mine"] = half(HalfLayer)
    with pytest.raises(MethodFailed, match=r"holds more than can be reached from its cache in .*: 8 copies"):
        reopening.run_case(case(length=400, n=1), "mine")
    ELSEWHERE.clear()


def test_fewer_slots_with_the_logits_of_the_full_cache_are_a_failure(
    reopening: Runner, methods: dict[str, Any], case: Callable[..., CaseId]
) -> None:
    methods["mine"] = half(SharedHalfLayer)
    with pytest.raises(
        MethodFailed, match=r"mine is not shown to act .* holds 50% of the slots .* in all of 1 contexts"
    ):
        reopening.run_case(case(n=1), "mine")
    ELSEWHERE.clear()


def test_fewer_slots_with_other_logits_are_not(
    reopening: Runner, methods: dict[str, Any], case: Callable[..., CaseId]
) -> None:
    methods["mine"] = half(HonestHalfLayer)
    memory = reopening.run_case(case(length=400), "mine").memory
    assert memory is not None
    assert memory.ratio < 0.51


@pytest.mark.parametrize(
    "spec", ["offload", "save_load", "streaming_llm:window=400", "snapkv:budget=1.0", "kivi:residual=4000,group=16"]
)
def test_logits_of_the_full_cache_are_right_where_everything_is_held(
    reopening: Runner, case: Callable[..., CaseId], spec: str
) -> None:
    assert reopening.run_case(case(n=2), spec).samples
