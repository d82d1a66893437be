"""Who measures what: all cases of one set of contexts, with all methods, go to one worker, which prefills them once.

A *group* is the cases of one model, task, length and seed, which share their contexts, with every method of the grid.
One worker has it at a time, unless others have nothing to do: those take a part of its methods and prefill once more.
It measures block by block: the first contexts with every method and mode, then the next
ones; so no more than one block of prefills need be kept, however many contexts a case has. What is done of a case
travels with the next block, and a record so far is written down as it comes: nothing but the block in work dies with a
worker, and its group goes on at another one. No number depends on who measures what: contexts are generated from seed
and index, and a worker is told what the case has so far.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from kvcheck.core.errors import KvcheckError
from kvcheck.core.record import CaseId
from kvcheck.plugin.state import DEATHS
from kvcheck.sweep.book import Book
from kvcheck.sweep.pools import Pool
from kvcheck.sweep.worker import Done, Job

Entry = tuple[CaseId, str]
"""A case with a method."""
WORTH = 4
"""Contexts that must be left of what an idle worker takes from another one: it prefills them again."""


@dataclass
class Group:
    """Entries that share their contexts. left: those that are not over. late: those of which workers died, or that
    failed before: they come last, and cost the others nothing."""

    book: Book
    left: list[Entry]
    late: set[Entry] = field(default_factory=set)

    @property
    def size(self) -> int:
        """Tokens of context, about, that are left to prefill."""
        case = self.left[0][0]
        return case.length * case.n

    def part(self, busy: Entry | None) -> Group | None:
        """Every second entry that nobody is at, as a group of its own where enough is left; they leave this one."""
        taken = [entry for entry in self.left if entry != busy][::2]
        if sum(case.n - self.book.done(case, method) for case, method in taken) < WORTH:
            return None
        self.left = [entry for entry in self.left if entry not in taken]
        return Group(self.book, taken, self.late.intersection(taken))

    def next(self) -> Entry:
        """The entry of which least contexts are done, the late ones last."""
        return min(self.left, key=lambda entry: (entry in self.late, self.book.done(*entry)))


def groups(books: Iterable[Book]) -> list[Group]:
    """What is left to measure, of each model the largest first, so that no large group begins when others end. What
    failed before comes last."""
    found: list[Group] = []
    for book in books:
        mine: dict[tuple[str, int, int, int], Group] = {}
        for case, method in book.left():
            key = (case.task, case.version, case.length, case.seed)
            group = mine.setdefault(key, Group(book, []))
            group.left.append((case, method))
            if book.failed_before(case, method):
                group.late.add((case, method))
        found += sorted(mine.values(), key=lambda group: (len(group.late) == len(group.left), -group.size))
    return found


@dataclass
class Schedule:
    """Gives groups to workers until none is left. heard: called with what a worker has done, before it gets more.
    died: called with how a worker died, and in what, if in something. refused: with the model that a worker could not
    open, and how many entries failed by it.

    held: the group that each worker has; models: the one that it had last. deaths: of workers, by model and entry.
    """

    waiting: list[Group]
    heard: Callable[[int, Group, Entry, Done], None] = lambda *_: None
    died: Callable[[int, Group | None, Entry | None, str], None] = lambda *_: None
    refused: Callable[[Book, int], None] = lambda *_: None
    held: dict[int, Group] = field(default_factory=dict)
    models: dict[int, Book] = field(default_factory=dict)
    working: dict[int, Entry] = field(default_factory=dict)
    deaths: Counter[tuple[str, Entry]] = field(default_factory=Counter)

    def run(self, pool: Pool) -> None:
        """Measure everything. Raises KvcheckError where no worker is left."""
        while self.waiting or self.held:
            for slot in sorted(pool.idle, key=lambda slot: (slot not in self.held, slot)):
                if not self._give(pool, slot):
                    break  # nothing for this one, nothing for those behind it
            for slot, done in pool.wait():
                if done is None:
                    self._bury(slot, pool.ended[slot])
                else:
                    self._take(slot, done)

    def _give(self, pool: Pool, slot: int) -> bool:
        """The next block of its group, or a group; False where there is none."""
        group = self.held.get(slot) or self._choose(slot)
        if group is None:
            return False
        self.held[slot], self.models[slot] = group, group.book
        case, method = self.working[slot] = group.next()
        pool.submit(slot, Job(group.book.settings, case, method, group.book.so_far(case, method)))
        return True

    def _choose(self, slot: int) -> Group | None:
        """A group of the model that the worker holds, else of the one that has most groups for each of its workers;
        where none waits, a part of the largest group that somebody has."""
        if not self.waiting:
            return self._part()
        mine = [group for group in self.waiting if group.book is self.models.get(slot)]
        if not mine:
            count = Counter(group.book.path for group in self.waiting)
            at = Counter(group.book.path for group in self.held.values())
            mine = [max(self.waiting, key=lambda group: count[group.book.path] / (1 + at[group.book.path]))]
        self.waiting.remove(mine[0])
        return mine[0]

    def _part(self) -> Group | None:
        """A part of a group that another worker has."""
        largest = sorted(self.held.items(), key=lambda pair: -sum(case.n for case, _ in pair[1].left))
        parts = (group.part(self.working.get(slot)) for slot, group in largest)
        return next((part for part in parts if part is not None), None)

    def _bury(self, slot: int, how: str) -> None:
        """A worker died: its group waits for another one. A case in which workers keep dying is given up."""
        group, entry = self.held.pop(slot, None), self.working.pop(slot, None)
        self.models.pop(slot, None)
        if group is not None and entry is not None and group.book.refused is None:
            name = (group.book.settings.model, entry)
            self.deaths[name] += 1
            group.late.add(entry)
            if self.deaths[name] >= DEATHS:
                why = f"{entry[1]} was given up in {entry[0]}: {DEATHS} workers died in it, the last one: {how}"
                group.book.failed(*entry, why)
                group.left.remove(entry)
        if group is not None and group.left:
            self.waiting.insert(0, group)
        counted = group is not None and group.book.refused is None
        self.died(slot, group if counted else None, entry, how)

    def _take(self, slot: int, done: Done) -> None:
        """Write down what a worker has done."""
        group, entry = self.held.get(slot), self.working.pop(slot, None)
        if group is None or entry is None:
            return
        if done.refused is not None or group.book.refused is not None:
            self.held.pop(slot)
            self.models.pop(slot, None)
            if group.book.refused is None and done.refused is not None:
                self._refuse(group.book, KvcheckError(*done.refused))
            return
        if group.book.take(*entry, done):
            group.left.remove(entry)
        self.heard(slot, group, entry, done)
        if not group.left:
            del self.held[slot]

    def _refuse(self, book: Book, why: KvcheckError) -> None:
        """A model cannot be opened: the others go on. What workers are at of it is not taken any more."""
        self.waiting = [group for group in self.waiting if group.book is not book]
        for slot, group in list(self.held.items()):
            if group.book is book:
                group.left = []
                if slot not in self.working:
                    del self.held[slot]
        self.refused(book, len(book.refuse(why)))
