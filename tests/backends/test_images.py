"""A needle among images, through the engine, on a LLaVA that can read them: what keeps text, what keeps images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from tiny import runner_of

from kvcheck.backends.transformers import Session
from kvcheck.backends.transformers import session as session_module
from kvcheck.cache.method import MethodInfo
from kvcheck.cache.shape import ModelShape
from kvcheck.core.errors import MethodUnsupported
from kvcheck.core.record import MODES, CaseId, CaseRecord
from kvcheck.core.settings import Settings
from kvcheck.fixtures.training import llava
from kvcheck.judging.budget import Budget, judge
from kvcheck.measure.roofline import Model
from kvcheck.methods.fp16 import Fp16
from kvcheck.methods.look_m import LookM, LookMLayer
from kvcheck.models import LoadedModel, load

CPU = torch.device("cpu")
KINDS = ("text", "image")
HALF = "look_m:heavy=0.05,recent=0.05"
"""Half of a context is text; hardly a slot of an image beside it."""


@pytest.fixture(scope="module")
def reads(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """A LLaVA whose projector was fitted to plates, around the embedded model."""
    return load(str(llava.save(tmp_path_factory.mktemp("llava") / "reads")), CPU, torch.float32)


@pytest.fixture(scope="module")
def run(reads: LoadedModel) -> Callable[..., CaseRecord]:
    """One case of image_needle, run once."""
    runner, done = runner_of(reads), {}

    def case(kind: str, spec: str, mode: str = "multi_request", n: int = 4) -> CaseRecord:
        key = (kind, spec, mode, n)
        if key not in done:
            done[key] = runner.run_case(CaseId(f"image_needle/{kind}", 1, mode, 512, 0, n), spec)
        return done[key]

    return case


@pytest.fixture
def added(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Methods of the test's own, found before the built-in ones."""
    own: dict[str, Any] = {}
    find = session_module.find_method
    monkeypatch.setattr(session_module, "find_method", lambda text: own[text]() if text in own else find(text))
    return own


# -- what works --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_full_cache_finds_the_needle(run: Callable[..., CaseRecord], kind: str, mode: str) -> None:
    assert run(kind, "fp16", mode).accuracy == 1


@pytest.mark.parametrize("spec", ["cake", "cacheblend:recompute=1.0", "transformers.dynamic"])
def test_what_feeds_in_chunks_or_row_by_row_sees_the_same_images(run: Callable[..., CaseRecord], spec: str) -> None:
    answers = [[turn.answer for turn in sample.turns] for sample in run("image", spec, n=2).samples]
    assert answers == [[turn.answer for turn in sample.turns] for sample in run("image", "fp16", n=2).samples]


def test_look_m_keeps_needles_in_text_at_half_the_memory(run: Callable[..., CaseRecord]) -> None:
    record = run("text", HALF)
    assert record.memory is not None
    assert record.memory.ratio < 0.55
    assert record.accuracy == 1


def test_look_m_loses_needles_in_images_there(run: Callable[..., CaseRecord]) -> None:
    assert run("image", HALF).accuracy < 0.2


def test_without_the_text_prior_text_is_lost_for_images(run: Callable[..., CaseRecord]) -> None:
    assert run("text", "look_m:text_prior=false").accuracy < 0.7
    assert run("image", "look_m:text_prior=false").accuracy > run("image", HALF).accuracy + 0.2


def test_the_token_of_images_may_be_named(reads: LoadedModel, run: Callable[..., CaseRecord]) -> None:
    assert reads.vision is not None
    named = run("text", f"{HALF},image_token={reads.vision.slots.id}", n=2)
    assert named.samples == run("text", HALF, n=2).samples


def test_memory_is_measured_on_a_prompt_with_images(reads: LoadedModel) -> None:
    memory = Session.of(reads, Settings()).measure_memory(HALF, 200)
    assert memory.kv_bytes / memory.dense_bytes == pytest.approx(0.5, abs=0.06), "all text, and no more"


def test_the_roofline_of_a_step_counts_the_language_model_and_not_the_tower(reads: LoadedModel) -> None:
    """The projector's and the tower's weights are read once per image; the image token has a row of its own."""
    alone, seeing = (Model.of(loaded) for loaded in (load("mini", CPU, torch.float32), reads))
    assert seeing.body == alone.body
    assert seeing.weights - alone.weights == 4 * (seeing.head - alone.head)


# -- what is noticed ---------------------------------------------------------------------------------------------------


class TextFirstLayer(LookMLayer):
    """Takes text for images."""

    def compress(self, queries: torch.Tensor) -> None:
        """The prior turned around."""
        self.images = None if self.images is None else ~self.images
        super().compress(queries)


class AstrayLayer(LookMLayer):
    """Merges into any slot that stays."""

    @staticmethod
    def _nearest(keys: torch.Tensor, stays: torch.Tensor) -> torch.Tensor:
        """The slots that stay, in turns, instead of the most alike."""
        count = stays.sum(dim=2, keepdim=True)
        ranks = torch.arange(stays.shape[2]).expand(stays.shape) % count
        return stays.int().argsort(dim=2, descending=True, stable=True).gather(2, ranks)


@dataclass(frozen=True)
class DropsTextFirst(LookM):
    """LOOK-M with the prior turned around."""

    heavy: float | int = 0.05
    recent: float | int = 0.05

    def layer(self, shape: ModelShape, index: int) -> LookMLayer:
        """The faulty layer."""
        return TextFirstLayer(shape, index, self)


@dataclass(frozen=True)
class MergesAstray(LookM):
    """LOOK-M that merges images into any text."""

    heavy: float | int = 0.05
    recent: float | int = 0.05

    def layer(self, shape: ModelShape, index: int) -> LookMLayer:
        """The faulty layer."""
        return AstrayLayer(shape, index, self)


@pytest.mark.parametrize("faulty", [DropsTextFirst, MergesAstray])
def test_a_faulty_look_m_fails_against_the_correct_one(
    reads: LoadedModel, run: Callable[..., CaseRecord], added: dict[str, Any], faulty: type[LookM]
) -> None:
    added["faulty"] = faulty
    own, fp16 = run("text", HALF, n=8), run("text", "fp16", n=8)
    found = runner_of(reads).run_case(own.case, "faulty")
    verdicts = judge(replace(found, method=own.method), fp16, own, Budget(drop=2.0))
    assert {verdict.question: verdict.outcome for verdict in verdicts}["regression"] == "fail"


def test_the_correct_one_passes(run: Callable[..., CaseRecord]) -> None:
    own = run("text", HALF, n=8)
    verdicts = judge(own, run("text", "fp16", n=8), own, Budget(drop=2.0))
    assert {verdict.outcome for verdict in verdicts} <= {"pass", "inconclusive"}


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_a_text_model_refuses_the_task() -> None:
    runner = runner_of(load("mini", CPU, torch.float32))
    with pytest.raises(MethodUnsupported, match="the task shows images, and the model reads text only"):
        runner.run_case(CaseId("image_needle/text", 1, "single", 512, 0, 1), "fp16")


def test_what_shortens_text_refuses_images(reads: LoadedModel, added: dict[str, Any]) -> None:
    @dataclass(frozen=True)
    class Shortens(Fp16):
        info = MethodInfo(summary="shortens text", stage="prompt")

    added["shortens"] = Shortens
    with pytest.raises(MethodUnsupported, match="shortens text, and the context has images"):
        runner_of(reads).run_case(CaseId("image_needle/text", 1, "single", 512, 0, 1), "shortens")


def test_look_m_refuses_a_text_on_a_model_that_sees(reads: LoadedModel) -> None:
    with pytest.raises(MethodUnsupported, match="a prompt has no image slot"):
        runner_of(reads).run_case(CaseId("kv", 1, "single", 512, 0, 1), "look_m")


def test_a_text_task_runs_as_on_the_language_model_alone(reads: LoadedModel) -> None:
    case = CaseId("kv", 1, "single", 512, 0, 2)
    turns = []
    for loaded in (load("mini", CPU, torch.float32), reads):
        turns.append([sample.turns[0] for sample in runner_of(loaded).run_case(case, "snapkv").samples])
    assert [turn.answer for turn in turns[1]] == [turn.answer for turn in turns[0]]
    assert [turn.nll for turn in turns[1]] == pytest.approx([turn.nll for turn in turns[0]], abs=1e-3)
