"""Which tokens are where."""

from __future__ import annotations

import copy
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
from kvcheck.conformance.others import NEAR, Pair, fed, is_foreign, layers_of, owner, places, plain_layers, updates
from kvcheck.conformance.subject import NotServed, Subject, fail, foreign_rows
from kvcheck.measure.audit import audit
from kvcheck.methods.adapters.foreign import CacheRunner
from kvcheck.models.rotary import rotaries


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
    for what, fed_parts in (("a follow-up", [follow]), ("decoding", steps.split(1, 1))):
        for part in fed_parts:
            as_wide_as_its_masks(subject, cache, part)
            seen += part.shape[1]
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
    if is_foreign(subject):
        return expect_true_slots(subject, ids)
    cache, _ = subject.prefill(ids)
    proof = audit(cache, dense_layers(subject, ids), subject.method)
    wrong = [each for each in proof.problems if not each.startswith("did nothing")]  # another property asks that
    if wrong:
        fail("; ".join(wrong))
    if foreign_rows(cache):
        raise _unseen()
    return None


def expect_true_slots(subject: Subject, *texts: torch.Tensor) -> None:
    """Raise Violation where a slot of a foreign cache, behind these (R, n), is not a token's, NotServed if none tells.

    A slot is that of the token whose key it holds; then it must hold that token's value, or one nearer to it than zero
    is, and no other slot may hold the same token.
    """
    told = 0
    for index, held, true in _slots(subject, *texts):
        positions = places(held[0], true[0])
        told += int((positions >= 0).sum())
        _of_their_tokens(held[1], true[1], positions, index)
    if not told:
        raise NotServed("its slots do not hold the keys of tokens as they came in")


def _slots(subject: Subject, *texts: torch.Tensor) -> Iterator[tuple[int, Pair, Pair]]:
    """(layer, what a foreign cache holds in it behind these texts, what went into it), where it holds plain tensors.

    A press acts on a cache that nobody has before the prompt is in. What went into that is what the full cache has: in
    all layers behind a prompt, later only in the first, which does not depend on what was answered before.
    """
    cache: FedCache
    if isinstance(subject.runner, CacheRunner):
        cache, found, _ = fed(subject, *texts)
        true = {index: one.whole for index, one in found.items()}
    else:
        cache, _ = subject.prefill(texts[0], subject.together)
        for text in texts[1:]:
            subject.feed(cache, text, subject.together)
        layers = dense_layers(subject, torch.cat(texts, dim=1))[: 1 if len(texts) > 1 else None]
        true = {index: (layer.keys, layer.values) for index, layer in enumerate(layers)}
    for index, held in enumerate(plain_layers(cache)):
        if held is not None and index in true:
            yield index, held, true[index]


def _of_their_tokens(values: torch.Tensor, true: torch.Tensor, positions: torch.Tensor, index: int) -> None:
    """Raise Violation where a value is not that of the token whose key is beside it, or a token has two slots."""
    known = positions >= 0
    wanted = true.double().gather(2, positions.clamp(min=0).unsqueeze(-1).expand(-1, -1, -1, true.shape[3]))
    wrong = known & ((values.double() - wanted).norm(dim=-1) > wanted.norm(dim=-1).clamp(min=1e-9))
    for row, head, slot in wrong.nonzero()[:1].tolist():
        at = int(positions[row, head, slot])
        fail(f"layer {index}: slot {slot} holds the key of token {at} and another value (row {row}, kv head {head})")
    for row, head in torch.cartesian_prod(*map(torch.arange, positions.shape[:2])).tolist():
        mine = positions[row, head][known[row, head]]
        if mine.unique().numel() < mine.numel():
            fail(f"layer {index}: a token is held twice (row {row}, kv head {head})")


@property_test(skip_reason=other_prompt)
def slots_stay_true_while_decoding(subject: Subject) -> None:
    """Behind two turns of follow-up and decoding, keys and values of the first layer are still those of their tokens.

    The first layer's do not depend on what the cache answered before, so they are those of the full cache.
    """
    info = subject.method.info
    if is_foreign(subject):
        ids, follow, steps = subject.texts()
        turn = (follow, *steps.split(1, 1))
        return expect_true_slots(subject, ids, *turn, *turn)
    if not sum(_compare(layer, keys, values, info) for layer, keys, values in _first_layers(subject)):
        raise _unseen()
    return None


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
        stand = _standing(mine, true, positions, kept, subject.shape.rope)
        for row, head in torch.cartesian_prod(*map(torch.arange, stand.shape[:2])).tolist():
            order = stand[row, head][kept[row, head]]
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


def _standing(
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
    if is_foreign(subject):
        return _kept_alike(subject, ids, follow)
    block, single = (subject.native(subject.prefill(ids)[0]) for _ in range(2))
    for turn in ("first", "second"):
        subject.feed(block, follow)
        subject.one_by_one(single, follow)
        for index, (mine, theirs) in enumerate(zip(block.layers, single.layers, strict=True)):
            if not torch.equal(mine.positions, theirs.positions):
                fail(f"layer {index}: other positions are kept behind the block of the {turn} turn than token by token")
        for cache in (block, single):
            subject.one_by_one(cache, steps)
    return None


def _kept_alike(subject: Subject, ids: torch.Tensor, follow: torch.Tensor) -> None:
    """The same of the first layer of a foreign cache, whose keys do not depend on what it answered before.

    What evicts or quantizes by how many tokens come at once is not asked.
    """
    block, _ = subject.prefill(ids, subject.together)
    single = copy.deepcopy(block)
    with subject.appending(block, single):
        subject.feed(block, follow, subject.together)
        subject.one_by_one(single, follow, subject.together)
    true = dense_layers(subject, torch.cat([ids, follow], dim=1))[0].keys
    first = [plain_layers(each)[:1] for each in (block, single)]
    mine, theirs = (places(each[0][0], true) if each and each[0] else None for each in first)
    if mine is None or theirs is None or not bool((mine >= 0).any()):
        raise _unseen()
    if not torch.equal(mine.sort(-1).values, theirs.sort(-1).values):
        fail("layer 0: other tokens are kept behind a block than token by token")


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
