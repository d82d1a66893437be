"""What a method makes of a long answer: KL from the full cache and bytes, along thousands of tokens fed one by one.

Drift of a case is measured on the first 64 tokens of a reference, fed in one block; what a method evicts or quantizes
while it decodes is hardly seen there. Here the tokens of a natural text follow the prompt one by one, as those of an
answer do, and the full cache reads the same tokens beside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from kvcheck.backends.transformers import drift
from kvcheck.backends.transformers.session import Session
from kvcheck.cache.method_runner import MethodRunner
from kvcheck.core.errors import SpecError
from kvcheck.measure.memory import held

STRETCHES = (250, 500, 1000, 2000)
"""Tokens after which is looked."""
METHODS = (
    "kivi:bits=4", "kivi", "flexgen", "kvquant", "turboquant", "h2o", "tova", "streaming_llm", "corm", "r_kv", "snapkv",
)  # fmt: skip
"""Methods that quantize or evict while decoding; SnapKV, which compresses the prompt alone, beside them."""
BLOCK = 50
"""Tokens that the full cache reads at a time, and whose log-probabilities are in memory."""


@dataclass(frozen=True)
class Stretch:
    """From one look to the next. upto: tokens decoded until then. kl: from the full cache, in nats per token, mean over
    the stretch. bytes: keys and values, on the device and in host memory, as a share of the full cache's, at its end.
    """

    upto: int
    kl: float
    bytes: float


def along(session: Session, spec: str, ids: torch.Tensor, prompt: int, upto: Sequence[int]) -> Iterator[Stretch]:
    """A text of token ids (1, n): its first `prompt` ones are the prompt, as many as the last stretch takes follow.

    Raises SpecError where the text or the model's room is too short.
    """
    needed, limit = prompt + upto[-1], session.loaded.max_length
    if ids.shape[1] < needed or (limit is not None and limit < needed):
        raise SpecError(f"{needed} tokens are needed: the text has {ids.shape[1]}, the model room for {limit}")
    mine, full = (session.method_runner(text, session.guards(text, "a long answer")) for text in (spec, "fp16"))
    yield from _stretches(mine, full, ids.to(session.loaded.device), prompt, upto)


@torch.inference_mode()
def _stretches(
    mine: MethodRunner, full: MethodRunner, ids: torch.Tensor, prompt: int, upto: Sequence[int]
) -> Iterator[Stretch]:
    cache, _ = mine.prefill(ids[:, :prompt])
    dense, _ = full.prefill(ids[:, :prompt])
    done = 0
    for end in upto:
        found: list[float] = []
        for start in range(done, end, BLOCK):
            block = ids[:, prompt + start : prompt + min(start + BLOCK, end)]
            theirs = drift.log_probs(full.feed(dense, block, block.shape[1])[0])
            own = torch.cat([mine.feed(cache, block[:, at : at + 1])[0] for at in range(block.shape[1])])
            found += drift.divergences(theirs, drift.log_probs(own))
        done, weight = end, held(cache)
        size = (weight.kv + weight.host) / mine.shape.dense_bytes(1, prompt + end)
        yield Stretch(end, sum(found) / len(found), size)
