"""What is timed of a method, and of fp16 beside it: a prompt, decode steps, and decode steps of a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import torch

from kvcheck.cache.method_runner import MethodRunner
from kvcheck.cache.view import FedCache
from kvcheck.core.errors import SpecError
from kvcheck.core.front import option
from kvcheck.core.record import LatencyRecord
from kvcheck.measure import latency
from kvcheck.measure.clocks import Clocks
from kvcheck.models import LoadedModel

CPU_BYTES = 3 * 1024**3 // 2
DECODED = 2 * (latency.STEPS + 1)
"""Tokens behind the prompt: one step untimed and STEPS timed, alone and in the batch."""


def fits(loaded: LoadedModel, length: int) -> None:
    """Raise SpecError where the model has no room for a prompt of this length and what is decoded behind it."""
    limit = loaded.max_length
    if limit is not None and length + DECODED > limit:
        raise SpecError(
            f"a prompt of {length} tokens and what is decoded behind it: the model has room for {limit}",
            f"{option('lengths')} {limit - DECODED}",
        )


def prompt(loaded: LoadedModel, length: int) -> torch.Tensor:
    """(1, length) token ids, always the same ones: what is timed and weighed does not depend on the text.

    With a model that sees, the first half are slots of images.
    """
    generator = torch.Generator().manual_seed(0)
    vocabulary = loaded.model.get_input_embeddings().num_embeddings
    ids = torch.randint(vocabulary, (1, length), generator=generator)
    if loaded.vision is not None:
        ids[:, : length // 2] = loaded.vision.slots.id
    return ids.to(loaded.device)


def rows(loaded: LoadedModel, length: int, most: int) -> int:
    """Sequences that are decoded together: the largest power of two up to `most` whose full caches fit, at least one.

    The method gets as many as fp16, so that the two do the same work. While a context is copied, its own cache is there
    too. It does not depend on what else runs on the device.
    """
    each, room, count = loaded.shape.dense_bytes(1, length), _room(loaded), 1
    while 2 * count <= most and (2 * count + 1) * each <= room:
        count *= 2
    return count


def _room(loaded: LoadedModel) -> int:
    """Bytes for the caches of a batch: four fifths of what the weights leave of its GPUs, 1.5 GiB on the CPU."""
    if loaded.device.type != "cuda":
        return CPU_BYTES
    weights = sum(part.nbytes for part in loaded.model.parameters())
    total = sum(int(torch.cuda.get_device_properties(device).total_memory) for device in loaded.devices)
    return (total - weights) * 4 // 5


def side(runner: MethodRunner, ids: torch.Tensor, batch: int) -> Callable[[], dict[str, float]]:
    """What one round times: a prompt (1, n) from nothing to its first token, then steps alone and in a batch.

    The batch is made of copies of the cache (`select`), which share no memory. Before each series one step is not
    timed: a cache makes room to append then, which it does once in thousands of tokens.
    """

    def first() -> tuple[FedCache, torch.Tensor]:
        cache, logits = runner.prefill(ids)
        return cache, logits.argmax(-1, keepdim=True)

    def steps(cache: FedCache, token: torch.Tensor, count: int) -> torch.Tensor:
        for _ in range(count):
            token = runner.feed(cache, token)[:, -1].argmax(-1, keepdim=True)
        return token

    def series(cache: FedCache, token: torch.Tensor) -> tuple[float, torch.Tensor]:
        token = steps(cache, token, 1)
        seconds, token = latency.stopwatch(runner.loaded.devices, lambda: steps(cache, token, latency.STEPS))
        return seconds / latency.STEPS, token

    def once() -> dict[str, float]:
        ttft, (cache, token) = latency.stopwatch(runner.loaded.devices, first)
        tpot, token = series(cache, token)
        cache = cache.select([0] * batch)
        throughput, _ = series(cache, token.repeat(batch, 1))
        return {"ttft": ttft, "tpot": tpot, "throughput": throughput}

    return once


def described(timed: Iterable[LatencyRecord], batch: int, found: Clocks) -> tuple[LatencyRecord, ...]:
    """The records with the size of the batch, and the clocks that they were measured at."""
    sizes = {"throughput": batch}
    return tuple(
        replace(one, batch=sizes.get(one.what, 1), sm_mhz=found.sm_mhz, memory_mhz=found.memory_mhz) for one in timed
    )
