"""What a model shared out over processes must be; without any process."""

from __future__ import annotations

from dataclasses import fields
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, MistralConfig
from transformers.distributed import DistributedConfig

from kvcheck.backends.transformers.meter import joined, joined_weights
from kvcheck.core.errors import MethodUnsupported, SpecError
from kvcheck.core.record import MemoryRecord, Weight
from kvcheck.models import devices, parallel, pick_device


def config(**changed: Any) -> LlamaConfig:
    return LlamaConfig(**{"hidden_size": 48, "num_attention_heads": 12, "num_key_value_heads": 6, **changed})


def test_kv_heads_that_cannot_be_shared_out_are_refused_with_the_numbers_that_can() -> None:
    parallel.refuse("m", config(), 3)
    with pytest.raises(MethodUnsupported, match="6 kv heads, which 4 processes cannot share out") as caught:
        parallel.refuse("m", config(), 4)
    assert caught.value.hint == "torchrun --nproc-per-node 2 or 3 or 6"
    with pytest.raises(MethodUnsupported, match=r"1 kv heads(?s:.*)without torchrun"):
        parallel.refuse("m", config(num_key_value_heads=1), 2)


def test_a_model_without_a_plan_is_refused() -> None:
    plain = config()
    plain.base_model_tp_plan = None
    with pytest.raises(MethodUnsupported, match="no tensor parallel plan for model 'm'"):
        parallel.refuse("m", plain, 2)


def test_a_model_with_windows_is_refused() -> None:
    slides = MistralConfig(hidden_size=48, num_attention_heads=12, num_key_value_heads=6, sliding_window=16)
    with pytest.raises(MethodUnsupported, match="carries more than a full KV cache"):
        parallel.refuse("m", slides, 2)


def test_newer_transformers_need_accelerate(monkeypatch: pytest.MonkeyPatch) -> None:
    if "tp_size" not in {field.name for field in fields(DistributedConfig)}:
        pytest.skip("this version of transformers does not")
    monkeypatch.setattr(parallel, "find_spec", lambda name: None)
    with pytest.raises(SpecError, match=r"(?s)through accelerate, which is not here.*pip install accelerate"):
        parallel.sharding(2)


def test_each_process_takes_the_device_of_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device("auto") == torch.device("cuda", 1)
    for wanted in ("cuda:1", "spread"):
        with pytest.raises(SpecError, match="takes the device of its own number"):
            pick_device(wanted)
    with pytest.raises(SpecError, match="CUDA_VISIBLE_DEVICES= torchrun"):
        pick_device("cpu")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(SpecError, match="torch sees 1 CUDA devices"):
        pick_device("auto")


def test_what_processes_hold_adds_up() -> None:
    one = MemoryRecord(100, 200, 10, 32.0, 64, 2, 2, peak_bytes=7, host_bytes=3)
    two = MemoryRecord(120, 200, 12, 34.0, 64, 2, 1, peak_bytes=8, host_bytes=3)
    assert joined([one, two]) == MemoryRecord(220, 400, 22, 33.0, 64, 2, 2, peak_bytes=15, host_bytes=6)
    assert joined([one, MemoryRecord(1, 2, 0, 0.0, 64, 2, 2)]).peak_bytes is None


def test_what_processes_hold_of_a_context_adds_up() -> None:
    one, two = (Weight(kv, kept, 200, 10, 3, 64) for kv, kept in ((100, 32.0), (120, 34.0)))
    assert joined_weights([{5: one}, {5: two}]) == {5: Weight(220, 33.0, 400, 20, 6, 64)}


def test_a_spread_model_needs_devices_and_accelerate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SpecError, match="no CUDA device to put layers on"):
        pick_device("spread")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device("spread") == torch.device("cuda", 0)
    monkeypatch.setattr(devices, "find_spec", lambda name: None)
    with pytest.raises(SpecError, match=r"(?s)accelerate, which is not here.*pip install accelerate"):
        devices.layout("spread")
    monkeypatch.setattr(devices, "find_spec", lambda name: SimpleNamespace())
    assert (devices.layout("spread"), devices.layout("auto")) == ("auto", None)
    monkeypatch.setenv("PYTEST_XDIST_WORKER", "gw0")
    with pytest.raises(SpecError, match="leave -n out"):
        pick_device("spread")
