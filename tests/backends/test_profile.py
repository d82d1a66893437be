"""The profile of a run: processor seconds in all, inside the model, and beside it."""

from __future__ import annotations

import re

from kvcheck.backends.transformers.contexts import Contexts
from kvcheck.backends.transformers.profile import profile
from kvcheck.backends.transformers.session import Session
from kvcheck.core.settings import Settings


def test_a_profile_tells_what_the_engine_costs_and_leaves_nothing_behind(capsys):
    drift = Contexts.drift
    profile(Session.open(Settings(methods=("fp16",))), ["fp16"], "kv", 256, 1)
    assert Contexts.drift is drift
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("fp16", "all"))]
    seconds = [[float(one) for one in re.findall(r"(\d+\.\d\d)s", row)] for row in rows]
    assert len(rows) == 4, "three modes, and all of them"
    assert all(0 < model <= total for total, model in seconds)
