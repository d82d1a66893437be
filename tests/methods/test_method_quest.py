"""Quest attends to the pages that its definition names, chosen here from the definition, one row at a time."""

from __future__ import annotations

import pytest
import torch
from toys import SHAPE, absorbed, cut, dense, feed, prompt

from kvcheck.cache import scoring
from kvcheck.cache.shape import ModelShape, Prefilled
from kvcheck.core.errors import KvcheckError, SpecError
from kvcheck.methods import make
from kvcheck.methods.quest import Quest

ONE = ModelShape(layers=1, heads=4, kv_heads=2, head_dim=8)


def chosen(query: torch.Tensor, keys: torch.Tensor, token: int, page: int, count: int) -> list[int]:
    """Pages that one query (d,) at position `token` reads of the keys (n, d) of its kv head."""
    own = token // page
    complete = keys[: own * page].double().view(own, page, -1)
    bounds = torch.maximum(query.double() * complete.amin(1), query.double() * complete.amax(1)).sum(-1).tolist()
    best = sorted(range(own), key=lambda at: (-bounds[at], at))[: count - 1]
    return sorted([*best, own])


def reference(part: Prefilled, start: int, stop: int, page: int, count: int) -> torch.Tensor:
    """Attention of the tokens from start to stop -> (B, q, H, d), float64."""
    rows, heads, _, dim = part.queries.shape
    group = heads // part.keys.shape[1]
    out = torch.zeros(rows, stop - start, heads, dim, dtype=torch.float64)
    for row in range(rows):
        for head in range(heads):
            keys, values = part.keys[row, head // group], part.values[row, head // group]
            for token in range(start, stop):
                query = part.queries[row, head, token]
                pages = chosen(query, keys, token, page, count)
                seen = [at for at in range(token + 1) if at // page in pages]
                weights = (keys[seen].double() @ query.double() / dim**0.5).softmax(0)
                out[row, token - start, head] = weights @ values[seen].double()
    return out


@pytest.mark.parametrize("blocks", [[1] * 9, [5, 1, 14], [21]])
@pytest.mark.parametrize("page", [4, 7])
def test_every_token_of_a_block_attends_to_the_pages_that_it_chooses_itself(page, blocks):
    parts = prompt(53 + sum(blocks), ONE)
    cache, at = absorbed(Quest(page, 5 * page, 0), cut(parts, 0, 53), ONE), 53
    for size in blocks:
        outs = feed(cache, cut(parts, at, at + size))
        for out, part in zip(outs, parts, strict=True):
            wanted = reference(part, at, at + size, page, 5)
            torch.testing.assert_close(out.double(), wanted, atol=1e-5, rtol=1e-5)
        at += size
    assert not torch.allclose(wanted, dense(part.queries[:, :, -size:], part.keys, part.values, at - size), atol=1e-2)


@pytest.mark.parametrize("text", ["quest:page=4,budget=16,dense_layers=0", "retrieval_attention:window=8,top_k=5"])
@pytest.mark.parametrize("rows", [1, 4])
def test_gathering_for_a_few_rows_at_a_time_changes_nothing(text, rows, monkeypatch):
    parts = prompt(60)
    once, often = (absorbed(make(text), cut(parts, 0, 49)) for _ in range(2))
    wanted = feed(once, cut(parts, 49, 60))
    monkeypatch.setitem(scoring.WEIGHTS, "cpu", 2 * 4 * (48 if "retrieval" in text else 16 * 8) * rows)
    for out, mine in zip(wanted, feed(often, cut(parts, 49, 60)), strict=True):
        torch.testing.assert_close(out, mine, atol=1e-6, rtol=1e-6)


def test_pages_of_one_token_are_exact_top_k_attention():
    part = prompt(60)[0]
    out = feed(absorbed(Quest(1, 6, 0), cut([part], 0, 59), ONE), cut([part], 59, 60))[0]
    for head in range(4):
        scores = part.keys[0, head // 2].float() @ part.queries[0, head, 59].float() / 8**0.5
        best = [*scores[:59].topk(5).indices.tolist(), 59]
        wanted = scores[best].softmax(0) @ part.values[0, head // 2, best].float()
        torch.testing.assert_close(out[0, 0, head], wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("sign", [1, -1, None])
def test_the_bound_of_a_page_is_never_below_a_score_in_it_and_tight_for_one_token(sign):
    for page in (1, 8):
        part = prompt(48)[0]
        keys = part.keys if sign is None else part.keys.abs() * sign
        layer = absorbed(Quest(page, 48, 0), [Prefilled(keys, part.values, part.queries)], ONE).layers[0]
        bounds = layer.bound(part.queries)
        for head in range(4):
            scores = part.queries[:, head].float() @ keys[:, head // 2].float().transpose(1, 2)
            best = scores.unflatten(2, (-1, page)).amax(3)
            assert bool((bounds[:, head] >= best - 1e-4).all())
            if page == 1:
                torch.testing.assert_close(bounds[:, head], best, atol=1e-4, rtol=1e-4)


def test_bounds_updated_token_by_token_and_by_blocks_are_those_of_all_keys():
    parts = prompt(90)
    for text in ("quest:page=8", "quest:page=1", "quest:page=16,budget=64"):
        method = make(text)
        cache, at = absorbed(method, cut(parts, 0, 21)), 21
        for size in (1, 1, 2, 3, 8, 17, 1, 30):
            feed(cache, cut(parts, at, at + size))
            at += size
            for layer, part in zip(cache.layers, parts, strict=True):
                pages = part.keys[:, :, :at].split(method.page, dim=2)
                assert torch.equal(layer.low.used, torch.stack([page.amin(2) for page in pages], 2))
                assert torch.equal(layer.high.used, torch.stack([page.amax(2) for page in pages], 2))


def test_a_budget_that_holds_everything_is_the_full_cache():
    parts = prompt(70)
    for method in (Quest(16, 80, 0), Quest(16, 1.0, 0), Quest(7, 64, 9)):
        cache, at = absorbed(method, cut(parts, 0, 60)), 60
        for size in (1, 3):
            outs = feed(cache, cut(parts, at, at + size))
            for out, part in zip(outs, parts, strict=True):
                seen = slice(0, at + size)
                wanted = dense(part.queries[:, :, at : at + size], part.keys[:, :, seen], part.values[:, :, seen], at)
                torch.testing.assert_close(out.double(), wanted, atol=1e-5, rtol=1e-5)
            at += size


def test_the_first_layers_are_dense_and_the_others_are_not():
    shape = ModelShape(layers=4, heads=4, kv_heads=2, head_dim=8)
    parts = prompt(100, shape)
    cache = absorbed(Quest(4, 12), cut(parts, 0, 99), shape)
    for index, (out, part) in enumerate(zip(feed(cache, cut(parts, 99, 100)), parts, strict=True)):
        wanted = dense(part.queries[:, :, 99:], part.keys, part.values, 99)
        assert torch.allclose(out.double(), wanted, atol=1e-5) == (index < 2)


def test_k_pages_are_chosen_with_the_own_one_among_them():
    parts = prompt(80, ONE)
    layer = absorbed(Quest(4, 24, 0), parts, ONE).layers[0]
    own = torch.tensor([0, 2, 11, 19])
    pages = layer.choose(parts[0].queries[:, :, :4], own)
    assert pages.shape == (2, 4, 4, 6)
    assert bool((pages.diff(dim=-1) > 0).all())
    assert bool((pages == own[:, None]).any(-1).all())
    assert bool(((pages <= own[:, None]).sum(-1) == (own + 1).clamp(max=6)).all())


@pytest.mark.parametrize(("text", "prompt_length", "wanted"), [
    ("quest", 512, 4), ("quest", 2048, 16), ("quest", 100, 3), ("quest:budget=1024", 512, 64), ("quest:budget=1", 9, 3),
    ("quest:page=1,budget=0.1", 30, 3), ("quest:budget=65", 512, 5), ("quest:budget=1.0", 70, 5),
])  # fmt: skip
def test_the_budget_is_counted_in_pages_and_three_at_least(text, prompt_length, wanted):
    assert make(text).pages(prompt_length) == wanted


def test_a_needle_is_found_wherever_it_is_and_pages_that_are_not_chosen_are_never_read():
    for at in (3, 50, 77):
        part = prompt(81, ONE)[0]
        part.keys[:, :, at] = part.queries[:, ::2, 80] * 6
        part.queries[:, 1::2, 80] = part.queries[:, ::2, 80]
        cache = absorbed(Quest(4, 12, 0), cut([part], 0, 80), ONE)
        layer = cache.layers[0]
        wanted = part.values[:, :, at].repeat_interleave(2, 1).unsqueeze(1).float()
        kept = layer.choose(part.queries[:, :, 80:], torch.tensor([20]))
        for row in range(2):
            for head in range(2):
                read = {int(page) for page in kept[row, 2 * head : 2 * head + 2].flatten()}
                unread = [slot for slot in range(80) if slot // 4 not in read]
                layer.v.tensor[row, head, unread] = float("nan")
        torch.testing.assert_close(feed(cache, cut([part], 80, 81))[0], wanted, atol=0.3, rtol=0.1)


def test_the_bytes_of_llama_3_8b_at_8192_tokens_are_those_of_the_sheet():
    assert Quest().kv_bytes(ModelShape(32, 32, 8, 128), 1, 8192, 0) == 1_140_850_688
    assert Quest(page=16).kv_bytes(SHAPE, 1, 17, 0) == 2 * 2 * 2 * (17 + 2) * 8 * 2


def test_bfloat16_stays():
    parts = [Prefilled(part.keys.bfloat16(), part.values.bfloat16(), part.queries.bfloat16()) for part in prompt(60)]
    cache = absorbed(Quest(4, 12, 0), parts)
    for index, part in enumerate(cut(parts, 0, 3)):
        cache.update(part.keys, part.values, index)
        assert cache.layers[index].attend(part.queries).dtype == torch.bfloat16
        assert cache.layers[index].low.tensor.dtype == torch.bfloat16


@pytest.mark.parametrize("text", ["page=0", "budget=0", "budget=1.5", "dense_layers=-1"])
def test_a_value_out_of_range_is_refused_with_what_to_type(text):
    with pytest.raises(SpecError, match="--kv-method=quest"):
        make(f"quest:{text}")


def test_tokens_cannot_be_evicted():
    layer = absorbed(Quest(), prompt(9)).layers[0]
    with pytest.raises(KvcheckError, match="cannot evict"):
        layer.keep(torch.zeros(2, 2, 1, dtype=torch.long))
