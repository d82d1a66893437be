"""The examples of docs/howto/adapters.md run, and what cannot be recognised is refused with what would do."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch

from kvcheck.engine import Session
from kvcheck.errors import MethodUnsupported, SpecError
from kvcheck.measure.memory import held
from kvcheck.methods import make
from kvcheck.methods.fp16 import Fp16
from kvcheck.record import CaseId
from kvcheck.settings import Settings

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "adapters.md"
CASE = CaseId("kv", 1, "multi_turn", 512, 0, 2)


@pytest.fixture(autouse=True)
def examples(tmp_path, monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    (tmp_path / "my_caches.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("my_caches", None)


@pytest.fixture(scope="module")
def session() -> Session:
    return Session.open(Settings())


@pytest.mark.parametrize(
    "text", ["my_caches.Newest:window=64", "my_caches.NewestLayer:window=64", "my_caches.make_cache:window=64"]
)
def test_a_cache_a_layer_and_a_function_run_a_conversation_and_hold_what_they_hold(session, text: str) -> None:
    record = session.run_case(CASE, text)
    shape = session.shape
    assert record.memory.kv_bytes == shape.dense_bytes(1, 64)
    assert all(len(sample.turns) == 4 for sample in record.samples)
    assert ("positions", record.not_measured[-1][1]) in record.not_measured


def test_a_press_like_context_is_around_the_prompt(session) -> None:
    plain, muted = (session.run_case(CASE, text) for text in ("transformers.dynamic", "my_caches.Muted"))
    assert plain.accuracy > muted.accuracy


def test_the_full_cache_of_transformers_answers_as_fp16(session) -> None:
    mine, theirs = (session.run_case(CASE, text) for text in ("fp16", "transformers.dynamic"))
    answers = [[turn.answer for sample in record.samples for turn in sample.turns] for record in (mine, theirs)]
    assert answers[0] == answers[1]
    assert theirs.memory.kv_bytes == mine.memory.kv_bytes


@pytest.mark.parametrize("text", ["transformers.static:room=256", "transformers.sliding_window:window=128"])
def test_caches_of_transformers_run_by_name(session, text: str) -> None:
    assert session.run_case(CASE, text).memory.kv_bytes > 0


def test_a_static_cache_holds_its_room_from_the_start(session) -> None:
    host = make("transformers.static:room=100").host(session.loaded)
    cache, _ = host.prefill(torch.randint(3, 100, (1, 60)))
    assert held(cache).kv >= session.shape.dense_bytes(1, 160)


def test_a_foreign_method_is_what_was_typed() -> None:
    assert str(make("my_caches.make_cache:window=32").spec) == "my_caches.make_cache:window=32"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("my_caches.make_cache:windw=3", "no parameter 'windw'"),
        ("my_caches.make_cache:window=true", "is not an int"),
        ("my_caches.Iterator", "no Method, no cache|abstract"),
        ("my_caches.nothing", "has no|no attribute"),
        ("transformers.quantoo", "unknown|has no|quanto"),
    ],
)
def test_what_cannot_be_used_is_refused(text: str, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        make(text)


def test_offloading_needs_an_accelerator(session) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one here")
    with pytest.raises(MethodUnsupported, match="the model is on the CPU"):
        make("transformers.offloaded").host(session.loaded)


def test_a_foreign_method_cannot_be_composed() -> None:
    with pytest.raises(SpecError, match="cannot"):
        make("snapkv+transformers.dynamic")


def test_kvchecks_own_methods_are_not_adapted() -> None:
    assert isinstance(make("fp16"), Fp16)
