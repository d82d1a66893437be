"""Greedy decoding of a batch whose rows end at different times."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from kvcheck.backends.transformers.guard import Guard
from kvcheck.cache.method_runner import MethodRunner
from kvcheck.runner.seam import Question


@dataclass
class Group:
    """Rows that are fed together. cache: the method's, one row per question. logits (R, V) give their next tokens."""

    cache: Any
    questions: list[Question]
    logits: torch.Tensor

    def split(self, rows: list[int]) -> Any:
        """The cache of these rows: itself where that is all of them, else a copy."""
        return self.cache if len(rows) == len(self.questions) else self.cache.select(rows)


def decode(runner: MethodRunner, group: Group, eos: frozenset[int], guard: Guard, keep: bool) -> list[Group]:
    """Answer every question of the group, up to its limit or an end token, which is not written to the cache.

    A row that has ended leaves the batch: nothing is written to it any more. keep: return the rows that ended, with
    their caches, in groups that ended together; else their caches are dropped.
    """
    ended: list[Group] = []
    while True:
        tokens = guard.pick(group.logits)
        going: list[int] = []
        for row, (question, token) in enumerate(zip(group.questions, tokens, strict=True)):
            if token in eos:
                question.ended = True
                continue
            question.answer.append(token)
            if len(question.answer) < question.limit:
                going.append(row)
        if len(going) < len(tokens):
            with guard("leaving the batch (select)"):
                if keep:
                    done = [row for row in range(len(tokens)) if row not in going]
                    ended.append(Group(group.split(done), [group.questions[row] for row in done], group.logits[done]))
                if not going:
                    return ended
                group = Group(group.split(going), [group.questions[row] for row in going], group.logits)
        fed = torch.tensor([[tokens[row]] for row in going], device=group.logits.device)
        with guard("decoding"):
            group = Group(group.cache, group.questions, runner.feed(group.cache, fed)[:, -1])
