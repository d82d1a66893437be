"""Soft caps and learned sinks in every way that a method attends: the weights, read off values that name tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kvcheck.cache.attention import attention
from kvcheck.cache.kernels import CHUNK, PLAIN, Softmax, attend_by
from kvcheck.cache.kv_cache import KVCache
from kvcheck.cache.layer import CacheLayer
from kvcheck.cache.shape import ModelShape, Prefilled
from kvcheck.cache.window import WindowLayer
from kvcheck.core.errors import MethodUnsupported
from kvcheck.methods import make

ROPE = tuple(10000.0 ** (-at / 32) for at in range(32))
SHAPE = ModelShape(layers=4, heads=4, kv_heads=2, head_dim=64, rope=ROPE)
PROMPT, BLOCK, STEPS = 40, 3, 6
SINKS = torch.tensor([-1.0, 0.5, 2.0, 4.0])
SPECS = [
    "fp16", "snapkv:budget=20,window=4", "pyramidkv:budget=20,window=4", "streaming_llm:window=12,sink=2",
    "h2o:budget=16", "tova:budget=16", "kivi:group=32,residual=32", "flexgen:group=32", "fp8",
    "kvquant", "kvquant:group=8",
    "quest:page=4,budget=8,dense_layers=0", "retrieval_attention:sink=2,window=8,top_k=6",
    "inf_llm:init=2,local=8,block=4,retrieved=8,representatives=2,exc=4", "a_shape:n_init=2,n_local=8",
    "tri_shape:n_init=2,n_local=8,n_last=4", "minference:vertical=6,slash=8,block=4,last_q=8",
    "duo_attention:heads=10/10/10/10,sink=2,recent=8", "think", "corm", "offload", "save_load", "cacheblend",
    "snapkv:budget=20,window=4+kivi:group=8",
]  # fmt: skip


def named(first: int, count: int) -> torch.Tensor:
    """Values (1, G, count, d) by which attention gives the weight of every token: token i has a one at place i."""
    return torch.eye(64)[first : first + count].expand(1, 2, -1, -1).contiguous()


def weights_of(layer: CacheLayer, softmax: Softmax) -> list[torch.Tensor]:
    """Weights (H, q, 64) of a prompt, of a block behind it and of single steps."""
    draw, found, first = torch.Generator().manual_seed(0), [], 0
    for count in (PROMPT, BLOCK, *(1,) * STEPS):
        layer.update(torch.randn(1, 2, count, 64, generator=draw), named(first, count))
        query = torch.randn(1, 4, count, 64, generator=draw)
        found.append(layer.attend_by(softmax, query, 0.2).transpose(1, 2)[0])
        first += count
    return found


@pytest.mark.parametrize("spec", SPECS)
def test_a_cap_and_sinks_are_in_every_path_of_a_method(spec: str) -> None:
    first = 0
    for weights in weights_of(make(spec).layer(SHAPE, 1), Softmax(1e-5, SINKS)):  # every score is next to 0 then
        rows = torch.arange(first, first + weights.shape[1])
        later = torch.arange(64) > rows[:, None]
        assert not weights[:, later].any(), "a hidden token has a weight: the cap came after the mask"
        seen = weights > 1e-6
        wanted = seen / (seen.sum(dim=2, keepdim=True) + SINKS.exp().view(4, 1, 1))
        torch.testing.assert_close(weights, wanted, atol=2e-4, rtol=2e-3)
        first += weights.shape[1]


@pytest.mark.parametrize("spec", SPECS)
def test_a_cap_and_sinks_far_from_all_scores_change_nothing(spec: str) -> None:
    far, one, other = Softmax(1e5, torch.full((4,), -1e4)), *(make(spec).layer(SHAPE, 1) for _ in range(2))
    for found, wanted in zip(weights_of(one, far), weights_of(other, PLAIN), strict=True):
        torch.testing.assert_close(found, wanted, atol=2e-3, rtol=0)


@pytest.mark.parametrize("size", [1 << 19, 500])
def test_attention_is_what_transformers_computes(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setitem(CHUNK, "cpu", size)
    draw = torch.Generator().manual_seed(1)
    query, keys = torch.randn(1, 4, 9, 64, generator=draw), torch.randn(1, 2, 30, 64, generator=draw)
    values = torch.randn(1, 2, 30, 16, generator=draw)
    mask = torch.ones(9, 30, dtype=torch.bool).tril(21)
    scores = torch.tanh(query @ keys.repeat_interleave(2, 1).mT / 3) * 3
    scores = torch.cat([scores.masked_fill(~mask, -torch.inf), SINKS.view(1, 4, 1, 1).expand(1, 4, 9, 1)], dim=3)
    wanted = scores.softmax(dim=3)[..., :-1] @ values.repeat_interleave(2, 1)  # as eager attention of gpt-oss does it
    for seen in (None, mask):
        torch.testing.assert_close(attend_by(Softmax(3.0, SINKS), query, keys, values, seen, 1.0), wanted)


def test_a_window_of_the_model_has_them_too() -> None:
    for weights in weights_of(WindowLayer(SHAPE, 0, make("fp16"), 8), Softmax(1e-5, SINKS))[1:]:
        wanted = (8 / (8 + SINKS.exp()))[:, None].expand(weights.shape[:2])
        torch.testing.assert_close(weights.sum(dim=2), wanted, atol=1e-3, rtol=0)


class Own(CacheLayer):
    """Attends in its own way."""

    def attention(self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, rows: slice) -> torch.Tensor:
        return torch.nn.functional.scaled_dot_product_attention(query, keys, values, is_causal=True, enable_gqa=True)


@pytest.mark.parametrize(
    ("given", "says"),
    [({"softcap": 5.0}, "soft-capped scores"), ({"s_aux": SINKS}, "learned attention sinks"), ({"softcap": None}, "")],
)
def test_a_layer_that_leaves_them_out_is_refused(given: dict[str, Any], says: str) -> None:
    cache, query = KVCache([Own(SHAPE, 0, make("fp16"))]), torch.randn(1, 4, 5, 64)
    keys, values = cache.update(torch.randn(1, 2, 5, 64), torch.randn(1, 2, 5, 64), 0)
    if not says:
        attention(torch.nn.Module(), query, keys, values, **given)
        return
    with pytest.raises(MethodUnsupported, match=f"the model has {says} in layer 0, which Own leaves out"):
        attention(torch.nn.Module(), query, keys, values, **given)


def test_a_prompt_from_elsewhere_brings_the_softmax_along() -> None:
    keys, softmax = torch.randn(2, 2, 5, 64), Softmax(5.0)
    layer = CacheLayer(SHAPE, 0, make("fp16"))
    layer.absorb(Prefilled(keys, keys, softmax=softmax).select([1]))
    assert layer.softmax is softmax


def test_copies_of_a_layer_keep_the_sinks_whole() -> None:
    layer = CacheLayer(SHAPE, 0, make("fp16"))
    weights_of(layer, Softmax(None, SINKS))
    assert layer.select([0, 0]).softmax.sinks is SINKS
