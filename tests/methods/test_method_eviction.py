"""StreamingLLM, SnapKV, PyramidKV and H2O keep what their definitions say, computed here from the definitions."""

from __future__ import annotations

import pytest
import torch
from toys import SHAPE, absorbed, cut, dense, feed, model_of, prompt, tokens, weights

from kvcheck.cache import attention, scoring
from kvcheck.cache.shape import ModelShape, Prefilled
from kvcheck.core.errors import MethodUnsupported, SpecError
from kvcheck.methods import make
from kvcheck.methods.h2o import H2O
from kvcheck.methods.pyramidkv import PyramidKV
from kvcheck.methods.snapkv import SnapKV
from kvcheck.methods.streaming_llm import StreamingLLM

ONE = ModelShape(layers=1, heads=4, kv_heads=2, head_dim=8)


def kept(cache, layer: int = 0) -> list[list[list[int]]]:
    return cache.layers[layer].positions.tolist()


def best(scores: torch.Tensor, count: int) -> list[int]:
    """The `count` best columns, the older first among equals, in order."""
    ranked = sorted(range(len(scores)), key=lambda at: (-float(scores[at]), at))
    return sorted(ranked[:count])


def spike(n: int, at: dict[int, int], rows: int = 1) -> list[Prefilled]:
    """A prompt whose query heads of kv head h all look at token at[h] and nowhere else."""
    keys, queries = torch.zeros(rows, 2, n, 8), torch.zeros(rows, 4, n, 8)
    queries[..., 0] = 30.0
    for head, column in at.items():
        keys[:, head, column, 0] = 30.0
    return [Prefilled(keys.half(), torch.randn(rows, 2, n, 8).half(), queries.half())]


# -- SnapKV ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pooling", ["avg", "max"])
@pytest.mark.parametrize("kernel", [1, 5])
def test_snapkv_keeps_the_top_of_the_pooled_votes_of_its_window(pooling, kernel):
    n, window, cap = 50, 6, 20
    part = prompt(n, ONE)[0]
    cache = absorbed(SnapKV(cap, window, kernel, pooling), [part], ONE)
    votes = weights(part.queries[:, :, -window:], part.keys, n - window).sum(2)
    for row in range(2):
        for head in range(2):
            mean = (votes[row, 2 * head] + votes[row, 2 * head + 1])[: n - window] / 2
            half, smooth = kernel // 2, []
            for at in range(n - window):
                near = mean[max(0, at - half) : at + half + 1]
                smooth.append(float(near.sum()) / kernel if pooling == "avg" else float(near.max()))
            wanted = best(torch.tensor(smooth), cap - window) + list(range(n - window, n))
            assert kept(cache)[row][head] == wanted


def test_snapkv_keeps_exactly_the_attended_token_without_pooling():
    cache = absorbed(SnapKV(9, 8, 1), spike(60, {0: 17, 1: 33}), ONE)
    window = list(range(52, 60))
    assert kept(cache)[0] == [[17, *window], [33, *window]]


def test_snapkv_keeps_the_neighbours_of_a_spike_with_max_pooling():
    cache = absorbed(SnapKV(13, 8, 5, "max"), spike(60, {0: 17, 1: 33}), ONE)
    assert kept(cache)[0][0][:5] == [15, 16, 17, 18, 19]
    assert kept(cache)[0][1][:5] == [31, 32, 33, 34, 35]


def test_snapkv_does_not_look_at_values():
    part = prompt(50, ONE)[0]
    other = Prefilled(part.keys, torch.randn(part.values.shape).half(), part.queries)
    method = SnapKV(16, 4)
    assert kept(absorbed(method, [part], ONE)) == kept(absorbed(method, [other], ONE))


def test_the_votes_of_a_kv_head_add_up_to_the_window():
    part = prompt(50)[0]
    scores = scoring.window_scores(part.queries[:, :, -7:], part.keys, 8**-0.5)
    torch.testing.assert_close(scores.sum(-1), torch.full((2, 2), 7.0))


def test_votes_of_a_group_are_those_of_its_own_query_heads():
    part = prompt(40, ONE, dtype=torch.float32)[0]
    queries = part.queries.clone()
    queries[:, 2:] = 0  # the heads of kv head 1 look everywhere alike
    scores = scoring.window_scores(queries[:, :, -4:], part.keys, 8**-0.5)
    last = scores[0, 1, : 40 - 4]
    torch.testing.assert_close(last, last[0].expand(36))
    assert float(scores[0, 0].std()) > 10 * float(last.std())


@pytest.mark.parametrize("n", [9, 20, 40])
def test_a_budget_that_covers_the_prompt_keeps_everything(n):
    for text in (
        "snapkv:budget=40,window=8",
        "pyramidkv:budget=40,window=8",
        "h2o:budget=40",
        "snapkv:budget=1.0,window=8",
    ):
        cache, parts, later = absorbed(make(text), prompt(n)), prompt(n), prompt(1, seed=3)
        assert kept(cache, 1) == [[list(range(n))] * 2] * 2
        out = feed(cache, later)[1]
        keys, values = (torch.cat([getattr(parts[1], x), getattr(later[1], x)], 2) for x in ("keys", "values"))
        torch.testing.assert_close(out.double(), dense(later[1].queries, keys, values, n), atol=1e-5, rtol=1e-5)


def test_equal_scores_go_to_the_older_token():
    assert scoring.top(torch.tensor([[[1.0, 2.0, 2.0, 1.0, 2.0, 1.0]]]), 4).tolist() == [[[0, 1, 2, 4]]]
    part = spike(30, {})[0]
    cache = absorbed(SnapKV(12, 4, 1), [part], ONE)
    assert kept(cache)[0][0] == [*range(8), *range(26, 30)]


@pytest.mark.parametrize("levels", [1, 2, 5, 1000])
def test_leaving_one_out_is_what_sorting_would_choose(levels: int) -> None:
    """Of equal scores the last leaves, in whatever way it is found."""
    scores = torch.randint(levels, (3, 4, 57), generator=torch.Generator().manual_seed(levels)).float()
    order = torch.sort(scores, dim=-1, descending=True, stable=True).indices
    assert torch.equal(scoring.top(scores, 56), order[..., :56].sort(dim=-1).values)


# -- PyramidKV ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cap", "window", "prompt_length", "first", "last", "mean"),
    [
        (4096, 32, 100000, 7957, 238, 4097.5),
        (2048, 32, 8000, 3964, 151, 2057.5),
        (2048, 8, 7950, 3986, 111, 2048.5),
        (1024, 32, 8192, 1967, 107, 1037.0),
        (128, 8, 7500, 242, 25, 133.5),
    ],
)
def test_pyramidkv_budgets_are_the_golden_ones(cap, window, prompt_length, first, last, mean):
    slots = PyramidKV(cap, window).slots(ModelShape(32, 32, 8, 128), prompt_length, 0)
    assert (slots[0], slots[-1], sum(slots) / 32) == (first, last, mean)
    assert list(slots) == sorted(slots, reverse=True)
    assert mean <= cap + 31 / 2


@pytest.mark.parametrize("p", [33, 40, 50, 60, 70, 80, 500])
@pytest.mark.parametrize("cap", [9, 12, 17, 32])
def test_pyramidkv_budgets_never_grow_with_depth_and_fit_the_prompt(p, cap):
    slots = PyramidKV(cap, 8).slots(ModelShape(5, 4, 2, 8), p, 0)
    assert list(slots) == sorted(slots, reverse=True)
    assert all(8 <= each <= p for each in slots)
    assert cap <= sum(slots) / 5 <= cap + 2


def test_pyramidkv_moves_what_the_first_layer_cannot_use_to_the_last():
    assert PyramidKV(32, 8).slots(ModelShape(5, 4, 2, 8), 50, 0) == (50, 41, 32, 23, 14)


def test_pyramidkv_with_beta_1_is_snapkv():
    parts = prompt(90)
    pyramid, snap = absorbed(PyramidKV(30, 8, beta=1), parts), absorbed(SnapKV(30, 8), parts)
    for layer in range(2):
        assert kept(pyramid, layer) == kept(snap, layer)


def test_pyramidkv_answers_a_follow_up_block_with_layers_of_different_lengths():
    parts, later = prompt(90), prompt(5, seed=7)
    cache = absorbed(PyramidKV(30, 8), parts)
    lengths = [layer.stored for layer in cache.layers]
    assert lengths[0] > lengths[1]
    stored = [layer.read(slice(None), torch.float32) for layer in cache.layers]
    for out, (keys, values), part in zip(feed(cache, later), stored, later, strict=True):
        past = keys.shape[2]
        wanted = dense(part.queries, torch.cat([keys, part.keys], 2), torch.cat([values, part.values], 2), past)
        torch.testing.assert_close(out.double(), wanted, atol=1e-5, rtol=1e-5)


def test_pyramidkv_refuses_a_model_of_one_layer():
    with pytest.raises(MethodUnsupported, match="at least 2 layers"):
        PyramidKV().build(ONE)


# -- StreamingLLM ------------------------------------------------------------------------------------------------------


def test_streaming_llm_keeps_sinks_and_window_after_every_forward():
    parts = prompt(80)
    cache = absorbed(StreamingLLM(sink=3, window=10), cut(parts, 0, 40))
    seen = 40
    for count in (1, 1, 7, 1, 20, 10):
        assert kept(cache, 1) == [[[0, 1, 2, *range(seen - 10, seen)]] * 2] * 2
        feed(cache, cut(parts, seen, seen + count))
        seen += count
    assert cache.get_seq_length() == 80


def test_streaming_llm_attends_to_stored_slots_and_the_new_block_only():
    parts = prompt(60)
    cache = absorbed(StreamingLLM(sink=3, window=10), cut(parts, 0, 40))
    out = feed(cache, cut(parts, 40, 46))[0]
    slots = [0, 1, 2, *range(30, 46)]
    keys, values = parts[0].keys[:, :, slots], parts[0].values[:, :, slots]
    wanted = dense(parts[0].queries[:, :, 40:46], keys, values, 13)
    torch.testing.assert_close(out.double(), wanted, atol=1e-5, rtol=1e-5)


def test_streaming_llm_loses_the_token_that_snapkv_and_h2o_keep():
    needle = spike(100, {0: 40, 1: 40})
    assert 40 in kept(absorbed(SnapKV(20, 8), needle, ONE))[0][0]
    assert 40 in kept(absorbed(H2O(20), needle, ONE))[0][0]
    assert 40 not in kept(absorbed(StreamingLLM(4, 16), needle, ONE))[0][0]


def test_streaming_llm_keeps_original_positions_so_the_distance_to_the_sinks_counts():
    """The same tokens are kept, 10 or 20 evicted between: slot positions would answer alike, original ones do not."""
    model = attention.use(model_of(num_hidden_layers=1))
    shape, ids = ModelShape.of(model.config), tokens(1, 40)
    logits = []
    for between in (10, 20):
        cache = StreamingLLM(sink=4, window=6).build(shape)
        model(torch.cat([ids[:, :4], ids[:, 20 : 20 + between], ids[:, 4:10]], 1), past_key_values=cache)
        logits.append(model(ids[:, 10:11], past_key_values=cache).logits)
    assert not torch.allclose(*logits, atol=1e-3)


def test_a_share_as_window_is_fixed_when_the_prompt_is_in():
    method = StreamingLLM(sink=4, window=0.5)
    cache = absorbed(method, prompt(41))
    assert cache.layers[0].stored == 24
    feed(cache, prompt(30, seed=3))
    assert cache.layers[0].stored == 24 == method.slots(SHAPE, 41, 30)[0]


# -- H2O ---------------------------------------------------------------------------------------------------------------


def by_definition(part: Prefilled, row: int, head: int, n: int, cap: int, newest: int) -> dict[int, float]:
    """Slots and scores of one kv head after a prompt of n tokens and decoding the rest one by one."""
    mine, total = (2 * head, 2 * head + 1), part.keys.shape[2]
    scores = weights(part.queries[:, :, :n], part.keys[:, :, :n], 0)[row, mine[0] : mine[1] + 1].sum((0, 1))
    totals = dict(enumerate(scores.tolist()))
    for at in range(n - 1, total):
        if at >= n:
            totals[at] = 0.0
            for h in mine:
                logits = part.keys[row, head, sorted(totals)].double() @ part.queries[row, h, at].double() / 8**0.5
                for slot, weight in zip(sorted(totals), logits.softmax(0).tolist(), strict=True):
                    totals[slot] += weight
        slots = sorted(totals)
        heavy = sorted(slots[:-newest], key=lambda slot: (-totals[slot], slot))[: cap - newest]
        totals = {slot: totals[slot] for slot in sorted(heavy) + slots[-newest:]}
    return totals


def decoded(method: H2O, part: Prefilled, n: int) -> tuple[list, torch.Tensor]:
    cache = absorbed(method, cut([part], 0, n), ONE)
    for at in range(n, part.keys.shape[2]):
        feed(cache, cut([part], at, at + 1))
    return kept(cache), cache.layers[0].scores


def test_h2o_follows_its_definition_through_prompt_and_decoding():
    part = prompt(65, ONE)[0]
    positions, scores = decoded(H2O(16, 0.5), part, 40)
    for row in range(2):
        for head in range(2):
            wanted = by_definition(part, row, head, n=40, cap=16, newest=8)
            assert positions[row][head] == list(wanted)
            torch.testing.assert_close(scores[row, head].tolist(), list(wanted.values()), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("rows", [1, 3, 7, 40])
def test_column_sums_in_chunks_equal_the_full_computation(rows):
    part = prompt(40)[0]
    full = weights(part.queries, part.keys, 0).sum(2).view(2, 2, 2, 40).sum(2)
    found = scoring.column_sums(part.queries, part.keys, 8**-0.5, rows=rows)
    torch.testing.assert_close(found.double(), full, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.sum(-1), torch.full((2, 2), 2 * 40.0))
    later = scoring.column_sums(part.queries[:, :, 30:], part.keys, 8**-0.5, past=30, rows=rows)
    wanted = weights(part.queries[:, :, 30:], part.keys, 30).sum(2).view(2, 2, 2, 40).sum(2)
    torch.testing.assert_close(later.double(), wanted, atol=1e-5, rtol=1e-5)


def test_h2o_without_heavy_hitters_is_a_sliding_window():
    part = prompt(70, ONE)[0]
    positions, _ = decoded(H2O(12, recent=1.0), part, 40)
    assert positions == [[list(range(58, 70))] * 2] * 2


def test_h2o_scores_grow_by_one_per_query_head_and_query():
    part = prompt(50, ONE)[0]
    cache = absorbed(H2O(64), cut([part], 0, 40), ONE)
    torch.testing.assert_close(cache.layers[0].scores.sum(-1), torch.full((2, 2), 2 * 40.0))
    feed(cache, cut([part], 40, 41))
    feed(cache, cut([part], 41, 50))
    torch.testing.assert_close(cache.layers[0].scores.sum(-1), torch.full((2, 2), 2 * 50.0))
    assert cache.layers[0].scores.dtype == torch.float32


def test_h2o_remembers_what_was_heavy_in_the_prompt_and_evicted_tokens_never_return():
    parts = spike(60, {0: 20, 1: 31})
    cache = absorbed(H2O(16), parts, ONE)
    gone = set(range(60)) - set(kept(cache)[0][0])
    for at in range(40):
        feed(cache, cut(prompt(40, ONE, rows=1, seed=4), at, at + 1))
        assert not gone & set(kept(cache)[0][0])
        assert kept(cache)[0][0][-8:] == list(range(53 + at, 61 + at))
    assert 20 in kept(cache)[0][0]
    assert 31 in kept(cache)[0][1]


# -- values out of range -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "snapkv:budget=0",
        "snapkv:budget=0.0",
        "snapkv:budget=1.5",
        "snapkv:budget=-3",
        "snapkv:budget=32,window=32",
        "snapkv:window=0",
        "snapkv:kernel=4",
        "snapkv:kernel=0",
        "snapkv:pooling=median",
        "pyramidkv:beta=0",
        "pyramidkv:budget=16,window=20",
        "h2o:budget=0",
        "h2o:recent=1.5",
        "h2o:recent=-0.5",
        "streaming_llm:sink=-1",
        "streaming_llm:window=0",
        "flexgen:bits=3",
        "flexgen:group=0",
        "kivi:bits=3",
        "kivi:bits=8",
        "kivi:group=5",
        "kivi:residual=100",
        "kivi:residual=0",
    ],
)
def test_a_value_out_of_range_is_refused_with_what_to_type(text):
    with pytest.raises(SpecError, match="--kv-method="):
        make(text)


@pytest.mark.parametrize("value", [True, "half", None, float("nan"), 0.5j])
def test_a_budget_that_is_no_number_is_refused(value):
    with pytest.raises(SpecError, match="neither a share of the prompt"):
        SnapKV(budget=value)


def test_a_share_of_a_short_prompt_still_leaves_slots():
    for text in ("snapkv:budget=0.001,window=8", "h2o:budget=0.001", "streaming_llm:sink=0,window=0.001"):
        method = make(text)
        for n in (1, 2, 9, 30):
            assert min(method.slots(SHAPE, n, 0)) >= 1
            assert absorbed(method, prompt(n)).layers[0].stored >= 1
