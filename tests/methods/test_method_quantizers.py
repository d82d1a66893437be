"""FlexGen and KIVI: error bounds, packing, the rules of the residual, and that codes are never made twice."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import SHAPE, Live, absorbed, cut, dense, feed, prompt

from kvcheck.cache import kernels
from kvcheck.cache.quantize import Packed, pack, quantize, unpack
from kvcheck.cache.shape import ModelShape
from kvcheck.core.errors import KvcheckError, MethodUnsupported
from kvcheck.measure.memory import held
from kvcheck.methods import make
from kvcheck.methods.flexgen import FlexGen
from kvcheck.methods.kivi import KIVI

ALONG = pytest.mark.parametrize("along", ["token", "channel"])
BITS = pytest.mark.parametrize("bits", [2, 4, 8])


def through(values: torch.Tensor, bits: int, group: int, along: str) -> torch.Tensor:
    """Quantize and read back."""
    packed, out = Packed(bits, group, along), torch.empty(values.shape)
    packed.append(values)
    assert packed.length == values.shape[2]
    packed.read(slice(None), out)
    return out


def groups(values: torch.Tensor, group: int, along: str) -> torch.Tensor:
    """(..., group): the members of every group in the last dimension."""
    values = values if along == "token" else values.transpose(2, 3)
    return values.unflatten(-1, (-1, group))


def draw(*shape: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale).half()


@ALONG
@BITS
@pytest.mark.parametrize("scale", [1e-3, 1.0, 300.0])
def test_every_value_is_within_half_a_step_of_its_group(along, bits, scale):
    values = draw(2, 2, 32, 16, scale=scale)
    error = groups((through(values, bits, 8, along) - values.float()).abs(), 8, along).amax(-1)
    members = groups(values.float(), 8, along)
    step = (members.amax(-1) - members.amin(-1)) / (2**bits - 1)
    assert bool((error <= step / 2 * (1 + 2e-3) + 6e-8).all())


@ALONG
@BITS
def test_the_smallest_of_a_group_is_exact_and_the_largest_nearly(along, bits):
    values = draw(1, 2, 16, 16)
    before, after = groups(values.float(), 8, along), groups(through(values, bits, 8, along), 8, along)
    assert torch.equal(before.amin(-1), after.amin(-1))
    torch.testing.assert_close(before.amax(-1), after.amax(-1), atol=4e-3, rtol=1e-3)


@ALONG
@BITS
@pytest.mark.parametrize("constant", [0.0, 1.5, -3e-5, 60000.0])
def test_constant_groups_are_exact(along, bits, constant):
    values = torch.full((1, 2, 16, 8), constant).half()
    assert torch.equal(through(values, bits, 8, along), values.float())


@ALONG
@BITS
def test_values_on_the_grid_are_lossless_with_every_code_in_every_lane(along, bits):
    lanes, levels = 8 // bits, 2**bits
    tokens = lanes * levels
    grid = torch.arange(tokens).view(1, 1, tokens, 1) * 7 + torch.arange(8).view(1, 1, 1, 8) * 3
    values = (grid % levels).half() * 0.25 - 1
    if along == "token":
        values = torch.cat([values, torch.tensor([-1.0, (levels - 1) * 0.25 - 1]).half().expand(1, 1, tokens, 2)], 3)
        values = torch.cat([values, values[..., -2:].repeat(1, 1, 1, 3)], 3)
    group = values.shape[3] if along == "token" else tokens
    assert torch.equal(through(values, bits, group, along), values.float())


@BITS
def test_packing_keeps_every_code_in_every_lane(bits):
    lanes = 8 // bits
    every = torch.cartesian_prod(*[torch.arange(2**bits)] * lanes).view(-1, lanes, 1).to(torch.uint8)
    packed = pack(every, bits)
    assert packed.dtype == torch.uint8
    assert packed.shape == (256, 1)
    assert len(packed.unique()) == 256
    back = torch.empty(every.shape)
    unpack(packed, bits, back)
    assert torch.equal(back, every.float())


@ALONG
def test_more_bits_never_mean_a_larger_error(along):
    values = draw(1, 2, 32, 16)
    errors = [(through(values, bits, 8, along) - values.float()).abs().max() for bits in (2, 4, 8)]
    assert errors == sorted(errors, reverse=True)


@ALONG
def test_one_outlier_channel_hurts_only_what_shares_its_groups(along):
    """Per token it spoils every channel of the group, per channel only itself: why KIVI quantizes keys per channel."""
    values = draw(1, 1, 32, 16)
    values[..., 3] *= 100
    error = (through(values, 2, 16, along) - values.float()).abs().amax(dim=(0, 1, 2))
    others = torch.cat([error[:3], error[4:]])
    assert float(others.max()) > 2 if along == "token" else float(others.max()) < 1


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.floats(-6e4, 6e4, width=16), min_size=8, max_size=8),
    bits=st.sampled_from([2, 4, 8]),
)
def test_any_group_of_float16_numbers_is_read_back_within_half_a_step(values, bits):
    group = torch.tensor(values, dtype=torch.float16)
    codes, scale, low = quantize(group, bits, dim=-1)
    back = codes.float() * scale.float() + low.float()
    assert bool(back.isfinite().all())
    assert bool(((back - group.float()).abs() <= scale.float() / 2 + 1e-3 * group.float().abs()).all())
    again, _, _ = (
        quantize(back.half(), bits, dim=-1) if float(scale) > 1e-3 * float(group.abs().max()) else (codes, 0, 0)
    )
    assert bool(((again.int() - codes.int()).abs() <= 1).all())


# -- the residual of KIVI ----------------------------------------------------------------------------------------------


def tails(cache) -> tuple[int, int, int, int]:
    layer = cache.layers[-1]
    return layer.kq.length, layer.k.length, layer.vq.length, layer.v.length


GOLDEN = [
    (127, 0, (0, 127, 0, 127)),
    (127, 1, (128, 0, 0, 128)),
    (128, 1, (128, 1, 1, 128)),
    (130, 126, (256, 0, 128, 128)),
    (300, 100, (384, 16, 272, 128)),
]


@pytest.mark.parametrize(("prompt_length", "steps", "wanted"), GOLDEN)
def test_kivi_holds_the_golden_table(prompt_length, steps, wanted):
    parts = prompt(prompt_length + steps, rows=1)
    cache = absorbed(KIVI(group=8), cut(parts, 0, prompt_length))
    for at in range(prompt_length, prompt_length + steps):
        feed(cache, cut(parts, at, at + 1))
    assert tails(cache) == wanted


@pytest.mark.parametrize("text", ["kivi:group=8,residual=16", "flexgen:group=8"])
def test_a_block_leaves_the_state_that_token_by_token_leaves(text):
    parts = prompt(90)
    block, single = (absorbed(make(text), cut(parts, 0, 37)) for _ in range(2))
    feed(block, cut(parts, 37, 90))
    for at in range(37, 90):
        feed(single, cut(parts, at, at + 1))
    assert tails(block) == tails(single)
    for one, two in zip(block.layers, single.layers, strict=True):
        for mine, theirs in zip(
            one.read(slice(None), torch.float32), two.read(slice(None), torch.float32), strict=True
        ):
            assert torch.equal(mine, theirs)


def test_kivi_is_the_full_cache_while_everything_fits_its_residual():
    parts = prompt(31)
    cache = absorbed(KIVI(group=8, residual=32), cut(parts, 0, 20))
    for at in range(20, 31):
        out = feed(cache, cut(parts, at, at + 1))[1]
        part = parts[1]
        wanted = dense(part.queries[:, :, at : at + 1], part.keys[:, :, : at + 1], part.values[:, :, : at + 1], at)
        torch.testing.assert_close(out.double(), wanted, atol=1e-5, rtol=1e-5)


def test_the_newest_tokens_of_a_prompt_stay_exact_in_kivi():
    parts = prompt(50)
    layer = absorbed(KIVI(group=8, residual=16), parts).layers[0]
    keys, values = layer.read(slice(None), torch.float32)
    assert torch.equal(keys[:, :, 48:], parts[0].keys[:, :, 48:].float())
    assert torch.equal(values[:, :, 34:], parts[0].values[:, :, 34:].float())
    assert not torch.equal(keys[:, :, :48], parts[0].keys[:, :, :48].float())
    assert not torch.equal(values[:, :, :34], parts[0].values[:, :, :34].float())


def test_decoding_attends_to_what_is_read_back_and_to_the_new_token_unquantized():
    for text in ("kivi:group=8,residual=16", "flexgen:group=8"):
        parts, later = prompt(50), prompt(1, seed=5)
        cache = absorbed(make(text), parts)
        stored = [layer.read(slice(None), torch.float32) for layer in cache.layers]
        for out, (keys, values), part in zip(feed(cache, later), stored, later, strict=True):
            wanted = dense(part.queries, torch.cat([keys, part.keys], 2), torch.cat([values, part.values], 2), 50)
            torch.testing.assert_close(out.double(), wanted, atol=1e-5, rtol=1e-5)


def test_old_codes_are_never_made_again():
    parts = prompt(200)
    cache = absorbed(KIVI(group=8, residual=16), cut(parts, 0, 64))
    codes = [layer.kq.codes.used.clone() for layer in cache.layers]
    read = [layer.read(slice(None), torch.float32)[0][:, :, :64] for layer in cache.layers]
    for at in range(64, 200):
        feed(cache, cut(parts, at, at + 1))
    for layer, old, keys in zip(cache.layers, codes, read, strict=True):
        assert torch.equal(layer.kq.codes.used[:, :, : old.shape[2]], old)
        assert torch.equal(layer.read(slice(None), torch.float32)[0][:, :, :64], keys)


def test_kivi_groups_keys_by_tokens_of_a_channel_and_values_by_channels_of_a_token():
    parts = prompt(32, rows=1)
    layer = absorbed(KIVI(bits=2, group=8, residual=8), parts).layers[0]
    assert layer.kq.codes.used.shape == (1, 2, 8, 8)
    assert layer.kq.scale.used.shape == (1, 2, 4, 8)
    assert layer.vq.codes.used.shape == (1, 2, 24, 2)
    assert layer.vq.scale.used.shape == (1, 2, 24, 1)
    assert layer.kq.codes.used.dtype == torch.uint8


@pytest.mark.parametrize(
    ("text", "anchor"),
    [
        ("flexgen", 301_989_888),
        ("flexgen:group=32", 335_544_320),
        ("kivi", 208_142_336),
        ("kivi:bits=4", 341_311_488),
        ("kivi:residual=32", 203_030_528),
        ("fp16", 1_073_741_824),
        ("snapkv:budget=1024", 134_217_728),
        ("h2o:budget=1024", 134_217_728),
        ("streaming_llm:window=2000", 262_668_288),
        ("snapkv:budget=4096", 536_870_912),
        ("pyramidkv:budget=2048", 269_680_640),
    ],
)
def test_the_bytes_of_llama_3_8b_at_8192_tokens_are_the_published_anchors(text, anchor):
    method, llama = make(text), ModelShape(32, 32, 8, 128)
    method.check(llama)
    assert method.kv_bytes(llama, 1, 8192, 0) == anchor


def test_a_group_that_does_not_divide_head_dim_is_refused_with_one_that_does():
    for method in (FlexGen(), KIVI()):
        with pytest.raises(MethodUnsupported, match=r"head_dim of 80\n.*group=(40|20)"):
            method.build(ModelShape(2, 4, 2, 80))


def test_single_tokens_cannot_leave_a_quantized_layer():
    layer = absorbed(FlexGen(group=8), prompt(9)).layers[0]
    with pytest.raises(KvcheckError, match="cannot evict"):
        layer.keep(torch.zeros(2, 2, 1, dtype=torch.long))


def test_bfloat16_models_keep_their_dtype():
    parts = [type(part)(part.keys.bfloat16(), part.values.bfloat16(), part.queries.bfloat16()) for part in prompt(50)]
    for text in ("kivi:group=8,residual=16", "flexgen:group=8", "snapkv:budget=20,window=8", "h2o:budget=20"):
        method = make(text)
        cache = absorbed(method, parts)
        layer = cache.layers[0]
        assert layer.read(slice(None), torch.bfloat16)[0].dtype == layer.k.tensor.dtype == torch.bfloat16
        for index, part in enumerate(cut(parts, 0, 1)):
            cache.update(part.keys, part.values, index)
            assert cache.layers[index].attend(part.queries).dtype == torch.bfloat16
        assert SHAPE.layers == len(cache.layers)


LONG = ModelShape(layers=4, heads=8, kv_heads=4, head_dim=64)


@pytest.mark.parametrize("text", ["kivi:bits=4", "flexgen"])
def test_a_decode_step_at_4096_tokens_stays_under_half_of_the_full_cache(text):
    cache = absorbed(make(text), prompt(4096, LONG, rows=1), LONG)
    token = prompt(1, LONG, rows=1)
    feed(cache, token)  # makes room for the next ones
    with Live() as live:
        feed(cache, token)
    assert live.peak > 0
    assert held(cache).kv + live.peak < LONG.dense_bytes(1, 4096) / 2


@pytest.mark.parametrize("text", ["kivi:bits=4,residual=32", "flexgen"])
def test_a_long_row_that_is_read_head_by_head_answers_as_one_that_is_not(text, monkeypatch):
    outs = []
    for chunk in (1, 1 << 30):
        monkeypatch.setitem(kernels.CHUNK, "cpu", chunk)
        outs.append(feed(absorbed(make(text), prompt(300, LONG, rows=1), LONG), prompt(1, LONG, rows=1)))
    for one, other in zip(*outs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
