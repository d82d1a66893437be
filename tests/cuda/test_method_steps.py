"""What a step of decoding costs beyond fp16, countable without a GPU: the table in docs/reference/speed.md."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import pytest
import torch
from pretended import Counting, device

from kvcheck.backends.transformers import bench
from kvcheck.cache.method_runner import MethodRunner
from kvcheck.methods import METHODS, make
from kvcheck.models import LoadedModel, load

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here: see test_on_cuda")

TOKENS, BEFORE, STEPS = 256, 4, 32
DOCS = Path(__file__).parents[2] / "docs" / "reference" / "speed.md"
ROW = re.compile(r"^\| `(?P<name>[^`]+)` \| (?P<operations>-?\d+) \| (?P<waits>\d+\.\d) \| (?P<reason>.*?) ?\|$")
AS = {"quest": "quest:dense_layers=0", "look_m": "look_m:text_prior=false"}
"""How a method is counted where its defaults act on fewer layers, or need images."""
NAMES = [*METHODS.names(), "kivi:bits=4", "snapkv+kivi:bits=4"]
STATIC = ("fp16", "snapkv", "pyramidkv", "streaming_llm", "h2o", "tova", "kivi", "flexgen", "fp8", "think", "quest")
Cost = tuple[float, Counter[str]]
EXACT = torch.__version__.startswith("2.13.")
"""Another torch may make another number of operations of the same call."""


@pytest.fixture(scope="module")
def rows() -> dict[str, re.Match[str]]:
    """The table, by method."""
    found = (ROW.match(line) for line in DOCS.read_text("utf-8").splitlines())
    return {each["name"]: each for each in found if each}


@pytest.fixture(scope="module")
def models() -> dict[str, LoadedModel]:
    """Embedded models on the pretended device, in 16 bits. mini: 4 layers of 8 query heads on 4 kv heads."""
    loaded = {name: load(name, torch.device("cpu"), torch.bfloat16) for name in ("mini", "mini_window")}
    for each in loaded.values():
        with device():
            each.model.to("cuda:0")
        each.model.tie_weights()
    return loaded


@pytest.fixture(scope="module")
def of_mini(models: dict[str, LoadedModel]) -> Callable[[str], Cost]:
    """`counted` with mini, once for every method."""
    return cache(partial(counted, models["mini"]))


def counted(loaded: LoadedModel, method: str) -> Cost:
    """Operations per step, and what made the host wait in STEPS steps."""
    runner: MethodRunner = make(AS.get(method, method)).runner(loaded)
    ids = bench.prompt(loaded, TOKENS)
    held, _ = runner.prefill(ids)
    for _ in range(BEFORE):
        runner.feed(held, ids[:, :1])
    with Counting() as counting:
        for _ in range(STEPS):
            runner.feed(held, ids[:, :1])
    return counting.operations / STEPS, Counter(counting.waits)


@pytest.mark.parametrize("method", NAMES)
def test_a_step_costs_what_the_docs_say(
    cuda: None,
    rows: dict[str, re.Match[str]],
    models: dict[str, LoadedModel],
    of_mini: Callable[[str], Cost],
    method: str,
) -> None:
    (operations, waits), (full, _) = of_mini(method), of_mini("fp16")
    layers = models["mini"].shape.layers
    beyond, waiting = round((operations - full) / layers), sum(waits.values()) / STEPS / layers
    row = rows.get(method)
    right = f"{DOCS.name} should say: | `{method}` | {beyond} | {waiting:.1f} | …"
    assert row is not None, right
    assert row["waits"] == f"{waiting:.1f}", f"{right} ({dict(waits)})"
    assert int(row["operations"]) == beyond or not EXACT, right
    assert waiting < 1 or row["reason"], f"{method} makes the host wait in every layer: {dict(waits)}"


@pytest.mark.parametrize("method", STATIC)
def test_a_method_that_need_not_look_at_numbers_lets_the_host_run_ahead(
    cuda: None, of_mini: Callable[[str], Cost], method: str
) -> None:
    """Not even once per step: kernels can be queued while others run."""
    assert of_mini(method)[1] == {}


def test_a_window_of_the_model_moves_on_without_a_wait(cuda: None, models: dict[str, LoadedModel]) -> None:
    """It is part of every method there, of fp16 too."""
    assert counted(models["mini_window"], "fp16")[1] == {}


def test_the_table_names_no_other_method(rows: dict[str, re.Match[str]]) -> None:
    assert set(rows) == set(NAMES)
