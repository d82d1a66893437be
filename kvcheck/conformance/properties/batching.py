"""Rows of a batch know nothing of each other."""

from __future__ import annotations

import torch

from kvcheck.cache.kv_cache import KVCache
from kvcheck.cache.view import FedCache
from kvcheck.conformance.base import property_test
from kvcheck.conformance.subject import NotServed, Subject, equal, fail, rows_of
from kvcheck.measure.memory import held


@property_test()
def a_row_of_a_batch_is_as_alone(subject: Subject) -> None:
    """What a row answers does not depend on the rows beside it, nor on whether it was seen before and they were not."""
    texts, rows = subject.texts(), range(subject.draw.rows)
    alone = {rows[-1]: _alone(subject, texts, rows[-1])}
    together = subject.life(*texts)
    alone |= {row: _alone(subject, texts, row) for row in rows[:-1]}
    for row in rows:
        equal(rows_of(together, [row]), alone[row], f"row {row} in the batch and alone")


def _alone(subject: Subject, texts: tuple[torch.Tensor, ...], row: int) -> list[torch.Tensor]:
    """The answers of one row."""
    prompt, follow, steps = (each[[row]] for each in texts)
    return subject.life(prompt, follow, steps)


@property_test()
def permuted_rows_give_permuted_answers(subject: Subject) -> None:
    """Rows in another order give the same answers in that order, also when they are permuted behind the prompt."""
    order = list(range(subject.draw.rows))[::-1]
    texts = subject.texts()
    forth, back = subject.life(*texts), subject.life(*(each[order] for each in texts))
    equal(back, rows_of(forth, order), "rows in another order")
    cache, _ = subject.prefill(texts[0])
    later = subject.feed(cache.select(order), texts[1][order])
    equal(later, forth[1][order], "rows permuted behind the prompt")


@property_test()
def rows_that_finish_early_leave_the_others_alone(subject: Subject) -> None:
    """Rows that go on behind a follow-up answer as if the others were still there."""
    if subject.draw.rows == 1:
        raise NotServed("one row cannot leave another")
    ids, follow, steps = subject.texts()
    cache, _ = subject.prefill(ids)
    subject.feed(cache, follow)
    for left in (list(range(1, subject.draw.rows)), list(range(subject.draw.rows - 1))):
        rest = cache.select(left)
        together = cache.select(range(subject.draw.rows))
        equal(subject.one_by_one(rest, steps[left]), subject.one_by_one(together, steps)[left], f"rows {left}")


@property_test()
def forks_do_not_disturb_each_other(subject: Subject) -> None:
    """Several questions on one context: each is answered as if it were the only one; the context stays as it was."""
    ids, follow, steps = subject.texts()
    cache, _ = subject.prefill(ids)
    forks = []
    for salt in (20, 30):
        fork = cache.select(range(subject.draw.rows))
        forks.append((fork, subject.feed(fork, subject.tokens(subject.draw.block, salt=salt))))
    for (fork, _), salt in zip(forks, (20, 30), strict=True):
        fresh, _ = subject.prefill(ids)
        subject.feed(fresh, subject.tokens(subject.draw.block, salt=salt))
        equal(subject.one_by_one(fork, steps), subject.one_by_one(fresh, steps), "a fork behind its question")
    fresh, _ = subject.prefill(ids)
    equal(subject.feed(cache, follow), subject.feed(fresh, follow), "the context behind its forks")


@property_test()
def beams_that_are_reordered_go_on_as_their_parents(subject: Subject) -> None:
    """Beam search: rows that are replaced by others, in place too, answer as if they had read the others' texts."""
    beams, parents = 3, [2, 2, 0]
    ids, words = subject.tokens(subject.draw.prompt, rows=beams), subject.tokens(subject.draw.block, rows=beams, salt=5)
    cache, _ = subject.prefill(ids)
    subject.one_by_one(cache, words)
    chosen = reordered(cache, parents)
    wanted, _ = subject.prefill(ids[parents])
    subject.one_by_one(wanted, words[parents])
    last = subject.tokens(subject.draw.steps, rows=beams, salt=6)
    equal(subject.one_by_one(chosen, last), subject.one_by_one(wanted, last), "beams behind a reordering")


def reordered(cache: FedCache, parents: list[int]) -> FedCache:
    """In place where the cache knows how to, as transformers does it."""
    reorder = getattr(cache, "reorder_cache", None)
    if reorder is None:
        return cache.select(parents)
    reorder(torch.tensor(parents))
    return cache


@property_test(share=0.5)
def rows_can_be_repeated_and_taken_out_in_place(subject: Subject) -> None:
    """transformers' own verbs for rows, repeat and select in place, do what select does."""
    ids, follow, _ = subject.texts()
    cache = subject.native(subject.prefill(ids)[0])
    rows = [row for row in range(subject.draw.rows) for _ in range(2)]
    wide, wanted = cache.select(range(subject.draw.rows)), cache.select(rows)
    wide.batch_repeat_interleave(2)
    as_large(wide, wanted, "repeated rows")
    equal(subject.feed(wide, follow[rows]), subject.feed(wanted, follow[rows]), "repeated rows")
    left = [subject.draw.rows - 1]
    wanted = cache.select(left)
    cache.batch_select_indices(torch.tensor(left))
    as_large(cache, wanted, "rows taken out")
    equal(subject.feed(cache, follow[left]), subject.feed(wanted, follow[left]), "rows taken out")


def as_large(cache: KVCache, wanted: KVCache, what: str) -> None:
    """Raise Violation unless two caches hold as many bytes."""
    mine, theirs = held(cache).kv, held(wanted).kv
    if mine != theirs:
        fail(f"{what} hold {mine:,} bytes, selected they hold {theirs:,}")
