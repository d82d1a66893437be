"""Small models, and the routes that a cache takes in ordinary use."""

from __future__ import annotations

import torch
import transformers

from kvcheck.cache import attention
from kvcheck.cache.method_runner import MethodRunner
from kvcheck.cache.rows import RowCache
from kvcheck.cache.shape import ModelShape
from kvcheck.measure.memory import held
from kvcheck.methods import make
from kvcheck.models import LoadedModel, load
from kvcheck.zoo import bugs

CONFIG = {
    "vocab_size": 61,
    "hidden_size": 64,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
}


def toy(**changes: object) -> LoadedModel:
    """A random model whose attention is sharp enough for a lost token to matter."""
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**CONFIG | changes)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.mul_(3)
    return LoadedModel(attention.use(model.requires_grad_(False)), None, "toy", "toy", 2048)


def tokens(rows: int, length: int, seed: int = 1) -> torch.Tensor:
    """Random token ids (rows, length)."""
    return torch.randint(3, 61, (rows, length), generator=torch.Generator().manual_seed(seed))


def text(name: str, **changes: object) -> str:
    """The spec of a bug of the zoo, with these parameters."""
    return spec(bugs((name,))[0].spec, **changes)


def spec(given: str, **changes: object) -> str:
    """A spec with these parameters added."""
    more = ",".join(f"{key}={value}" for key, value in changes.items())
    return f"{given}{',' if ':' in given else ':'}{more}" if more else given


def at_home(given: str, loaded: LoadedModel) -> MethodRunner:
    """A method on a model."""
    method = make(given)
    method.check(ModelShape.of(loaded.model.config))
    return method.runner(loaded)


@torch.inference_mode()
def prefilled(runner: MethodRunner, ids: torch.Tensor):
    """(cache, logits) behind a prompt, by the route that the engine takes."""
    if not runner.method.info.shares_prefill:
        return runner.prefill(ids)
    full = make("fp16").build(runner.shape)
    with full.recording() as taken:
        logits = runner.model(ids, past_key_values=full, use_cache=True, logits_to_keep=1).logits[:, -1]
    cache = runner.build()
    cache.absorb(taken)
    return cache, logits


@torch.inference_mode()
def walk(
    runner: MethodRunner, length: int, rows: int = 2, block: int = 7, decoded: int = 5, seed: int = 1
) -> list[torch.Tensor]:
    """Ordinary use: prompt, fork, follow-up, tokens one by one, rows that leave -> all logits on the way."""
    ids = tokens(rows, length + block + decoded, seed)
    cache, logits = prefilled(runner, ids[:, :length])
    out = [logits]
    forked = cache.select([*range(rows), 0])
    twice = torch.cat([ids, ids[:1]])
    out.append(runner.feed(forked, twice[:, length : length + block], block))
    for at in range(length + block, length + block + decoded - 1):
        out.append(runner.feed(forked, twice[:, at : at + 1]))
    forked = forked.select([0])
    out.append(runner.feed(forked, ids[:1, -1:]))
    return out


def measured(cache) -> int:
    """Bytes of keys and values."""
    return held(cache).kv


def layers(cache) -> list:
    """The layers of a cache, or of its first row."""
    return cache.rows[0].layers if isinstance(cache, RowCache) else cache.layers


def apart(one: list[torch.Tensor], other: list[torch.Tensor]) -> float:
    """The largest difference of two walks, as a share of the largest logit."""
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(one, other, strict=True))


@torch.inference_mode()
def feed(runner: MethodRunner, cache, ids: torch.Tensor, keep: int = 1) -> torch.Tensor:
    """Feed ids into a cache."""
    return runner.feed(cache, ids, keep)


LENGTHS = (1, 2, 3, 33, 130, 301)


def usual(given: str, loaded: LoadedModel, lengths: tuple[int, ...] = LENGTHS) -> None:
    """Ordinary use of one runner: prompts of these lengths in batches, follow-ups, decoding, forks. Nothing is raised,
    and all logits are finite."""
    runner = at_home(given, loaded)
    for length in lengths:
        for logits in walk(runner, length):
            assert bool(logits.isfinite().all())


def mini() -> LoadedModel:
    """The embedded model."""
    return load("mini", torch.device("cpu"), torch.float32)
