"""Nothing is remembered that belongs to another sample, another model or another method."""

from __future__ import annotations

import copy
import io
import os
import tempfile
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from transformers import Cache

from kvcheck.cache.rows import RowCache
from kvcheck.cache.view import FedCache, parts, view
from kvcheck.conformance.base import LONGER, LONGEST, property_test
from kvcheck.conformance.others import is_foreign, twin, verb
from kvcheck.conformance.subject import NotServed, Subject, equal, fail, foreign_rows
from kvcheck.core.errors import MethodUnsupported

OTHERS_STEPS = 2
"""Tokens fed one by one in the samples before, which are there for what they leave behind."""


@property_test(longest=LONGER)
def a_sample_does_not_depend_on_those_before_it(subject: Subject) -> None:
    """After longer, shorter and equal prompts, a sample is answered as by a fresh method."""
    texts = subject.texts()
    fresh = subject.life(*texts, runner=subject.new_runner())
    most = 400 if subject.draw.prompt <= LONGEST else LONGER
    for length in (3 * subject.draw.prompt, max(1, subject.draw.prompt // 3), subject.draw.prompt):
        _, follow, steps = subject.texts(60)
        subject.life(subject.tokens(min(length, most), salt=50), follow, steps[:, :OTHERS_STEPS])
    equal(subject.life(*texts), fresh, "after other samples and afresh")


@property_test()
def the_same_call_gives_the_same(subject: Subject) -> None:
    """Twice the same text, bit for bit the same answers."""
    texts = subject.texts()
    for one, other in zip(subject.life(*texts), subject.life(*texts), strict=True):
        if not torch.equal(one, other):
            fail("the same text gives other logits the second time")


@property_test()
def interleaved_samples_do_not_disturb_each_other(subject: Subject) -> None:
    """Two caches of one method, fed in turns, answer as if each had been alone."""
    first, second = subject.texts(), subject.texts(70)
    alone = [subject.life(*texts) for texts in (first, second)]
    one, mine = subject.prefill(first[0])
    two, theirs = subject.prefill(second[0])
    answers = [[mine, subject.feed(one, first[1])], [theirs, subject.feed(two, second[1])]]
    steps: list[list[torch.Tensor]] = [[], []]
    for left, right in zip(first[2].split(1, 1), second[2].split(1, 1), strict=True):
        steps[0].append(subject.feed(one, left))
        steps[1].append(subject.feed(two, right))
    for each, step, wanted in zip(answers, steps, alone, strict=True):
        equal([*each, torch.cat(step, dim=1)], wanted, "in turns and alone")


@property_test(share=0.5)
def two_models_do_not_disturb_each_other(subject: Subject) -> None:
    """The method on two models in one process, and the full cache beside it, answer as each does alone."""
    texts = subject.texts()
    alone = subject.life(*texts)
    full = subject.life(*texts, runner=subject.dense)
    other = Subject(subject.spec, subject.draw, model_seed=1)
    other.life(*texts)
    equal(subject.life(*texts), alone, "behind another model and alone")
    equal(subject.life(*texts, runner=subject.dense), full, "fp16 behind the method and alone")


@property_test(share=0.5)
def configurations_and_weights_are_left_alone(subject: Subject) -> None:
    """Neither the method's parameters nor the model's configuration and weights change."""
    before = _state(subject)
    subject.life(*subject.texts())
    for name, old, new in zip(("parameters", "configuration", "weights"), before, _state(subject), strict=True):
        if old != new:
            fail(f"the {name} changed: {_change(old, new)}")


def _state(subject: Subject) -> tuple[Mapping[str, object], Mapping[str, object], Mapping[str, object]]:
    """What must not change."""
    method = subject.method
    parameters = (
        {each.name: repr(getattr(method, each.name)) for each in fields(method)} if is_dataclass(method) else {}
    )
    return parameters, subject.loaded.model.config.to_dict(), _weights(subject.loaded.model)


def _weights(model: torch.nn.Module) -> dict[str, float]:
    """The sum of every weight, under the shortest of its names: another name for a weight does not change it."""
    given = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    names: dict[int, str] = {}
    for name, tensor in sorted(given, key=lambda pair: (len(pair[0]), pair[0])):
        names.setdefault(id(tensor), name)
    tensors = dict(given)
    return {name: float(tensors[name].double().sum()) for name in names.values()}


def _change(old: Mapping[str, object], new: Mapping[str, object]) -> str:
    """The first difference."""
    names = sorted(name for name in {*old, *new} if old.get(name) != new.get(name))
    return f"{names[0]} was {old.get(names[0])!r:.80}, is {new.get(names[0])!r:.80}" if names else ""


@property_test()
def a_reused_prefix_is_as_a_fresh_one(subject: Subject) -> None:
    """A context that was kept serves one question after the other as if it were read anew, and is not changed by it."""
    ids, follow, steps = subject.texts()
    kept, _ = subject.prefill(ids)
    wanted = subject.life(ids, follow, steps)[1:]
    for time in ("first", "second"):
        cache = kept.select(range(subject.draw.rows))
        mine = [subject.feed(cache, follow), subject.one_by_one(cache, steps)]
        equal(mine, wanted, f"the {time} use of a kept context, and a fresh one")


@property_test()
def a_reset_cache_is_as_a_fresh_one(subject: Subject) -> None:
    """A cache that was used and reset answers as a new one."""
    texts, other = subject.texts(), subject.texts(80)
    if is_foreign(subject):
        return _reset_by_its_own_verb(subject, texts, other)
    used = subject.native(subject.prefill(other[0])[0])
    subject.feed(used, other[1])
    try:
        used.reset()
    except NotImplementedError as error:
        raise NotServed(f"it cannot be reset: {error}") from error
    fresh = subject.runner.build()
    subject.native(fresh)
    for what, ids in (("the prompt", texts[0]), ("the follow-up", texts[1])):
        equal(subject.feed(used, ids), subject.feed(fresh, ids), f"{what} in a reset cache and a fresh one")
    return None


def _reset_by_its_own_verb(subject: Subject, texts: tuple[torch.Tensor, ...], other: tuple[torch.Tensor, ...]) -> None:
    """The same of a foreign cache, at the positions that follow from its own length."""
    runner = subject.together
    used, _ = subject.prefill(other[0], runner)
    subject.feed(used, other[1], runner)
    with verb(used, "reset"):
        used.reset()  # type: ignore[union-attr]  # a Batch
    fresh, last = subject.prefill(texts[0], runner)
    equal(subject.feed(used, texts[0], runner)[:, -1], last, "the prompt in a reset cache and a fresh one")
    mine, theirs = (subject.feed(each, texts[1], runner) for each in (used, fresh))
    equal(mine, theirs, "the follow-up in a reset cache and a fresh one")


@property_test(longest=LONGER)
def a_saved_cache_goes_on_as_it_was(subject: Subject) -> None:
    """A cache that was copied, or written to a file and read again, answers bit for bit as the one it was made from."""
    ids, follow, steps = subject.texts()
    cache, _ = subject.prefill(ids)
    subject.feed(cache, follow)
    copies = [("copied", copied(cache))]
    copies += [] if view(cache).native is None else [("saved and loaded", saved(cache))]
    copies += [("saved and loaded by its own verbs", kept) for kept in _own_files(cache)]
    wanted = subject.one_by_one(cache, steps)
    for how, other in copies:
        if not torch.equal(subject.one_by_one(other, steps), wanted):
            fail(f"a cache that was {how} answers otherwise")


def copied(cache: FedCache) -> FedCache:
    """A deep copy; of rows that are kept apart, as those are copied."""
    rows = view(cache).rows
    return copy.deepcopy(cache) if rows is None else cache.select(range(len(rows)))


def _own_files(cache: FedCache) -> list[FedCache]:
    """Of foreign rows whose class has save(file) and a load(file) that gives a cache: the rows as they come back."""
    rows = foreign_rows(cache)
    kinds = {type(row.cache) for row in rows}
    if not rows or not all(callable(getattr(kind, verb, None)) for kind in kinds for verb in ("save", "load")):
        return []
    back = [copy.deepcopy(row) for row in rows]
    with tempfile.TemporaryDirectory() as folder:
        for at, row in enumerate(back):
            file = os.path.join(folder, f"{at}.pt")
            try:
                row.cache.save(file)
                found = type(row.cache).load(file)
            except TypeError:  # its verbs take something else: which, nobody can know
                return []
            if not isinstance(found, Cache):
                return []
            row.cache = found
    return [RowCache(back)]


def saved(cache: FedCache) -> FedCache:
    """Through torch.save and torch.load."""
    file = io.BytesIO()
    torch.save(cache, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@property_test(longest=LONGER)
def what_is_taken_back_was_never_there(subject: Subject) -> None:
    """Speculative decoding: where a cache can be cropped, a follow-up that is taken back leaves no trace."""
    ids, follow, steps = subject.texts()
    runner = subject.together
    cache, _ = subject.prefill(ids, runner)
    wanted = subject.one_by_one(twin(cache, subject.draw.rows), steps, runner)
    inner = [part.inner for part in parts(cache)]
    for each in inner:
        getattr(each, "activate_past_recording", lambda: None)()  # a sliding window must be told before
    with subject.appending(cache):
        subject.feed(cache, follow, runner)
    with verb(cache, "crop") if is_foreign(subject) else nullcontext():
        for each in inner:
            take_back(each, follow.shape[1])
    for row in foreign_rows(cache):
        row.seen, row.position = row.seen - follow.shape[1], row.position - follow.shape[1]
    equal(subject.one_by_one(cache, steps, runner), wanted, "behind a follow-up that was taken back")


def take_back(cache: Any, tokens: int) -> None:
    """Crop the newest tokens off, by a negative number as all versions of transformers take it. Raises NotServed."""
    if not all(hasattr(each, "crop") for each in (cache, *cache.layers)):
        raise NotServed("it has no crop, or a layer has none")
    if not getattr(cache, "is_croppable", True):
        raise NotServed("the cache has no crop")
    try:
        cache.crop(-tokens)
    except (NotImplementedError, MethodUnsupported, ValueError) as error:
        raise NotServed(f"it refuses to be cropped: {error}") from error
