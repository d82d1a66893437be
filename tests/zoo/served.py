"""A tiny model, and what ordinary use of a method on it says."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import transformers

from kvcheck.cache import attention
from kvcheck.cache.method_runner import MethodRunner
from kvcheck.methods import make
from kvcheck.models import LoadedModel
from kvcheck.zoo import Bug, bugs

CONFIG = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 4096,
}


@lru_cache(maxsize=1)
def loaded() -> LoadedModel:
    """A random model whose attention is sharp enough for a lost token to matter."""
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**CONFIG)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.mul_(4)
    return LoadedModel(attention.use(model.requires_grad_(False)), None, "toy", "f00d", 4096)


def tokens(rows: int, length: int, seed: int = 1) -> torch.Tensor:
    """Random token ids (rows, length)."""
    return torch.randint(3, 61, (rows, length), generator=torch.Generator().manual_seed(seed))


def runner(spec: str) -> MethodRunner:
    """A method at home on the model."""
    return make(spec).runner(loaded())


def goes_on(here: MethodRunner, cache: Any, rows: int, steps: int = 6) -> list[torch.Tensor]:
    """Logits of a follow-up block, of decoded tokens, of a fork, and of the rows that are left when one has gone."""
    out = [here.feed(cache, tokens(rows, 5, seed=9), 5)]
    out += [here.feed(cache, tokens(rows, 1, seed=at)) for at in range(steps)]
    fork = cache.select([rows - 1, 0, 0])
    out += [here.feed(fork, tokens(3, 1, seed=at)) for at in range(2)]
    if rows > 1:
        left = cache.select(list(range(1, rows)))
        out += [here.feed(left, tokens(rows - 1, 1, seed=at)) for at in range(2)]
    return out


def serve(here: MethodRunner, ids: torch.Tensor, steps: int = 6) -> list[torch.Tensor]:
    """All of that behind a prompt (R, n), and the logits of the prompt itself."""
    cache, first = here.prefill(ids)
    return [first, *goes_on(here, cache, len(ids), steps)]


def far_off(mine: list[torch.Tensor], other: list[torch.Tensor]) -> float:
    """The largest difference between two lists of logits."""
    return max(float((one - two).abs().max()) for one, two in zip(mine, other, strict=True))


def between(one: str | MethodRunner, other: str | MethodRunner, *prompts: torch.Tensor, steps: int = 6) -> float:
    """The largest difference between what two methods say, each of which serves all of the prompts in this order."""
    runners = [runner(each) if isinstance(each, str) else each for each in (one, other)]
    return max(far_off(*(serve(each, ids, steps) for each in runners)) for ids in prompts)


def use(spec: str, *, lengths: tuple[int, ...] = (1, 2, 40, 150, 1000)) -> None:
    """Ordinary use: batches of prompts of these lengths, some of them again, with all that follows them."""
    here = runner(spec)
    with torch.inference_mode():
        for length in (*lengths, lengths[-2], lengths[1]):
            for logits in serve(here, tokens(3 if length < 500 else 2, length, seed=length), steps=3):
                assert bool(logits.isfinite().all())


def family(name: str) -> dict[str, Bug]:
    """The bugs of one family by name."""
    return {one.name: one for one in bugs((name,))}
