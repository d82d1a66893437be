"""What the tests of several families of the zoo need: random prompts, ordinary use, and the embedded model."""

from __future__ import annotations

from functools import lru_cache

import torch

from kvcheck.cache.kv_cache import KVCache
from kvcheck.cache.method import Method
from kvcheck.cache.method_runner import MethodRunner
from kvcheck.cache.shape import ModelShape, Prefilled
from kvcheck.methods import make
from kvcheck.models import LoadedModel, load
from kvcheck.zoo import Bug, bugs

SHAPE = ModelShape(layers=2, heads=4, kv_heads=2, head_dim=16, rope=tuple(10.0 ** -(pair / 2) for pair in range(8)))
MINI = ModelShape(layers=4, heads=8, kv_heads=4, head_dim=64)


@lru_cache(maxsize=1)
def mini() -> LoadedModel:
    """The embedded model."""
    torch.set_num_threads(1)
    return load("mini", torch.device("cpu"), torch.float32)


def runner_of(method: Method | str) -> MethodRunner:
    """A method at home on the embedded model."""
    return (make(method) if isinstance(method, str) else method).runner(mini())


def family(name: str) -> list[Bug]:
    """The bugs of one family."""
    return list(bugs((name,)))


def words(rows: int, count: int, seed: int = 0) -> torch.Tensor:
    """Random token ids (rows, count)."""
    return torch.randint(3, 1100, (rows, count), generator=torch.Generator().manual_seed(seed))


def prompt(n: int, shape: ModelShape = SHAPE, rows: int = 2, seed: int = 0) -> list[Prefilled]:
    """A random prompt: per layer keys, values and queries of n tokens."""
    source = torch.Generator().manual_seed(seed)

    def draw(heads: int) -> torch.Tensor:
        return torch.randn(rows, heads, n, shape.head_dim, generator=source).half()

    return [Prefilled(draw(shape.kv_heads), draw(shape.kv_heads), draw(shape.heads)) for _ in range(shape.layers)]


def absorbed(method: Method, parts: list[Prefilled], shape: ModelShape = SHAPE) -> KVCache:
    """A cache of the method that has taken in a copy of the prompt."""
    cache = method.build(shape)
    cache.absorb([Prefilled(part.keys.clone(), part.values.clone(), part.queries) for part in parts])
    return cache


def feed(cache: KVCache, parts: list[Prefilled]) -> list[torch.Tensor]:
    """Take the tokens through update and attend, as a model does; the attention of every layer (B, q, H, d)."""
    outs = []
    for index, part in enumerate(parts):
        cache.update(part.keys.float(), part.values.float(), index)
        outs.append(cache.layers[index].attend(part.queries.float()))
    return outs


def read(cache: KVCache, layer: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values (B, G, slots, d) of a layer, as they are read."""
    return cache.layers[layer].read(slice(None), torch.float32)


def error(mine: torch.Tensor, true: torch.Tensor) -> float:
    """Relative squared error."""
    return float((mine - true.float()).square().sum() / true.float().square().sum())


def used(spec: str, tokens: int) -> list[torch.Tensor]:
    """The logits of ordinary use of a method."""
    return ordinary_use(runner_of(spec), tokens)


@lru_cache(maxsize=64)
def used_right(spec: str, tokens: int) -> list[torch.Tensor]:
    """The same of a correct method, which several bugs may share."""
    return used(spec, tokens)


def ordinary_use(runner: MethodRunner, tokens: int) -> list[torch.Tensor]:
    """Logits after a prompt, a follow-up, single tokens, and a fork that goes on."""
    cache, first = runner.prefill(words(2, tokens))
    out = [first, runner.feed(cache, words(2, 5, 1), 5)]
    out += [runner.feed(cache, words(2, 1, seed)) for seed in (2, 3)]
    fork = cache.select([1, 0, 1])
    out += [runner.feed(fork, words(3, 3, 4), 3), runner.feed(fork, words(3, 1, 5)), runner.feed(cache, words(2, 1, 6))]
    return out
