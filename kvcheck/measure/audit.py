"""The proof that a method acted, and that what it holds is what it declares.

Run on a cache right after compression (or later: what decoding may change is then left out). It checks properties that
hold for every method, whatever it does: see `audit`. It never raises; problems are sentences.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import torch

from kvcheck.cache import checks
from kvcheck.cache.layer import CacheLayer
from kvcheck.cache.method import Method, MethodInfo, Stage
from kvcheck.cache.shape import ModelShape, Prefilled
from kvcheck.cache.view import CacheView, FedCache, LayerView, view
from kvcheck.measure.memory import held, tensors

META_PER_SLOT = 32  # bytes of bookkeeping per slot and kv head; more than that is no bookkeeping
SHORT = 256  # a method without a declared size is not asked to have freed memory on prompts shorter than this
OWN_ROUNDING = 0.01  # share of the norm of a head's keys or values by which a prefill of the method's own may differ


@dataclasses.dataclass(frozen=True)
class Proof:
    """What a cache holds: layers, those with tokens, mean slots per layer and kv head, tokens seen; problems."""

    layers: int
    touched: int
    kept: float
    seen: int
    problems: tuple[str, ...]


def audit(cache: FedCache, prefilled: Sequence[Prefilled], method: Method) -> Proof:
    """Check a cache against the prompt it was made from (one Prefilled per layer) and the method's own declarations.

    Problems: layers without tokens or that saw another number of tokens; numbers that are not finite; positions out
    of range, repeated or out of order; protected positions missing in any row or kv head; slot counts or bytes other
    than declared; verbatim keys or values that differ from the prompt's at their positions; others further from them
    than zero would be; no bytes to be found; bookkeeping as large as a cache; memory as large as the full cache's where
    less is claimed. Of what a model carries beside full attention, that it is there, and finite. Of a method that
    rewrites the prompt, contents are looked at for numbers that are not finite only: its cache is that of another
    prompt. Rows with caches of their own are audited one by one. Of a foreign row, whose layers know no positions,
    layers, finite numbers and bytes are looked at.
    """
    looked = view(cache)
    if looked.rows is not None:
        return _together([audit(row, _row(prefilled, at), method) for at, row in enumerate(looked.rows)])
    if looked.opaque:
        return _opaque(looked, prefilled[0], len(prefilled), method)
    if looked.depth is not None:
        return _carried(looked, looked.depth, prefilled, method)
    return _declared(looked, prefilled, method)


def _declared(cache: CacheView, prefilled: Sequence[Prefilled], method: Method) -> Proof:
    """What is declared of the method's layers."""
    rewritten = method.info.stage == Stage.PROMPT
    layers = cache.method_layers
    prompt = prefilled[0].keys.shape[2]
    seen = [int(layer.get_seq_length()) for layer in layers]
    stored = _counts(layers)
    problems = list(_coverage(seen, stored, 1 if rewritten else prompt, len(prefilled)))
    if not problems:
        for index, (layer, part) in enumerate(zip(layers, prefilled, strict=True)):
            known = None if rewritten else layer.known
            found = _finite(layer.storage) if known is None else _contents(known, part, method)
            problems += [f"layer {index}: {problem}" for problem in found]
        problems += _sizes(cache, prefilled[0], method, prompt, max(0, seen[0] - prompt))
    touched = sum(count > 0 for count in seen)
    return Proof(len(layers), touched, kept(cache), max(seen, default=0), tuple(problems))


def kept(cache: FedCache) -> float:
    """Slots per row, layer and kv head, on average over all of the cache."""
    looked = view(cache)
    if looked.rows is not None:
        return sum(kept(row) for row in looked.rows) / len(looked.rows)
    counts = _counts(looked.method_layers or looked.attending, looked.opaque)
    return sum(counts) / max(1, len(counts))


def _counts(layers: Sequence[LayerView], opaque: bool = False) -> list[float]:
    """Slots per row and kv head of every layer, on average. opaque: none where no bytes are to be found."""
    return [layer.slots if not opaque or held(layer.storage).kv else 0 for layer in layers]


def _carried(cache: CacheView, depth: int, prefilled: Sequence[Prefilled], method: Method) -> Proof:
    """The method's layers as those of any cache; of the rest that it is there. A state keeps no token."""
    problems = tuple(_finite(cache))
    if not held(cache).kv:
        problems += ("what the model carries lies where it cannot be counted: no bytes are reachable",)
    if not cache.method_layers:
        return Proof(depth, depth, kept(cache), cache.seen, problems)
    proof = _declared(cache, prefilled, method)
    return dataclasses.replace(proof, problems=problems + proof.problems)


def _opaque(row: CacheView, prefilled: Prefilled, expected: int, method: Method) -> Proof:
    """What can be said of a cache of which nothing is declared."""
    layers = row.method_layers
    prompt, decoded = prefilled.keys.shape[2], max(0, row.seen - prefilled.keys.shape[2])
    slots = _counts(layers, opaque=True)
    problems = list(_coverage([layer.seen for layer in layers], slots, prompt, expected))
    problems += [f"layer {at}: {problem}" for at, layer in enumerate(layers) for problem in _finite(layer.storage)]
    kv_heads, head_dim = prefilled.keys.shape[1], prefilled.keys.shape[3]
    shape = ModelShape(expected, kv_heads, kv_heads, head_dim, value_dim=prefilled.values.shape[3])
    declared, dense = method.kv_bytes(shape, 1, prompt, decoded), shape.dense_bytes(1, prompt + decoded)
    if declared is not None and declared != held(row).kv:
        problems.append(f"{held(row).kv:,} bytes of keys and values are held, {declared:,} declared")
    if method.info.frees_memory and prompt >= SHORT and held(row).kv >= dense:
        problems.append(f"did nothing: {held(row).kv:,} bytes are held, the full cache holds {dense:,}")
    touched = sum(count > 0 for count in slots)
    return Proof(len(layers), touched, kept(row), row.seen, tuple(problems))


def _row(prefilled: Sequence[Prefilled], row: int) -> list[Prefilled]:
    return [part.select([row]) for part in prefilled]


def _together(proofs: Sequence[Proof]) -> Proof:
    """The proof of all rows: the least that any of them touched, the mean of what they kept, each problem once."""
    problems = dict.fromkeys(problem for proof in proofs for problem in proof.problems)
    kept = sum(proof.kept for proof in proofs) / len(proofs)
    layers, touched = (min(getattr(proof, name) for proof in proofs) for name in ("layers", "touched"))
    return Proof(layers, touched, kept, max(proof.seen for proof in proofs), tuple(problems))


def _coverage(seen: list[int], stored: Sequence[float], prompt: int, expected: int) -> Iterator[str]:
    """Every layer of the model took in the prompt, and the same number of tokens."""
    if len(seen) != expected:
        yield f"the cache has {len(seen)} layers, the model has {expected}"
    elif not any(stored):
        yield "the cache is empty"
    else:
        for index, count in enumerate(stored):
            if count == 0:
                yield f"layer {index}: the layer is empty"
        if len(set(seen)) > 1:
            yield f"the layers disagree on the tokens seen: {sorted(set(seen))}"
        elif seen[0] < prompt:
            yield f"the cache saw {seen[0]} tokens of a prompt of {prompt}"


def _contents(layer: CacheLayer, prefilled: Prefilled, method: Method) -> Iterator[str]:
    """Problems of one layer's positions, keys and values."""
    yield from _finite(layer)
    where = prefilled.keys.device  # those of a layer in host memory, or of one that reads another's, lie elsewhere
    positions, valid = layer.positions.long().to(where), layer.valid.to(where)
    batch, heads, prompt, _ = prefilled.keys.shape
    if tuple(positions.shape) != (batch, heads, layer.stored):
        expected = (batch, heads, layer.stored)
        yield f"positions have the shape {tuple(positions.shape)} where rows, kv heads and slots are {expected}"
        return
    if int(positions.min()) < 0 or int(positions.max()) >= layer.seen:
        yield f"positions reach from {int(positions.min())} to {int(positions.max())} of {layer.seen} tokens seen"
        return
    if not _in_order(positions, valid):
        yield "positions are repeated or out of order"
    declared = method.slots(layer.shape, prompt, layer.seen - prompt)
    if declared is not None and declared[layer.index] != layer.stored:
        yield f"{layer.stored} slots per kv head, {declared[layer.index]} declared"
    if layer.seen == prompt or not method.info.evicts_in_decode:
        yield from _protected(positions, valid, method.protected(prompt), layer.seen)
    yield from _faithful(layer, positions, valid, prefilled, method.info)


def _in_order(positions: torch.Tensor, valid: torch.Tensor) -> bool:
    """Whether the positions of the slots that are valid ascend in every row and kv head."""
    each = (segment[mask] for segment, mask in zip(positions.flatten(0, 1), valid.flatten(0, 1), strict=True))
    return all(bool((segment.diff() > 0).all()) for segment in each)


def _finite(layer: object) -> Iterator[str]:
    """No NaN and no infinity in anything that the layer holds."""
    for tensor in tensors(layer):
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            yield f"a tensor of shape {tuple(tensor.shape)} holds NaN or infinite numbers"


def _protected(
    positions: torch.Tensor, valid: torch.Tensor, protected: frozenset[int] | None, seen: int
) -> Iterator[str]:
    """Every protected position is held by every row and kv head."""
    if not protected:
        return
    held_positions = torch.zeros(*positions.shape[:2], seen, dtype=torch.int, device=positions.device)
    held_positions = held_positions.scatter_add(2, positions, valid.int()) > 0
    wanted = torch.tensor(sorted(protected), device=positions.device)
    missing = (~held_positions[:, :, wanted]).nonzero()
    if len(missing):
        row, head, which = missing[0].tolist()
        yield (
            f"{len(missing)} protected positions are missing, the first is {int(wanted[which])} "
            f"in row {row}, kv head {head}"
        )


def _faithful(
    layer: CacheLayer, positions: torch.Tensor, valid: torch.Tensor, prefilled: Prefilled, info: MethodInfo
) -> Iterator[str]:
    """Keys and values of prompt tokens are the prompt's: bit for bit, or nearer to them than zero is.

    Bit for bit where they are verbatim and the very ones. A prefill of the method's own rounds otherwise in the first
    layer, and computes others above; another architecture does everywhere.
    """
    prompt = prefilled.keys.shape[2]
    if not info.verbatim and layer.slots != layer.seen:
        return  # merged slots stand for several tokens
    if info.stage == Stage.ARCHITECTURE or (not info.shares_prefill and layer.index > 0):
        return
    verbatim = info.verbatim and info.shares_prefill
    inside = (positions < prompt) & valid
    at = positions.clamp(max=prompt - 1).unsqueeze(-1)
    read = checks.pair(layer.read(slice(None), layer.dtype if verbatim else torch.float32), "read")
    for name, found, theirs in zip(("keys", "values"), read, (prefilled.keys, prefilled.values), strict=True):
        mine = found.to(theirs.device)
        expected = (*positions.shape, theirs.shape[3])
        if tuple(mine.shape) != expected:
            yield f"{name} are read as {tuple(mine.shape)}: {_unlike(tuple(mine.shape), expected)}"
            return
        true = theirs.gather(2, at.expand(-1, -1, -1, theirs.shape[3])).to(mine.dtype)
        if verbatim:
            wrong = ((mine != true).any(dim=3) & inside).nonzero()
        else:
            error, size = ((each * inside.unsqueeze(-1)).norm(dim=(2, 3)) for each in (mine - true, true))
            wrong = (error > (OWN_ROUNDING if info.verbatim else 1) * size).nonzero()
        if len(wrong):
            row, head = wrong[0].tolist()[:2]
            what = "slots" if verbatim else "kv heads"
            yield f"{name} of {len(wrong)} {what} are not those of the prompt, the first in row {row}, kv head {head}"


def _unlike(found: tuple[int, ...], expected: tuple[int, ...]) -> str:
    """The first dimension that is not as expected, (B, G, slots, d)."""
    names = (
        "rows are stored, {} were fed",
        "heads are stored, the model has {} kv heads",
        "slots, its positions are {}",
    )
    for mine, wanted, words in zip(found, expected, (*names, "channels, the model has {}"), strict=False):
        if mine != wanted:
            return f"{mine} {words.format(wanted)}"
    return f"it must have {len(expected)} dimensions"


def _sizes(cache: CacheView, prefilled: Prefilled, method: Method, prompt: int, decoded: int) -> Iterator[str]:
    """Bytes as declared, and less than the full cache where that is claimed."""
    batch, kv_heads, _, head_dim = prefilled.keys.shape
    layers = cache.method_layers
    first, itemsize = layers[0].known, prefilled.keys.itemsize
    shape = ModelShape(len(layers), kv_heads, kv_heads, head_dim, itemsize, value_dim=prefilled.values.shape[3])
    if first is not None:
        shape = dataclasses.replace(shape, heads=first.shape.heads, itemsize=first.dtype.itemsize)
    bytes_held = held(cache.storage)
    declared, dense = method.kv_bytes(shape, batch, prompt, decoded), shape.dense_bytes(batch, prompt + decoded)
    if declared is not None and declared != bytes_held.kv:
        yield f"{bytes_held.kv:,} bytes of keys and values are held, {declared:,} declared"
    away = method.host_bytes(shape, batch, prompt, decoded)
    if away is not None and away != bytes_held.host:
        yield f"{bytes_held.host:,} bytes are held in host memory, {away:,} declared"
    if not bytes_held.kv + bytes_held.host:
        yield "keys and values lie where they cannot be counted: no bytes are reachable from the cache"
    slots = sum(prompt + decoded if each.known is None else each.slots for each in layers)
    if bytes_held.meta > META_PER_SLOT * slots * batch * kv_heads:
        yield f"{bytes_held.meta:,} bytes are declared as bookkeeping for {slots:g} slots, which is a cache of its own"
    expected_less = declared < dense if declared is not None else prompt >= SHORT
    if method.info.frees_memory and expected_less and bytes_held.kv >= dense:
        yield f"did nothing: {bytes_held.kv:,} bytes are held, the full cache holds {dense:,}"
