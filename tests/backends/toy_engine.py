"""An engine that looks answers up: no package, no model; its KV cache has bits. Registered by the fixture `toy`.

What it does to the life of its cache can be wrong: `fault`, a name of FAULTS.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Literal

from kvcheck.backends.engines.base import (
    CANCELS,
    CHUNK,
    DENSE,
    FLUSHES,
    MOVES,
    NEWEST,
    POOL,
    PREFIX,
    ROOMY,
    SCORES,
    WEIGHS,
    EngineInfo,
    Held,
    Key,
    Reply,
)
from kvcheck.core.errors import MethodFailed
from kvcheck.core.record import FREES

BLOCK = 16
USES = {"keeps": ROOMY, "threshold": DENSE, "moves": MOVES}
OPENED: list[dict] = []
"""The settings of every engine that was opened."""
TABLE = Path("table.json")
"""Answers by prompt, in the folder of the run; of prompts that are not in it, the last id is repeated."""


FAULTS = {
    "stale": "a_prefix_hit_is_a_miss",
    "company": "together_is_alone",
    "preempted": "a_small_pool_changes_nothing",
    "pieces": "a_chunked_prompt_is_the_whole",
    "cancelled": "what_was_cancelled_leaves_nothing",
    "leaks": "what_was_cancelled_leaves_nothing",
    "turn": "a_later_turn_is_as_recomputed",
    "kept": "flushed_is_cold",
    "roomy": "a_budget_above_the_prompt_is_full",
    "dense": "a_threshold_that_drops_nothing_is_dense",
    "moved": "moved_positions_answer_alike",
}
"""What can be wrong, and the property that must show it; others may show it, too."""


class Toy:
    """bits: below 8 every other answer is wrong, and log-probabilities are lower. hums: no two answers are alike."""

    def __init__(self, opening):
        self.settings, self.opening, self.asked = opening.settings, opening, 0
        self.fault, self.blocks, self.lost, self.cancelled = self.settings.get("fault", ""), set(), 0, False
        if self.settings.get("chunk") == 13:
            raise RuntimeError("Exception from deep/inside.cpp:7:\nCheck 'chunk != 13' failed")
        OPENED.append(dict(opening.settings))
        self.table = json.loads(TABLE.read_text()) if TABLE.exists() else {}
        self.bits = self.settings.get("bits", 16)

    def answer(self, prompts):
        found, before = [], 0
        pool = self.settings.get("pool", 0)
        needs = [-(-(len(prompt.ids) + prompt.limit) // BLOCK) for prompt in prompts]
        if pool and max(needs) > pool - self.lost:
            raise MethodFailed("the pool has no room for it")
        for at, prompt in enumerate(prompts):
            reply = self._read(prompt)
            wrong = self.fault == "company" and at > 0
            wrong |= self.fault == "preempted" and pool > 0 and sum(needs) > pool
            before += reply.chunks
            found.append(replace(_wrong(reply) if wrong else reply, chunks=before))
        return found

    def _read(self, prompt):
        """Read a prompt in pieces, its beginning from the prefix cache."""
        borders = range(BLOCK, len(prompt.ids), BLOCK)
        beginnings = [tuple(prompt.ids[:border]) for border in borders]
        held = sum(one in self.blocks for one in beginnings) * BLOCK if self.settings.get("prefix") else 0
        pieces = -(-(len(prompt.ids) - held) // self.settings.get("pieces", 256))
        self.blocks |= set(beginnings)
        wrong = self.fault == "stale" and held > 0
        wrong |= self.fault == "turn" and 0 < held < len(prompt.ids) - 2 * BLOCK
        wrong |= self.fault == "pieces" and pieces > 5
        wrong |= self.fault == "cancelled" and self.cancelled
        keeps = self.settings.get("keeps", 0)
        newest, moves = self.settings.get("newest", 0), self.settings.get("moves", False)
        wrong |= 0 < keeps < len(prompt.ids) and (not newest or (moves and self.fault == "moved"))
        wrong |= self.fault == "roomy" and keeps > 0
        threshold = self.settings.get("threshold", 0.0)
        wrong |= 0 < threshold < 1 or (self.fault == "dense" and threshold > 0 and pieces > 1)
        reply = replace(self._reply(prompt), chunks=pieces)
        if newest:  # what is evicted then is old, and loses little
            reply = replace(reply, log_probs=tuple(one - 0.05 - 0.01 * moves for one in reply.log_probs))
        return _wrong(reply) if wrong else reply

    def _reply(self, prompt):
        self.asked += 1
        if self.settings.get("fails"):
            raise RuntimeError("the kernel is gone")
        known = self.table.get(" ".join(map(str, prompt.ids)))
        tokens = list(prompt.ids[-1:] * prompt.limit) if known is None else [*known, *sorted(prompt.ends)]
        if self.settings.get("hums"):
            tokens[0] += self.asked % 7
        elif known is not None and self.bits < 8 and sum(prompt.ids) % 2:
            tokens = [prompt.ids[5], *sorted(prompt.ends)]
        tokens = tokens[: prompt.limit]
        log_probs = (-0.1 * 16 / self.bits,) * len(tokens)
        return Reply(tuple(tokens), log_probs, tokens[-1] in prompt.ends, 1, 0.01, 0.01 + 0.001 * len(tokens))

    def score(self, texts):
        return [[-0.1 * 16 / self.bits] * (len(ids) - start) for ids, start in texts]

    def weigh(self, prompt):
        slots, end = (-(-count // BLOCK) * BLOCK for count in (len(prompt.ids), len(prompt.ids) + prompt.limit - 1))
        end = min(end, self.settings.get("keeps") or end)
        each = 4096 * self.bits // 16
        return Held(each * slots, slots, each * end, end)

    def cancel(self, prompt, tokens):
        self.cancelled = True
        self.lost += 20 * (self.fault == "leaks")
        return True

    def flush(self):
        if self.fault != "kept":
            self.blocks.clear()

    def close(self):
        pass


def _wrong(reply):
    return replace(reply, tokens=tuple(token + 1 for token in reply.tokens))


ENGINE = EngineInfo(
    name="toy",
    summary="looks answers up",
    package="pytest",
    modules=("json",),
    extra="toy",
    keys={
        "bits": Key(int, cache=True, full=16),
        "nested.hums": Key(bool, cache=True),
        "fails": Key(bool, cache=True),
        "fault": Key(Literal[tuple(FAULTS)], cache=True),
        "prefix": Key(bool, cache=True),
        "pool": Key(int, cache=True),
        "keeps": Key(int, cache=True),
        "threshold": Key(float, cache=True),
        "newest": Key(int, cache=True),
        "moves": Key(bool, cache=True),
        "pieces": Key(int),
        "hums": Key(bool),
        "chunk": Key(int),
    },
    block=BLOCK,
    dtypes=("float32", "bfloat16"),
    open=Toy,
    can=frozenset({SCORES, WEIGHS, CANCELS, FLUSHES}),
    claims=lambda settings: FREES if settings.get("bits", 16) < 16 else "",
    ways={
        PREFIX: lambda on: {"prefix": bool(on)},
        CHUNK: lambda tokens: {"pieces": tokens},
        POOL: lambda blocks: {"pool": blocks},
        ROOMY: lambda tokens: {"keeps": tokens},
        DENSE: lambda _: {"threshold": 1.0},
        NEWEST: lambda tokens: {"newest": tokens},
        MOVES: lambda on: {"moves": bool(on)},
    },
    uses=lambda settings: frozenset(way for name, way in USES.items() if name in settings),
)
ABSENT = EngineInfo(
    name="absent",
    summary="is not installed",
    package="no-such-engine",
    modules=("no_such_engine",),
    extra="absent",
    keys={"bits": Key(int, cache=True, full=16)},
    block=BLOCK,
    dtypes=("float32",),
    open=Toy,
    can=frozenset(),
)
