"""The three modes: how the questions of a block of contexts meet the method's cache.

- `single`: the first question of every sample; context and question are one prompt when the cache is compressed.
- `multi_turn`: turn 1 likewise; every later question goes on in the same cache, after the model's own answer, or with
  `Prompter.gold` after the right one, where the model's has never been in the cache.
- `multi_request`: the context alone is compressed; every question starts from a fork of that cache.

`query_aware` turned around: a question that is not visible at compression is fed through the compressed cache; one that
is, in multi_request, makes a prompt of its own of context and question. Which of the two it is was said to the backend
when the method was set to work (kvcheck/backends/base.py). Questions are handed over together where their lengths
agree, so nothing need be padded and batching changes no answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kvcheck.runner.prompts import Prompter
from kvcheck.runner.seam import Question
from kvcheck.tasks.base import Sample

if TYPE_CHECKING:
    from kvcheck.backends.base import Contexts, Group


@dataclass
class Block:
    """Some contexts on their way through one method.

    contexts: the backend's hold on them. most: questions that are handed over together at most.
    """

    contexts: Contexts[Any]
    prompter: Prompter
    samples: list[Sample]
    most: int
    done: list[Question] = field(default_factory=list)

    def run(self) -> list[list[Question]]:
        """Answer everything -> the questions of every sample, in order."""
        questions = self._first()
        parts = alike(range(len(questions)), lambda at: len(questions[at].ids))
        self.contexts.expect(questions, opening=True)
        waiting: list[Group] = []
        for part in parts:
            for start in range(0, len(part), self.most):
                group = self.contexts.ask([questions[at] for at in part[start : start + self.most]])
                waiting += self._answered(group)
        while waiting:
            self.contexts.expect([question for group in waiting for question in group.questions], opening=False)
            waiting = [later for group in waiting for later in self._answered(group)]
        by_row: list[list[Question]] = [[] for _ in self.samples]
        for question in sorted(self.done, key=lambda question: question.turn):
            by_row[question.row].append(question)
        return by_row

    def _first(self) -> list[Question]:
        """The questions that are asked right behind a context."""
        every = self.prompter.case.mode == "multi_request"
        return [
            self.prompter.first(sample, row, turn)
            for row, sample in enumerate(self.samples)
            for turn in range(len(sample.turns) if every else 1)
        ]

    def _answered(self, group: Group) -> list[Group]:
        """Have the questions of a group answered -> those that come next in their conversations, fed already."""
        self.done += group.questions
        for question, drift in zip(group.questions, self.contexts.drift(group), strict=True):
            question.drift = drift
        goes_on = self.prompter.case.mode == "multi_turn" and any(map(self._goes_on, group.questions))
        if not any(question.limit for question in group.questions):  # nothing is asked
            return list(self._following(group)) if goes_on else []
        # the model's own answers are no part of a conversation with gold ones
        before = self.contexts.fork(group) if goes_on and self.prompter.gold else None
        ended = self.contexts.generate(group, keep=goes_on and before is None)
        return [later for one in (ended if before is None else [before]) for later in self._following(one)]

    def _goes_on(self, question: Question) -> bool:
        """Whether the sample has another question after this one."""
        return question.turn + 1 < len(self.samples[question.row].turns)

    def _following(self, ended: Group) -> Iterable[Group]:
        """Feed the next question of rows that have answered; rows without one are dropped."""
        nexts = {
            row: self.prompter.following(self.samples[question.row], question)
            for row, question in enumerate(ended.questions)
        }
        questions = {row: question for row, question in nexts.items() if question is not None}
        for rows in alike(questions, lambda row: len(questions[row].ids)):
            yield self.contexts.go_on(ended, rows, [questions[row] for row in rows])


def alike(items: Iterable[int], length: Callable[[int], int]) -> list[list[int]]:
    """Items grouped by length, in the order of their first appearance."""
    groups: dict[int, list[int]] = {}
    for item in items:
        groups.setdefault(length(item), []).append(item)
    return list(groups.values())
