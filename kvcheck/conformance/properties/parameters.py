"""What a method's parameters do: each changes something, and sizes are right around every border that they make."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from itertools import product

import torch

from kvcheck.cache.method import Method
from kvcheck.cache.view import FedCache, parts
from kvcheck.conformance.base import other_prompt, property_test
from kvcheck.conformance.properties.positions import dense_layers
from kvcheck.conformance.properties.sizes import LONG
from kvcheck.conformance.subject import NotServed, Subject, fail
from kvcheck.core.errors import KvcheckError
from kvcheck.measure.audit import audit
from kvcheck.measure.memory import held
from kvcheck.methods import make

Number = bool | int | float


def numbers(method: Method) -> dict[str, Number]:
    """The parameters that are numbers or switches, by name."""
    given = {each.name: getattr(method, each.name) for each in fields(method)} if is_dataclass(method) else {}
    return {name: value for name, value in given.items() if isinstance(value, (bool, int, float))}


def others(value: Number) -> Iterator[Number]:
    """Values that a parameter may have instead, far away and near."""
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, float):
        yield from (value / 8, value / 2, min(0.95, 4 * value), (1 + value) / 2)
    else:
        yield from (each for each in (value // 16, 8 * value, value // 4, 2 * value, value + 1) if each != value)


@property_test(share=0.1)
def every_parameter_changes_something(subject: Subject) -> None:
    """With another value of the parameter that trades memory for accuracy, bytes or answers on a long text change.

    Other parameters that are numbers and change nothing are said; some act on longer texts only.
    """
    method, ids = make(subject.spec), subject.tokens(LONG + subject.draw.prompt % 64)
    given, knob = numbers(method), method.info.knob
    if not given:
        raise NotServed("it has no parameter that is a number")
    asis, idle = _effect(subject, method, ids), {}
    for name, value in given.items():
        tried = []
        for other in others(value):
            try:
                found = _effect(subject, replace(method, **{name: other}), ids)
            except (KvcheckError, NotServed):
                continue  # no value that it may have, or not with the others
            tried.append(other)
            if found[0] != asis[0] or not torch.equal(found[1], asis[1]):
                break
        else:
            if tried:
                idle[name] = f"{name}={value!r}, nor {', '.join(map(repr, tried))},"
    alone = all(name == knob for name, _ in method.spec.params)  # else another parameter may take its place
    if knob in idle and alone:
        fail(f"neither {idle[knob]} makes a difference to bytes or answers behind {ids.shape[1]} tokens")
    subject.remarks += [f"{name} changes neither bytes nor answers on texts of {LONG} tokens" for name in idle]


def _effect(subject: Subject, method: Method, ids: torch.Tensor) -> tuple[list[int], torch.Tensor]:
    """Bytes behind a prompt and a follow-up, and the logits of both."""
    method.check(subject.shape)
    runner = method.runner(subject.loaded)
    cache, first = subject.prefill(ids, runner)
    size = _bytes(cache)
    answers = subject.feed(cache, subject.tokens(8, salt=1), runner)
    return [size, _bytes(cache)], torch.cat([first.unsqueeze(1), answers], dim=1)


def _bytes(cache: FedCache) -> int:
    """Of all rows, wherever they are."""
    found = [held(part.storage) for part in parts(cache)]
    return sum(each.kv + each.host for each in found)


UNITS = (16, 32)
"""Sizes that are tried of a method without any of its own."""
LARGEST = 150
"""Of the units: more of them take long."""
BORDERS = 3
"""That are tried in a trial."""


def units(method: Method) -> list[int]:
    """The sizes that a method counts in: windows, pages, groups, intervals."""
    found = {value for value in numbers(method).values() if not isinstance(value, bool | float)}
    return sorted(each for each in found if 1 < each <= LARGEST) or list(UNITS)


@property_test(skip_reason=other_prompt, share=0.5)
def sizes_are_right_around_every_border(subject: Subject) -> None:
    """One token before, at and behind multiples and sums of a method's own sizes: slots, bytes and promised tokens are
    as declared, behind the prompt, a follow-up of another such size, and single tokens.
    """
    draw, method, shape = subject.draw, subject.method, subject.shape
    if method.kv_bytes(shape, 1, LONG, 0) is None and method.slots(shape, LONG, 0) is None:
        raise NotServed("it declares neither slots nor bytes")
    sizes = units(method)
    pairs = [(one * times, other) for one, times, other in product(sizes, (1, 2), (*sizes, 0))]
    for number in range(BORDERS):
        turn = BORDERS * draw.seed + number
        one, other = pairs[turn % len(pairs)]
        beside = turn // len(pairs) % 3 - 1
        prompt, block = (one + other + beside, 2) if turn % 2 else (one + beside, max(1, other + number - 1))
        _sizes(subject, prompt, block)


def _sizes(subject: Subject, prompt: int, block: int) -> None:
    """Raise Violation where something is not as declared behind a prompt, a block and two tokens more."""
    ids, follow = subject.tokens(prompt), subject.tokens(block, salt=1)
    cache, _ = subject.prefill(ids)
    true = dense_layers(subject, ids)
    when = f"behind a prompt of {prompt}"
    for fed in (None, follow, follow[:, :1], follow[:, :1]):
        if fed is not None:
            subject.feed(cache, fed)
            when = f"{when}, {fed.shape[1]}"
        wrong = [each for each in audit(cache, true, subject.method).problems if not each.startswith("did nothing")]
        if wrong:
            fail(f"{when}: {'; '.join(wrong)}")
