"""Tiny models and random prompts for the tests of methods, and references written from the definitions."""

from __future__ import annotations

import torch
import transformers
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kvcheck.cache.kv_cache import KVCache
from kvcheck.cache.method import Method
from kvcheck.cache.shape import ModelShape, Prefilled

ROPE = (1.0, 0.1, 0.01, 0.001)  # what a head_dim of 8 and a base of 10,000 give
SHAPE = ModelShape(layers=2, heads=4, kv_heads=2, head_dim=8, rope=ROPE)
CONFIG = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
KINDS = ("Llama", "Qwen2", "Mistral")


def model_of(
    kind: str = "Llama", dtype: torch.dtype = torch.float32, **changes: object
) -> transformers.PreTrainedModel:
    """A random model whose attention is sharp enough for a lost token to matter."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**CONFIG | changes)
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.mul_(4)
    return model.to(dtype).requires_grad_(False)


def tokens(rows: int, length: int, seed: int = 1) -> torch.Tensor:
    """Random token ids (rows, length)."""
    return torch.randint(3, 61, (rows, length), generator=torch.Generator().manual_seed(seed))


def prompt(
    n: int, shape: ModelShape = SHAPE, rows: int = 2, seed: int = 0, dtype: torch.dtype = torch.float16
) -> list[Prefilled]:
    """A random prompt: per layer keys, values and queries of n tokens."""
    source = torch.Generator().manual_seed(seed)

    def draw(heads: int) -> torch.Tensor:
        return torch.randn(rows, heads, n, shape.head_dim, generator=source).to(dtype)

    return [Prefilled(draw(shape.kv_heads), draw(shape.kv_heads), draw(shape.heads)) for _ in range(shape.layers)]


def feed(cache: KVCache, parts: list[Prefilled]) -> list[torch.Tensor]:
    """Take the tokens through update and attend, as a model does; the attention of every layer (B, q, H, d)."""
    outs = []
    for index, part in enumerate(parts):
        cache.update(part.keys.float(), part.values.float(), index)
        outs.append(cache.layers[index].attend(part.queries.float()))
    return outs


def cut(parts: list[Prefilled], start: int, stop: int) -> list[Prefilled]:
    """The tokens from start to stop."""
    at = slice(start, stop)
    return [Prefilled(part.keys[:, :, at], part.values[:, :, at], part.queries[:, :, at]) for part in parts]


def absorbed(method: Method, parts: list[Prefilled], shape: ModelShape = SHAPE) -> KVCache:
    """A cache of the method that has taken in the prompt."""
    cache = method.build(shape)
    cache.absorb(parts)
    return cache


def weights(queries: torch.Tensor, keys: torch.Tensor, past: int) -> torch.Tensor:
    """Attention of every query head, one head at a time, in float64 -> (B, H, q, n). Row r sees columns <= past + r."""
    rows, heads, count, dim = queries.shape
    group = heads // keys.shape[1]
    out = torch.zeros(rows, heads, count, keys.shape[2], dtype=torch.float64)
    for head in range(heads):
        scores = queries[:, head].double() @ keys[:, head // group].double().transpose(1, 2) / dim**0.5
        for row in range(count):
            seen = past + row + 1
            out[:, head, row, :seen] = scores[:, row, :seen].softmax(-1)
    return out


def dense(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, past: int) -> torch.Tensor:
    """Attention over all keys -> (B, q, H, d), float64."""
    group = queries.shape[1] // keys.shape[1]
    heads = [weights(queries, keys, past)[:, h] @ values[:, h // group].double() for h in range(queries.shape[1])]
    return torch.stack(heads, dim=2)


def states(cache: KVCache) -> list[torch.Tensor]:
    """All that a cache answers from: keys, values and positions of every layer."""
    out = []
    for layer in cache.layers:
        out += [*layer.read(slice(None), torch.float32), layer.positions]
    return out


class Live(TorchDispatchMode):
    """Counts the bytes of the tensors that are made inside and still alive; `peak` is the most at any time."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self.made: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = {_storage(each).cdata for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)}
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and _storage(tensor).cdata not in given:
                self.made[_storage(tensor).cdata] = (_storage(tensor), tensor.untyped_storage().nbytes())
        self.made = {key: pair for key, pair in self.made.items() if not pair[0].expired()}
        self.peak = max(self.peak, sum(count for _, count in self.made.values()))
        return out


def _storage(tensor: torch.Tensor) -> StorageWeakRef:
    return StorageWeakRef(tensor.untyped_storage())
