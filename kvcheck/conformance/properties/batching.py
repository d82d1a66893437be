"""Rows of a batch know nothing of each other."""

from __future__ import annotations

import torch

from kvcheck.cache.kv_cache import KVCache
from kvcheck.cache.view import FedCache
from kvcheck.conformance.base import property_test
from kvcheck.conformance.others import chosen, is_foreign, twin, verb
from kvcheck.conformance.subject import NotServed, Subject, equal, fail, rows_of
from kvcheck.measure.memory import held


@property_test()
def a_row_of_a_batch_is_as_alone(subject: Subject) -> None:
    """What a row answers does not depend on the rows beside it, nor on whether it was seen before and they were not."""
    texts, rows = subject.texts(rows=subject.several), range(subject.several)
    alone = {rows[-1]: _alone(subject, texts, rows[-1])}
    together = subject.life(*texts, runner=subject.together)
    alone |= {row: _alone(subject, texts, row) for row in rows[:-1]}
    for row in rows:
        equal(rows_of(together, [row]), alone[row], f"row {row} in the batch and alone")


def _alone(subject: Subject, texts: tuple[torch.Tensor, ...], row: int) -> list[torch.Tensor]:
    """The answers of one row."""
    prompt, follow, steps = (each[[row]] for each in texts)
    return subject.life(prompt, follow, steps, runner=subject.together)


@property_test()
def permuted_rows_give_permuted_answers(subject: Subject) -> None:
    """Rows in another order give the same answers in that order, also when they are permuted behind the prompt."""
    order = list(range(subject.several))[::-1]
    texts, runner = subject.texts(rows=subject.several), subject.together
    forth, back = subject.life(*texts, runner=runner), subject.life(*(each[order] for each in texts), runner=runner)
    equal(back, rows_of(forth, order), "rows in another order")
    cache, _ = subject.prefill(texts[0], runner)
    later = subject.feed(chosen(cache, order), texts[1][order], runner)
    equal(later, forth[1][order], "rows permuted behind the prompt")


@property_test()
def rows_that_finish_early_leave_the_others_alone(subject: Subject) -> None:
    """Rows that go on behind a follow-up answer as if the others were still there."""
    rows, runner = subject.several, subject.together
    if rows == 1:
        raise NotServed("one row cannot leave another")
    ids, follow, steps = subject.texts(rows=rows)
    cache, _ = subject.prefill(ids, runner)
    subject.feed(cache, follow, runner)
    for left in (list(range(1, rows)), list(range(rows - 1))):
        rest, together = chosen(cache, left), twin(cache, rows)
        mine, wanted = subject.one_by_one(rest, steps[left], runner), subject.one_by_one(together, steps, runner)
        equal(mine, wanted[left], f"rows {left}")


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
    beams, parents, runner = 3, [2, 2, 0], subject.together
    ids, words = subject.tokens(subject.draw.prompt, rows=beams), subject.tokens(subject.draw.block, rows=beams, salt=5)
    cache, _ = subject.prefill(ids, runner)
    _written(subject, cache, words)
    reordered_cache = reordered(cache, parents)
    wanted, _ = subject.prefill(ids[parents], runner)
    _written(subject, wanted, words[parents])
    last = subject.tokens(subject.draw.steps, rows=beams, salt=6)
    mine, theirs = (subject.one_by_one(each, last, runner) for each in (reordered_cache, wanted))
    equal(mine, theirs, "beams behind a reordering")


SINGLE = 5
"""Words of a beam that come one by one, as a search feeds them; those before come together, which takes less time."""


def _written(subject: Subject, cache: FedCache, words: torch.Tensor) -> None:
    """Feed the words (R, q) of beams."""
    before, single = words[:, :-SINGLE], words[:, -SINGLE:]
    if before.shape[1]:
        subject.feed(cache, before, subject.together)
    subject.one_by_one(cache, single, subject.together)


def reordered(cache: FedCache, parents: list[int]) -> FedCache:
    """In place where the cache knows how to, as transformers does it."""
    reorder = getattr(cache, "reorder_cache", None)
    if reorder is None:
        return cache.select(parents)
    with verb(cache, "reorder_cache"):
        reorder(torch.tensor(parents))
    return cache


@property_test(share=0.5)
def rows_can_be_repeated_and_taken_out_in_place(subject: Subject) -> None:
    """transformers' own verbs for rows, repeat and select in place, do what select does."""
    if is_foreign(subject):
        return _changed_by_their_own_verbs(subject)
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
    return equal(subject.feed(cache, follow[left]), subject.feed(wanted, follow[left]), "rows taken out")


def _changed_by_their_own_verbs(subject: Subject) -> None:
    """The same of a foreign cache, whose rows nothing else can change."""
    rows, runner = subject.several, subject.together
    ids, follow, _ = subject.texts(rows=rows)
    cache, _ = subject.prefill(ids, runner)
    wanted = subject.feed(twin(cache, rows), follow, runner)
    tried, lacking = 0, ""
    for name, argument, given in (
        ("batch_repeat_interleave", 2, [row for row in range(rows) for _ in range(2)]),
        ("batch_select_indices", torch.tensor([rows - 1]), [rows - 1]),
    ):
        changed = twin(cache, rows)
        try:
            with verb(changed, name):
                getattr(changed, name)(argument)
        except NotServed as reason:
            lacking = str(reason)
            continue
        equal(subject.feed(changed, follow[given], runner), wanted[given], f"rows behind {name}")
        tried += 1
    if not tried:
        raise NotServed(lacking)


def as_large(cache: KVCache, wanted: KVCache, what: str) -> None:
    """Raise Violation unless two caches hold as many bytes."""
    mine, theirs = held(cache).kv, held(wanted).kv
    if mine != theirs:
        fail(f"{what} hold {mine:,} bytes, selected they hold {theirs:,}")
