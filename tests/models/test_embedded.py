"""The embedded models: each is of its architecture, ships its records, and repeats them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kvcheck.backends.transformers import Session
from kvcheck.core import paths
from kvcheck.core.errors import MethodUnsupported
from kvcheck.core.record import CaseId
from kvcheck.core.settings import Settings
from kvcheck.models import EMBEDDED
from kvcheck.runner.case import Runner
from kvcheck.store.baselines import ModelId, open_store

KINDS = {"mini": "llama", "mini_window": "qwen2", "mini_hybrid": "bamba"}


def config(name: str) -> dict[str, object]:
    return json.loads((paths.bundle("fixtures") / name / "config.json").read_text(encoding="utf-8"))


def test_every_embedded_model_has_its_architecture() -> None:
    assert {name: config(name)["model_type"] for name in EMBEDDED} == {name: KINDS[name] for name in EMBEDDED}


def opened(name: str) -> Runner:
    """What the gate calls, with this model."""
    settings = Settings(model=name, device="cpu")
    return Runner(Session.open(settings), settings)


@pytest.mark.parametrize("name", EMBEDDED)
def test_an_embedded_model_repeats_its_stored_answers(name: str) -> None:
    case = CaseId("qa_single", 1, "multi_request", 512, 0, 2)
    try:
        runner = opened(name)
    except MethodUnsupported as reason:
        pytest.skip(str(reason))  # an older transformers runs some of them with caches of its own
    model = ModelId(runner.model_name, runner.fingerprint)
    stored = open_store(rootdir=Path(paths.bundle("baselines")).parent).get(model, "fp16", case)
    assert stored is not None
    found = runner.run_case(case, "fp16")
    assert [sample.turns[0].answer for sample in found.samples] == [
        sample.turns[0].answer for sample in stored.samples[:2]
    ]
    assert found.accuracy > 0.8


def held(name: str, length: int) -> tuple[int, int]:
    """(bytes, tokens) of one context."""
    try:
        runner = opened(name)
    except MethodUnsupported as reason:
        pytest.skip(str(reason))
    memory = runner.run_case(CaseId("needle", 1, "single", length, 0, 1), "fp16").memory
    assert memory is not None
    return memory.kv_bytes, memory.seen


A_TOKEN = 2 * 4 * 64 * 2
"""Bytes of keys and values of one layer: 4 heads of 64 in 16 bits."""


def test_two_layers_of_the_model_with_windows_hold_a_window() -> None:
    found, tokens = held("mini_window", 512)
    assert found == pytest.approx((2 * tokens + 2 * 127) * A_TOKEN, rel=0.02)


def test_two_layers_of_the_hybrid_hold_a_state_of_one_size() -> None:
    state = 4 * (4 * (768 + 2 * 16) + 768 * 16)  # float32: a convolution over 4 tokens, and 16 numbers a channel
    found, tokens = held("mini_hybrid", 512)
    assert found == pytest.approx(2 * tokens * A_TOKEN + 2 * state, rel=0.02)
