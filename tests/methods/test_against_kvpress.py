"""Native methods beside kvpress's presses: the same tokens are kept, or the difference is by design."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from kvcheck.methods import make
from kvcheck.models import LoadedModel, load

kvpress = pytest.importorskip("kvpress", reason="kvpress is not installed: pip install 'kvcheck[kvpress]'")
N = 240
HALF = "compression_ratio=0.5"


@pytest.fixture(scope="module")
def mini() -> LoadedModel:
    return load("mini", torch.device("cpu"), torch.float32)


@pytest.fixture(scope="module")
def ids() -> torch.Tensor:
    return torch.randint(20, 1000, (1, N), generator=torch.Generator().manual_seed(5))


def prefilled(mini, text, ids):
    """(runner, cache) behind a prompt."""
    runner = make(text).runner(mini)
    with torch.inference_mode():
        return runner, runner.prefill(ids)[0]


def kept(mini, press, ids):
    """Positions that a press keeps, per layer (G, m), found by looking the kept keys up among all."""
    _, full = prefilled(mini, "fp16", ids)
    _, cache = prefilled(mini, press, ids)
    layers = zip(cache.rows[0].cache.layers, full.layers, strict=True)
    return [
        torch.cdist(mine.keys[0].float(), every.keys[0].float()).argmin(-1).sort(-1).values for mine, every in layers
    ]


def overlap(mine: torch.Tensor, theirs: torch.Tensor) -> float:
    """Share of the smaller set that is in the other one, over all kv heads."""
    pairs = [(set(one.tolist()), set(other.tolist())) for one, other in zip(mine, theirs, strict=True)]
    return sum(len(one & other) for one, other in pairs) / sum(min(len(one), len(other)) for one, other in pairs)


def both(mini, native, press, ids):
    """(native, kvpress) kept positions per layer."""
    _, cache = prefilled(mini, native, ids)
    return [(layer.positions[0], theirs) for layer, theirs in zip(cache.layers, kept(mini, press, ids), strict=True)]


@pytest.mark.parametrize(
    ("native", "press"),
    [
        ("snapkv:budget=0.5,window=32", f"kvpress.SnapKVPress:{HALF},window_size=32"),
        (
            "snapkv:budget=0.25,window=16,kernel=7",
            "kvpress.SnapKVPress:compression_ratio=0.75,window_size=16,kernel_size=7",
        ),
        (f"streaming_llm:sink=4,window={N // 2 - 4}", f"kvpress.StreamingLLMPress:{HALF}"),
    ],
)
def test_the_same_tokens_are_kept(native, press, mini, ids):
    """Up to one token per kv head, where two scores differ by less than the rounding of keys to 16 bits."""
    for mine, theirs in both(mini, native, press, ids):
        assert mine.shape == theirs.shape
        assert overlap(mine, theirs) >= 1 - 1 / mine.shape[1]


def test_tova_differs_by_the_newest_token_which_kvpress_always_keeps(mini, ids):
    for mine, theirs in both(mini, "tova:budget=0.5", f"kvpress.TOVAPress:{HALF}", ids):
        assert mine.shape == theirs.shape
        assert overlap(mine, theirs) >= 1 - 2 / mine.shape[1]
        assert bool((theirs[:, -1] == N - 1).all())


def test_pyramidkv_scores_alike_and_shares_out_otherwise(mini, ids):
    """Both give lower layers more. kvpress takes the window out of the average budget, so sizes differ."""
    pairs = both(mini, "pyramidkv:budget=0.5,window=16", f"kvpress.PyramidKVPress:{HALF},window_size=16", ids)
    sizes = [(mine.shape[1], theirs.shape[1]) for mine, theirs in pairs]
    assert all(one > other for lower, upper in pairwise(sizes) for one, other in zip(lower, upper, strict=True))
    assert all(overlap(mine, theirs) >= 0.97 for mine, theirs in pairs)  # the smaller choice lies in the larger


def test_think_keeps_the_same_channels(mini, ids):
    """kvpress sets pruned channels to zero, in recent keys too; here they are not stored, recent keys stay whole."""
    _, cache = prefilled(mini, "think:ratio=0.5,recent=32", ids)
    _, theirs = prefilled(mini, "kvpress.ThinKPress:key_channel_compression_ratio=0.5", ids)
    for layer, other in zip(cache.layers, theirs.rows[0].cache.layers, strict=True):
        mine, same = layer.read(slice(None), torch.float32)[0][0], other.keys[0].float()
        agree = (mine[:, :-32] != 0).any(1) == (same != 0).any(1)
        assert float(agree.float().mean()) >= 0.98
        torch.testing.assert_close(mine[:, :-32].norm(), same[:, :-32].norm(), atol=0, rtol=1e-2)


def test_h2o_sums_attention_where_observed_attention_takes_the_mean(mini, ids):
    """kvpress divides by the queries that could see a token, so the older half has an easier time here."""
    for mine, theirs in both(mini, "h2o:budget=0.5,recent=0", f"kvpress.ObservedAttentionPress:{HALF}", ids):
        assert mine.shape == theirs.shape
        assert overlap(mine, theirs) >= 0.6
        assert float(theirs.float().mean()) > float(mine.float().mean())


def test_duo_attention_holds_what_kvpress_does_not_mask(mini, ids):
    """Given the same streaming heads. kvpress masks what it keeps in memory, and nothing behind the prompt."""
    from kvcheck.core.spec import Spec
    from kvcheck.methods.adapters.presses import ForeignPress

    class Given(kvpress.DuoAttentionPress):
        def post_init_from_model(self, model):
            self.sink_size, self.recent_size = 8, 40
            self.streaming_mask = torch.tensor([[False, True, True, False]] * 4)
            self.compression_ratio_ = 0.0

    press = ForeignPress(Spec("kvpress.DuoAttentionPress"), press=Given(head_compression_ratio=0.5)).runner(mini)
    _, cache = prefilled(mini, "duo_attention:heads=1001/1001/1001/1001,sink=8,recent=40", ids)
    with torch.inference_mode():
        masks = press.prefill(ids)[0].rows[0].masks
    assert len(masks) == len(cache.layers) == 4
    for layer, (rows, heads, tokens) in zip(cache.layers, masks.values(), strict=True):
        for head in range(4):
            held = layer.positions[0, head][layer.positions[0, head] < N].tolist()
            assert set(held) == set(range(N)) - set(tokens[heads == head].tolist())
        assert not rows.any()
