"""The roofline: values computed by hand, and no figure for a device that is not known."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from kvcheck.cache.shape import ModelShape
from kvcheck.core.errors import KvcheckError, MethodUnsupported
from kvcheck.measure import roofline
from kvcheck.measure.roofline import Device, Model, Work
from kvcheck.models import synthetic

SMALL = Model(ModelShape(layers=2, heads=4, kv_heads=2, head_dim=8), weights=1000, body=100, head=50)
"""Keys and values of a token: 2·2·8·2 = 64 bytes in each of the 2 layers."""


def shaped(name: str) -> Any:
    """A model of random weights that lie nowhere, as a LoadedModel of which only this is read."""
    model = synthetic.build(f"random:{name}", torch.device("meta"), torch.bfloat16, "sdpa")
    return SimpleNamespace(model=model, shape=ModelShape.of(model.config), states=None)


def test_a_prompt_multiplies_every_token_with_every_parameter_but_the_head() -> None:
    work = SMALL.prefill(10)
    assert work.flops == 2 * (100 * 10 + 50) + 2 * 2 * 4 * 8 * 10 * 11 == 16180
    assert work.bytes == 1000 + 10 * 2 * 64 == 2280


def test_a_step_reads_the_weights_once_and_every_cache() -> None:
    work = SMALL.decode(batch=2, held=640, kept=5)
    assert work.bytes == 1000 + 2 * (640 + 2 * 64) == 2536
    assert work.flops == 2 * (2 * 150 + 4 * 2 * 4 * 8 * 5) == 3160


def test_what_lies_in_host_memory_comes_over_the_link() -> None:
    work = SMALL.decode(batch=2, held=0, kept=5, away=640)
    assert work.away == 1280
    assert work.seconds(Device(1e9, 1e9, link=100.0)) == 12.8
    assert work.seconds(Device(1e9, 3160.0)) == 1.0


def test_the_slowest_part_decides() -> None:
    device = Device(bandwidth=10.0, peak=100.0, link=1.0)
    assert Work(bytes=50, flops=100, away=0).seconds(device) == 5
    assert Work(bytes=50, flops=900, away=0).seconds(device) == 9
    assert Work(bytes=50, flops=900, away=10).seconds(device) == 10


def test_llama_8b_has_the_parameters_that_it_is_known_for() -> None:
    """32 layers of 218,112,000 and a norm of 4096; a head and an embedding of 128,256 x 4096 each."""
    model = Model.of(shaped("llama-3.1-8b"))
    assert model.body == 32 * 218_112_000 + 4096
    assert model.head == 128_256 * 4096
    assert model.weights == 2 * (model.body + model.head)
    assert model.body + 2 * model.head == 8_030_261_248


def test_a_tied_head_is_read_though_the_embedding_is_looked_up() -> None:
    model = Model.of(shaped("llama-3.2-1b"))
    assert model.head == 128_256 * 2048
    assert model.body + model.head == 1_235_814_400
    assert model.weights == 2 * 1_235_814_400


def test_llama_8b_behind_8192_tokens_on_an_h100() -> None:
    """15.0098 GB of weights and 1.0737 GB of cache at 3.35 TB/s; 116.56 TFLOP for the prompt at 989 TFLOP/s."""
    model, device = Model.of(shaped("llama-3.1-8b")), roofline.device_of("NVIDIA H100 80GB HBM3")
    step = model.decode(1, held=8192 * 128 * 1024, kept=8192)
    assert step.seconds(device) == pytest.approx((15.009849344e9 + 1.073741824e9 + 131072) / 3.35e12)
    prompt = model.prefill(8192)
    by_hand = 2 * (6_979_588_096 * 8192 + 525_336_576) + 2 * 32 * 32 * 128 * 8192 * 8193
    assert prompt.seconds(device) == pytest.approx(by_hand / 989e12)


def test_experts_are_refused() -> None:
    config = SimpleNamespace(num_local_experts=8)
    model = SimpleNamespace(config=SimpleNamespace(get_text_config=lambda: config))
    with pytest.raises(MethodUnsupported, match="without experts"):
        Model.of(SimpleNamespace(model=model, states=None))


def test_an_unknown_device_is_told_what_to_type() -> None:
    with pytest.raises(KvcheckError, match="NVIDIA Z9") as caught:
        roofline.device_of("NVIDIA Z9")
    assert "--bandwidth" in str(caught.value)


def test_figures_of_the_user_go_before_the_table() -> None:
    given = roofline.device_of("NVIDIA H200", bandwidth=1000, peak=2)
    assert (given.bandwidth, given.peak, given.link) == (1e12, 2e12, roofline.PCIE5)
    assert str(given) == "1000 GB/s, 2 TFLOP/s"


def test_half_of_the_figures_is_not_enough() -> None:
    with pytest.raises(KvcheckError, match="one of --bandwidth and --peak is missing"):
        roofline.device_of("NVIDIA H200", bandwidth=1000)


@pytest.mark.parametrize("figures", [(0.0, 1.0), (1.0, -1.0)])
def test_a_device_that_does_nothing_is_refused(figures: tuple[float, float]) -> None:
    with pytest.raises(KvcheckError, match="does nothing"):
        roofline.device_of("", *figures)
