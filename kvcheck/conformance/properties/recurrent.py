"""Models that carry a state of fixed size, beside layers with full attention or alone: the state is the sequence's own.

Tried on small models of models.STATES, whatever architecture was drawn; a method acts on the layers with full
attention. No way of feeding them here takes padding: rows run one by one, so a row has none on either side.
"""

from __future__ import annotations

import copy
import functools

import torch

from kvcheck.cache.method import Lossless, MethodInfo
from kvcheck.cache.method_runner import MethodRunner
from kvcheck.cache.states import StateRunner, serve
from kvcheck.conformance.base import property_test
from kvcheck.conformance.models import STATES, small
from kvcheck.conformance.subject import NotServed, Subject, equal
from kvcheck.core.errors import KvcheckError, MethodUnsupported
from kvcheck.methods import make
from kvcheck.models.loading import LoadedModel

LONGEST = 128
"""Tokens of a prompt: a state is as wrong behind a short text as behind a long one."""
STEPS = 4
"""Tokens fed one by one at most: as many as the short convolutions see, which then hold nothing else."""
SINGLE = 6
"""Tokens of a follow-up that come one by one, behind those that come together."""
REMAINDERS = (1, 2, 3)
"""Tokens that follow a state that is shared: fewer than its short convolution sees, which is how it is cut wrongly."""


class Carrying(Subject):
    """The method of a subject on a small model with states: one that it serves, by the lengths of the trial."""

    def __init__(self, subject: Subject) -> None:
        vars(self).update(vars(subject))
        served, refusal = _served(self.spec)
        if not served:
            raise NotServed(refusal)
        self.loaded = small(served[(self.draw.prompt + self.draw.block) % len(served)])  # a second opinion: the same
        self.shape = self.loaded.shape
        self.runner = self.new_runner()
        self.method = self.runner.method

    def new_runner(self, spec: str | None = None) -> MethodRunner:
        """A fresh method on the model."""
        return _runner(spec or self.spec, self.loaded)


def _runner(spec: str, loaded: LoadedModel) -> MethodRunner:
    """A method at home on a model, as the engine sets it up. Raises MethodUnsupported."""
    method = make(spec)
    serve(method, loaded)
    method.check(loaded.shape)
    runner = method.runner(loaded)
    if not isinstance(runner, StateRunner):
        raise MethodUnsupported(f"{method.spec} feeds the model in its own way, without the states that it carries")
    return runner


@functools.cache
def _served(spec: str) -> tuple[list[str], str]:
    """The small models with states that a method serves; why not the first one, "" where it does. Asked once."""
    refusals = {kind: _refusal(spec, kind) for kind in STATES}
    return [kind for kind, why in refusals.items() if not why], next(iter(refusals.values()))


def _refusal(spec: str, kind: str) -> str:
    """Why a method does not serve a small model with states, "" where it does."""
    try:
        _runner(spec, small(kind))
    except MethodUnsupported as error:
        return str(error)
    except KvcheckError as error:  # the model itself, with an older transformers
        return f"no small model with states: {error}"
    return ""


def _one_by_one(info: MethodInfo) -> str:
    """Why a block may differ from its tokens, "" where it may not."""
    return info.exempt.get("a_block_is_its_tokens_one_by_one", "")


@property_test(skip_reason=_one_by_one, longest=LONGEST, steps=STEPS, share=0.5)
def a_state_goes_on_in_several_pieces(subject: Subject) -> None:
    """On a model with states, a follow-up in one piece is the same in two and with its last tokens one by one.

    For what loses nothing, all of the text in one piece is the same too.
    """
    subject = Carrying(subject)
    ids, follow, steps = subject.texts()
    cache, _ = subject.prefill(ids)
    whole, parts, single = (cache.select(range(subject.draw.rows)) for _ in range(3))
    wanted = subject.feed(whole, follow)
    cut = 1 + (follow.shape[1] - 1) * subject.draw.cut // 1000
    pieces = [subject.feed(parts, piece) for piece in follow.tensor_split([cut], dim=1) if piece.shape[1]]
    equal(torch.cat(pieces, dim=1), wanted, f"a follow-up in pieces of {cut} and the rest, and in one")
    first, last = follow[:, :-SINGLE], follow[:, -SINGLE:]
    alone = [subject.feed(single, first)] if first.shape[1] else []
    alone.append(subject.one_by_one(single, last))
    equal(torch.cat(alone, dim=1), wanted, f"a follow-up of which {last.shape[1]} come one by one, and in one piece")
    behind = subject.feed(whole, steps)
    equal(subject.one_by_one(parts, steps), behind, "steps behind a follow-up in pieces, and a piece behind one in one")
    if subject.method.info.lossless == Lossless.ALWAYS:
        equal(
            subject.prefill(torch.cat([ids, follow], dim=1))[1],
            wanted[:, -1],
            "all of the text in one piece, and in two",
        )


@property_test(longest=LONGEST, steps=STEPS, share=0.5)
def a_state_is_that_of_its_row(subject: Subject) -> None:
    """On a model with states, a row of a batch answers as it does alone."""
    subject = Carrying(subject)
    texts = [torch.cat([each, other]) for each, other in zip(subject.texts(), subject.texts(90), strict=True)]
    together = subject.life(*texts)
    for row in (0, len(texts[0]) - 1):
        alone = subject.life(*(each[[row]] for each in texts))
        equal([each[[row]] for each in together], alone, f"row {row} in the batch and alone")


@property_test(longest=LONGEST, steps=STEPS, share=0.5)
def a_shared_state_goes_on_as_a_fresh_one(subject: Subject) -> None:
    """On a model with states, forks and copies of a context go on as a fresh one does, and so does the context."""
    subject = Carrying(subject)
    ids, follow, steps = subject.texts()
    kept, _ = subject.prefill(ids)
    for count in REMAINDERS:
        short = subject.tokens(count, salt=20 + count)
        fresh, _ = subject.prefill(ids)
        wanted = [subject.feed(fresh, short), subject.one_by_one(fresh, steps)]
        for how, cache in (("forked", kept.select(range(subject.draw.rows))), ("copied", copy.deepcopy(kept))):
            mine = [subject.feed(cache, short), subject.one_by_one(cache, steps)]
            equal(mine, wanted, f"{count} tokens behind a context that was {how}, and behind a fresh one")
    fresh, _ = subject.prefill(ids)
    equal(
        subject.feed(kept, follow), subject.feed(fresh, follow), "the context itself after its forks, and a fresh one"
    )


@property_test(longest=LONGEST, steps=STEPS, share=0.5)
def a_state_that_goes_back_never_went_on(subject: Subject) -> None:
    """On a model with states, what is kept of a state before a follow-up goes on as if there had been none.

    A state cannot be cropped, so going back is going on from a copy; forks of it are fed in turns.
    """
    subject = Carrying(subject)
    ids, follow, steps = subject.texts()
    rows = range(subject.draw.rows)
    cache, _ = subject.prefill(ids)
    wanted = subject.one_by_one(subject.prefill(ids)[0], steps)
    before = cache.select(rows)
    subject.feed(cache, follow)
    subject.feed(before.select(rows), follow)
    later, answers = before.select(rows), []
    for at, step in enumerate(steps.split(1, dim=1)):
        answers.append(subject.feed(before, step))
        subject.feed(later, follow[:, at % follow.shape[1]].unsqueeze(1))  # another fork, in between
    equal(torch.cat(answers, dim=1), wanted, "behind a follow-up that was gone back on, and without it")
