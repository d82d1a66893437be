"""What can be seen of a cache that is not made of kvcheck's layers: what goes in, what it keeps, what it reads back."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import Cache

from kvcheck.cache import checks
from kvcheck.cache.method import Lossless
from kvcheck.cache.rows import Batch, Row
from kvcheck.cache.shape import Prefilled
from kvcheck.cache.view import FedCache, view
from kvcheck.conformance.subject import NotServed, Subject, plain
from kvcheck.core.errors import MethodUnsupported
from kvcheck.methods.adapters.foreign import CacheRunner, Foreign, standing_in

Pair = tuple[torch.Tensor, torch.Tensor]
"""Keys and values (R, G, n, d)."""


@dataclass
class Updates:
    """What one layer of a cache was given, forward by forward, and what it gave back last, to be attended to."""

    given: list[Pair] = field(default_factory=list)
    read: Pair | None = None

    @property
    def whole(self) -> Pair:
        """All that it was given."""
        keys, values = zip(*self.given, strict=True)
        return torch.cat(keys, dim=2), torch.cat(values, dim=2)


@contextmanager
def updates(cache: Cache) -> Iterator[dict[int, Updates]]:
    """What goes into a transformers cache meanwhile and what it gives back, by layer."""
    found: dict[int, Updates] = {}
    inner = cache.update

    def update(key: torch.Tensor, value: torch.Tensor, layer_idx: int, *args: object, **kwargs: object) -> Pair:
        one = found.setdefault(layer_idx, Updates())
        one.given.append((key.clone(), value.clone()))  # a cache may write into what it is given
        keys, values = checks.pair(inner(key, value, layer_idx, *args, **kwargs), "update")
        one.read = keys, values
        return keys, values

    with standing_in(cache, "update", update):
        yield found


def owner(subject: Subject) -> CacheRunner:
    """The runner that feeds a foreign cache. Raises NotServed for a press, which is no cache, and for other methods."""
    if not isinstance(subject.runner, CacheRunner):
        raise NotServed("it is not a cache that the model's own attention reads")
    return subject.runner


def fed(subject: Subject, *texts: torch.Tensor) -> tuple[Batch, dict[int, Updates], list[torch.Tensor]]:
    """A fresh foreign cache, fed these (R, n) one after the other in a forward each: it, its updates, the logits."""
    runner = owner(subject)
    batch = runner.start(texts[0].shape[1], Batch)
    with updates(batch.cache) as found:
        logits = [subject.feed(batch, text, subject.together) for text in texts]
    return batch, found, logits


def holds_all(subject: Subject, *texts: torch.Tensor) -> bool:
    """Whether a foreign cache keeps all that it is fed as it came in: it says so, or it is seen behind these texts."""
    if subject.method.info.lossless == Lossless.ALWAYS:
        return True
    batch, found, _ = fed(subject, *texts)
    layers = [plain(layer) for layer in batch.cache.layers]
    if len(layers) != len(found):
        return False
    return all(
        held is not None and all(map(torch.equal, held, updates.whole))
        for held, updates in zip(layers, (found[index] for index in sorted(found)), strict=True)
    )


def expect_all(subject: Subject, *texts: torch.Tensor) -> None:
    """Raise NotServed unless a foreign cache keeps all of these texts as they came in.

    texts: in the pieces in which they will be fed. A cache may do otherwise with a block than with its tokens.
    """
    owner(subject)
    try:
        whole = holds_all(subject, *texts)
    except (NotServed, MethodUnsupported):
        raise
    except Exception as error:  # rows that it cannot take together, or a fault that other properties tell
        raise NotServed(f"it cannot be fed so: {type(error).__name__}: {error}") from error
    if not whole:
        raise NotServed("it does not keep all that it is fed as it came in")


def pieces(ids: torch.Tensor, follow: torch.Tensor, steps: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """What `Subject.life` feeds together: a prompt, a follow-up block, and steps one by one."""
    return (ids, follow, *steps.split(1, dim=1))


def filled(subject: Subject, layers: Sequence[Prefilled]) -> Batch:
    """A fresh foreign cache into which a prompt goes by its own `update`, as the full cache has it. Raises NotServed.

    Keys and values may be anything that has the shape of a prompt's.
    """
    batch = owner(subject).start(layers[0].keys.shape[2], Batch)
    for index, part in enumerate(layers):
        updated(batch, part.keys, part.values, index)
    batch.seen = layers[0].keys.shape[2]
    return batch


def updated(batch: Batch, keys: torch.Tensor, values: torch.Tensor, layer: int) -> Pair:
    """What a foreign cache reads back when it takes these in. Raises NotServed where only a model can feed it."""
    try:
        return checks.pair(batch.cache.update(keys, values, layer), "update")
    except Exception as error:
        raise NotServed(f"it cannot be fed but by a model: {type(error).__name__}: {error}") from error


def read_back(subject: Subject, layers: Sequence[Prefilled]) -> list[Pair]:
    """Keys and values of these tokens, per layer, as a foreign cache reads them back with the next token behind them.

    Raises NotServed where it reads back fewer.
    """
    batch, found = filled(subject, layers), []
    for index, part in enumerate(layers):
        length = part.keys.shape[2]
        keys, values = updated(batch, part.keys[:, :, -1:], part.values[:, :, -1:], index)
        if keys.shape[2] <= length:
            raise NotServed("it does not read all tokens back")
        found.append((keys[:, :, :length].double(), values[:, :, :length].double()))
    return found


def plain_layers(cache: FedCache) -> list[Pair | None]:
    """Keys and values of each layer of a foreign cache that keeps them as they are, None for others."""
    return [plain(layer) for layer in view(cache).inner.layers]


NEAR = 4e-3
"""Of the norm of a stored vector: eight times the rounding to 16 bits."""


def places(keys: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
    """Of which tokens (R, G, n, d) these keys (R, G, s, d) are -> positions (R, G, s), -1 for those of none."""
    gaps = torch.cdist(keys.double(), true.double())
    nearest = gaps.min(dim=-1)
    size = true.double().norm(dim=-1).gather(2, nearest.indices)
    return torch.where(nearest.values <= NEAR * size, nearest.indices, -1)


def is_foreign(subject: Subject) -> bool:
    """Whether the method is from elsewhere."""
    return isinstance(subject.method, Foreign)


@contextmanager
def verb(cache: FedCache, name: str) -> Iterator[None]:
    """Let a cache change itself by a verb. Raises NotServed where its class has none that acts, or refuses."""
    inner: Any = cache.inner if isinstance(cache, Row) else cache
    if isinstance(cache, Row) and not inner.layers and getattr(type(inner), name, None) is getattr(Cache, name):
        raise NotServed(
            f"its class has no {name} of its own, and keeps nothing in `layers`, on which transformers' acts"
        )
    if not hasattr(inner, name):
        raise NotServed(f"it has no {name}")
    try:
        yield
    except (NotImplementedError, MethodUnsupported) as error:
        raise NotServed(f"it refuses {name}: {error}") from error
    except AttributeError as error:
        if error.name != name:
            raise
        raise NotServed(f"a layer of it has no {name}") from error


def chosen(cache: FedCache, rows: list[int]) -> FedCache:
    """A copy with these rows; of a foreign batch by its own verb."""
    if isinstance(cache, Batch):
        with verb(cache, "batch_select_indices"):
            return cache.select(rows)
    return cache.select(rows)


def twin(cache: FedCache, rows: int) -> FedCache:
    """A copy of all rows; of a foreign batch a deep one, which asks it for nothing."""
    return copy.deepcopy(cache) if isinstance(cache, Batch) else cache.select(range(rows))


def layers_of(cache: Row) -> list[Any]:
    """What knows a length: the layers, or the cache where it keeps nothing in them."""
    return list(cache.cache.layers) or [cache.cache]
