"""The full cache of a block of contexts, computed once and shared by every mode and method of a run.

The context goes through the model once, with the full 16-bit cache. What comes after it (a question, and the reference
answer for the drift) is appended to a fork, all rows in one forward: short rows are filled up at their right end, which
a causal model with a full cache does not see. A later question of a conversation goes on from what the full cache held
of the turn before, as far as the two begin alike: the history is not fed again. It is fed by itself, so what else is
asked changes no bit of it. What these forwards gave may be kept from run to run (prefill_store.py).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import takewhile
from typing import Any, ClassVar, Generic, TypeVar
from weakref import WeakSet

import torch

from kvcheck.backends.transformers import drift
from kvcheck.backends.transformers.prefill_store import PrefillStore, Tensors, digest_of, numbered
from kvcheck.cache.kernels import PLAIN, Softmax
from kvcheck.cache.kv_cache import CacheLayer
from kvcheck.cache.method_runner import MethodRunner
from kvcheck.cache.shape import ModelShape, Prefilled
from kvcheck.cache.view import CacheView
from kvcheck.measure.checksum import checksums
from kvcheck.methods.fp16 import Fp16
from kvcheck.models import LoadedModel
from kvcheck.runner.seam import Question

T = TypeVar("T")
Part = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]
Held = tuple[torch.Tensor, torch.Tensor]


class AskedLayer(CacheLayer):
    """The full cache of one layer that keeps the queries of the last block behind the prompt: asked (B, H, q, d)."""

    asked: torch.Tensor | None = None

    def step(self, query: torch.Tensor) -> None:
        """Keep the queries in the stored dtype, as `recording` does."""
        self.asked = query.to(self.dtype)


class Asked(Fp16):
    """The full cache, with the queries of the question on top."""

    def layer(self, shape: ModelShape, index: int) -> AskedLayer:
        """A full cache layer that keeps queries."""
        return AskedLayer(shape, index, self)


@dataclass(frozen=True, eq=False)
class Shared:
    """Tensors that several methods are given. sums: of their bits, as they were made."""

    sums: list[int] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self.sums.extend(checksums(self.tensors()))

    def tensors(self) -> Iterator[torch.Tensor]:
        """All of them, always in the same order."""
        raise NotImplementedError

    @property
    def sound(self) -> bool:
        """Whether none of them was written to since."""
        return self.sums == checksums(self.tensors())

    @property
    def nbytes(self) -> int:
        """Bytes that keeping it costs."""
        return sum(tensor.nbytes for tensor in self.tensors())


@dataclass(frozen=True, eq=False)
class Dense(Shared):
    """The full prefill of B contexts of equal length.

    key: names it in the memo. layers: per layer keys, values (B, G, n, d), queries (B, H, n, d) or None.
    tails: what the full cache said of questions behind it, by row, tokens and reference. prompt: a digest of its token
    ids where it is kept from run to run, "" where it is not.
    """

    key: Hashable
    layers: list[Prefilled]
    tokens: int
    tails: dict[Hashable, Tail] = field(default_factory=dict)
    prompt: str = ""

    def select(self, rows: Sequence[int]) -> list[Prefilled]:
        """Copies of these rows, repeats allowed: what a method gets may be written to."""
        return [layer.select(rows) for layer in self.layers]

    def tensors(self) -> Iterator[torch.Tensor]:
        """Those of the contexts; each tail looks after its own."""
        for layer in self.layers:
            yield from (part for part in (layer.keys, layer.values, layer.queries) if part is not None)

    @property
    def sound(self) -> bool:
        """Also of the tails."""
        return super().sound and all(tail.sound for tail in self.tails.values())

    @property
    def nbytes(self) -> int:
        """With the tails."""
        return super().nbytes + sum(tail.nbytes for tail in self.tails.values())


@dataclass(frozen=True, eq=False)
class Tail(Shared):
    """What the full cache says of one question behind its context.

    layers: per layer keys, values (G, T, d) and queries (H, T, d) of the question's T tokens; None where not asked for.
    logits (V) for the first token of the answer; log_probs (A + 1, V) in float32 before each of the
    A reference tokens and behind the last; (1, V) without a reference. said: all tokens behind the context, with the
    reference; held: per layer the keys and values of those that were fed now; before: has the first ones.
    """

    layers: list[Part] | None
    logits: torch.Tensor
    log_probs: torch.Tensor
    said: tuple[int, ...] = ()
    held: list[Held] = field(default_factory=list)
    before: Tail | None = None

    def tensors(self) -> Iterator[torch.Tensor]:
        """All of them, without those of the turns before."""
        yield from (part for layer in self.layers or () for part in layer if part is not None)
        yield from (part for layer in self.held for part in layer)
        yield from (self.logits, self.log_probs)

    def first(self, size: int) -> list[Held]:
        """Per layer the keys and values (G, size, d) of the first tokens behind the context."""
        start = len(self.said) - self.held[0][0].shape[1]
        own = [(keys[:, : max(0, size - start)], values[:, : max(0, size - start)]) for keys, values in self.held]
        if self.before is None or not start:
            return own
        earlier = self.before.first(min(size, start))
        return [
            (torch.cat([old[0], new[0]], dim=1), torch.cat([old[1], new[1]], dim=1))
            for old, new in zip(earlier, own, strict=True)
        ]


class Memo(Generic[T]):
    """A mapping with a byte limit: what was used longest ago goes first, what exceeds it by itself is not kept."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0
        self._entries: OrderedDict[Hashable, tuple[T, int]] = OrderedDict()

    def get(self, key: Hashable) -> T | None:
        """The value, now the most recently used one; None when it is not (or no longer) here."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        self._entries.move_to_end(key)
        return entry[0]

    def put(self, key: Hashable, value: T, nbytes: int) -> None:
        """Keep a value of nbytes, in place of an older one under the same key."""
        self.drop(key)
        if nbytes > self.limit:
            return
        self._entries[key] = (value, nbytes)
        self.held += nbytes
        while self.held > self.limit:
            _, (_, freed) = self._entries.popitem(last=False)
            self.held -= freed

    def drop(self, key: Hashable) -> None:
        """Forget a value; nothing happens when it is not here."""
        entry = self._entries.pop(key, None)
        if entry is not None:
            self.held -= entry[1]

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()
        self.held = 0


class Prefiller:
    """Runs the full cache. forwards counts the prompts (rows) that went through the model from their start.

    goes_on: keys and values are all that it carries from turn to turn. used: the prefills that were handed out since
    somebody emptied it, as long as they are kept. store: keeps what the forwards gave from run to run; None for
    nowhere.
    """

    goes_on: ClassVar[bool] = True

    def __init__(
        self, loaded: LoadedModel, memo: Memo[Dense], queries: bool, store: PrefillStore | None = None
    ) -> None:
        self.runner = MethodRunner(Asked(), loaded)
        self.memo = memo
        self.queries = queries
        self.store = store
        self.forwards = 0
        self.used: WeakSet[Dense] = WeakSet()

    def known(self, key: Hashable) -> Dense | None:
        """The prefill from the memo; None where it is not there, or was written to and is dropped."""
        found = self.memo.get(key)
        if found is not None and not found.sound:
            self.memo.drop(key)
            return None
        return found

    def context(self, key: Hashable, ids: torch.Tensor, queries: bool) -> Dense:
        """The full cache of contexts (B, n), from the memo where it is there. queries: a method reads them."""
        self.queries = self.queries or queries
        found = self.known(key)
        if found is not None and (not queries or found.layers[0].queries is not None):
            self.used.add(found)
            return found
        prompt = self._prompt(ids)
        dense = Dense(key, self._stored(prompt) or self._fed(ids, prompt), ids.shape[1], prompt=prompt)
        self.memo.put(key, dense, dense.nbytes)
        self.used.add(dense)
        return dense

    def _fed(self, ids: torch.Tensor, prompt: str) -> list[Prefilled]:
        """Feed contexts. prompt: under which the store keeps what came of it, "" for not at all."""
        cache = Fp16().build(self.runner.shape)
        with cache.recording() as layers:
            self.runner.feed(cache, ids)
        self.forwards += len(ids)
        if not self.queries:
            layers = [Prefilled(layer.keys, layer.values, None, layer.scaling) for layer in layers]
        if self.store is not None and prompt:
            self.store.put(self.store.key("keys", prompt), *_keys_of(layers))
            if self.queries:
                self.store.put(self.store.key("queries", prompt), *_queries_of(layers))
        return layers

    def _prompt(self, ids: torch.Tensor) -> str:
        """A digest of contexts for the store; "" where there is none. Ids of images mean others in the next run."""
        vision = self.runner.loaded.vision
        if self.store is None or (vision is not None and bool(vision.shown(ids).any())):
            return ""
        return digest_of(ids)

    def _stored(self, prompt: str) -> list[Prefilled] | None:
        """The full cache of contexts from the store, with queries where they are wanted; None where it is not there."""
        if self.store is None or not prompt:
            return None
        queries = self.store.get(self.store.key("queries", prompt), _to_queries) if self.queries else []
        layers = None if queries is None else self.store.get(self.store.key("keys", prompt), _to_keys)
        if not queries or layers is None:
            return layers
        pairs = zip(layers, queries, strict=True)
        return [Prefilled(each.keys, each.values, asked, each.scaling, softmax) for each, (asked, softmax) in pairs]

    def tails(self, dense: Dense, questions: Sequence[Question], kv: bool) -> list[Tail]:
        """What the full cache says of each question, after the same token history. kv: with keys and values."""
        keys: list[Hashable] = [(question.row, question.tail, question.reference) for question in questions]
        missing = [at for at, key in enumerate(keys) if not self._known(dense, key, kv)]
        if missing:
            fresh = self._answers(dense, [questions[at] for at in missing], kv)
            dense.tails.update((keys[at], tail) for at, tail in zip(missing, fresh, strict=True))
            self.memo.put(dense.key, dense, dense.nbytes)
        return [dense.tails[key] for key in keys]

    def joined(self, dense: Dense, questions: Sequence[Question], tails: Sequence[Tail]) -> list[Prefilled]:
        """Context and question as one prompt, for questions of equal length -> per layer (R, ·, n + T, d)."""
        layers = []
        for index, layer in enumerate(dense.select([question.row for question in questions])):
            parts = [tail.layers[index] for tail in tails if tail.layers is not None]
            keys = torch.cat([layer.keys, torch.stack([part[0] for part in parts])], dim=2)
            values = torch.cat([layer.values, torch.stack([part[1] for part in parts])], dim=2)
            seen = [part[2] for part in parts if part[2] is not None]
            queries = None if layer.queries is None else torch.cat([layer.queries, torch.stack(seen)], dim=2)
            layers.append(Prefilled(keys, values, queries, layer.scaling))
        return layers

    def _known(self, dense: Dense, key: Hashable, kv: bool) -> bool:
        """Whether a question was run before, with keys and values (and queries where they are recorded) if wanted."""
        tail = dense.tails.get(key)
        if tail is None or not kv:
            return tail is not None
        return tail.layers is not None and (not self.queries or all(part[2] is not None for part in tail.layers))

    def _answers(self, dense: Dense, questions: Sequence[Question], kv: bool) -> list[Tail]:
        """What the full cache says of questions together, from the store where that is there."""
        known = [self._resumed(dense, question) for question in questions]
        if self.store is None or not dense.prompt:
            return self._ran(dense, questions, known, kv)
        fed = [(question.row, question.tail, question.reference) for question in questions]
        held = [[digest_of(part) for layer in first for part in layer] for _, first in known]
        key = self.store.key("tails", dense.prompt, fed, held, kv, kv and self.queries)
        conversation = [(question.said, before) for question, (before, _) in zip(questions, known, strict=True)]
        found = self.store.get(key, partial(_to_tails, conversation=conversation))
        if found is None:
            found = self._ran(dense, questions, known, kv)
            self.store.put(key, *_of_tails(found))
        return found

    def _resumed(self, dense: Dense, question: Question) -> tuple[Tail | None, list[Held]]:
        """The turn before a question, and what the full cache held of it as far as the two begin alike."""
        asked = question.before
        before = None if asked is None else dense.tails.get((asked.row, asked.tail, asked.reference))
        if before is None or not before.held:
            return None, []
        pairs = zip(before.said, question.tail[:-1], strict=False)  # its last token says what comes next
        size = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        return (before, before.first(size)) if size else (None, [])

    def _ran(
        self, dense: Dense, questions: Sequence[Question], known: Sequence[tuple[Tail | None, list[Held]]], kv: bool
    ) -> list[Tail]:
        """Questions right behind their contexts together, each other one by itself, where it can go on from before."""
        if not (self.goes_on and any(question.history for question in questions)):
            return self._run(dense, questions, kv)
        pairs = zip(questions, known, strict=True)
        return [self._run(dense, [question], kv, before, first)[0] for question, (before, first) in pairs]

    def _run(
        self,
        dense: Dense,
        questions: Sequence[Question],
        kv: bool,
        before: Tail | None = None,
        first: Sequence[Held] = (),
    ) -> list[Tail]:
        """Feed questions and references behind their contexts, in one forward. first: what the cache holds of what the
        question before had behind its context."""
        size = first[0][0].shape[1] if first else 0
        rows = [question.row for question in questions]
        cache = self._behind(dense, rows[0], first) if first else self.started(dense, rows)
        ids = drift.padded([question.said[size:] for question in questions], self.runner.loaded.device)
        start = min(len(question.tail) for question in questions) - 1 - size
        logits = self.runner.feed(cache, ids, ids.shape[1] - start)
        tails = []
        for row, question in enumerate(questions):
            at = len(question.tail) - 1 - size - start
            wanted = logits[row, at : at + len(question.reference) + 1]
            layers = self._cut(cache, row, dense.tokens, len(question.tail)) if kv else None
            held: list[Held] = []
            if self.goes_on:
                parts = self._cut(cache, row, dense.tokens + size, len(question.said) - size)
                held = [(keys, values) for keys, values, _ in parts]
            logits_of, log_probs = wanted[0].clone(), drift.log_probs(wanted)
            tails.append(Tail(layers, logits_of, log_probs, question.said, held, before))
        return tails

    def _behind(self, dense: Dense, row: int, first: Sequence[Held]) -> CacheView:
        """A cache that holds one context, and these keys and values behind it."""
        layers = [
            Prefilled(
                torch.cat([layer.keys[row : row + 1], keys[None]], dim=2),
                torch.cat([layer.values[row : row + 1], values[None]], dim=2),
                None,
                layer.scaling,
            )
            for layer, (keys, values) in zip(dense.layers, first, strict=True)
        ]
        cache = self.runner.build()
        cache.absorb(layers)
        return cache

    def started(self, dense: Dense, rows: Sequence[int]) -> CacheView:
        """A cache that holds the contexts of these rows.

        It adopts the shared keys and values where it can; its first append moves them, so they are never written to.
        """
        everything = list(rows) == list(range(dense.layers[0].keys.shape[0]))
        cache = self.runner.build()
        cache.absorb(dense.layers if everything else dense.select(rows))
        return cache

    def layers(self, cache: CacheView, row: int) -> list[tuple[CacheLayer, int]]:
        """The layers whose keys and values make a prompt, and where the row is in them."""
        return [(layer.known, row) for layer in cache.method_layers if layer.known is not None]

    def _cut(self, cache: CacheView, row: int, start: int, size: int) -> list[Part]:
        """Copies of what the `size` tokens from position `start` left in one row."""
        span = slice(start, start + size)
        parts: list[Part] = []
        for layer, at in self.layers(cache, row):
            seen = layer.asked if self.queries and isinstance(layer, AskedLayer) else None
            asked = None if seen is None else seen[at, :, :size].clone()
            parts.append((layer.keys[at, :, span].clone(), layer.values[at, :, span].clone(), asked))
        return parts


# -- what the store keeps ----------------------------------------------------------------------------------------------

Told = dict[str, Any]


def _keys_of(layers: Sequence[Prefilled]) -> tuple[Tensors, Told]:
    """Keys and values."""
    tensors = numbered([{"keys": layer.keys, "values": layer.values} for layer in layers])
    return tensors, {"scaling": [layer.scaling for layer in layers]}


def _to_keys(tensors: Tensors, told: Told) -> list[Prefilled]:
    each = enumerate(told["scaling"])
    return [Prefilled(tensors[f"{at}.keys"], tensors[f"{at}.values"], None, scaling) for at, scaling in each]


def _queries_of(layers: Sequence[Prefilled]) -> tuple[Tensors, Told]:
    """Queries, and what makes weights of them."""
    softmaxes = [layer.softmax or PLAIN for layer in layers]
    parts = [{"queries": one.queries, "sinks": softmax.sinks} for one, softmax in zip(layers, softmaxes, strict=True)]
    return numbered(parts), {"caps": [softmax.cap for softmax in softmaxes]}


def _to_queries(tensors: Tensors, told: Told) -> list[tuple[torch.Tensor, Softmax]]:
    each = enumerate(told["caps"])
    return [(tensors[f"{at}.queries"], _softmax(cap, tensors.get(f"{at}.sinks"))) for at, cap in each]


def _softmax(cap: float | None, sinks: torch.Tensor | None) -> Softmax:
    return PLAIN if cap is None and sinks is None else Softmax(cap, sinks)


def _of_tails(tails: Sequence[Tail]) -> tuple[Tensors, Told]:
    """What the full cache said of questions."""
    parts: list[dict[str, torch.Tensor | None]] = []
    for tail in tails:
        part: dict[str, torch.Tensor | None] = {"logits": tail.logits, "log_probs": tail.log_probs}
        for at, layer in enumerate(tail.layers or ()):
            part |= {f"{at}.{name}": one for name, one in zip(("keys", "values", "queries"), layer, strict=True)}
        for at, held in enumerate(tail.held):
            part |= {f"{at}.held.{name}": one for name, one in zip(("keys", "values"), held, strict=True)}
        parts.append(part)
    counts = [(None if tail.layers is None else len(tail.layers), len(tail.held)) for tail in tails]
    return numbered(parts), {"layers": counts}


def _to_tails(tensors: Tensors, told: Told, conversation: Sequence[tuple[tuple[int, ...], Tail | None]]) -> list[Tail]:
    """conversation: of each, all tokens behind the context, and the turn before."""
    each = enumerate(zip(told["layers"], conversation, strict=True))
    return [_to_tail(tensors, f"{at}.", counts, said, before) for at, (counts, (said, before)) in each]


def _to_tail(
    tensors: Tensors, name: str, counts: tuple[int | None, int], said: tuple[int, ...], before: Tail | None
) -> Tail:
    """One of them, whose tensors' names begin so."""
    layers, held = counts
    parts: list[Part] = [
        (tensors[f"{name}{at}.keys"], tensors[f"{name}{at}.values"], tensors.get(f"{name}{at}.queries"))
        for at in range(layers or 0)
    ]
    behind = [(tensors[f"{name}{at}.held.keys"], tensors[f"{name}{at}.held.values"]) for at in range(held)]
    own = None if layers is None else parts
    return Tail(own, tensors[f"{name}logits"], tensors[f"{name}log_probs"], said, behind, before)
