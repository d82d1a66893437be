"""Some contexts on their way through one method: compressed, forked, asked, answered.

The dense part of a prompt is never run twice. Rows are fed together where their lengths agree, so nothing is padded and
batching changes no answer. In which order what is asked: kvcheck/runner/modes.py.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch

from kvcheck.backends.transformers import drift
from kvcheck.backends.transformers.guard import Guard
from kvcheck.backends.transformers.prefill import Dense, Prefiller
from kvcheck.cache.kv_cache import KVCache
from kvcheck.cache.method_runner import MethodRunner
from kvcheck.cache.shape import Prefilled
from kvcheck.cache.view import FedCache
from kvcheck.runner.modes import alike
from kvcheck.runner.seam import Drift, Question


@dataclass
class Group:
    """Rows that are fed together. cache: the method's, one row per question. logits (R, V) give their next tokens."""

    cache: FedCache
    questions: list[Question]
    logits: torch.Tensor

    def split(self, rows: list[int]) -> FedCache:
        """The cache of these rows: itself where that is all of them, else a copy."""
        return self.cache if len(rows) == len(self.questions) else self.cache.select(rows)


Watch = Callable[[FedCache, Sequence[Prefilled], Sequence[int]], None]
"""Called with a freshly compressed cache, the dense prefill that it was made from, and the context of each row."""
Ended = Callable[[FedCache, int, Sequence[int], Sequence[int], int], None]
"""Called with a cache, its rows, those of them that have just ended, the context of each, and the tokens fed to it."""


@dataclass
class Contexts:
    """Contexts of equal length with one method.

    ids: (B, n) contexts; indices: of their samples. aware: the question is in the prompt that is compressed. most: rows
    that are fed together at most. watch: looks at every freshly compressed cache, ended at rows that have answered.
    eos: ids that end an answer. apart: for every reference answer, how far a log-probability is from the full cache's.
    """

    prefiller: Prefiller
    runner: MethodRunner
    guard: Guard
    watch: Watch
    ended: Ended
    key: Hashable
    ids: torch.Tensor
    indices: tuple[int, ...]
    aware: bool
    most: int
    eos: frozenset[int]
    apart: list[float] = field(default_factory=list)

    @cached_property
    def dense(self) -> Dense:
        """The shared prefill of the contexts."""
        return self.prefiller.context(self.key, self.ids, "queries" in self.runner.method.info.needs)

    @cached_property
    def compressed(self) -> FedCache:
        """The method's cache of the contexts by themselves, once for all of their questions."""
        if self.runner.method.info.shares_prefill:
            every = self.dense.select(range(len(self.indices)))
            with self._fresh(self.dense.layers, self.indices) as cache:
                cache.absorb(every)
            return cache
        own, _ = self._prefilled(self.ids)
        self.watch(own, self.dense.layers, self.indices)
        return own

    def again(self, row: int, shift: int) -> FedCache:
        """One of the contexts through the method once more.

        Where the method feeds the prompt itself, its tokens begin `shift` places later: a store of prompts has not seen
        them. What images show stays where it is.
        """
        with self.guard("taking a prompt again"):
            if self.runner.method.info.shares_prefill:
                cache = self.runner.build()
                cache.absorb(self.dense.select([row]))
                return cache
            text = self.runner.loaded.vision is None
            prefilled, _ = self.runner.prefill(self.ids[row : row + 1].roll(-shift if text else 0, 1))
            return prefilled  # type: ignore[no-any-return]  # what a runner feeds is its own affair

    def expect(self, questions: Sequence[Question], opening: bool) -> None:
        """Run questions through the full cache in as few forwards as the row limit allows."""
        kv = opening and self.aware
        wanted = [question for question in questions if kv or question.reference]
        for start in range(0, len(wanted), self.most):
            self.prefiller.tails(self.dense, wanted[start : start + self.most], kv=kv)

    def ask(self, questions: list[Question]) -> Group:
        """Questions of equal length with the compressed cache behind them and the logits to answer from.

        Context and question as one dense prompt, then compressed, which gives the logits; or from a fork of the
        compressed context.
        """
        if not self.aware:
            compressed = self.compressed
            with self.guard("reading a question"):
                return self._fed(compressed.select([question.row for question in questions]), questions)
        if not self.runner.method.info.shares_prefill:
            return self._ask_alone(questions)
        tails = self.prefiller.tails(self.dense, questions, kv=True)
        prefill = self.prefiller.joined(self.dense, questions, tails)
        copies = [_copy(layer) for layer in prefill]
        with self._fresh(prefill, self._contexts(questions)) as cache:
            cache.absorb(copies)
        return Group(cache, questions, torch.stack([tail.logits for tail in tails]))

    def fork(self, group: Group) -> Group:
        """A copy of a group before it answers."""
        with self.guard("forking a conversation (select)"):
            return Group(group.cache.select(range(len(group.questions))), group.questions, group.logits)

    def generate(self, group: Group, keep: bool) -> list[Group]:
        """Answer every question of the group."""
        return decode(self.runner, group, self.eos, self.guard, keep, self._weigh)

    def _weigh(self, group: Group, rows: list[int]) -> None:
        """Weigh rows of a group that have answered."""
        questions = [group.questions[row] for row in rows]
        first = questions[0]
        tokens = self.ids.shape[1] + len(first.tail) + len(first.answer) - len(first.pending)  # alike in all of them
        self.ended(group.cache, len(group.questions), rows, self._contexts(questions), tokens)

    def go_on(self, group: Group, rows: list[int], questions: list[Question]) -> Group:
        """Feed the next questions, of equal length, of these rows."""
        with self.guard("continuing a conversation"):
            return self._fed(group.split(rows), questions)

    # -- the method's cache --------------------------------------------------------------------------------------------

    def _ask_alone(self, questions: list[Question]) -> Group:
        """For a method that does not prefill like the full cache: its own forward over context and question."""
        contexts = self.ids[[question.row for question in questions]]
        asked = torch.tensor([question.ids for question in questions], device=contexts.device)
        cache, logits = self._prefilled(torch.cat([contexts, asked], dim=1))
        tails = self.prefiller.tails(self.dense, questions, kv=True)
        self.watch(cache, self.prefiller.joined(self.dense, questions, tails), self._contexts(questions))
        return Group(cache, questions, logits)

    def _prefilled(self, fed: torch.Tensor) -> tuple[FedCache, torch.Tensor]:
        """The method's own prefill of token ids (R, n): its cache, and the logits (R, V) behind them."""
        with self.guard("prefilling"):
            cache, logits = self.runner.prefill(fed)
        self.prefiller.forwards += len(fed)
        return cache, logits

    def _contexts(self, questions: Sequence[Question]) -> list[int]:
        """The index of the context of each question."""
        return [self.indices[question.row] for question in questions]

    @contextmanager
    def _fresh(self, prefill: list[Prefilled], contexts: Sequence[int]) -> Iterator[KVCache]:
        """The method's cache, to be filled with copies of a dense prefill, with which it is compared then."""
        with self.guard("compressing"):
            cache = self.runner.build()
            yield cache
        self.watch(cache, prefill, contexts)

    def _fed(self, cache: FedCache, questions: list[Question]) -> Group:
        """Feed questions of equal length."""
        ids = torch.tensor([question.ids for question in questions], device=self.ids.device)
        return Group(cache, questions, self.runner.feed(cache, ids)[:, -1])

    # -- the full cache beside it --------------------------------------------------------------------------------------

    def drift(self, group: Group) -> list[Drift]:
        """The drift of a group whose questions are in the cache and whose answers are not."""
        rows = [row for row, one in enumerate(group.questions) if one.reference]
        found = [Drift()] * len(group.questions)
        for row, one in zip(rows, self._drifts(group, rows), strict=True):
            found[row] = one
        for row, rank in self._ranks(group).items():
            found[row] = replace(found[row], rank=rank)
        return found

    def _drifts(self, group: Group, rows: list[int]) -> list[Drift]:
        """Of the questions in these rows, which have a reference."""
        questions, found = [group.questions[row] for row in rows], [Drift()] * len(rows)
        dense = [tail.log_probs for tail in self.prefiller.tails(self.dense, questions, kv=False)] if rows else []
        if self.runner.method.name() == "fp16":
            return [
                drift.between(question.reference, log_probs, None)[0]
                for question, log_probs in zip(questions, dense, strict=True)
            ]
        for part in self._forcible([question.reference for question in questions]):
            own = self._forced(group, [rows[at] for at in part], [questions[at].reference for at in part])
            for at, log_probs in zip(part, own, strict=True):
                found[at], apart = drift.between(questions[at].reference, dense[at], log_probs)
                self.apart.append(apart)
        return found

    def _ranks(self, group: Group) -> dict[int, int]:
        """By row, the rank of the reference among the answers that it is to be compared with, by likelihood."""
        asked = [(row, one) for row, each in enumerate(group.questions) for one in (each.reference, *each.others)]
        asked = [(row, one) for row, one in asked if group.questions[row].others]
        likely = [0.0] * len(asked)
        for part in self._forcible([one for _, one in asked]):
            for start in range(0, len(part), self.most):
                some = part[start : start + self.most]
                own = self._forced(group, [asked[at][0] for at in some], [asked[at][1] for at in some])
                for at, log_probs in zip(some, own, strict=True):
                    likely[at] = drift.likelihood(asked[at][1], log_probs)
        by: dict[int, list[float]] = {}
        for (row, _), value in zip(asked, likely, strict=True):
            by.setdefault(row, []).append(value)
        return {row: 1 + sum(other > mine for other in others) for row, (mine, *others) in by.items()}

    def _forcible(self, answers: Sequence[tuple[int, ...]]) -> list[list[int]]:
        """Which answers can be fed together: those of one length, where later tokens may drive out earlier ones."""
        evicts = self.runner.method.info.evicts_in_decode
        return alike(range(len(answers)), lambda at: len(answers[at]) if evicts else 0)

    def _forced(self, group: Group, rows: list[int], answers: list[tuple[int, ...]]) -> list[torch.Tensor]:
        """The method's log-probabilities (A + 1, V) before each token of an answer in each row, and behind the last.

        From a fork that is dropped afterwards. Shorter answers are filled up at their end, which a method that does
        not evict while decoding does not see.
        """
        first = group.logits[rows][:, None]
        fed = drift.padded(answers, first.device)
        with self.guard("reading the reference answer"):
            rest = self.runner.feed(group.cache.select(rows), fed, fed.shape[1])
        logits = torch.cat([first, rest], dim=1)
        parts = [logits[at, : len(answer) + 1] for at, answer in enumerate(answers)]
        for part in parts:
            self.guard.pick(part)
        return [drift.log_probs(part) for part in parts]


def _copy(layer: Prefilled) -> Prefilled:
    """A copy of the keys and values; the queries are shared with nothing that outlives the compression."""
    return Prefilled(layer.keys.clone(), layer.values.clone(), layer.queries, layer.scaling)


def decode(
    runner: MethodRunner,
    group: Group,
    eos: frozenset[int],
    guard: Guard,
    keep: bool,
    ended_here: Callable[[Group, list[int]], None],
) -> list[Group]:
    """Answer every question of the group, up to its limit or an end token, which is not written to the cache.

    A row that has ended leaves the batch: nothing is written to it any more. keep: return the rows that ended, with
    their caches, in groups that ended together; else their caches are dropped. ended_here: told of the rows that do.
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
            done = [row for row in range(len(tokens)) if row not in going]
            ended_here(group, done)
            with guard("leaving the batch (select)"):
                if keep:
                    ended.append(Group(group.split(done), [group.questions[row] for row in done], group.logits[done]))
                if not going:
                    return ended
                group = Group(group.split(going), [group.questions[row] for row in going], group.logits)
        fed = torch.tensor([[tokens[row]] for row in going], device=group.logits.device)
        with guard("decoding"):
            group = Group(group.cache, group.questions, runner.feed(group.cache, fed)[:, -1])
