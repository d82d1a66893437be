"""The three modes: how the questions of a block of contexts meet the method's cache.

- `single`: the first question of every sample; context and question are one prompt when the cache is compressed.
- `multi_turn`: turn 1 likewise; every later question goes on in the same cache, after the model's own answer, or with
  `Prompter.gold` after the right one, where the model's has never been in the cache.
- `multi_request`: the context alone is compressed; every question starts from a fork of that cache.

`query_aware` turned around: a question that is not visible at compression is fed through the compressed cache; one that
is, in multi_request, makes a prompt of its own of context and question. The dense part of a prompt is never run twice.
Rows are fed together where their lengths agree, so nothing is padded and batching changes no answer.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from kvcheck.backends.transformers import drift
from kvcheck.backends.transformers.decode import Group, decode
from kvcheck.backends.transformers.guard import Guard
from kvcheck.backends.transformers.prefill import Dense, Prefiller
from kvcheck.cache.host import Host
from kvcheck.cache.shape import Prefilled
from kvcheck.runner.prompts import Ask, Prompter
from kvcheck.tasks.base import Sample

Watch = Callable[[Any, Sequence[Prefilled], Sequence[int]], None]
"""Called with a freshly compressed cache, the dense prompt that it was made from, and the context of each row."""


@dataclass
class Block:
    """Some contexts of equal length on their way through one method.

    ids: (B, n) contexts. most: rows that are fed together at most. watch: looks at every freshly compressed cache.
    apart: for every reference answer, how far a log-probability is from the full cache's.
    """

    prefiller: Prefiller
    prompter: Prompter
    host: Host
    guard: Guard
    watch: Watch
    key: Hashable
    ids: torch.Tensor
    samples: list[Sample]
    aware: bool
    most: int
    apart: list[float] = field(default_factory=list)

    @cached_property
    def dense(self) -> Dense:
        """The shared prefill of the contexts."""
        return self.prefiller.context(self.key, self.ids, "queries" in self.host.method.info.needs)

    def run(self) -> list[list[Ask]]:
        """Answer everything -> the questions of every sample, in order."""
        mode = self.prompter.case.mode
        turns = [range(len(sample.turns)) if mode == "multi_request" else range(1) for sample in self.samples]
        asks = [
            self.prompter.first(sample, row, turn) for row, sample in enumerate(self.samples) for turn in turns[row]
        ]
        groups = self._open(asks)
        done: list[Ask] = []
        while groups:
            waiting: list[Group] = []
            for group in groups:
                done += group.asks
                self._drift(group)
                keep = mode == "multi_turn" and any(self._goes_on(ask) for ask in group.asks)
                asked = self._asked(group) if keep and self.prompter.gold else None
                ended = decode(self.host, group, self.prompter.encoder.eos, self.guard, keep and asked is None)
                for one in ended if asked is None else [asked]:
                    waiting += self._following(one)
            self._prepare([ask for group in waiting for ask in group.asks], kv=False)
            groups = waiting
        by_row: list[list[Ask]] = [[] for _ in self.samples]
        for ask in sorted(done, key=lambda ask: ask.turn):
            by_row[ask.row].append(ask)
        return by_row

    def _asked(self, group: Group) -> Group:
        """A fork of a group before it answers: the model's own answers are no part of a conversation with gold ones."""
        with self.guard("forking a conversation (select)"):
            return Group(group.cache.select(range(len(group.asks))), group.asks, group.logits)

    def _goes_on(self, ask: Ask) -> bool:
        """Whether the sample has another question after this one."""
        return ask.turn + 1 < len(self.samples[ask.row].turns)

    def _following(self, ended: Group) -> Iterable[Group]:
        """Feed the next question of rows that have answered; rows without one are dropped."""
        nexts = {row: self.prompter.following(self.samples[ask.row], ask) for row, ask in enumerate(ended.asks)}
        asks = {row: ask for row, ask in nexts.items() if ask is not None}
        for rows in _alike(asks, lambda row: len(asks[row].ids)):
            with self.guard("continuing a conversation"):
                group = self._fed(ended.split(rows), [asks[row] for row in rows])
            yield group

    # -- the first question --------------------------------------------------------------------------------------------

    def _open(self, asks: list[Ask]) -> Iterable[Group]:
        """Groups of questions of equal length with the compressed cache behind them and the logits to answer from."""
        alike = _alike(range(len(asks)), lambda at: len(asks[at].ids))
        parts = [part[start : start + self.most] for part in alike for start in range(0, len(part), self.most)]
        self._prepare(asks, kv=self.aware)
        shares = self.host.method.info.shares_prefill
        if self.aware:
            open_part = self._open_aware if shares else self._open_alone
        else:
            compressed = self._compressed(self._all(), self.dense.layers, self._contexts()) if shares else self._alone()

            def open_part(asks: list[Ask]) -> Group:
                return self._forked(compressed, asks)

        for part in parts:
            yield open_part([asks[at] for at in part])

    def _open_aware(self, asks: list[Ask]) -> Group:
        """Context and question as one dense prompt, then compressed; its logits give the first token of the answer."""
        tails = self.prefiller.tails(self.dense, asks, kv=True)
        prompt = self.prefiller.joined(self.dense, asks, tails)
        cache = self._compressed([_copy(layer) for layer in prompt], prompt, self._contexts(asks))
        return Group(cache, asks, torch.stack([tail.logits for tail in tails]))

    def _open_alone(self, asks: list[Ask]) -> Group:
        """For a method that does not prefill like the full cache: its own forward over context and question."""
        contexts = self.ids[[ask.row for ask in asks]]
        questions = torch.tensor([ask.ids for ask in asks], device=contexts.device)
        cache, logits = self._prefilled(torch.cat([contexts, questions], dim=1))
        tails = self.prefiller.tails(self.dense, asks, kv=True)
        self.watch(cache, self.prefiller.joined(self.dense, asks, tails), self._contexts(asks))
        return Group(cache, asks, logits)

    def _alone(self) -> Any:
        """The same for the contexts by themselves, once for all of their questions."""
        cache, _ = self._prefilled(self.ids)
        self.watch(cache, self.dense.layers, self._contexts())
        return cache

    def _prefilled(self, fed: torch.Tensor) -> tuple[Any, torch.Tensor]:
        """The method's own prefill of token ids (R, n): its cache, and the logits (R, V) behind them."""
        with self.guard("prefilling"):
            cache, logits = self.host.prefill(fed)
        self.prefiller.forwards += len(fed)
        return cache, logits

    def _all(self) -> list[Prefilled]:
        """Copies of all dense contexts."""
        return self.dense.select(range(len(self.samples)))

    def _forked(self, compressed: Any, asks: list[Ask]) -> Group:
        """Questions that start from the compressed context."""
        with self.guard("reading a question"):
            return self._fed(compressed.select([ask.row for ask in asks]), asks)

    def _contexts(self, asks: Sequence[Ask] | None = None) -> list[int]:
        """The index of the context of each question, by default of every context."""
        rows = range(len(self.samples)) if asks is None else [ask.row for ask in asks]
        return [self.samples[row].index for row in rows]

    def _compressed(self, prompt: list[Prefilled], pristine: list[Prefilled], contexts: list[int]) -> Any:
        """The method's cache of a dense prompt, which it may write to, compared with a pristine copy of that."""
        with self.guard("compressing"):
            cache = self.host.build()
            cache.absorb(prompt)
        self.watch(cache, pristine, contexts)
        return cache

    def _fed(self, cache: Any, asks: list[Ask]) -> Group:
        """Feed questions of equal length."""
        ids = torch.tensor([ask.ids for ask in asks], device=self.ids.device)
        return Group(cache, asks, self.host.feed(cache, ids)[:, -1])

    # -- the full cache beside it --------------------------------------------------------------------------------------

    def _prepare(self, asks: list[Ask], kv: bool) -> None:
        """Run all first questions through the full cache in as few forwards as the row limit allows."""
        wanted = [ask for ask in asks if kv or ask.reference]
        for start in range(0, len(wanted), self.most):
            self.prefiller.tails(self.dense, wanted[start : start + self.most], kv)

    def _drift(self, group: Group) -> None:
        """Measure the drift of a group whose questions are in the cache and whose answers are not."""
        asks = [ask for ask in group.asks if ask.reference]
        if not asks:
            return
        dense = [tail.log_probs for tail in self.prefiller.tails(self.dense, asks, kv=False)]
        if self.host.method.name() == "fp16":
            for ask, log_probs in zip(asks, dense, strict=True):
                drift.fill(ask, log_probs, None)
            return
        rows = [row for row, ask in enumerate(group.asks) if ask.reference]
        evicts = self.host.method.info.evicts_in_decode
        for part in _alike(range(len(rows)), lambda at: len(asks[at].reference) if evicts else 0):
            own = self._forced(group, [rows[at] for at in part])
            for at, log_probs in zip(part, own, strict=True):
                self.apart.append(drift.fill(asks[at], dense[at], log_probs))

    def _forced(self, group: Group, rows: list[int]) -> list[torch.Tensor]:
        """The method's log-probabilities (A + 1, V) before each reference token and behind the last.

        From a fork that is dropped afterwards. Shorter references are filled up at their end, which a method that does
        not evict while decoding does not see.
        """
        asks = [group.asks[row] for row in rows]
        first = group.logits[rows][:, None]
        fed = drift.padded([ask.reference for ask in asks], first.device)
        with self.guard("reading the reference answer"):
            rest = self.host.feed(group.cache.select(rows), fed, fed.shape[1])
        logits = torch.cat([first, rest], dim=1)
        parts = [logits[at, : len(ask.reference) + 1] for at, ask in enumerate(asks)]
        for part in parts:
            self.guard.pick(part)
        return [drift.log_probs(part) for part in parts]


def _copy(layer: Prefilled) -> Prefilled:
    """A copy of the keys and values; the queries are shared with nothing that outlives the compression."""
    return Prefilled(layer.keys.clone(), layer.values.clone(), layer.queries, layer.scaling)


def _alike(items: Iterable[int], length: Callable[[int], int]) -> list[list[int]]:
    """Items grouped by length, in the order of their first appearance."""
    groups: dict[int, list[int]] = {}
    for item in items:
        groups.setdefault(length(item), []).append(item)
    return list(groups.values())
