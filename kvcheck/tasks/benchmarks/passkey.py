"""The passkey grid of longctx_bench, depth x length, over filler of our own (its essays may not be shipped).

300 prompts upstream: ten lengths, ten depths, three repetitions. Here lengths are tokens, and sample `index` has depth
(index mod 10) / 9, so 30 samples of every length are the grid. The sentences are ours.
"""

from __future__ import annotations

from collections.abc import Callable

from kvcheck.tasks import lexicon
from kvcheck.tasks.base import Sample, Task, TaskInfo, Tokenizer, Turn
from kvcheck.tasks.filling import Unit, compose, digits, identifiers, noise, sample_rng

DEPTHS = 10
DECOYS = 3
LENGTHS = (512, 2730, 4949, 7168, 9386, 11605, 13824, 16042, 18261, 20480)
MAX_NEW_TOKENS = 256
HEADER = "One fact is hidden in this text. Keep it in mind, it is asked for at the end.\n"
QUESTION = "\nWhich key opens the old gate? The key that opens the old gate is"


def needle(key: str) -> str:
    """The sentences that state the key twice."""
    return f" The key that opens the old gate is {key}. Note it well: {key}."


def generate(size: int, seed: int, index: int, length: int, tokenizer: Tokenizer) -> Sample:
    """One prompt: a key of `size` digits at its depth, three decoys (keys of named things) anywhere.

    The context has exactly `length` tokens. Even samples have filler that repeats, odd ones filler that does not.
    """
    name = f"passkey/{size}_digits"
    rng = sample_rng(name, 1, seed, length, index)
    key, depth = digits(rng, size), (index % DEPTHS) / (DEPTHS - 1)
    names, fact = identifiers(rng, lexicon.OBJECTS), needle(key)
    decoys = [Unit(f" The code of {next(names)} is {digits(rng, size)}.") for _ in range(DECOYS)]
    context = compose(HEADER, [Unit(fact, depth), *decoys], noise(rng, index % 2 == 1), length, tokenizer, rng)
    metric = "passkey_exact" if size < 64 else "passkey_partial"
    turn = Turn(
        QUESTION,
        (key,),
        MAX_NEW_TOKENS,
        metric,
        context.evidence(fact),
        context.depth(fact),
        subtask=f"depth {depth:.2f}",
    )
    return Sample(name, index, context.text, (turn,), row=f"depth={depth:.2f}/repetition={index // DEPTHS}")


def _generator(size: int) -> Callable[..., Sample]:
    def made(seed: int, index: int, length: int, tokenizer: Tokenizer, turns: int = 1) -> Sample:
        """One prompt of the grid."""
        return generate(size, seed, index, length, tokenizer)

    return made


def _task(size: int, chance: float) -> Task:
    info = TaskInfo(
        f"passkey/{size}_digits",
        1,
        "needle",
        ("single", "multi_request"),
        size < 64,
        chance,
        f"passkey of {size} digits, depth x length",
        LENGTHS,
    )
    return Task(info, _generator(size))


TASKS = (_task(7, 1e-7), _task(64, 0.05))
