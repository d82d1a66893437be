"""What a step of decoding costs beyond fp16, countable without a GPU: the table in docs/reference/speed.md."""

from __future__ import annotations

import re
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from second_device import Device, Kernels, mark

from kvcheck.engine import bench
from kvcheck.methods import METHODS, make
from kvcheck.methods._room import Room
from kvcheck.methods.host import Host
from kvcheck.models import LoadedModel, load

TOKENS, BEFORE, STEPS = 256, 4, 32
DOCS = Path(__file__).parents[2] / "docs" / "reference" / "speed.md"
ROW = re.compile(r"^\| `(?P<name>[^`]+)` \| (?P<operations>-?\d+) \| (?P<waits>\d+\.\d) \| (?P<reason>.*?) ?\|$")
AS = {"quest": "quest:dense_layers=0", "look_m": "look_m:text_prior=false"}
"""How a method is counted where its defaults act on fewer layers, or need images."""
NAMES = [*METHODS.names(), "kivi:bits=4", "snapkv+kivi:bits=4"]
STATIC = ("fp16", "snapkv", "pyramidkv", "streaming_llm", "h2o", "tova", "kivi", "flexgen", "fp8", "think", "quest")
EXACT = torch.__version__.startswith("2.13.")
"""Another torch may make another number of operations of the same call."""


@pytest.fixture(scope="module")
def rows() -> dict[str, re.Match[str]]:
    """The table, by method."""
    found = (ROW.match(line) for line in DOCS.read_text("utf-8").splitlines())
    return {each["name"]: each for each in found if each}


def to_the_host(cache: Any) -> None:
    """What the layers declare to be in host memory is there."""
    for layer in (one for one in getattr(cache, "layers", ()) if hasattr(one, "host")):
        for room in (getattr(layer, name) for name in layer.host):
            if isinstance(room, Room):
                mark(room.buffer)


@cache
def of_mini(method: str) -> tuple[float, Counter[str]]:
    """`counted` with the embedded model in 16 bits, as on a GPU: 4 layers of 8 query heads on 4 kv heads."""
    return counted(embedded("mini"), method)


@cache
def embedded(name: str) -> LoadedModel:
    """A model of this repository."""
    return load(name, torch.device("cpu"), torch.bfloat16)


@torch.inference_mode()
def counted(loaded: LoadedModel, method: str) -> tuple[float, Counter[str]]:
    """Operations per step, and what made the host wait in STEPS steps."""
    host: Host = make(AS.get(method, method)).host(loaded)
    ids = bench.prompt(loaded, TOKENS)
    held, _ = host.prefill(ids)
    with Device() as device:
        to_the_host(held)
        for _ in range(BEFORE):
            host.feed(held, ids[:, :1])
        device.waits.clear()
        with Kernels() as kernels:
            for _ in range(STEPS):
                host.feed(held, ids[:, :1])
    assert not device.mixed, f"a GPU would refuse {set(device.mixed)}"
    return kernels.count / STEPS, Counter(device.waits)


@pytest.mark.parametrize("method", NAMES)
def test_a_step_costs_what_the_docs_say(rows: dict[str, re.Match[str]], method: str) -> None:
    (operations, waits), (full, _) = of_mini(method), of_mini("fp16")
    layers = embedded("mini").shape.layers
    beyond, waiting = round((operations - full) / layers), sum(waits.values()) / STEPS / layers
    row = rows.get(method)
    right = f"{DOCS.name} should say: | `{method}` | {beyond} | {waiting:.1f} | …"
    assert row is not None, right
    assert row["waits"] == f"{waiting:.1f}", f"{right} ({dict(waits)})"
    assert int(row["operations"]) == beyond or not EXACT, right
    assert waiting < 1 or row["reason"], f"{method} makes the host wait in every layer: {dict(waits)}"


@pytest.mark.parametrize("method", STATIC)
def test_a_method_that_need_not_look_at_numbers_lets_the_host_run_ahead(method: str) -> None:
    """Not even once per step: kernels can be queued while others run."""
    assert of_mini(method)[1] == {}


def test_a_window_of_the_model_moves_on_without_a_wait() -> None:
    """It is part of every method there, of fp16 too."""
    assert counted(embedded("mini_window"), "fp16")[1] == {}


def test_the_table_names_no_other_method(rows: dict[str, re.Match[str]]) -> None:
    assert set(rows) == set(NAMES)


def test_what_makes_the_host_wait_is_seen() -> None:
    """Every way in which numbers, or how many there are, must be known, and copies between host and device."""
    numbers, mask = torch.arange(4.0), torch.tensor([True, False, True, False])

    def waits(work: Any) -> list[str]:
        with Device() as device:
            work()
        assert not device.mixed
        return device.waits

    looks = (numbers[0].item, numbers.tolist, lambda: int(numbers[0]), lambda: bool(mask[0]), mask.nonzero)
    assert all(len(waits(look)) == 1 for look in looks)
    assert waits(lambda: numbers[mask]) == ["__getitem__"]
    assert waits(lambda: numbers.clone().__setitem__(mask, numbers[:2])) == ["__setitem__"]
    assert waits(lambda: numbers.clone().__setitem__(mask, 0.0)) == []
    assert waits(lambda: torch.tensor([1.0], device=numbers.device)) == ["to the device"]
    assert waits(lambda: numbers.cpu().tolist()) == ["to the host"]
    assert waits(lambda: torch.arange(4).to(numbers.device)) == ["to the device"]
    assert waits(lambda: torch.arange(4, device=numbers.device) + numbers.long()) == []
    assert waits(lambda: mask.repeat_interleave(mask.long())) == ["repeat_interleave"]
    assert waits(lambda: mask.repeat_interleave(2)) == []


def test_tensors_of_host_and_device_in_one_operation_are_seen() -> None:
    there = torch.ones(4)
    with Device() as device:
        torch.arange(4) + torch.ones(4, device=there.device)
    assert device.mixed == ["add"]


def test_views_are_no_operations() -> None:
    numbers = torch.arange(8.0)
    with Kernels() as kernels:
        numbers.view(2, 4).transpose(0, 1)[1:].expand(3, 2)
        torch.empty(3)
        numbers + 1
        numbers.clone().mul_(2)
    assert kernels.count == 3
