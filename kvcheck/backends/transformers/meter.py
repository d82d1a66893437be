"""What the method's cache holds right after compression and after decoding, over the contexts of a case."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from types import ModuleType

import torch

from kvcheck.backends.transformers.guard import Guard
from kvcheck.cache.method import Method
from kvcheck.cache.method_runner import MethodRunner
from kvcheck.cache.shape import ModelShape, Prefilled
from kvcheck.cache.view import FedCache, parts, view
from kvcheck.core.errors import KvcheckError, MethodFailed
from kvcheck.core.record import CaseRecord, MemoryRecord, Weight
from kvcheck.judging.acted import FEWER, ROUNDING, SMALLER
from kvcheck.judging.questions import COUNTERS
from kvcheck.measure.allocated import in_use
from kvcheck.measure.audit import audit, kept
from kvcheck.measure.elsewhere import census, mapped, written_in
from kvcheck.measure.memory import held, kept_alive
from kvcheck.measure.peak import Peak

COPIES, ENOUGH, LARGEST = 8, 2**26, 2**30
"""Copies whose memory is compared with what they hold: fewer where full caches take more than ENOUGH bytes."""
SLACK, LOOSE = 0.25, 2**18
"""Share of the full cache, and bytes beside that, which may be in none of them."""


@dataclass
class Meter:
    """Weighs and audits every freshly compressed cache, and weighs it again behind every answer.

    peak: bytes, see peak_bytes; peaked: it is known, or known that it cannot be. weights: what each context of the case
    held, by its index. apart: see Contexts. uncounted: what is held and cannot be counted, in words. modules: that
    the method is written in. elsewhere: bytes that every prompt leaves outside of its cache, None until measured.
    """

    method: Method
    shape: ModelShape
    guard: Guard
    peak: int | None = None
    peaked: bool = False
    layers: int = 0
    touched: int = 0
    audited: bool = False
    weights: dict[int, Weight] = field(default_factory=dict)
    apart: list[float] = field(default_factory=list)
    uncounted: str = ""
    runner: MethodRunner | None = None
    modules: list[ModuleType] = field(default_factory=list)
    elsewhere: int | None = None

    def resume(self, record: CaseRecord, first: bool = True) -> None:
        """Go on behind the contexts of a record of this case that broke off: what comes is as if it never had.

        first: False in all processes of a team but one, which alone takes over what was held. Raises KvcheckError
        where a context has no weight.
        """
        if record.memory is None or any(sample.weight is None for sample in record.samples):
            raise KvcheckError(f"{record.case}: what its contexts held is not known", "measure the case anew")
        found = {sample.index: sample.weight for sample in record.samples if sample.weight is not None}
        nothing = dict.fromkeys(("kv", "dense", "meta", "host", "end_kv", "end_dense", "end_host"), 0)
        self.weights = {at: weight if first else replace(weight, **nothing) for at, weight in found.items()}
        self.layers, self.touched = record.memory.layers, record.memory.touched
        self.peak = record.memory.peak_bytes if first or record.memory.peak_bytes is None else 0
        self.peaked = True
        self.elsewhere = record.memory.elsewhere_bytes if first else 0
        self.apart += [] if record.memory.apart is None else [record.memory.apart]

    def watch(self, cache: FedCache, prefill: Sequence[Prefilled], contexts: Sequence[int]) -> None:
        """Take the weight of a cache and compare it with the dense prefill that it was made from, one part per layer.

        contexts: the index of the context that each row holds. All rows are audited, one row where `audited` is set.
        Raises MethodFailed with what the audit finds.
        """
        with self.guard("being audited"):
            if self.audited:
                last = [len(contexts) - 1]
                proof = audit(cache.select(last), [layer.select(last) for layer in prefill], self.method)
            else:
                proof = audit(cache, prefill, self.method)
        self.guard.fail(proof.problems)
        if not self.audited:
            with self.guard("being copied (select)"):
                row = cache.select([len(contexts) - 1])
                self.uncounted = self.uncounted or self._uncounted(row, prefill, _extent(cache, prefill)[1])
        self.modules = self.modules or written_in([self.runner, self.method, *_layers(cache)])
        self.layers, self.touched = proof.layers, min(self.touched or proof.touched, proof.touched)
        with self.guard("being weighed"):
            rows, tokens = _extent(cache, prefill)
            for index, weight in zip(contexts, self._rows(cache, rows, range(rows), tokens), strict=True):
                self.weights[index] = summed([self.weights[index], weight]) if index in self.weights else weight

    def ended(self, cache: FedCache, rows: int, which: Sequence[int], contexts: Sequence[int], tokens: int) -> None:
        """Take the weight of those of the rows of a cache that have just decoded their last token.

        contexts: the index of the context of each of them. tokens: how many each of them was fed in all.
        """
        with self.guard("being weighed after decoding"):
            for index, now in zip(contexts, self._rows(cache, rows, which, tokens), strict=True):
                sums = {"end_kv": now.kv, "end_dense": now.dense, "end_host": now.host, "end_seen": now.seen}
                end = Weight(0, 0, caches=0, ends=1, **sums)
                self.weights[index] = summed([self.weights[index], end])

    def _rows(self, cache: FedCache, rows: int, which: Sequence[int], tokens: int) -> list[Weight]:
        """What each row holds: where the bytes are declared all rows hold the same, else they are weighed one by one.

        As each would alone: what rows share counts in each of them. Rows that are kept together are copied for that,
        which leaves behind what views kept alive: each is charged its part of it.
        """
        weight, alike, more = held(cache), self._declared(tokens), self.elsewhere or 0
        if alike and not any(size % rows for size in (weight.kv, weight.meta, weight.host, _beside(cache))):
            found = [self._weight(cache, tokens, rows)] * len(which)
        else:
            more += 0 if view(cache).rows is not None else kept_alive(cache) // rows
            found = [self._weight(view(cache).row(row), tokens, 1) for row in which]
        return [replace(one, kv=one.kv + more) for one in found]

    def _weight(self, cache: FedCache, tokens: int, rows: int) -> Weight:
        """The weight of one of the rows of a cache, which are alike."""
        weight, dense = held(cache), self.shape.dense_bytes(rows, tokens) + _beside(cache)
        kv, meta, host = (size // rows for size in (weight.kv, weight.meta, weight.host))
        return Weight(kv, kept(cache), dense // rows, meta, host, tokens)

    def _declared(self, tokens: int) -> bool:
        return self.method.kv_bytes(self.shape, 1, tokens, 0) is not None

    def look_elsewhere(self, again: Callable[[int, int], FedCache], rows: int, tokens: int) -> None:
        """Measure what a prompt leaves outside of its cache, behind what has run, and add it to what was weighed.

        again: takes a context (row, shift) once more. It is the smaller growth of two; one is enough if nothing grew.
        What is less than a cache may count is none. What is allocated meanwhile and found nowhere is said in
        `uncounted`.
        """
        if self.elsewhere is None and self.runner is not None:
            self.elsewhere = self._left_behind(self.runner, again, rows, tokens)
            for index, one in self.weights.items():
                more = {"kv": self.elsewhere * one.caches, "end_kv": self.elsewhere * one.ends}
                self.weights[index] = replace(one, **{name: getattr(one, name) + size for name, size in more.items()})

    def _left_behind(self, runner: MethodRunner, again: Callable[[int, int], FedCache], rows: int, tokens: int) -> int:
        """The growth of one context's prompt of so many tokens."""
        devices, owners = list(dict.fromkeys(runner.loaded.devices)), (runner, self.method)
        full = self.shape.dense_bytes(1, tokens)
        most = SLACK * full + LOOSE
        found, caches = [], []
        gc.collect()
        before = census(runner.model, owners, self.modules)
        for shift, row in enumerate((0, rows - 1), 1):
            start = _allocated(devices)
            caches.append(again(row, shift))
            taken = _allocated(devices) - start
            weight = held(caches[-1])
            now = census(runner.model, owners, self.modules)
            grown = now.growth(before, caches[-1])
            found.append((grown, taken - grown - weight.kv - weight.meta - weight.host - weight.spare))
            if grown <= COUNTERS * full and found[-1][1] <= most:
                break  # the smaller of two cannot be more
            before = now
        rest = min(rest for _, rest in found)
        if rest > most and in_use(devices) is not None:
            self.uncounted = self.uncounted or (
                f"{self.guard.method} holds more than can be reached from its cache in {self.guard.where}: a prompt "
                f"takes {rest:,} bytes of memory that are neither in its cache nor found elsewhere; a full cache would "
                f"take {full:,}"
            )
        grown = min(grown for grown, _ in found)
        return grown if grown > COUNTERS * full else 0

    def _uncounted(self, row: FedCache, prefill: Sequence[Prefilled], tokens: int) -> str:
        """Says whether copies of a cache of one row take far more memory than can be reached from them.

        What is allocated is compared, twice. Says nothing where the C library does not tell
        (kvcheck/measure/allocated.py), or where one copy is too large to be made for this.
        """
        devices = list(dict.fromkeys(part.keys.device for part in prefill))
        full = self.shape.dense_bytes(1, tokens) + _beside(row)
        if in_use(devices) is None or full > LARGEST:
            return ""
        copies = max(1, min(COPIES, ENOUGH // max(1, full)))
        taken, counted = min((_taken(row, copies, devices) for _ in range(2)), key=lambda pair: pair[0] - pair[1])
        if taken - counted <= SLACK * copies * full + LOOSE:
            return ""
        return (
            f"{self.guard.method} holds more than can be reached from its cache in {self.guard.where}: {copies} "
            f"copies of one take {taken:,} bytes of memory, of which {counted:,} are reachable; full caches would "
            f"take {copies * full:,}"
        )

    def expect_sound(self, dtype: torch.dtype, contexts: int) -> None:
        """Raise MethodFailed where more is held than is counted, or the method is not shown to act."""
        found = [one for one in (self._unmoved(dtype, contexts), self.uncounted) if one]
        if found:
            raise MethodFailed(
                "\n  ".join(found),
                "keep everything in attributes of the layers: no globals, thread-locals or memory of C libraries",
            )

    def _unmoved(self, dtype: torch.dtype, contexts: int) -> str:
        """Says whether fewer slots, or few bytes, give the logits of the full cache all the same.

        Not those of the likeliest token but of all, over all reference answers: what leaves out a token moves some of
        them. dtype: what the model computes in. In 16 bits logits are too coarse to tell; equal ones are still equal.
        """
        if not self.apart or not self.weights:
            return ""
        whole = summed(list(self.weights.values()))
        slots, size = whole.kept / max(1, whole.seen), (whole.kv + whole.host) / max(1, whole.dense)
        if slots >= FEWER and size >= SMALLER:
            return ""
        if max(self.apart) > (ROUNDING if dtype.itemsize > 2 else 0.0):
            return ""
        return (
            f"{self.guard.method} is not shown to act in {self.guard.where}: it holds {slots:.0%} of the slots and "
            f"{size:.0%} of the bytes, and its logits are the full cache's in all of {contexts} contexts: it answers "
            "from keys and values that are not in its cache"
        )

    def record(self) -> MemoryRecord | None:
        """Means per context; None before the first cache."""
        if not self.weights:
            return None
        whole = summed(list(self.weights.values()))
        kv, dense, meta, host, seen = (
            round(size / whole.caches) for size in (whole.kv, whole.dense, whole.meta, whole.host, whole.seen)
        )
        slots = round(whole.kept / whole.caches, 2)
        declared = self._declared(seen)
        ends: list[int | None] = [None] * 4
        if whole.ends:
            sums = (whole.end_kv, whole.end_dense, whole.end_host, whole.end_seen)
            ends = [round(size / whole.ends) for size in sums]
        return MemoryRecord(
            kv_bytes=kv,
            dense_bytes=dense,
            meta_bytes=meta,
            kept=slots,
            seen=seen,
            layers=self.layers,
            touched=self.touched,
            peak_bytes=self.peak,
            host_bytes=host,
            declared=declared,
            end_kv_bytes=ends[0],
            end_dense_bytes=ends[1],
            end_host_bytes=ends[2],
            end_seen=ends[3],
            elsewhere_bytes=self.elsewhere or 0,
            apart=round(max(self.apart), 6) if self.apart else None,
            claims=claimed(self.method),
        )


def claimed(method: Method) -> str:
    """What a method claims, as records have it."""
    return ",".join(method.claims())


def summed(weights: Sequence[Weight]) -> Weight:
    """Several weights as one."""
    return Weight(*(sum(getattr(one, each.name) for one in weights) for each in fields(Weight)))


def weigh(runner: MethodRunner, ids: torch.Tensor) -> MemoryRecord:
    """What the method's cache of a prompt (1, n) holds, and the peak that the prompt and one decoded token take.

    One prefill serves both: the bytes are counted between the prompt and the token, and what counting takes is no part
    of the peak. No dense prefill is there to compare with, so nothing is audited: `touched` counts the layers that hold
    something.
    """
    peak = Peak(runner.loaded.devices)
    with peak.counting():
        cache, logits = runner.prefill(ids)
    weight, length = held(cache), ids.shape[1]
    layers = getattr(cache, "layers", None) or [layer for row in cache.rows for layer in getattr(row, "layers", [row])]
    counts = [held(layer).kv > 0 for layer in layers]
    slots, beside = kept(cache), _beside(cache)
    with peak.counting():
        runner.feed(cache, logits.argmax(-1, keepdim=True))
    end = held(cache)
    return MemoryRecord(
        kv_bytes=weight.kv,
        dense_bytes=runner.shape.dense_bytes(1, length) + beside,
        meta_bytes=weight.meta,
        kept=round(slots, 2),
        seen=length,
        layers=len(counts),
        touched=sum(counts),
        peak_bytes=peak.bytes,
        host_bytes=weight.host,
        declared=runner.method.kv_bytes(runner.shape, 1, length, 0) is not None,
        end_kv_bytes=end.kv,
        end_dense_bytes=runner.shape.dense_bytes(1, length + 1) + _beside(cache),
        end_host_bytes=end.host,
        end_seen=length + 1,
        claims=claimed(runner.method),
    )


def _extent(cache: FedCache, prefill: Sequence[Prefilled]) -> tuple[int, int]:
    """Rows and tokens of a prefill; as the cache says where no layer has keys and values."""
    if prefill:
        rows, _, tokens, _ = prefill[0].keys.shape
        return rows, tokens
    held_apart = parts(cache)
    return len(held_apart), held_apart[0].seen


def _beside(cache: FedCache) -> int:
    """Bytes of what a model carries beside full attention: they are there whatever the method is."""
    return sum(held(row).kv - held(row.storage).kv for row in parts(cache) if row.depth is not None)


def peak_bytes(runner: MethodRunner, ids: torch.Tensor) -> int | None:
    """Peak device memory that one prompt (1, n) and one decoded token take on top of the model; None on the CPU.

    The sum over the devices of the model. The method's own route from an empty cache, so that shared prefills do not
    blur it.
    """
    peak = Peak(runner.loaded.devices)
    if peak.tells:
        with peak.counting():
            cache, logits = runner.prefill(ids)
            runner.feed(cache, logits.argmax(-1, keepdim=True))
    return peak.bytes


def _taken(row: FedCache, copies: int, devices: Iterable[torch.device]) -> tuple[int, int]:
    """(bytes allocated, bytes reachable) of some copies of a cache of one row."""
    before = in_use(devices) or 0
    made = [row.select([0]) for _ in range(copies)]
    taken = (in_use(devices) or 0) - before
    each = held(made[-1])
    return taken, copies * (each.kv + each.meta + each.host + each.spare)


def _allocated(devices: Iterable[torch.device]) -> int:
    """What the allocators have given out, and shared memory."""
    return (in_use(devices) or 0) + mapped()


def _layers(cache: FedCache) -> list[object]:
    """The layers of a cache of any make, and what they are in: their classes lead to the code of the method."""
    inner = [part.inner for part in parts(cache)]
    return [*inner, *(layer for one in inner for layer in getattr(one, "layers", ()))]


def joined(parts: Sequence[MemoryRecord]) -> MemoryRecord:
    """What the processes of one model hold together, each some heads of every layer: bytes add up, slots are a mean."""
    peaks = [part.peak_bytes for part in parts if part.peak_bytes is not None]
    added = ["kv_bytes", "dense_bytes", "meta_bytes", "host_bytes", "elsewhere_bytes"]
    if parts[0].end_seen is not None:
        added += ["end_kv_bytes", "end_dense_bytes", "end_host_bytes"]
    return replace(
        parts[0],
        **{name: sum(getattr(part, name) for part in parts) for name in added},
        kept=round(sum(part.kept for part in parts) / len(parts), 2),
        touched=max(part.touched for part in parts),
        peak_bytes=sum(peaks) if len(peaks) == len(parts) else None,
    )


def joined_weights(parts: Sequence[dict[int, Weight]]) -> dict[int, Weight]:
    """The same for what each context held, by its index."""
    found = {}
    for index, first in parts[0].items():
        whole = summed([part[index] for part in parts])
        alike = {name: getattr(first, name) for name in ("seen", "caches", "end_seen", "ends")}
        found[index] = replace(whole, kept=whole.kept / len(parts), **alike)
    return found
