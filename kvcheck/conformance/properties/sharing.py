"""What several texts have in common, and what is stored: bytes that are shared stay as they are, and are read."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from kvcheck.cache.view import FedCache, Holder, parts
from kvcheck.conformance.base import other_prompt, property_test
from kvcheck.conformance.subject import Subject, equal, fail
from kvcheck.measure.memory import tensors


@property_test(share=0.3)
def a_shared_beginning_changes_no_answer(subject: Subject) -> None:
    """Behind a longer text with the same beginning, a shorter one, and one that goes on otherwise, a text is answered
    as by a fresh method.

    A store of prefixes that is warm answers as a cold one.
    """
    ids, follow, steps = subject.texts()
    fresh = subject.life(ids, follow, steps, runner=subject.new_runner())
    half = max(1, ids.shape[1] // 2)
    other = subject.tokens(ids.shape[1], salt=40)
    for what, before in (
        ("a longer text with the same beginning", torch.cat([ids, follow, other], dim=1)),
        ("its own beginning", ids[:, :half]),
        ("a text that goes on otherwise", torch.cat([ids[:, :half], other[:, half:]], dim=1)),
        ("the same text", ids),
    ):
        subject.prefill(before)
        equal(subject.life(ids, follow, steps), fresh, f"behind {what} and afresh")


@property_test(share=0.5)
def what_is_shared_keeps_its_bytes(subject: Subject) -> None:
    """While forks go on, and while texts with the same beginning are read, no tensor of a cache changes by a bit."""
    ids, follow, steps = subject.texts()
    cache, _ = subject.prefill(ids)
    before = _copies(cache)
    fork = cache.select(range(subject.draw.rows))
    subject.feed(fork, follow)
    _unchanged(cache, before, "while a fork of it took in a follow-up")
    held = _copies(fork)
    other = cache.select(range(subject.draw.rows))
    subject.feed(other, subject.tokens(subject.draw.block, salt=30))
    subject.one_by_one(other, steps)
    _unchanged(fork, held, "while another fork of its context went on")
    longer, _ = subject.prefill(torch.cat([ids, follow], dim=1))
    subject.one_by_one(longer, steps)
    _unchanged(cache, before, "while a longer text with the same beginning was read")
    subject.feed(cache, follow)
    _unchanged(fork, held, "while its context went on")


def _copies(cache: FedCache) -> list[torch.Tensor]:
    """Of all that can be reached."""
    return [each.clone() for part in parts(cache) for each in tensors(part.storage)]


def _unchanged(cache: FedCache, before: list[torch.Tensor], when: str) -> None:
    """Raise Violation where a tensor is not what it was."""
    now = [each for part in parts(cache) for each in tensors(part.storage)]
    if [each.shape for each in now] != [each.shape for each in before]:
        fail(f"the tensors of a cache are {len(now)}, of other shapes than the {len(before)} before, {when}")
    for old, new in zip(before, now, strict=True):
        differ = (old != new) & ~((old != old) & (new != new))  # where neither is no number
        if bool(differ.any()):
            where = tuple(differ.nonzero()[0].tolist())
            shape = tuple(new.shape)
            fail(f"a tensor of shape {shape} was changed at {where} from {old[where]:.4g} to {new[where]:.4g}, {when}")


LONG = 320
"""Tokens of a prompt of which whatever is chosen from is more than what is read."""
LEAST = 0.01
"""Share of the bytes of a layer from which on a tensor is no counter."""


@property_test(skip_reason=other_prompt, share=0.1)
def what_is_stored_is_read(subject: Subject) -> None:
    """Whatever a layer stores has influence: with other numbers in it, in all layers, the next tokens are answered
    otherwise, or those after them: what is read now and then has been read by then.
    """
    length = LONG + subject.draw.prompt % 64
    cache, _ = subject.prefill(subject.tokens(length))
    rows = range(subject.draw.rows)
    for name in dict.fromkeys(name for owner in _owners(cache) for name, _ in _stored(owner)):
        size = sum(tensor.nbytes for tensor in _named(cache, name))
        if not _has_influence(subject, cache.select(rows), cache.select(rows), name):
            fail(f"{name!r}, {size:,} bytes in all layers, holds other numbers, and all answers stay the same")


def _has_influence(subject: Subject, cache: FedCache, fork: FedCache, name: str) -> bool:
    """Whether any token gets other logits: those of a short follow-up, or single ones behind it.

    What does not grow, such as the newest queries, gets other numbers again before each of these, as new tokens
    replace it little by little. What grows does not, so that what new tokens bring is not taken for what was there.
    """
    sizes = [tensor.shape for tensor in _named(fork, name)]
    for at, ids in enumerate((subject.tokens(8, salt=1), *subject.tokens(LONG // 2, salt=2).split(1, dim=1))):
        wanted = subject.feed(cache, ids)
        stored = _named(fork, name)
        if at == 0 or [tensor.shape for tensor in stored] == sizes:
            for tensor in stored:
                _overwrite(tensor)
        try:
            answer = subject.feed(fork, ids)
        except Exception:  # whoever cannot go on with other numbers has read them
            return True
        if not torch.equal(answer, wanted):
            return True
    return False


def _named(cache: FedCache, name: str) -> list[torch.Tensor]:
    """What is stored under this name in all layers."""
    return [tensor for owner in _owners(cache) for each, tensor in _stored(owner) if each == name]


def _owners(cache: FedCache) -> Iterator[object]:
    """The layers of a cache."""
    for part in parts(cache):
        yield from part.inner.layers if part.opaque else part.method_layers


def _stored(owner: object) -> Iterator[tuple[str, torch.Tensor]]:
    """Names of attributes with the tensors that can be reached from them, but for bookkeeping and what is small."""
    left_out = owner.meta if isinstance(owner, Holder) else ()
    found = [(name, each) for name, value in vars(owner).items() if name not in left_out for each in tensors(value)]
    least = LEAST * sum(each.nbytes for _, each in found)
    yield from ((name, each) for name, each in found if each.nbytes > least)


def _overwrite(tensor: torch.Tensor) -> None:
    """Other numbers, finite where numbers are read as such; not those of before where this is done again."""
    if tensor.dtype == torch.bool:
        tensor.logical_not_()
    elif tensor.is_floating_point() and tensor.itemsize > 1:
        tensor.mul_(-1.5).sub_(1)
    else:
        tensor.view(torch.uint8).add_(85)
