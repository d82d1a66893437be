"""KVQuant against its paper: groups, signposts, outliers and what is before RoPE, written one number at a time."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from toys import ROPE, SHAPE, absorbed, cut, feed, prompt

from kvcheck.cache.rotary import rotate
from kvcheck.cache.shape import ModelShape, Prefilled
from kvcheck.core.errors import MethodUnsupported, SpecError
from kvcheck.measure.memory import held
from kvcheck.methods import make
from kvcheck.methods.kvquant import SIGNPOSTS, signposts

CPU = torch.device("cpu")
WIDTHS = pytest.mark.parametrize("bits", [2, 3, 4])


def half(value: float) -> float:
    return float(torch.tensor(value).half())


def coded(group: list[float], bits: int, share: float) -> list[float]:
    """One group of numbers, stored and read back as the paper says."""
    ends, levels = math.ceil(share * len(group) / 2), 2**bits - 1
    order = sorted(range(len(group)), key=lambda at: group[at])
    outliers = {*order[:ends], *order[len(group) - ends :]}
    usual = [group[at] for at in order if at not in outliers]
    low = half(usual[0])
    step = np.float16((usual[-1] - low) / levels)
    if float(step) * levels < usual[-1] - low:
        step = np.nextafter(step, np.float16(np.inf))
    posts = [*SIGNPOSTS[bits], *(1 - each for each in reversed(SIGNPOSTS[bits]))]
    back = []
    for at, value in enumerate(group):
        nearest = min(posts, key=lambda post, value=value: abs(low + post * levels * float(step) - value))
        back.append(value if at in outliers else low + nearest * levels * float(step))
    return back


def turned(vector: list[float], position: int, back: bool = False) -> list[float]:
    """A key turned to its position, or back from it channel pair by channel pair."""
    pairs, out = len(vector) // 2, list(vector)
    for pair in range(pairs):
        angle = position * ROPE[pair] * (-1 if back else 1)
        one, other = vector[pair], vector[pair + pairs]
        out[pair] = one * math.cos(angle) - other * math.sin(angle)
        out[pair + pairs] = other * math.cos(angle) + one * math.sin(angle)
    return out


@pytest.mark.parametrize("share", [0.0, 0.1, 0.25])
@WIDTHS
def test_keys_are_coded_per_channel_before_their_rotation_and_values_per_token(bits: int, share: float) -> None:
    parts = prompt(31)
    cache = absorbed(make(f"kvquant:bits={bits},group=12,outliers={share},sink=2,recent=1"), parts)
    for layer, part in zip(cache.layers, parts, strict=True):
        keys, values = layer.read(slice(None), torch.float32)
        for row, head in ((0, 0), (1, 1)):
            for at in range(2, 30):
                wanted = coded(part.values[row, head, at].tolist(), bits, share)
                assert values[row, head, at].tolist() == pytest.approx(wanted, abs=5e-3)
            for start in (2, 14):  # two groups; the tokens from 26 on wait for theirs to fill
                plain = [turned(part.keys[row, head, at].tolist(), at, back=True) for at in range(start, start + 12)]
                stored = [coded([token[channel] for token in plain], bits, share) for channel in range(8)]
                for at in range(12):
                    wanted = turned([stored[channel][at] for channel in range(8)], start + at)
                    assert keys[row, head, start + at].tolist() == pytest.approx(wanted, abs=5e-3)
            assert torch.equal(keys[row, head, 26:], part.keys[row, head, 26:].float())
            assert torch.equal(values[row, head, 30:], part.values[row, head, 30:].float())


def test_the_first_tokens_are_exact() -> None:
    parts = prompt(40)
    for sink in (0, 1, 3):
        layer = absorbed(make(f"kvquant:bits=2,group=4,sink={sink}"), parts).layers[0]
        for mine, theirs in zip(layer.read(slice(None), torch.float32), (parts[0].keys, parts[0].values), strict=True):
            assert torch.equal(mine[:, :, :sink], theirs[:, :, :sink].float())
            assert not torch.equal(mine[:, :, sink], theirs[:, :, sink].float())


def test_a_channel_that_is_alike_before_rope_is_read_back_as_it_is() -> None:
    """Behind RoPE no channel is constant: only a method that stores what was before it can do that."""
    plain = torch.randn(2, 2, 1, 8, generator=torch.Generator().manual_seed(3)).expand(2, 2, 33, 8)
    keys = rotate(plain, torch.arange(33), ROPE)
    parts = [Prefilled(keys, keys, part.queries.float()) for part in prompt(33)]
    read, _ = absorbed(make("kvquant:bits=2,group=32,outliers=0.0"), parts).layers[0].read(slice(None), torch.float32)
    torch.testing.assert_close(read, keys, atol=4e-3, rtol=0)


@pytest.mark.parametrize("size", [1e3, 6e4])
def test_an_outlier_is_kept_and_costs_its_neighbours_nothing(size: float) -> None:
    parts = prompt(33)
    usual = absorbed(make("kvquant"), parts).layers[0].read(slice(None), torch.float32)[1]
    for part in parts:
        part.values[0, 1, 7, 3], part.values[1, 0, 9, 2] = size, -size
    values = absorbed(make("kvquant"), parts).layers[0].read(slice(None), torch.float32)[1]
    assert (float(values[0, 1, 7, 3]), float(values[1, 0, 9, 2])) == (half(size), half(-size))
    others = [channel for channel in range(8) if channel != 3]
    errors = [(each[0, 1, 7] - parts[0].values[0, 1, 7].float())[others].norm() for each in (values, usual)]
    assert float(errors[0]) < float(errors[1]) + 0.5
    without = absorbed(make("kvquant:outliers=0.0"), parts).layers[0].read(slice(None), torch.float32)[1]
    lost = (without[0, 1, 7] - parts[0].values[0, 1, 7].float())[others].norm()
    assert float(lost) > 0.9 * float(parts[0].values[0, 1, 7].float()[others].norm())


def test_outliers_are_the_outermost_and_as_many_at_either_end() -> None:
    parts = prompt(64, SHAPE)
    layer = absorbed(make("kvquant:group=16,outliers=0.25,sink=0"), parts).layers[0]
    packed, scale, low, outliers, places = (buffer.used for buffer in layer.kq.buffers)
    assert packed.shape == (2, 2, 64, 3)
    assert scale.shape == low.shape == (2, 2, 4, 1, 8)
    assert outliers.shape == places.shape == (2, 2, 4, 4, 8)
    assert (packed.dtype, scale.dtype, outliers.dtype, places.dtype) == (
        torch.uint8,
        torch.float16,
        torch.float16,
        torch.uint8,
    )
    plain = [turned(parts[0].keys[1, 0, at].tolist(), at, back=True)[5] for at in range(16, 32)]
    order = sorted(range(16), key=lambda at: plain[at])
    assert places[1, 0, 1, :, 5].tolist() == [*order[:2], *order[-2:]]
    assert outliers[1, 0, 1, :, 5].tolist() == pytest.approx([plain[at] for at in places[1, 0, 1, :, 5]], abs=4e-3)


def test_groups_of_more_than_256_have_places_of_two_bytes() -> None:
    parts = prompt(300, rows=1)
    method = make("kvquant:group=299,outliers=0.02")
    cache = absorbed(method, parts)
    assert cache.layers[0].kq.buffers[4].tensor.dtype == torch.int16
    assert cache.layers[0].vq.buffers[4].tensor.dtype == torch.uint8
    assert held(cache).kv == method.kv_bytes(SHAPE, 1, 300, 0)
    keys, _ = cache.layers[0].read(slice(None), torch.float32)
    errors = (keys - parts[0].keys.float()).abs()
    assert float(errors.max()) < 1.5


def test_bytes_are_those_of_the_formula() -> None:
    wide = ModelShape(layers=32, heads=32, kv_heads=8, head_dim=128, rope=(1.0,) * 64)
    found = make("kvquant:bits=3,group=64,outliers=0.01").kv_bytes(wide, 1, 6401, 0)
    codes = 2 * 6400 * 128 * 3 // 8
    keys = 100 * 128 * (4 + 2 * 3)  # one outlier at each end of 64 tokens
    values = 6400 * (4 + 2 * 3)  # and of 128 channels
    assert found == 32 * 8 * (2 * 2 * 128 + codes + keys + values)


@WIDTHS
def test_signposts_are_what_k_means_finds_in_groups_of_normal_numbers(bits: int) -> None:
    drawn = torch.randn(4000, 64, generator=torch.Generator().manual_seed(5)).sort(dim=1).values[:, 1:-1]
    shares = ((drawn - drawn[:, :1]) / (drawn[:, -1:] - drawn[:, :1])).flatten().tolist()
    posts = (signposts(bits, CPU) / (2**bits - 1)).tolist()
    for _ in range(3):
        sums, counts = [0.0] * len(posts), [0] * len(posts)
        edges = torch.tensor([(one + other) / 2 for one, other in itertools.pairwise(posts)])
        for share, code in zip(shares, torch.bucketize(torch.tensor(shares), edges).tolist(), strict=True):
            sums[code] += share
            counts[code] += 1
        posts = [0.0, *(each / count for each, count in zip(sums[1:-1], counts[1:-1], strict=True)), 1.0]
    assert posts == pytest.approx((signposts(bits, CPU) / (2**bits - 1)).tolist(), abs=6e-3)


@WIDTHS
def test_uneven_signposts_lose_less_than_even_ones(bits: int) -> None:
    drawn = torch.randn(2000, 64, generator=torch.Generator().manual_seed(6)).sort(dim=1).values[:, 1:-1]
    shares = (drawn - drawn[:, :1]) / (drawn[:, -1:] - drawn[:, :1])

    def loss(posts: torch.Tensor) -> float:
        codes = torch.bucketize(shares, (posts[1:] + posts[:-1]) / 2)
        return float((posts[codes] - shares).square().mean())

    assert loss(signposts(bits, CPU) / (2**bits - 1)) < 0.97 * loss(torch.linspace(0, 1, 2**bits))


@WIDTHS
def test_what_was_read_back_is_stored_as_it_is(bits: int) -> None:
    parts = prompt(33)
    method = make(f"kvquant:bits={bits},group=16,sink=0")
    once = absorbed(method, parts).layers[0].read(slice(None), torch.float32)
    again = [Prefilled(once[0].half(), once[1].half(), part.queries) for part in parts]
    twice = absorbed(method, again).layers[0].read(slice(None), torch.float32)
    for one, other in zip(once, twice, strict=True):
        assert float((one - other).norm()) < 2e-3 * float(one.norm())


def test_more_outliers_are_nearer() -> None:
    parts = prompt(65)
    errors = []
    for share in (0.0, 0.05, 0.25):
        keys, values = (
            absorbed(make(f"kvquant:bits=2,outliers={share}"), parts).layers[0].read(slice(None), torch.float32)
        )
        errors.append(float((keys - parts[0].keys.float()).norm() + (values - parts[0].values.float()).norm()))
    assert errors[0] > errors[1] > errors[2]


def test_the_newest_wait_in_16_bits_until_their_group_is_full() -> None:
    parts = prompt(60)
    method = make("kvquant:group=8,recent=3")
    cache = absorbed(method, cut(parts, 0, 20))
    for at in range(20, 60):
        feed(cache, cut(parts, at, at + 1))
        layer = cache.layers[0]
        assert layer.kq.length == (at + 1 - 4) // 8 * 8
        assert layer.vq.length == at + 1 - 4
        assert held(cache).kv == method.kv_bytes(SHAPE, 2, 20, at - 19)
        assert torch.equal(layer.read(slice(None), torch.float32)[0][:, :, -3:], parts[0].keys[:, :, at - 2 : at + 1])


def test_behind_eviction_keys_are_turned_by_where_they_stood() -> None:
    parts = prompt(60)
    text = "snapkv:budget=25,window=6"
    kept = absorbed(make(text), parts).layers
    both = absorbed(make(f"{text}+kvquant:bits=4,group=8,outliers=0.25"), parts).layers
    for exact, layer in zip(kept, both, strict=True):
        assert torch.equal(exact.positions, layer.positions)
        errors = (layer.read(slice(None), torch.float32)[0] - exact.keys.float()).norm() / exact.keys.float().norm()
        assert float(errors) < 0.12


@pytest.mark.parametrize("text", ["bits=5", "group=2", "outliers=0.3", "outliers=-0.1", "sink=-1", "recent=-1"])
def test_a_value_out_of_range_is_refused_with_what_to_type(text: str) -> None:
    with pytest.raises(SpecError, match="--kv-method="):
        make(f"kvquant:{text}")


def test_a_model_whose_keys_cannot_be_turned_back_is_refused() -> None:
    with pytest.raises(MethodUnsupported, match="rotat"):
        make("kvquant").build(ModelShape(1, 2, 2, 8))


def test_a_head_whose_codes_fill_no_whole_bytes_is_refused() -> None:
    with pytest.raises(MethodUnsupported, match="whole bytes"):
        make("kvquant").build(ModelShape(1, 2, 2, 20, rope=(1.0,) * 10))
    make("kvquant:bits=4").build(ModelShape(1, 2, 2, 20, rope=(1.0,) * 10))
