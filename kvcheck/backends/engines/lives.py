"""Properties of requests that meet: in company, in turns, in masses. See properties.py.

They send while others are answered, which needs an engine that runs by itself.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

from kvcheck.backends.engines.base import (
    CANCELS,
    CHUNK,
    COUNTS,
    MEANWHILE,
    POOL,
    PREFIX,
    Prompt,
    Reply,
    Served,
)
from kvcheck.backends.engines.bench import (
    LENGTH,
    PIECE,
    TOKENS,
    Bench,
    Broken,
    NotTried,
    alone,
    expect_given_back,
    expect_hit,
    used,
)
from kvcheck.backends.engines.specs import FULL

REQUESTS, AT_A_TIME = 500, 16
"""That are sent to see whether anything piles up."""
LONG = 6 * TOKENS
"""Tokens of an answer that goes on while others come."""
LOOKS = 40
"""Times that the blocks in use are looked at, at most."""


@contextmanager
def answering(served: Served, prompts: Sequence[Prompt]) -> Iterator[list[Reply]]:
    """While prompts are answered; the replies are in the list behind it."""
    found: list[Reply] = []
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(served.answer, prompts)
        yield found
        found += waiting.result()


def speculation_changes_nothing(bench: Bench) -> str:
    """With drafts, some of them accepted, a prompt is answered as by the reference, which has none."""
    bench.can(COUNTS)
    texts = bench.prompts(200, n=3)
    prompts = [Prompt([*one.ids, *one.ids[20:], *one.ids[20:60]], 2 * LONG) for one in texts]
    with bench.engine() as served:
        before, got, after = served.counts(), alone(served, prompts), served.counts()
    if before.accepted is None or after.accepted is None or after.accepted <= before.accepted:
        raise NotTried("no draft was accepted")
    with bench.engine(method=FULL) as served:
        plain, want, behind = served.counts(), alone(served, prompts), served.counts()
    if (behind.accepted or 0) > (plain.accepted or 0):
        raise NotTried("the reference speculates, too: reference=URL of one that does not")
    bench.same("with speculation", got, want, bench.beside)
    return f"{after.accepted - before.accepted:.0f} drafts were accepted"


def a_block_that_others_read_never_changes(bench: Bench) -> str:
    """While a prompt is answered, others come that begin as it does, and go on otherwise at every place of a block."""
    bench.can(PREFIX, MEANWHILE)
    (first,) = bench.prompts(LENGTH + bench.block // 2)
    long = replace(first, limit=LONG)
    cuts = [LENGTH + at for at in (-1, 0, 1, bench.block // 2 - 1)]
    others = [Prompt([*first.ids[:cut], *first.ids[cut - 60 : cut - 20]], TOKENS) for cut in cuts]
    with bench.engine() as served:
        (want,), theirs = served.answer([long]), alone(served, others)
    with bench.engine({CHUNK: PIECE, PREFIX: 1}) as served:
        cold = alone(served, [long])
        with answering(served, [long]) as meanwhile:
            came = served.answer(others)
        last = alone(served, [long, *others])
    expect_hit([*came, *last], [*theirs, want, *theirs])
    got = [*cold, *meanwhile, *came, *last]
    bench.same("beside others that begin alike", got, [want, want, *theirs, want, *theirs])
    return ""


def an_abort_leaves_the_others_alone(bench: Bench) -> str:
    """Requests that are dropped at every stage, waiting, in the prompt, in the answer, while others are answered."""
    bench.can(CANCELS, MEANWHILE)
    texts = [replace(one, limit=LONG) for one in bench.prompts(LENGTH, n=6)]
    company, dropped = texts[:2], texts[2:]
    with bench.engine() as served:
        want = alone(served, texts)
    with bench.engine({PREFIX: 1}) as served:
        before = used(bench, served)
        with answering(served, company) as meanwhile:
            early = [served.cancel(one, 0) for one in dropped]
            late = [served.cancel(dropped[0], tokens) for tokens in (1, TOKENS)]
        expect_given_back(bench, served, before, "after dropped requests")
        later = alone(served, texts)
    if not any(early) or not all(late):
        raise NotTried("a request was over, or its prompt read, before it could be dropped")
    bench.same("beside dropped requests", [*meanwhile, *later], [*want[:2], *want])
    return ""


def blocks_are_as_counted(bench: Bench) -> str:
    """Of a context alone, the blocks that the engine says are in use are those that its tokens fill."""
    bench.can(COUNTS, MEANWHILE)
    with bench.engine() as served:
        block, before = served.counts().block, used(bench, served)
        if not block or before is None:
            raise NotTried("it does not tell the blocks in use")
        blocks = LENGTH // block + 1
        length, limit = int(LENGTH // block * block) + 1, min(64, int(block) - 1)
        for prompt in bench.prompts(length, n=LOOKS):  # its tokens and those of its answer fill one more block
            if (seen := _in_use(served, replace(prompt, limit=limit))) is not None:
                break
        else:
            raise NotTried(f"nobody saw the blocks in use in the middle of {LOOKS} answers")
    counted = (seen - before) / block
    if not blocks <= counted <= blocks + 1:  # engines take one ahead
        raise Broken(f"{length} tokens in blocks of {block:.0f} are {blocks:.0f} blocks, and {counted:.0f} are counted")
    return f"{counted:.0f} blocks of {block:.0f}"


def _in_use(served: Served, prompt: Prompt) -> float | None:
    """Tokens that blocks in use have room for, looked at between the first token of an answer and the last."""
    looks: list[tuple[float, float, float | None]] = []
    start = time.perf_counter()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(served.answer, [prompt])
        while not waiting.done():
            begun = time.perf_counter() - start
            found = served.counts().used
            looks.append((begun, time.perf_counter() - start, found))
        (reply,) = waiting.result()
    late = time.perf_counter() - start - reply.seconds  # its clock may have started later than ours
    inside = [found for begun, ended, found in looks if reply.first + late < begun and ended < reply.seconds]
    return inside[0] if inside else None


def nothing_piles_up(bench: Bench) -> str:
    """After many requests, some of them dropped, answers are what they were and as many blocks are free."""
    bench.can(MEANWHILE)
    probes = bench.prompts(100, LENGTH)
    texts = bench.prompts(40, n=AT_A_TIME)
    with bench.engine({PREFIX: 1}) as served:
        before, want = used(bench, served), alone(served, probes)
        for at in range(0, REQUESTS, AT_A_TIME):
            served.answer([Prompt([*one.ids[at % 7 :], *one.ids[: at % 11]], 2) for one in texts])
            if at % 5 == 0 and CANCELS in bench.session.info.can:
                served.cancel(Prompt(probes[1].ids[at % 50 :], LONG), at % 3)
        expect_given_back(bench, served, before, f"after {REQUESTS} requests")
    with bench.engine() as served:
        got = alone(served, probes)
    bench.same(f"after {REQUESTS} requests", got, want)
    return f"{REQUESTS} requests"


def settings_in_pairs_change_nothing(bench: Bench) -> str:
    """Every pair of what can be set: prefix cache, pieces, pool, on and off, with prompts that hit beside others."""
    ways = bench.session.info.ways
    bench.can(PREFIX)
    each = -(-(LENGTH + TOKENS) // bench.block)
    levels = {PREFIX: (0, 1), CHUNK: (2 * LENGTH, PIECE), POOL: (8 * each, each + each // 2)}
    prompts = bench.prompts(LENGTH, n=4)
    with bench.engine() as served:
        want = alone(served, prompts)
    for row in ((0, 0, 0), (0, 1, 1), (1, 0, 1), (1, 1, 0)):  # every pair of levels of every two ways
        chosen = {way: both[level] for (way, both), level in zip(levels.items(), row, strict=True) if way in ways}
        with bench.engine(chosen) as served:
            warm = alone(served, prompts[:2])
            got = served.answer(prompts)
        if row == (1, 1, 0):
            expect_hit(got[:2], warm)
        how = ", ".join(f"{way} {number}" for way, number in chosen.items())
        bench.same(f"together, with {how}", [*warm, *got], [*want[:2], *want])
    return ""
