"""RetrievalAttention attends to sinks, window and the top k of the rest, chosen here from the definition."""

from __future__ import annotations

import pytest
import torch
from toys import SHAPE, absorbed, cut, dense, feed, prompt

from kvcheck.cache import retrieve
from kvcheck.cache.shape import ModelShape, Prefilled
from kvcheck.core.errors import SpecError
from kvcheck.measure.memory import held
from kvcheck.methods import make
from kvcheck.methods.retrieval_attention import RetrievalAttention

ONE = ModelShape(layers=1, heads=4, kv_heads=2, head_dim=8)


def reference(part: Prefilled, start: int, stop: int, sink: int, window: int, top_k: int) -> torch.Tensor:
    """Attention of the tokens from start to stop, one softmax over all they see -> (B, q, H, d), float64."""
    rows, heads, _, dim = part.queries.shape
    group = heads // part.keys.shape[1]
    out = torch.zeros(rows, stop - start, heads, dim, dtype=torch.float64)
    for row in range(rows):
        for head in range(heads):
            keys, values = part.keys[row, head // group].double(), part.values[row, head // group].double()
            for token in range(start, stop):
                scores = keys @ part.queries[row, head, token].double() / dim**0.5
                static = set(range(min(sink, token + 1))) | set(range(max(0, token - window + 1), token + 1))
                rest = sorted(set(range(token + 1)) - static, key=lambda at, s=scores: -float(s[at]))
                seen = sorted(static | set(rest[:top_k]))
                out[row, token - start, head] = scores[seen].softmax(0) @ values[seen]
    return out


@pytest.mark.parametrize("blocks", [[1] * 9, [3, 1, 10], [25]])
@pytest.mark.parametrize(("sink", "window", "top_k"), [(4, 16, 5), (0, 1, 3), (2, 60, 4), (4, 16, 500), (70, 8, 2)])
def test_every_token_of_a_block_sees_its_sinks_its_window_and_its_top_k(blocks, sink, window, top_k):
    parts = prompt(50 + sum(blocks), ONE)
    cache, at = absorbed(RetrievalAttention(sink, window, top_k), cut(parts, 0, 50), ONE), 50
    for size in blocks:
        for out, part in zip(feed(cache, cut(parts, at, at + size)), parts, strict=True):
            wanted = reference(part, at, at + size, sink, window, top_k)
            torch.testing.assert_close(out.double(), wanted, atol=1e-5, rtol=1e-5)
        at += size


@pytest.mark.parametrize("top_k", [1000, 1.0])
def test_retrieving_everything_is_the_full_cache(top_k):
    parts, at = prompt(90), 60
    cache = absorbed(RetrievalAttention(4, 8, top_k), cut(parts, 0, 60))
    for size in (1, 1, 5, 1):
        for out, part in zip(feed(cache, cut(parts, at, at + size)), parts, strict=True):
            seen = slice(0, at + size)
            wanted = dense(part.queries[:, :, at : at + size], part.keys[:, :, seen], part.values[:, :, seen], at)
            torch.testing.assert_close(out.double(), wanted, atol=1e-5, rtol=1e-5)
        at += size


@pytest.mark.parametrize("scale", [1.0, 300.0])
@pytest.mark.parametrize("first", [0, 1, 17, 40])
def test_merging_two_parts_is_one_softmax_over_both(first, scale):
    draw = torch.randn(2, 3, 5, 40, generator=torch.Generator().manual_seed(0)) * scale
    values = torch.randn(2, 3, 40, 8, generator=torch.Generator().manual_seed(1))
    parts = []
    for span in (slice(0, first), slice(first, 40)):
        weights, log_sum = retrieve.soften(draw[..., span])
        parts.append((torch.matmul(weights, values[:, :, span]), log_sum))
    out, log_sum = retrieve.merge(*parts)
    torch.testing.assert_close(out, torch.matmul(draw.softmax(-1), values), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(log_sum[..., 0], draw.logsumexp(-1), atol=1e-4, rtol=1e-5)


def test_scores_beyond_what_exp_can_hold_do_no_harm():
    part = prompt(80, ONE)[0]
    loud = Prefilled(part.keys * 60, part.values, part.queries)
    cache = absorbed(RetrievalAttention(4, 8, 5), cut([loud], 0, 70), ONE)
    out = feed(cache, cut([loud], 70, 80))[0]
    assert float((loud.queries[:, ::2].float() * loud.keys.float()).sum(-1).max()) / 8**0.5 > 100
    torch.testing.assert_close(out.double(), reference(loud, 70, 80, 4, 8, 5), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("n", [1, 3, 19, 20, 21, 60])
def test_device_and_host_hold_every_token_once_after_each_step(n):
    parts = prompt(n + 40)
    method = RetrievalAttention(4, 16, 5)
    cache, at = absorbed(method, cut(parts, 0, n)), n
    for size in (0, 1, 1, 1, 5, 1, 25):
        if size:
            feed(cache, cut(parts, at, at + size))
            at += size
        near = [slot for slot in range(at) if slot < 4 or slot >= at - 16]
        far = [slot for slot in range(at) if slot not in near]
        for layer, part in zip(cache.layers, parts, strict=True):
            assert torch.equal(layer.k.used, part.keys[:, :, near])
            assert torch.equal(layer.v.used, part.values[:, :, near])
            assert layer.away == len(far)
            if far:
                assert torch.equal(layer.hk.used, part.keys[:, :, far].float())
                assert torch.equal(layer.hv.used, part.values[:, :, far])
        weight = held(cache)
        assert weight.kv == method.kv_bytes(SHAPE, 2, n, at - n) == 2 * 2 * 2 * 2 * len(near) * 8 * 2
        assert weight.host == method.host_bytes(SHAPE, 2, n, at - n) == 2 * 2 * 2 * len(far) * 8 * (4 + 2)


def test_device_bytes_stop_growing_and_the_sheets_anchor_holds():
    llama = ModelShape(32, 32, 8, 128)
    method = RetrievalAttention(128, 512)
    assert method.kv_bytes(llama, 1, 8192, 0) == method.kv_bytes(llama, 1, 8192, 5000) == 83_886_080
    assert method.host_bytes(llama, 1, 8192, 0) == 32 * 8 * (8192 - 640) * 128 * 6


def test_a_needle_in_the_host_is_found_by_the_head_that_looks_for_it_and_no_other_value_is_read():
    part = prompt(81, ONE)[0]
    for head, at in enumerate((30, 41, 52, 63)):
        part.keys[:, head // 2, at] = part.queries[:, head, 80] * 4
    cache = absorbed(RetrievalAttention(2, 4, 3), cut([part], 0, 80), ONE)
    layer, away = cache.layers[0], []
    for head in range(4):
        scores = part.queries[:, head, 80].float().unsqueeze(1) @ layer.hk.used[:, head // 2].transpose(1, 2)
        away.append(scores[:, 0].topk(4).indices)
    for row in range(2):
        for group in range(2):
            read = set(away[2 * group][row].tolist() + away[2 * group + 1][row].tolist())
            layer.hv.tensor[row, group, [slot for slot in range(layer.away) if slot not in read]] = float("nan")
    out = feed(cache, cut([part], 80, 81))[0]
    assert bool(out.isfinite().all())
    for head, at in enumerate((30, 41, 52, 63)):
        torch.testing.assert_close(out[:, 0, head], part.values[:, head // 2, at].float(), atol=0.5, rtol=0.1)
    lost = feed(absorbed(make("streaming_llm:sink=2,window=4"), cut([part], 0, 80), ONE), cut([part], 80, 81))[0]
    assert not torch.allclose(out, lost, atol=0.5)


def test_shares_are_of_the_prompt_and_never_nothing():
    method = RetrievalAttention(0, 0.25, 0.1)
    assert (method.width(200), method.most(200)) == (50, 20)
    assert (method.width(3), method.most(3)) == (1, 1)
    assert RetrievalAttention().most(512) == 25


def test_bfloat16_stays():
    parts = [Prefilled(part.keys.bfloat16(), part.values.bfloat16(), part.queries.bfloat16()) for part in prompt(60)]
    cache = absorbed(RetrievalAttention(4, 8, 5), parts)
    for index, part in enumerate(cut(parts, 0, 3)):
        cache.update(part.keys, part.values, index)
        assert cache.layers[index].attend(part.queries).dtype == torch.bfloat16
        assert cache.layers[index].hv.tensor.dtype == torch.bfloat16


@pytest.mark.parametrize("text", ["sink=-1", "window=0", "window=1.5", "top_k=0", "top_k=-4"])
def test_a_value_out_of_range_is_refused_with_what_to_type(text):
    with pytest.raises(SpecError, match="--kv-method=retrieval_attention"):
        make(f"retrieval_attention:{text}")
