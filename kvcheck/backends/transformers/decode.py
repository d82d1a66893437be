"""Greedy decoding of a batch whose rows end at different times."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from kvcheck.backends.transformers.guard import Guard
from kvcheck.cache.method_runner import MethodRunner
from kvcheck.runner.seam import Ask


@dataclass
class Group:
    """Rows that are fed together. cache: the method's, one row per ask. logits (R, V) give each ask's next token."""

    cache: Any
    asks: list[Ask]
    logits: torch.Tensor

    def split(self, rows: list[int]) -> Any:
        """The cache of these rows: itself where that is all of them, else a copy."""
        return self.cache if len(rows) == len(self.asks) else self.cache.select(rows)


def decode(runner: MethodRunner, group: Group, eos: frozenset[int], guard: Guard, keep: bool) -> list[Group]:
    """Answer every question of the group, up to its limit or an end token, which is not written to the cache.

    A row that has ended leaves the batch: nothing is written to it any more. keep: return the rows that ended, with
    their caches, in groups that ended together; else their caches are dropped.
    """
    ended: list[Group] = []
    while True:
        tokens = guard.pick(group.logits)
        going: list[int] = []
        for row, (ask, token) in enumerate(zip(group.asks, tokens, strict=True)):
            if token in eos:
                ask.ended = True
                continue
            ask.answer.append(token)
            if len(ask.answer) < ask.limit:
                going.append(row)
        if len(going) < len(tokens):
            with guard("leaving the batch (select)"):
                if keep:
                    done = [row for row in range(len(tokens)) if row not in going]
                    ended.append(Group(group.split(done), [group.asks[row] for row in done], group.logits[done]))
                if not going:
                    return ended
                group = Group(group.split(going), [group.asks[row] for row in going], group.logits)
        fed = torch.tensor([[tokens[row]] for row in going], device=group.logits.device)
        with guard("decoding"):
            group = Group(group.cache, group.asks, runner.feed(group.cache, fed)[:, -1])
