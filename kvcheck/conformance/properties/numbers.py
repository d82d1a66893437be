"""Numbers: finite whatever comes, and near to what was stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from kvcheck.cache.kv_cache import CacheLayer
from kvcheck.cache.method import Method, MethodInfo
from kvcheck.cache.shape import Prefilled
from kvcheck.conformance.base import other_prompt, property_test
from kvcheck.conformance.others import fed, is_foreign, owner, read_back
from kvcheck.conformance.properties.positions import dense_layers, of_length
from kvcheck.conformance.properties.sizes import LONG
from kvcheck.conformance.subject import NotServed, Subject, fail
from kvcheck.core.errors import SpecError


def finite(results: list[torch.Tensor], what: str) -> None:
    """Raise Violation where a logit is NaN or infinite."""
    for name, each in zip(("the prompt", "the follow-up block", "decoding"), results, strict=True):
        if not bool(each.isfinite().all()):
            fail(f"{what}: logits of {name} are not finite")


SHORTEST = 3
"""Tokens of the prompts that are all tried by the simplest trial, and one of them by every other."""


@property_test(longest=40)
def every_length_gives_finite_numbers(subject: Subject) -> None:
    """From a prompt of one token up, all logits are finite."""
    draw = subject.draw
    for length in (1, 2, 3) if draw.prompt <= SHORTEST else (1 + draw.seed % SHORTEST, draw.prompt):
        finite(subject.life(subject.tokens(length), *subject.texts()[1:]), f"a prompt of {length}")


@property_test()
def a_repeated_token_gives_finite_numbers(subject: Subject) -> None:
    """A text of one token over and over: values are all equal, scores are all tied."""
    texts = [torch.full_like(each, 5) for each in subject.texts()]
    finite(subject.life(*texts), "a repeated token")


@property_test()
def keys_and_values_of_zero_give_finite_numbers(subject: Subject) -> None:
    """Where keys and values are all zero, logits are finite and lengths are right all the same."""
    for name, weight in subject.loaded.model.named_parameters():
        if ".0." in name and ("k_proj" in name or "v_proj" in name):
            weight.data.zero_()
    subject.runner = subject.new_runner()
    finite(subject.life(*subject.texts()), "keys and values of zero")
    if not other_prompt(subject.method.info):
        of_length(subject.prefill(subject.texts()[0])[0], subject.draw.prompt, "a prompt whose keys are zero")


def verbatim(info: MethodInfo) -> str:
    """Excuses methods that store what they are given, and those that store something else altogether."""
    return other_prompt(info) or ("it stores keys and values as they are" if info.verbatim else "")


def layers(subject: Subject, method: Method, prefilled: list[Prefilled]) -> list[CacheLayer]:
    """The layers of a method behind a prompt."""
    cache = method.build(subject.shape)
    cache.absorb(prefilled)
    return list(cache.layers)


def errors(layer: CacheLayer, true: Prefilled) -> tuple[torch.Tensor, torch.Tensor]:
    """Error of keys and of values as a share of their norm, (B, G, d): per channel, so that no large one hides it."""
    keys, values = layer.read(slice(None), torch.float64)
    return off(keys, true.keys.double()), off(values, true.values.double())


def off(mine: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
    """Error of (B, G, n, d) as a share of what varies in each channel, (B, G, d)."""
    size = (true - true.mean(dim=2, keepdim=True)).norm(dim=2).clamp(min=1e-9)
    return (mine - true).norm(dim=2) / size


OUTLIERS = "qwen2"
"""The small model with a large channel in its keys."""


ZERO = (1.0, 1.0)
"""The error of keys and values that are read back as what all have in common: whatever is stored must be nearer."""


def foreign_promise(subject: Subject) -> tuple[float, float]:
    """What a foreign cache promises, else that it is nearer than nothing is, where no channel drowns the others."""
    owner(subject)
    promised = subject.method.rounding()
    if promised is None and subject.draw.architecture == OUTLIERS:
        raise NotServed("it promises no error where one channel of the keys is much larger than the others")
    return promised or ZERO


def foreign_near(subject: Subject, promised: tuple[float, float], size: float = 1.0) -> None:
    """`near` of a foreign cache: by its own `update`, which takes a prompt in and reads it back."""
    true = [
        replace(part, keys=part.keys * size, values=part.values * size)
        for part in dense_layers(subject, subject.tokens(LONG + subject.draw.prompt))
    ]
    for index, (read, part) in enumerate(zip(read_back(subject, true), true, strict=True)):
        shares = [off(mine, wanted.double()) for mine, wanted in zip(read, (part.keys, part.values), strict=True)]
        expect_near(index, shares, promised, size)


def comparable(subject: Subject) -> list[Prefilled]:
    """A prompt of which every token has a slot. Raises NotServed."""
    if subject.method.info.shares_prefill is False:
        raise NotServed("its prompt is read by itself")
    length = LONG + subject.draw.prompt
    slots = subject.method.slots(subject.shape, length, 0)
    if slots is not None and set(slots) != {length}:
        raise NotServed("not every token has a slot")
    found = dense_layers(subject, subject.tokens(length))
    if any(layer.stored != length for layer in layers(subject, subject.method, found)):
        raise NotServed("not every token has a slot")
    return found


def promise(subject: Subject) -> tuple[float, float]:
    """The method's `rounding`. Raises NotServed where it has none."""
    promised = subject.method.rounding()
    if promised is None:
        raise NotServed("it promises no error")
    return promised


@property_test(skip_reason=verbatim)
def what_is_read_back_is_as_near_as_promised(subject: Subject) -> None:
    """The error of a stored channel, as a share of what varies in it, is within the method's `rounding`."""
    if is_foreign(subject):
        return foreign_near(subject, foreign_promise(subject))
    promised = promise(subject)
    near(subject, promised)
    return near(Subject(subject.spec, replace(subject.draw, architecture=OUTLIERS)), promised)


MOST = 0.67
"""Share of the channels that must be as near as promised; a large channel may take its neighbours along."""


SIZES = (2.0**-10, 2.0**8)
"""Factors by which numbers are made small and large; 16 bits hold both."""


@property_test(skip_reason=verbatim, share=0.3)
def the_size_of_numbers_does_not_matter(subject: Subject) -> None:
    """Keys and values that are all very small or very large are read back as near as promised, too."""
    if is_foreign(subject):
        expect_exact(subject)
        for size in SIZES:
            foreign_near(subject, foreign_promise(subject), size)
        return
    promised = promise(subject)
    for size in SIZES:
        near(subject, promised, size)


def expect_exact(subject: Subject) -> None:
    """Raise NotServed where a foreign cache promises nothing and reads back something else than it was given."""
    owner(subject)
    if subject.method.rounding() is not None:
        return
    true = dense_layers(subject, subject.tokens(LONG))
    for read, part in zip(read_back(subject, true), true, strict=True):
        if not all(
            torch.equal(mine, wanted.double()) for mine, wanted in zip(read, (part.keys, part.values), strict=True)
        ):
            raise NotServed("it promises no error, and reads back other numbers than it was given")


def near(subject: Subject, promised: tuple[float, float], size: float = 1.0) -> None:
    """Raise Violation where a third of the channels or more are further off than promised. size: a factor of all."""
    found = [replace(part, keys=part.keys * size, values=part.values * size) for part in comparable(subject)]
    for index, (layer, true) in enumerate(zip(layers(subject, subject.method, found), found, strict=True)):
        expect_near(index, errors(layer, true), promised, size)


def expect_near(index: int, shares: Sequence[torch.Tensor], promised: tuple[float, float], size: float) -> None:
    """Raise Violation where a third of the channels (R, G, d) of keys or values are off by more than promised."""
    for name, share, limit in zip(("keys", "values"), shares, promised, strict=True):
        worst = float(share.quantile(MOST, dim=-1).max())
        if worst > limit:
            said = f"{worst:.2f} of their spread or more, {limit:.2f} is promised"
            times = "" if size == 1 else f", {size:g} times as large"
            fail(f"layer {index}: a third of the channels of {name}{times} are off by {said}")


FED = (100, *[1] * 5, 95)
"""Tokens fed together behind a prompt: more of them than a method may keep in 16 bits, and single ones too."""
WINDOW = 32
"""Decoded tokens that are looked at together, so that a few that are lost are not hidden by the others."""


@property_test(skip_reason=verbatim, share=0.3)
def what_is_decoded_is_read_back_as_near_as_promised(subject: Subject) -> None:
    """What is fed behind the prompt is within the method's `rounding` too, when it has become old enough to be stored.

    Asked of the first layer: its keys and values do not depend on what the cache answered before.
    """
    if is_foreign(subject):
        return foreign_decoded_near(subject, foreign_promise(subject))
    promised = promise(subject)
    decoded_near(subject, promised)
    return decoded_near(Subject(subject.spec, replace(subject.draw, architecture=OUTLIERS)), promised)


def decoded_near(subject: Subject, promised: tuple[float, float]) -> None:
    """Raise Violation where a third of the channels or more of some decoded tokens are further off than promised."""
    length, fed = LONG + subject.draw.prompt, sum(FED)
    ids = subject.tokens(length + fed)
    cache = subject.native(subject.prefill(ids[:, :length])[0])
    for part in ids[:, length:].split(FED, dim=1):
        subject.feed(cache, part)
    layer, true = cache.layers[0], dense_layers(subject, ids)[0]
    if not bool((layer.positions[:, :, -fed:] == torch.arange(length, length + fed)).all()):
        raise NotServed("not every decoded token has a slot")
    late_near(layer.read(slice(None), torch.float64), true, promised, length)


def foreign_decoded_near(subject: Subject, promised: tuple[float, float]) -> None:
    """The same of the first layer of a foreign cache: what it reads back at last."""
    length, behind = LONG + subject.draw.prompt, sum(FED)
    ids = subject.tokens(length + behind)
    _, found, _ = fed(subject, ids[:, :length], *ids[:, length:].split(FED, dim=1))
    read = found[0].read if 0 in found else None
    if read is None or read[0].shape[2] < ids.shape[1]:
        raise NotServed("not every decoded token has a slot")
    mine = (read[0][:, :, : ids.shape[1]].double(), read[1][:, :, : ids.shape[1]].double())
    late_near(mine, dense_layers(subject, ids)[0], promised, length)


def late_near(
    read: tuple[torch.Tensor, torch.Tensor], true: Prefilled, promised: tuple[float, float], length: int
) -> None:
    """Raise Violation where a third of the channels or more of some tokens behind `length` are further off."""
    behind = sum(FED)
    whole = read, (true.keys.double(), true.values.double())
    for name, mine, theirs, limit in zip(("keys", "values"), *whole, promised, strict=True):
        for start in range(-behind, -WINDOW, WINDOW):
            at = slice(start, start + WINDOW)
            worst = float(off(mine[:, :, at], theirs[:, :, at]).quantile(MOST, dim=-1).max())
            if worst > limit:
                first = length + behind + start
                said = f"by {worst:.2f} of their spread or more, {limit:.2f} is promised"
                fail(f"a third of the channels of {name} at {first} to {first + WINDOW - 1}, decoded, are off {said}")


@property_test(skip_reason=lambda info: verbatim(info) or ("" if info.knob == "bits" else "it has no bits"))
def more_bits_are_nearer(subject: Subject) -> None:
    """Four bits lose less than two."""
    if is_foreign(subject):
        return foreign_bits(subject)
    if not hasattr(subject.method, "bits"):
        raise NotServed("it has no bits")
    found = comparable(subject)
    losses = []
    for bits in (2, 4):
        made = layers(subject, replace(subject.method, bits=bits), found)  # type: ignore[call-arg]
        pairs = zip(made, found, strict=True)
        losses.append([torch.stack([each.mean() for each in errors(layer, true)]) for layer, true in pairs])
    return expect_fewer(losses)


def foreign_bits(subject: Subject) -> None:
    """The same of a foreign cache whose parameter `bits` is said to be its knob."""
    spec, losses = subject.method.spec, []
    true = dense_layers(subject, subject.tokens(LONG + subject.draw.prompt))
    for bits in (2, 4):
        given = replace(spec, params=tuple((dict(spec.params) | {"bits": bits}).items()))
        try:
            other = Subject(str(given), subject.draw)
        except SpecError as error:
            raise NotServed(f"{given} cannot be built: {error.message}") from error
        read = zip(read_back(other, true), true, strict=True)
        losses.append(
            [
                torch.stack([off(k, part.keys.double()).mean(), off(v, part.values.double()).mean()])
                for (k, v), part in read
            ]
        )
    expect_fewer(losses)


def expect_fewer(losses: list[list[torch.Tensor]]) -> None:
    """Raise Violation unless 4 bits, the second, lose less in every layer than 2 bits do."""
    for index, (two, four) in enumerate(zip(*losses, strict=True)):
        if bool((four > two).any()) or (bool((two > 0.02).any()) and bool((four >= two).all())):
            fail(
                f"layer {index}: with 4 bits keys and values are off by {four.tolist()}, with 2 bits by {two.tolist()}"
            )


@property_test(skip_reason=verbatim)
def what_was_read_back_is_stored_without_loss(subject: Subject) -> None:
    """Storing what was read back gives the same numbers again."""
    if is_foreign(subject):
        return foreign_stored_again(subject)
    found = comparable(subject)
    first = layers(subject, subject.method, found)
    read = [layer.read(slice(None), torch.float64) for layer in first]
    again = [Prefilled(k, v, part.queries, part.scaling) for (k, v), part in zip(read, found, strict=True)]
    for index, (before, layer) in enumerate(zip(read, layers(subject, subject.method, again), strict=True)):
        for name, one, two in zip(("keys", "values"), before, layer.read(slice(None), torch.float64), strict=True):
            if float((one - two).norm()) > 0.01 * float(one.norm()) + 1e-9:
                fail(f"layer {index}: {name} that were read back change when they are stored again")
    return None


def foreign_stored_again(subject: Subject) -> None:
    """The same of a foreign cache that reads back what it was given, or promises how near that is."""
    expect_exact(subject)
    true = dense_layers(subject, subject.tokens(LONG + subject.draw.prompt))
    first, again = read_back(subject, true), []
    for (keys, values), part in zip(first, true, strict=True):
        again.append(replace(part, keys=keys.to(part.keys.dtype), values=values.to(part.values.dtype)))
    for index, pairs in enumerate(zip(first, read_back(subject, again), strict=True)):
        for name, one, two in zip(("keys", "values"), *pairs, strict=True):
            if float((one - two).norm()) > 0.01 * float(one.norm()) + 1e-9:
                fail(f"layer {index}: {name} that were read back change when they are stored again")
