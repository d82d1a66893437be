"""Heads in several processes: a method either treats each kv head by itself, or says that it does not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from kvcheck.cache.method import Method
from kvcheck.cache.shape import ModelShape
from kvcheck.cache.states import serve
from kvcheck.core.errors import MethodUnsupported
from kvcheck.methods import METHODS, make

DIM = 64
WHOLE = ModelShape(3, 8, 4, DIM, rope=tuple(10000.0 ** (-2 * place / DIM) for place in range(DIM // 2)))
PROMPT, STEPS = 700, 3
IN_CACHE = [name for name in METHODS.names() if METHODS.get(name).runner is Method.runner]
"""Methods that are a cache and nothing else; and some with parameters that change which heads they look at."""
MORE = ["look_m:text_prior=false", "h2o:budget=0.2", "minference:pattern=search", "snapkv+kivi"]


def texts(layer: int) -> list[tuple[torch.Tensor, ...]]:
    """Queries, keys and values of a prompt and of some tokens behind it, with outliers that differ between heads."""
    generator = torch.Generator().manual_seed(layer)
    found = []
    for tokens in (PROMPT, *[1] * STEPS):
        sizes = ((WHOLE.heads, 4.0), (WHOLE.kv_heads, 1.0), (WHOLE.kv_heads, 1.0))
        found.append(
            tuple(
                scale * torch.randn(1, heads, tokens, WHOLE.head_dim, generator=generator)
                * torch.linspace(0.5, 2.0, heads).view(1, -1, 1, 1)
                for heads, scale in sizes
            )
        )  # fmt: skip
    return found


def answers(method: Any, part: int, parts: int) -> torch.Tensor:
    """What the query heads of one part read behind the prompt, in a cache of their kv heads alone."""
    shape = WHOLE.part(parts)
    cache = method.build(shape)
    read = []
    for index, layer in enumerate(cache.layers):
        for query, key, value in texts(index):
            each = slice(part * shape.kv_heads, (part + 1) * shape.kv_heads)
            asked = slice(part * shape.heads, (part + 1) * shape.heads)
            layer.update(key[:, each], value[:, each])
            out = layer.attend(query[:, asked])
            read.append(out[:, -1])
    return torch.stack(read)


@pytest.mark.parametrize("name", IN_CACHE + MORE)
def test_a_method_that_claims_so_reads_in_parts_what_it_reads_as_a_whole(name: str) -> None:
    method = make(name)
    whole = answers(method, 0, 1)
    parts = torch.cat([answers(method, part, 2) for part in range(2)], dim=2)
    same = torch.allclose(whole, parts, atol=1e-5)
    assert same != bool(method.cross_head()), f"in parts it differs by {(whole - parts).abs().max()}"


@pytest.mark.parametrize("spec", ["cacheblend", "duo_attention", "mixattention", "cake", "kvzip"])
def test_a_method_with_a_runner_of_its_own_that_needs_all_heads_says_why(spec: str) -> None:
    assert make(spec).cross_head()


def test_a_foreign_method_is_taken_to_need_all_heads() -> None:
    assert "out of sight" in make("transformers.DynamicCache").cross_head()


def test_a_method_that_needs_all_heads_is_refused_in_parts() -> None:
    loaded = SimpleNamespace(team=SimpleNamespace(size=2), states=None, shape=ModelShape(2, 4, 2, 8))
    serve(make("snapkv"), loaded)
    with pytest.raises(MethodUnsupported, match=r"tova cannot have its heads in 2 processes: all heads of a layer"):
        serve(make("tova"), loaded)
