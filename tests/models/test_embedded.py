"""The embedded models: each is of its architecture, ships its records, and repeats them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kvcheck import paths
from kvcheck.baseline import ModelId, open_store
from kvcheck.engine import Session
from kvcheck.errors import MethodUnsupported
from kvcheck.models import EMBEDDED
from kvcheck.record import CaseId
from kvcheck.settings import Settings

KINDS = {"mini": "llama", "mini_window": "qwen2", "mini_hybrid": "bamba"}


def config(name: str) -> dict[str, object]:
    return json.loads((paths.bundle("fixtures") / name / "config.json").read_text(encoding="utf-8"))


def test_every_embedded_model_has_its_architecture() -> None:
    assert {name: config(name)["model_type"] for name in EMBEDDED} == {name: KINDS[name] for name in EMBEDDED}


@pytest.mark.parametrize("name", EMBEDDED)
def test_an_embedded_model_repeats_its_stored_answers(name: str) -> None:
    case = CaseId("qa_single", 1, "multi_request", 512, 0, 2)
    try:
        session = Session.open(Settings(model=name, device="cpu"))
    except MethodUnsupported as reason:
        pytest.skip(str(reason))  # an older transformers runs some of them with caches of its own
    model = ModelId(session.model_name, session.fingerprint)
    stored = open_store(rootdir=Path(paths.bundle("baselines")).parent).get(model, "fp16", case)
    assert stored is not None
    found = session.run_case(case, "fp16")
    assert [sample.turns[0].answer for sample in found.samples] == [
        sample.turns[0].answer for sample in stored.samples[:2]
    ]
    assert found.accuracy > 0.8


def test_windows_hold_what_they_see_and_full_attention_everything() -> None:
    session = Session.open(Settings(model="mini_window", device="cpu"))
    record = session.run_case(CaseId("needle", 1, "single", 512, 0, 1), "fp16")
    assert record.memory is not None
    seen, each = record.memory.seen, 2 * 4 * 64 * 2  # keys and values of 4 heads of 64 in 16 bits
    windows = 2 * (128 - 1)
    assert record.memory.kv_bytes == pytest.approx((2 * seen + windows) * each, rel=0.02)
