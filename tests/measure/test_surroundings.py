"""What a method shares with others in its process is put back, and said; what is no change is not."""

from __future__ import annotations

import builtins
import os
import random
import signal
import subprocess
import sys
import warnings
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AttentionInterface
from transformers.cache_utils import DynamicLayer

import kvcheck.judging.budget
import kvcheck.judging.pairing
import kvcheck.runner.case
import kvcheck.tasks.metrics
from kvcheck.backends.transformers.surroundings import CHANCE, FACTS, Surroundings, untouched
from kvcheck.cache.kv_cache import CacheLayer


def nothing(*args: Any, **given: Any) -> None:
    """Put in place of a function."""


LEFT = {
    "the working directory": lambda: os.chdir("/"),
    "the umask": lambda: os.umask(0o777),
    "environment variables": lambda: os.environ.pop("PATH"),
    "signal handlers": lambda: signal.signal(signal.SIGALRM, signal.SIG_IGN),
    "the recursion limit": lambda: sys.setrecursionlimit(sys.getrecursionlimit() - 1),
    "the filters of warnings": lambda: warnings.simplefilter("error"),
    "sys.stdout": lambda: setattr(sys, "stdout", None),
    "torch's grad mode": lambda: torch.set_grad_enabled(not torch.is_grad_enabled()),
    "torch's default dtype": lambda: torch.set_default_dtype(torch.float64),
    "torch's default device": lambda: torch.set_default_device("meta"),
    "torch's number of threads": lambda: torch.set_num_threads(torch.get_num_threads() + 1),
    "torch's deterministic algorithms": lambda: torch.use_deterministic_algorithms(True),
    "torch's precision of products": lambda: torch.set_float32_matmul_precision("medium"),
    "torch's attention kernels": lambda: torch.backends.cuda.enable_math_sdp(False),
    "torch.nn.functional.scaled_dot_product_attention": lambda: setattr(
        torch.nn.functional, "scaled_dot_product_attention", nothing
    ),
    "torch.nn.functional.linear": lambda: setattr(torch.nn.functional, "linear", nothing),
    "torch.matmul": lambda: setattr(torch, "matmul", nothing),
    "torch.nn.modules.linear.Linear.forward": lambda: setattr(torch.nn.Linear, "forward", nothing),
    "transformers.cache_utils.DynamicLayer.update": lambda: setattr(DynamicLayer, "update", nothing),
    "ALL_ATTENTION_FUNCTIONS['sdpa']": lambda: AttentionInterface.register("sdpa", nothing),
    "kvcheck.tasks.metrics.score": lambda: setattr(kvcheck.tasks.metrics, "score", nothing),
    "kvcheck.judging.budget.judge": lambda: setattr(kvcheck.judging.budget, "judge", nothing),
    "kvcheck.judging.pairing.differences": lambda: setattr(kvcheck.judging.pairing, "differences", nothing),
    "kvcheck.judging.pairing.score": lambda: setattr(kvcheck.judging.pairing.score, "__code__", nothing.__code__),
    "kvcheck.judging.budget.sequential": lambda: setattr(
        kvcheck.judging.budget.sequential, "__defaults__", (None,) * 2
    ),
    "kvcheck.runner.case._turn": lambda: setattr(kvcheck.runner.case, "_turn", nothing),
    "kvcheck.cache.layer.CacheLayer.attend": lambda: setattr(CacheLayer, "attend", nothing),
    "pytest.fail": lambda: setattr(pytest, "fail", nothing),
    "builtins.sum": lambda: setattr(builtins, "sum", nothing),
}
"""By what is to be said of it, a change that a method might leave behind."""
CLASSES = (DynamicLayer,)


@pytest.mark.parametrize("what", LEFT)
def test_what_was_left_changed_is_named_and_put_back(what: str) -> None:
    before = {fact: fact.read() for fact in FACTS}
    with untouched(CLASSES) as changed:
        LEFT[what]()
    assert changed == [what]
    assert [fact.name for fact, value in before.items() if fact.wrong(value, fact.read())] == []
    with untouched(CLASSES) as again:
        pass
    assert again == []


def test_it_is_put_back_where_the_method_raised_too() -> None:
    with suppress(IndexError), untouched() as changed:
        torch.set_default_dtype(torch.float64)
        torch.zeros(3)[7]
    assert torch.get_default_dtype() == torch.float32
    assert changed == ["torch's default dtype"]


def test_a_closed_descriptor_is_open_again() -> None:
    code = (
        "import os\nfrom kvcheck.backends.transformers.surroundings import untouched\n"
        "with untouched() as changed:\n    os.close(1)\nprint(changed)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "['file descriptor 1']\n"


def test_random_numbers_are_drawn_as_if_nobody_had_drawn_before_and_nobody_is_accused() -> None:
    def drawn() -> list[float]:
        return [float(torch.rand(1)), float(np.random.rand()), random.random()]

    state = Surroundings()
    first = drawn()
    assert state.restored() == []
    with untouched() as changed:
        torch.manual_seed(7)
        random.seed(7)
        np.random.seed(7)
    assert changed == []
    assert drawn() == first
    assert len(CHANCE) == 3


def test_what_is_no_change_is_not_accused() -> None:
    with untouched() as changed, warnings.catch_warnings():
        import colorsys

        colorsys.made_late = nothing  # type: ignore[attr-defined]
        os.environ["KVCHECK_NEW"] = "1"
        sys.setrecursionlimit(sys.getrecursionlimit() + 100)
        warnings.filterwarnings("ignore", message="of a library that is imported late")
        torch.nn.functional.of_mine = nothing  # type: ignore[attr-defined]
        AttentionInterface.register("of mine", nothing)
        with torch.device("meta"), torch.enable_grad():
            torch.zeros(3)
    del torch.nn.functional.of_mine, os.environ["KVCHECK_NEW"]  # type: ignore[attr-defined]
    sys.setrecursionlimit(sys.getrecursionlimit() - 100)
    assert changed == []
