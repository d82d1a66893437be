"""What attention weighs: all of it and nothing else, and each of the newest tokens at its distance."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch.nn import Parameter

from kvcheck.cache.growable import GrowableBuffer
from kvcheck.cache.method import Stage
from kvcheck.cache.rotary import rotate
from kvcheck.cache.view import FedCache, parts
from kvcheck.conformance.base import LONGER, other_prompt, property_test
from kvcheck.conformance.others import NEAR
from kvcheck.conformance.properties.positions import dense_layers
from kvcheck.conformance.subject import TOLERANCE, NotServed, Subject, absent, equal


@property_test(skip_reason=other_prompt, longest=LONGER, share=0.8)
def weights_add_up_to_one(subject: Subject) -> None:
    """Where all values are alike, what is read is that value, whatever was left out: the logits are the full cache's.

    A slot that is counted without holding a token, a mask that hides too little, or two softmaxes that are merged by
    the wrong sums, make it less or more.
    """
    alike_values(subject)
    subject.runner = subject.new_runner()
    ids, follow, steps = subject.texts()
    cache, first = subject.prefill(ids)
    mine = [first, subject.feed(cache, follow), subject.one_by_one(cache, steps)]
    if not subject.method.info.verbatim:
        expect_ones(cache)
    equal(mine, subject.life(ids, follow, steps, runner=subject.dense), "where all values are 1")


def expect_ones(cache: FedCache) -> None:
    """Raise NotServed where values of 1 are stored as something else, by rounding or in another form."""
    for part in parts(cache):
        if part.opaque and any(absent(cache)):
            raise NotServed("not every token has plain keys and values of its own")
        for layer in part.inner.layers if part.opaque else part.method_layers:
            known = None if part.opaque else layer.known
            if known is not None:
                values = known.read(slice(None), torch.float64)[1][known.valid]
            else:
                values = getattr(layer, "values", None)
                values = values[:, :, : part.seen] if isinstance(values, torch.Tensor) else torch.zeros(1)
            if float((values - 1).abs().max()) > TOLERANCE:
                raise NotServed("it does not store values of 1 as they are")


def alike_values(subject: Subject) -> None:
    """Have every token the value 1 in every channel, by the weights. Raises NotServed where that says nothing."""
    for attention in _attentions(subject):
        if not hasattr(attention, "v_proj"):
            raise NotServed("the values of the model do not come straight from v_proj")
        if getattr(attention, "sinks", None) is not None:
            raise NotServed("a part of the model's attention goes to learned sinks")
        weight = attention.v_proj.weight
        weight.data.zero_()
        attention.v_proj.bias = Parameter(torch.ones_like(weight[:, 0]), requires_grad=False)


def _attentions(subject: Subject) -> list[Any]:
    """Of all layers. Raises NotServed for a model whose layers attend by something else."""
    layers = [getattr(layer, "self_attn", None) for layer in subject.loaded.model.get_decoder().layers]
    if None in layers:
        raise NotServed("not every layer of the model attends")
    return layers


CANARY = 3e4
"""Written to unused slots: so large that hardly a weight hides it, and that 16 bits hold it."""


@property_test(share=0.5)
def what_no_token_was_written_to_is_not_read(subject: Subject) -> None:
    """Slots that were allocated ahead, and those of tokens that left, have no influence, whatever is in them."""
    ids, follow, steps = subject.texts()
    cache = subject.native(subject.prefill(ids)[0])
    spoilt = 0
    for what, fed in (("a follow-up", follow), *(("decoding", token) for token in steps.split(1, dim=1))):
        other = copy.deepcopy(cache)
        spoilt += sum(spoil(layer) for layer in other.layers)
        mine, wanted = subject.feed(other, fed), subject.feed(cache, fed)
        equal(mine, wanted, f"{what}, where unused slots hold large numbers and where they do not")
    if not spoilt:
        raise NotServed("it allocates no slots ahead")


def spoil(layer: object) -> int:
    """Fill the unused slots of a layer's buffers -> how many there are."""
    buffers = [each for each in vars(layer).values() if isinstance(each, GrowableBuffer)]
    unused = 0
    for buffer in buffers:
        small = not buffer.tensor.is_floating_point() or buffer.tensor.itemsize == 1
        for part in (buffer.tensor[:, :, : buffer.start], buffer.tensor[:, :, buffer.start + buffer.length :]):
            part.fill_(1 if small else CANARY)
            unused += part.shape[2]
    return unused


NEAREST = 4
"""Distances that are tried, from that of a token to itself on."""
PEAK = 17.0
"""Size of every pair of channels of all keys and queries: the score falls by some 40 from one token to the next."""
WIDE = 64
"""Tokens of a prompt behind which the newest ones are held by whatever keeps a share of it."""


@property_test(skip_reason=other_prompt)
def the_newest_tokens_are_at_their_distance(subject: Subject) -> None:
    """Where every query asks for the token so many places before its own, that one is read, wherever keys were moved.

    All keys are one vector, all queries the same some places back, so that nothing but the rotation tells tokens apart.
    Asked of tokens that are held, by which all layers read tokens that are.
    """
    info, layers = subject.method.info, subject.shape.layers
    if subject.method.rounding() is not None:
        raise NotServed("its keys are rounded, and those of all tokens are all but alike")
    distance = 0 if info.stage in (Stage.RETRIEVAL, Stage.GENERATION) else subject.draw.seed % NEAREST
    asking_back(subject, distance)
    subject.runner = subject.new_runner()
    prompt, many = WIDE + subject.draw.prompt % WIDE, distance * layers + 1
    sizes = (prompt, many, *[1] * (many + 2))
    ids = subject.tokens(sum(sizes))
    (cache, _), (full, _) = subject.prefill(ids[:, :prompt]), subject.prefill(ids[:, :prompt], subject.dense)
    right = [layers if info.shares_prefill else 0] * prompt  # by token: layers that have read what they should
    lost = absent(cache)
    found = []
    for part in ids[:, prompt:].split(sizes[1:], dim=1):
        seen = len(right)
        there = held_in_all_heads(cache, prompt, seen) if lost == absent(cache) else set()
        mine, wanted = subject.feed(cache, part), subject.feed(full, part, subject.dense)
        for at in range(seen, seen + part.shape[1]):
            target = at - distance
            known = target >= seen or target in there
            before = right[target] if distance else layers
            right.append(min(layers, 1 + before) if known else 0)
            if right[at] == layers:
                found.append((mine[:, at - seen], wanted[:, at - seen], at))
    if not info.verbatim:
        expect_true_values(subject, cache, ids)
    for one, other, at in found:
        equal(one, other, f"token {at}, where each asks for the one {distance} back")
    if not found:
        raise NotServed(f"the token {distance} back is not held, or its slots do not know their positions")


def expect_true_values(subject: Subject, cache: FedCache, ids: torch.Tensor) -> None:
    """Raise NotServed unless the first layer holds the values of all these tokens that it holds as they are."""
    true = dense_layers(subject, ids)[0].values.double()
    caches = parts(cache)
    for number, part in enumerate(caches):
        theirs = true if len(caches) == 1 else true[number : number + 1]
        known = None if part.opaque else part.method_layers[0].known
        if known is not None:
            at = known.positions.long().unsqueeze(-1).expand(-1, -1, -1, theirs.shape[3])
            mine, theirs = known.read(slice(None), torch.float64)[1], theirs.gather(2, at)
            mine, theirs = mine[known.valid], theirs[known.valid]
        else:
            plain = getattr(next(iter(part.inner.layers), None), "values", None)
            mine = plain[:, :, : part.seen] if isinstance(plain, torch.Tensor) and plain.dim() == 4 else torch.zeros(0)
        if mine.shape != theirs.shape:
            raise NotServed("its slots do not know their positions")
        if float((mine.double() - theirs).norm()) > NEAR * float(theirs.norm()):
            raise NotServed("it stores other values than the model's")


def asking_back(subject: Subject, distance: int) -> None:
    """Have every query ask for the token so many places before its own, by the weights. Raises NotServed."""
    if subject.shape.rope is None:
        raise NotServed("how the model rotates keys is not known")
    for attention in _attentions(subject):
        if any(hasattr(attention, name) for name in ("q_norm", "k_norm")) or not hasattr(attention, "k_proj"):
            raise NotServed("queries and keys of the model do not come straight from q_proj and k_proj")
        weight = attention.k_proj.weight
        key = torch.full((subject.shape.head_dim,), PEAK * 0.5**0.5, dtype=weight.dtype)
        query = rotate(key, torch.tensor(-distance), subject.shape.rope)
        for module, vector in ((attention.k_proj, key), (attention.q_proj, query)):
            module.weight.data.zero_()
            heads = module.weight.shape[0] // subject.shape.head_dim
            module.bias = Parameter(vector.repeat(heads), requires_grad=False)


def held_in_all_heads(cache: FedCache, prompt: int, seen: int) -> set[int]:
    """The positions that every row and kv head of every layer holds; of foreign rows, which append, what was fed last.

    prompt: tokens of it, of which foreign rows may have dropped some.
    """
    found = torch.ones(seen, dtype=torch.bool)
    if any(absent(cache)):
        found[:prompt] = False
    for part in parts(cache):
        for layer in () if part.opaque else part.method_layers:
            known = layer.known
            if known is None or known.positions.shape[2] != known.stored:
                return set()
            there = torch.zeros(*known.positions.shape[:2], seen, dtype=torch.int)
            there.scatter_add_(2, known.positions.long().cpu(), known.valid.int().cpu())
            found &= (there > 0).all(dim=0).all(dim=0)
    return set(found.nonzero().flatten().tolist())
