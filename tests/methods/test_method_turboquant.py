"""TurboQuant against its paper: the codebook, packed codes, what is read back, and unbiased inner products."""

from __future__ import annotations

import math

import pytest
import torch
from toys import SHAPE, absorbed, cut, feed, prompt

from kvcheck.cache.shape import ModelShape
from kvcheck.cache.turned import Turned, centroids, projection, rotation
from kvcheck.core.errors import MethodUnsupported, SpecError
from kvcheck.measure.memory import held
from kvcheck.methods import make

CPU = torch.device("cpu")
WIDTHS = pytest.mark.parametrize("bits", [1, 2, 3, 4])


def sphere(count: int, size: int, seed: int = 0) -> torch.Tensor:
    """Directions (count, size), uniformly drawn, float64."""
    drawn = torch.randn(count, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return drawn / drawn.norm(dim=1, keepdim=True)


def through(vectors: torch.Tensor, bits: int, seed: int = 0, sketch: bool = False) -> torch.Tensor:
    """Store vectors (n, d) and read them back."""
    store, out = Turned(bits, (vectors.shape[1],), seed, sketch), torch.empty(1, 1, *vectors.shape)
    store.append(vectors.view(1, 1, *vectors.shape))
    store.read(slice(None), out)
    return out[0, 0].double()


@pytest.mark.parametrize(
    ("bits", "upper"),
    [
        (1, [0.7980]),
        (2, [0.4528, 1.510]),
        (3, [0.2451, 0.7560, 1.344, 2.152]),
        (4, [0.1284, 0.3881, 0.6568, 0.9424, 1.256, 1.618, 2.069, 2.733]),
    ],
)
def test_in_many_dimensions_the_codebook_is_that_of_max_1960(bits: int, upper: list[float]) -> None:
    wanted = [-each for each in reversed(upper)] + upper
    assert centroids(bits, 10**7) == pytest.approx(wanted, abs=2e-3)


@pytest.mark.parametrize("size", [8, 64])
@WIDTHS
def test_a_centroid_is_the_mean_of_what_is_nearest_to_it_on_the_sphere(bits: int, size: int) -> None:
    table = torch.tensor(centroids(bits, size), dtype=torch.float64)
    entries = (sphere(80_000 // size, size) * size**0.5).flatten()
    nearest = (entries.unsqueeze(1) - table).abs().argmin(1)
    for code, centroid in enumerate(table.tolist()):
        mine = entries[nearest == code]
        assert float(mine.mean()) == pytest.approx(centroid, abs=5 * float(mine.std()) / len(mine) ** 0.5 + 1e-3)


@pytest.mark.parametrize(("bits", "error"), [(1, 0.36), (2, 0.117), (3, 0.03), (4, 0.009)])
def test_the_error_of_a_direction_is_that_of_the_paper(bits: int, error: float) -> None:
    vectors = sphere(500, 128)
    assert float((through(vectors, bits) - vectors).square().sum(1).mean()) == pytest.approx(error, rel=0.16)


def test_the_rotation_is_orthogonal_and_of_a_layer() -> None:
    one = rotation(48, 3, CPU)
    torch.testing.assert_close(one @ one.T, torch.eye(48), atol=1e-5, rtol=0)
    assert torch.equal(one, rotation(48, 3, CPU))
    assert not torch.equal(one, rotation(48, 4, CPU))
    assert not torch.equal(one, projection(48, 3, CPU))


def by_definition(vector: torch.Tensor, bits: int, layer: int, sketch: bool) -> torch.Tensor:
    """One vector (d,), coded and decoded as the paper's algorithms 1 and 2 say, entry by entry."""
    d, bits = len(vector), bits - sketch
    turn, table = rotation(d, layer, CPU).double(), centroids(bits, d)
    norm = float(torch.tensor(float(vector.norm())).half())
    unit = (vector / norm).double() if norm else torch.zeros(d, dtype=torch.float64)
    turned = [sum(float(turn[row, at]) * float(unit[at]) for at in range(d)) for row in range(d)]
    coded = [min(table, key=lambda each, y=y: abs(each / d**0.5 - y)) / d**0.5 for y in turned]
    back = torch.tensor(coded, dtype=torch.float64)
    if sketch:
        left = torch.tensor(turned, dtype=torch.float64) - back
        matrix, size = projection(d, layer, CPU).double(), float(left.norm().half())
        signs = torch.where(matrix @ left >= 0, 1.0, -1.0).double()
        back = back + math.sqrt(math.pi / 2) / d * size * (matrix.T @ signs)
    return norm * (turn.T @ back)


@pytest.mark.parametrize("sketch", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_what_is_read_back_is_what_the_paper_defines(bits: int, sketch: bool) -> None:
    parts = prompt(9)
    cache = absorbed(make(f"turboquant:bits={bits},sketch={str(sketch).lower()}"), parts)
    for index, (layer, part) in enumerate(zip(cache.layers, parts, strict=True)):
        keys, values = layer.read(slice(None), torch.float32)
        for row, head, at in ((0, 0, 0), (1, 1, 8), (0, 1, 4)):
            wanted = by_definition(part.keys[row, head, at].float(), bits, index, sketch)
            torch.testing.assert_close(keys[row, head, at].double(), wanted, atol=1e-4, rtol=1e-3)
            wanted = by_definition(part.values[row, head, at].float(), bits, index, False)
            torch.testing.assert_close(values[row, head, at].double(), wanted, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("bits", [2, 3])
def test_with_a_sketch_inner_products_are_right_on_average_and_without_too_small(bits: int) -> None:
    keys, seeds = sphere(20, 16, seed=1), range(100)
    plain, sketched = (
        torch.stack([(through(keys, bits, seed, sketch) * keys).sum(1) for seed in seeds]) for sketch in (False, True)
    )
    assert abs(float(sketched.mean()) - 1) < 4 * float(sketched.mean(1).std()) / len(seeds) ** 0.5
    assert float(plain.mean()) < 1 - 0.02


@pytest.mark.parametrize(("bits", "times_d"), [(2, 0.56), (3, 0.18), (4, 0.047)])
def test_the_error_of_inner_products_with_a_sketch_is_that_of_the_paper(bits: int, times_d: float) -> None:
    keys, query = sphere(2000, 128), sphere(1, 128, seed=9)[0]
    error = ((through(keys, bits, sketch=True) - keys) @ query).square().mean()
    assert float(error) * 128 == pytest.approx(times_d, rel=0.2)


@pytest.mark.parametrize("sketch", [False, True])
def test_more_bits_are_nearer(sketch: bool) -> None:
    vectors = sphere(200, 64)
    errors = [float((through(vectors, bits, sketch=sketch) - vectors).norm()) for bits in (2, 3, 4)]
    assert errors == sorted(errors, reverse=True)
    assert errors[2] < 0.6 * errors[1] < 0.4 * errors[0]


def test_an_outlier_channel_costs_what_its_share_of_the_norm_is() -> None:
    """The error of a vector is a share of its norm whatever its direction: the rotation knows no outliers."""
    plain, spiked = sphere(300, 64), torch.zeros(300, 64, dtype=torch.float64)
    spiked[:, 5] = 1.0
    errors = [float((through(each, 4, 7) - each).square().sum(1).mean()) for each in (plain, spiked)]
    assert 0.5 < errors[1] / errors[0] < 2


@pytest.mark.parametrize("size", [0.0, 1e-3, 1.0, 300.0, 60000.0])
def test_any_size_of_numbers_is_read_back_finite_and_in_proportion(size: float) -> None:
    vectors = torch.full((3, 8), size, dtype=torch.float64)
    vectors[1] *= torch.linspace(-1, 1, 8)
    back = through(vectors, 4)
    assert bool(back.isfinite().all())
    if size <= 300:
        assert float((back - vectors).norm()) <= 0.2 * float(vectors.norm())


@pytest.mark.parametrize("sketch", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_every_bit_is_in_a_packed_byte(bits: int, sketch: bool) -> None:
    cache = absorbed(make(f"turboquant:bits={bits},sketch={str(sketch).lower()}"), prompt(11))
    for layer in cache.layers:
        assert layer.kq.codes.tensor.shape == (2, 2, 11, bits)  # of 8 channels
        assert layer.vq.codes.tensor.dtype == torch.uint8
        assert layer.kq.norms.tensor.shape[3] == 1 + sketch
        assert layer.vq.norms.tensor.shape[3] == 1


def test_bytes_are_a_quarter_of_fp16_and_a_norm() -> None:
    wide = ModelShape(layers=32, heads=32, kv_heads=8, head_dim=128)
    token = 32 * 8 * 2 * 128 * 2
    assert make("turboquant").kv_bytes(wide, 1, 1000, 0) == 1000 * (token // 4 + 32 * 8 * 4)
    assert make("turboquant:bits=2,sketch=true").kv_bytes(wide, 1, 1000, 0) == 1000 * (token // 8 + 32 * 8 * 6)


def test_the_newest_stay_in_16_bits_and_are_quantized_when_they_are_no_longer_new() -> None:
    parts = prompt(30)
    method = make("turboquant:recent=4")
    cache = absorbed(method, cut(parts, 0, 20))
    for at in range(20, 30):
        feed(cache, cut(parts, at, at + 1))
        keys, values = cache.layers[0].read(slice(None), torch.float32)
        assert torch.equal(keys[:, :, -4:], parts[0].keys[:, :, at - 3 : at + 1].float())
        assert not torch.equal(keys[:, :, at - 4], parts[0].keys[:, :, at - 4].float())
        assert held(cache).kv == method.kv_bytes(SHAPE, 2, 20, at - 19)
    assert cache.layers[0].kq.length == 26
    assert values.shape[2] == 30


@pytest.mark.parametrize("text", ["turboquant:bits=5", "turboquant:bits=1", "turboquant:recent=-1"])
def test_a_value_out_of_range_is_refused_with_what_to_type(text: str) -> None:
    with pytest.raises(SpecError, match="--kv-method="):
        make(text)


@pytest.mark.parametrize(("text", "head_dim"), [("bits=3", 20), ("bits=4,sketch=true", 20), ("bits=2", 18)])
def test_a_head_whose_codes_fill_no_whole_bytes_is_refused(text: str, head_dim: int) -> None:
    with pytest.raises(MethodUnsupported, match="whole bytes"):
        make(f"turboquant:{text}").build(ModelShape(1, 2, 2, head_dim))
    make("turboquant").build(ModelShape(1, 2, 2, head_dim))
