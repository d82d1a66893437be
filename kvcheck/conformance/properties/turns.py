"""Which tokens are held, turn after turn and whatever the scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch

from kvcheck.cache.layer import CacheLayer
from kvcheck.cache.method import Method
from kvcheck.cache.view import FedCache, parts
from kvcheck.conformance.base import other_prompt, property_test
from kvcheck.conformance.properties.positions import dense_layers
from kvcheck.conformance.properties.reading import attracting, by_place, marks
from kvcheck.conformance.subject import NotServed, Subject, fail
from kvcheck.measure.audit import audit


@dataclass(frozen=True)
class Contents:
    """What a layer held at some time, by the n tokens seen then: there (B, G, n); keys, values (B, G, n, d)."""

    there: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor


def contents(layer: CacheLayer, where: str) -> Contents:
    """Raise Violation where a position is repeated, out of order or of no token."""
    positions, valid = layer.positions.long().cpu(), layer.valid.cpu()
    keys, values = (each.cpu() for each in layer.read(slice(None), torch.float64))
    for row, head in torch.cartesian_prod(*map(torch.arange, positions.shape[:2])).tolist():
        mine = positions[row, head][valid[row, head]]
        if bool((mine.diff() <= 0).any()) or (len(mine) and not 0 <= int(mine[0]) <= int(mine[-1]) < layer.seen):
            said = f"of {layer.seen} tokens seen, each once and in order, the slots hold {_short(mine.tolist())}"
            fail(f"{where}, row {row}, kv head {head}: {said}")
    positions = positions.masked_fill(~valid, layer.seen)  # padding goes behind all, and is cut off
    there = torch.zeros(*positions.shape[:2], layer.seen + 1, dtype=torch.bool).scatter_(2, positions, True)
    placed = [
        torch.zeros(*there.shape, each.shape[3], dtype=each.dtype).scatter_(
            2, positions.unsqueeze(-1).expand(*positions.shape, each.shape[3]), each
        )[:, :, :-1]
        for each in (keys, values)
    ]
    return Contents(there[:, :, :-1], *placed)


def _short(numbers: Sequence[int]) -> str:
    """A list of which the middle is left out where it is long."""
    return str(list(numbers)) if len(numbers) <= 24 else f"{str(list(numbers[:12]))[:-1]}, … {list(numbers[-12:])}"


class Watch:
    """What each layer held when it was looked at last. Raises Violation where that went otherwise than it may."""

    def __init__(self, method: Method, prompt: int) -> None:
        self.method, self.prompt = method, prompt
        self.before: dict[tuple[int, int], Contents] = {}

    def look(self, cache: FedCache, when: str) -> None:
        """Compare with the last time. Layers whose slots do not know their positions are left out."""
        for number, part in enumerate(parts(cache)):
            for index, layer in enumerate(() if part.opaque else part.method_layers):
                known = layer.known
                if known is None or known.positions.shape[2] != known.stored:
                    continue
                where = f"{when}, layer {index}"
                now = contents(known, where)
                last = self.before.get((number, index))
                if last is not None:
                    self._follows(last, now, where)
                self.before[number, index] = now

    def _follows(self, last: Contents, now: Contents, where: str) -> None:
        """Raise Violation unless what is there now may come of what was."""
        info, old = self.method.info, last.there.shape[2]
        then = now.there[:, :, :old]
        _none(then & ~last.there, f"{where}: a token that had left is there again")
        if not info.evicts_in_decode:
            _none(last.there & ~then, f"{where}: a token left, which it does only when the prompt is in")
            _none(~now.there[:, :, old:], f"{where}: a token that was fed is not there")
        promised = sorted(lasting(self.method, self.prompt))
        missing = torch.zeros_like(now.there)
        missing[:, :, promised] = ~now.there[:, :, promised]
        _none(missing, f"{where}: a promised token is not there")
        if info.verbatim:
            for name, one, other in (("key", last.keys, now.keys), ("value", last.values, now.values)):
                changed = (one != other[:, :, :old]).any(dim=3) & then
                _none(changed, f"{where}: the {name} of a token is not what it was before")


def _none(wrong: torch.Tensor, what: str) -> None:
    """Raise Violation that names the first of (B, G, n) that is true."""
    if bool(wrong.any()):
        row, head, position = wrong.nonzero()[0].tolist()
        fail(f"{what}: token {position} (row {row}, kv head {head})")


def lasting(method: Method, prompt: int) -> frozenset[int]:
    """The positions of a prompt that are promised behind it, and would be of any longer one: they never leave."""
    found = method.protected(prompt) or frozenset()
    for times in (2, 4, 16):
        found &= method.protected(times * prompt) or frozenset()
    return found


def _turns(subject: Subject, ids: torch.Tensor, cache: FedCache, what: str) -> None:
    """Look behind the prompt and behind each part of two turns. Raises NotServed where nothing could be looked at."""
    _, follow, steps = subject.texts()
    watch = Watch(subject.method, ids.shape[1])
    watch.look(cache, f"{what}behind the prompt of {ids.shape[1]}")
    for turn in ("first", "second"):
        subject.feed(cache, follow)
        watch.look(cache, f"{what}behind the follow-up of {follow.shape[1]} of the {turn} turn")
        for number, token in enumerate(steps.split(1, dim=1)):
            subject.feed(cache, token)
            watch.look(cache, f"{what}behind decoded token {number + 1} of the {turn} turn")
    if not watch.before:
        raise NotServed("its slots do not know their positions, or stand for several tokens")


@property_test(skip_reason=other_prompt, share=0.8)
def what_is_held_is_true_in_every_turn(subject: Subject) -> None:
    """In every layer and head, turn after turn: no token twice, none that had left, promised ones and contents as ever.

    Where it does not evict while decoding, all that was there and all that was fed. Where keys and values are kept
    as they are, bit for bit what they were when the token was seen last.
    """
    ids = subject.tokens(subject.draw.prompt)
    _turns(subject, ids, subject.prefill(ids)[0], "")


CHOSEN = 96
"""Tokens of a prompt of which methods that choose leave some out."""


@property_test(skip_reason=other_prompt, share=0.3)
def promised_tokens_are_held_whatever_the_scores(subject: Subject) -> None:
    """Where scores are tied, all equal, or one token takes all, slots and promised tokens are as declared as ever."""
    for what, arrange in SCORES.items():
        fresh = Subject(subject.spec, subject.draw)
        ids = fresh.tokens(CHOSEN + fresh.draw.prompt % CHOSEN)
        with ExitStack() as meanwhile:
            try:
                ids = arrange(fresh, ids, meanwhile)
            except NotServed:
                continue
            fresh.runner = fresh.new_runner()
            cache, _ = fresh.prefill(ids)
            proof = audit(cache, dense_layers(fresh, ids), fresh.method)
            wrong = [each for each in proof.problems if not each.startswith("did nothing")]
            if wrong:
                fail(f"{what}, behind a prompt of {ids.shape[1]}: {'; '.join(wrong)}")
            _turns(fresh, ids, cache, f"{what}, ")


def _tied(subject: Subject, ids: torch.Tensor, meanwhile: ExitStack) -> torch.Tensor:
    """One token over and over: keys and values are alike but for the rotation."""
    return torch.full_like(ids, 5)


def _flat(subject: Subject, ids: torch.Tensor, meanwhile: ExitStack) -> torch.Tensor:
    """Queries of zero: every score is 0, every token gets the same."""
    for layer in subject.loaded.model.get_decoder().layers:
        query = getattr(getattr(layer, "self_attn", None), "q_proj", None)
        if query is None:
            raise NotServed("the queries of the model do not come straight from q_proj")
        for tensor in query.parameters():
            tensor.data.zero_()
    return ids


def _saturated(subject: Subject, ids: torch.Tensor, meanwhile: ExitStack) -> torch.Tensor:
    """One token of the prompt draws all attention: the others get exactly nothing."""
    if by_place(subject.method.info):
        raise NotServed("it does not choose by queries")
    (mark,) = marks(subject, 1)
    ids = ids % mark
    ids[:, subject.draw.cut * (ids.shape[1] - 1) // 1000] = mark
    meanwhile.enter_context(attracting(subject, [mark]))
    return ids


SCORES: dict[str, Callable[[Subject, torch.Tensor, ExitStack], torch.Tensor]] = {
    "where one token is repeated": _tied,
    "where all scores are 0": _flat,
    "where one token draws all attention": _saturated,
}
"""By what is arranged, who does it: given a prompt and what is in force meanwhile -> the prompt."""
