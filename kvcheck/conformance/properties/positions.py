"""Which tokens are where."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from kvcheck.cache.layer import CacheLayer
from kvcheck.cache.method import MethodInfo
from kvcheck.cache.rotary import rotate
from kvcheck.cache.rows import Batch
from kvcheck.cache.shape import Prefilled
from kvcheck.cache.view import FedCache, parts
from kvcheck.conformance.base import LONGER, other_prompt, property_test
from kvcheck.conformance.others import is_foreign, layers_of, owner, updates
from kvcheck.conformance.subject import NotServed, Subject, fail, foreign_rows
from kvcheck.measure.audit import audit
from kvcheck.models.rotary import rotaries

NEAR = 4e-3
"""Of the norm of a stored vector: eight times the rounding to 16 bits."""


@contextmanager
def watched(model: torch.nn.Module) -> Iterator[list[torch.Tensor]]:
    """The positions that the model rotates by meanwhile, one (rows, q) per forward."""
    found: list[torch.Tensor] = []
    forwards: list[int] = []

    def note(
        module: torch.nn.Module, args: tuple[torch.Tensor, ...], kwargs: dict[str, torch.Tensor], output: object
    ) -> None:
        if len(found) < len(forwards):  # some models rotate twice, for their kinds of layers
            found.append(kwargs["position_ids"] if "position_ids" in kwargs else args[1])

    rotary = rotaries(model)
    if not rotary:
        raise NotServed("the model has no rotary embedding to watch")
    with (
        model.register_forward_pre_hook(lambda *_: forwards.append(1)),
        rotary[0].register_forward_hook(note, with_kwargs=True),
    ):
        yield found


def dense_layers(subject: Subject, ids: torch.Tensor) -> list[Prefilled]:
    """What the full cache holds of a text, per layer."""
    full = subject.dense.build()
    with full.recording() as taken:
        subject.feed(full, ids, subject.dense)
    return taken


@property_test(skip_reason=other_prompt)
def a_token_is_fed_at_its_position(subject: Subject) -> None:
    """The position of the next token is the number of tokens seen, whatever was evicted."""
    ids, follow, steps = subject.texts()
    cache, _ = subject.prefill(ids, subject.together)
    with watched(subject.loaded.model) as found:
        subject.feed(cache, follow, subject.together)
        subject.one_by_one(cache, steps, subject.together)
    at, end = ids.shape[1], ids.shape[1] + follow.shape[1]
    wanted = [list(range(at, end)), *([end + step] for step in range(steps.shape[1]))]
    for row in range(subject.draw.rows):
        seen = _of_row(found, row, subject.draw.rows, len(wanted))
        begun = [given[: len(true)] for given, true in zip(seen, wanted, strict=False)]  # more is fed to verify drafts
        if begun != wanted:
            fail(f"row {row}: behind {at} tokens, these are fed at the positions {seen}, not {wanted}")


def _of_row(found: list[torch.Tensor], row: int, rows: int, forwards: int) -> list[list[int]]:
    """The positions of one row, per forward: rows come together, or one after the other."""
    if len(found) == forwards * rows:  # fed one by one
        found = found[row::rows]
    return [each[min(row, each.shape[0] - 1)].tolist() for each in found]


@property_test(skip_reason=other_prompt)
def the_length_of_a_cache_is_the_tokens_seen(subject: Subject) -> None:
    """What a cache tells transformers as its length, from which positions follow, counts evicted tokens too."""
    ids, follow, steps = subject.texts()
    if is_foreign(subject):
        owner(subject)  # a press says nothing of positions: they are the pipeline's
    cache, _ = subject.prefill(ids, subject.together)
    seen = ids.shape[1]
    of_length(cache, seen, "the prompt")
    for what, parts_fed in (("a follow-up", [follow]), ("decoding", steps.split(1, 1))):
        for fed in parts_fed:
            as_wide_as_its_masks(subject, cache, fed)
            seen += fed.shape[1]
        of_length(cache, seen, what)


def of_length(cache: FedCache, seen: int, what: str) -> None:
    """Raise Violation unless all layers say that they have seen so many tokens; those of foreign rows may say less."""
    if foreign_rows(cache) and not isinstance(cache, Batch):
        return
    for each in parts(cache):
        layers = layers_of(cache) if isinstance(cache, Batch) else each.inner.layers
        lengths = {int(layer.get_seq_length()) for layer in layers}
        if lengths != {seen}:
            fail(f"behind {what} the layers say {sorted(lengths)} tokens, {seen} were fed")


def as_wide_as_its_masks(subject: Subject, cache: FedCache, ids: torch.Tensor) -> None:
    """Feed (R, q). Raise Violation where a foreign cache reads back more or fewer columns than it says masks must have.

    A single token needs no mask, so nothing else shows it.
    """
    if not isinstance(cache, Batch) or not cache.cache.layers:
        subject.feed(cache, ids, subject.together)
        return
    said = {at: int(cache.cache.get_mask_sizes(ids.shape[1], at)[0]) for at in range(len(cache.cache.layers))}
    with updates(cache.cache) as found:
        subject.feed(cache, ids, subject.together)
    for at, one in found.items():
        if one.read is not None and one.read[0].shape[2] != said[at]:
            fail(f"layer {at} says that masks must be {said[at]} columns wide, and reads back {one.read[0].shape[2]}")


def _unseen() -> NotServed:
    """What a property says that found no slot to look at."""
    return NotServed("its slots do not know their positions, or stand for several tokens")


@property_test(skip_reason=other_prompt, longest=LONGER)
def a_slot_holds_the_token_of_its_position(subject: Subject) -> None:
    """Behind the prompt: positions ascend without repetition, protected ones are there, keys and values are theirs."""
    ids = subject.tokens(subject.draw.prompt)
    cache, _ = subject.prefill(ids)
    proof = audit(cache, dense_layers(subject, ids), subject.method)
    wrong = [each for each in proof.problems if not each.startswith("did nothing")]  # another property asks that
    if wrong:
        fail("; ".join(wrong))
    if foreign_rows(cache):
        raise _unseen()


@property_test(skip_reason=other_prompt)
def slots_stay_true_while_decoding(subject: Subject) -> None:
    """Behind two turns of follow-up and decoding, keys and values of the first layer are still those of their tokens.

    The first layer's do not depend on what the cache answered before, so they are those of the full cache.
    """
    info = subject.method.info
    if not sum(_compare(layer, keys, values, info) for layer, keys, values in _first_layers(subject)):
        raise _unseen()


def _first_layers(subject: Subject) -> Iterator[tuple[CacheLayer, torch.Tensor, torch.Tensor]]:
    """Behind two turns: the first layer of each cache, and keys and values of all tokens as the full cache has them."""
    ids, follow, steps = subject.texts()
    cache, _ = subject.prefill(ids)
    for _ in range(2):  # turns
        subject.feed(cache, follow)
        subject.one_by_one(cache, steps)
    true = dense_layers(subject, torch.cat([ids, follow, steps, follow, steps], dim=1))[0]
    caches = parts(cache)
    for number, each in enumerate(caches):
        at = slice(None) if len(caches) == 1 else slice(number, number + 1)
        layer = each.method_layers[0].known
        if layer is not None:
            yield layer, true.keys[at], true.values[at]


def unmoved(info: MethodInfo) -> str:
    """Excuses methods that leave their keys where they were."""
    return other_prompt(info) or ("what it keeps, it keeps as it was" if info.verbatim else "")


@property_test(skip_reason=unmoved)
def a_key_that_was_moved_stands_at_a_place_of_the_text(subject: Subject) -> None:
    """The key of a token that was kept is the model's for that token at some position, in the order of the text.

    A token was kept where its slot has its value and, but for a rotation, its key. Asked of the first layer, behind two
    turns.
    """
    if subject.shape.rope is None:
        raise NotServed("how the model rotates keys is not known")
    looked = False
    for layer, keys, values in _first_layers(subject):
        if layer.uneven or layer.positions.shape[2] != layer.stored:
            continue
        positions = layer.positions.long().clamp(0, keys.shape[2] - 1)
        index = positions.unsqueeze(-1).expand(-1, -1, -1, keys.shape[3])
        (mine, value), true = layer.read(slice(None), torch.float64), keys.double().gather(2, index)
        kept = _near(value, values.double().gather(2, index)) & _near(_sizes(mine), _sizes(true))
        places = _places(mine, true, positions, kept, subject.shape.rope)
        for row, head in torch.cartesian_prod(*map(torch.arange, places.shape[:2])).tolist():
            order = places[row, head][kept[row, head]]
            if bool((order.diff() <= 0).any()):
                fail(f"row {row}, kv head {head}: the tokens that were kept stand at {order.tolist()}")
        looked |= bool(kept.any())
    if not looked:
        raise _unseen()


def _near(mine: torch.Tensor, true: torch.Tensor, limit: float = NEAR) -> torch.Tensor:
    """Which vectors (..., d) are all but equal."""
    return (mine - true).norm(dim=-1) <= limit * true.norm(dim=-1).clamp(min=1e-9)


def _sizes(keys: torch.Tensor) -> torch.Tensor:
    """What a rotation leaves as it is, (..., d) -> (..., d/2)."""
    return torch.hypot(*keys.chunk(2, dim=-1))


def _places(
    mine: torch.Tensor, true: torch.Tensor, positions: torch.Tensor, kept: torch.Tensor, rope: tuple[float, ...]
) -> torch.Tensor:
    """Where keys (B, G, s, d) stand that are those of tokens at `positions` (B, G, s), moved by whole numbers.

    kept (B, G, s): the slots that are asked for. Raises Violation where one stands nowhere.
    """
    found, seen = torch.full_like(positions, -1), int(positions.max()) + 1
    for step in sorted(range(-seen, seen + 1), key=abs):
        sought = kept & (found < 0) & (positions + step >= 0)
        if not bool((kept & (found < 0)).any()):
            return found
        moved = rotate(true, torch.tensor(step, device=true.device), rope)
        found = torch.where(sought & _near(mine, moved, 4 * NEAR), positions + step, found)  # roundings turn keys, too
    row, head, slot = (kept & (found < 0)).nonzero()[0].tolist()
    fail(f"the key of token {int(positions[row, head, slot])} (row {row}, kv head {head}) is at no place of the text")


def by_queries(info: MethodInfo) -> str:
    """Excuses methods that choose by what is asked."""
    return other_prompt(info) or ("it keeps what is asked for" if info.needs else "")


@property_test(skip_reason=by_queries)
def what_is_kept_follows_from_the_tokens_seen(subject: Subject) -> None:
    """Where nothing is chosen by queries, the same tokens are kept whether they came in a block or one by one."""
    ids, follow, steps = subject.texts()
    block, single = (subject.native(subject.prefill(ids)[0]) for _ in range(2))
    for turn in ("first", "second"):
        subject.feed(block, follow)
        subject.one_by_one(single, follow)
        for index, (mine, theirs) in enumerate(zip(block.layers, single.layers, strict=True)):
            if not torch.equal(mine.positions, theirs.positions):
                fail(f"layer {index}: other positions are kept behind the block of the {turn} turn than token by token")
        for cache in (block, single):
            subject.one_by_one(cache, steps)


def _compare(layer: CacheLayer, keys: torch.Tensor, values: torch.Tensor, info: MethodInfo) -> bool:
    """Raise Violation where a slot is not the token of its position. False: it was not looked at."""
    positions = layer.positions.long()
    if positions.shape[2] != layer.stored:
        fail(f"{positions.shape[2]} positions for {layer.stored} slots")
    if not info.verbatim and layer.stored != layer.seen:
        return False  # merged slots stand for several tokens
    index = positions.clamp(0, keys.shape[2] - 1).unsqueeze(-1).expand(-1, -1, -1, keys.shape[3])
    limit = NEAR if info.verbatim else 1.0
    read = layer.read(slice(None), torch.float64)
    for name, mine, theirs in zip(("keys", "values"), read, (keys, values), strict=True):
        true = theirs.double().gather(2, index)
        wrong = ((mine - true).norm(dim=-1) > limit * true.norm(dim=-1).clamp(min=1e-9)) & layer.valid
        if bool(wrong.any()):
            row, head, slot = wrong.nonzero()[0].tolist()
            where = int(positions[row, head, slot])
            fail(f"{name} at position {where} are not that token's (row {row}, kv head {head}, slot {slot})")
    return True
