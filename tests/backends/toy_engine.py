"""An engine that looks answers up: no package, no model; its KV cache has bits. Registered by the fixture `toy`."""

from __future__ import annotations

import json
from pathlib import Path

from kvcheck.backends.engines.base import CANCELS, FLUSHES, SCORES, WEIGHS, EngineInfo, Held, Key, Reply
from kvcheck.core.record import FREES

BLOCK = 16
OPENED: list[dict] = []
"""The settings of every engine that was opened."""
TABLE = Path("table.json")
"""Answers by prompt, in the folder of the run; of prompts that are not in it, the last id is repeated."""


class Toy:
    """bits: below 8 every other answer is wrong, and log-probabilities are lower. hums: no two answers are alike."""

    def __init__(self, opening):
        self.settings, self.opening, self.asked = opening.settings, opening, 0
        if self.settings.get("chunk") == 13:
            raise RuntimeError("Exception from deep/inside.cpp:7:\nCheck 'chunk != 13' failed")
        OPENED.append(dict(opening.settings))
        self.table = json.loads(TABLE.read_text()) if TABLE.exists() else {}
        self.bits = self.settings.get("bits", 16)

    def answer(self, prompts):
        return [self._reply(prompt) for prompt in prompts]

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
        each = 4096 * self.bits // 16
        return Held(each * slots, slots, each * end, end)

    def cancel(self, prompt, after):
        return True

    def flush(self):
        pass

    def close(self):
        pass


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
        "hums": Key(bool),
        "chunk": Key(int),
    },
    block=BLOCK,
    dtypes=("float32", "bfloat16"),
    open=Toy,
    can=frozenset({SCORES, WEIGHS, CANCELS, FLUSHES}),
    claims=lambda settings: FREES if settings.get("bits", 16) < 16 else "",
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
