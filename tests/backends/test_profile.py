"""The profile of a run: processor seconds in all, inside the model, and beside it."""

from __future__ import annotations

import re
import time

import pytest

from kvcheck.backends.transformers import profile as profile_module
from kvcheck.backends.transformers.contexts import Contexts
from kvcheck.backends.transformers.profile import profile
from kvcheck.backends.transformers.session import Session
from kvcheck.cache.kv_cache import CacheLayer
from kvcheck.core.settings import Settings


def test_a_profile_tells_what_the_engine_costs_and_leaves_nothing_behind(capsys):
    drift = Contexts.drift
    profile(Session.open(Settings(methods=("fp16",))), ["fp16"], "kv", 256, 1)
    assert Contexts.drift is drift
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("fp16", "all"))]
    seconds = [[float(one) for one in re.findall(r"(\d+\.\d\d)s", row)] for row in rows]
    assert len(rows) == 4, "three modes, and all of them"
    assert all(0 < answers <= bare < total for total, bare, answers in seconds)
    assert seconds[-1] == pytest.approx([sum(column) for column in zip(*seconds[:-1], strict=True)], abs=0.03)


def test_what_a_method_does_in_the_attention_is_not_the_models(monkeypatch):
    """A layer that takes its time in every step makes the total longer, and the bare forwards not."""
    session = Session.open(Settings(methods=("fp16",)))
    answer, now, slept = CacheLayer.answer, [0.0], [0.0]
    monkeypatch.setattr(profile_module, "CLOCK", lambda: time.process_time() + now[0])

    def slow(self, query, rows):
        now[0] += 0.5
        slept[0] += 0.5
        return answer(self, query, rows)

    lines = []
    monkeypatch.setattr(profile_module, "_line", lambda method, mode, spent: lines.append(spent) or "")
    monkeypatch.setattr(CacheLayer, "answer", slow)
    profile(session, ["fp16"], "kv", 256, 1)
    sums = lines[-1]
    bare = sum(profile_module.bare(sums, drift) for drift in (False, True))
    assert slept[0] > 10
    assert sums["total", False] > slept[0]
    assert bare < sums["total", False] - slept[0]


def test_what_is_fed_for_the_drift_is_not_what_answers_need(monkeypatch):
    lines = []
    monkeypatch.setattr(profile_module, "_line", lambda method, mode, spent: lines.append((mode, spent)) or "")
    profile(Session.open(Settings(methods=("snapkv",))), ["snapkv"], "kv", 256, 1)
    for mode, spent in lines:
        assert 0 < profile_module.bare(spent, drift=True) < profile_module.bare(spent, drift=False), mode
