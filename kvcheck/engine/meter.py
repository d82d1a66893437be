"""What the method's cache holds right after compression, over the contexts of a case."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from kvcheck.engine.guard import Guard
from kvcheck.measure.audit import audit, kept
from kvcheck.measure.memory import held
from kvcheck.measure.peak import Peak
from kvcheck.methods._states import Carried
from kvcheck.methods.base import Method, ModelShape, Prefilled
from kvcheck.methods.host import Host
from kvcheck.record import MemoryRecord


@dataclass
class Meter:
    """Weighs and audits every freshly compressed cache."""

    method: Method
    shape: ModelShape
    guard: Guard
    peak: int | None = None
    layers: int = 0
    touched: int = 0
    audited: bool = False
    totals: dict[str, float] = field(default_factory=dict)
    apart: list[float] = field(default_factory=list)

    def watch(self, cache: Any, prompt: Sequence[Prefilled]) -> None:
        """Take the weight of a cache and compare it with the dense prompt that it was made from, one part per layer.

        All rows are audited, one row where `audited` is set. Raises MethodFailed with what the audit finds.
        """
        rows, tokens = _extent(cache, prompt)
        with self.guard("being audited"):
            if self.audited:
                last = [rows - 1]
                proof = audit(cache.select(last), [layer.select(last) for layer in prompt], self.method)
            else:
                proof = audit(cache, prompt, self.method)
        self.guard.fail(proof.problems)
        weight = held(cache)
        self.layers, self.touched = proof.layers, min(self.touched or proof.touched, proof.touched)
        self._add(
            rows=rows, kv=weight.kv, meta=weight.meta, host=weight.host, kept=kept(cache) * rows, seen=tokens * rows
        )
        self._add(dense=self.shape.dense_bytes(rows, tokens) + _beside(cache))

    def _add(self, **amounts: float) -> None:
        for name, amount in amounts.items():
            self.totals[name] = self.totals.get(name, 0) + amount

    def record(self) -> MemoryRecord | None:
        """Means per context; None before the first cache."""
        rows = self.totals.get("rows", 0)
        if not rows:
            return None
        mean = {name: amount / rows for name, amount in self.totals.items()}
        return MemoryRecord(
            kv_bytes=round(mean["kv"]),
            dense_bytes=round(mean["dense"]),
            meta_bytes=round(mean["meta"]),
            kept=round(mean["kept"], 2),
            seen=round(mean["seen"]),
            layers=self.layers,
            touched=self.touched,
            peak_bytes=self.peak,
            host_bytes=round(mean["host"]),
        )


def weigh(host: Host, ids: torch.Tensor) -> MemoryRecord:
    """What the method's cache of a prompt (1, n) holds, and the peak that the prompt and one decoded token take.

    One prefill serves both: the bytes are counted between the prompt and the token, and what counting takes is no part
    of the peak. No dense prompt is there to compare with, so nothing is audited: `touched` counts the layers that hold
    something.
    """
    peak = Peak(host.loaded.devices)
    with peak.counting():
        cache, logits = host.prefill(ids)
    weight, length = held(cache), ids.shape[1]
    parts = getattr(cache, "layers", None) or [layer for row in cache.rows for layer in getattr(row, "layers", [row])]
    counts = [held(layer).kv > 0 for layer in parts]
    slots, beside = kept(cache), _beside(cache)
    with peak.counting():
        host.feed(cache, logits.argmax(-1, keepdim=True))
    return MemoryRecord(
        kv_bytes=weight.kv,
        dense_bytes=host.shape.dense_bytes(1, length) + beside,
        meta_bytes=weight.meta,
        kept=round(slots, 2),
        seen=length,
        layers=len(counts),
        touched=sum(counts),
        peak_bytes=peak.bytes,
        host_bytes=weight.host,
    )


def _extent(cache: Any, prompt: Sequence[Prefilled]) -> tuple[int, int]:
    """Rows and tokens of a prompt; as the cache says where no layer has keys and values."""
    if prompt:
        rows, _, tokens, _ = prompt[0].keys.shape
        return rows, tokens
    return len(cache.rows), cache.rows[0].seen


def _beside(cache: Any) -> int:
    """Bytes of what a model carries beside full attention: they are there whatever the method is."""
    carried = [row for row in getattr(cache, "rows", ()) if isinstance(row, Carried)]
    return sum(held(row).kv - held(row.acts).kv for row in carried)


def peak_bytes(host: Host, ids: torch.Tensor) -> int | None:
    """Peak device memory that one prompt (1, n) and one decoded token take on top of the model; None on the CPU.

    The sum over the devices of the model. The method's own route from an empty cache, so that shared prefills do not
    blur it.
    """
    peak = Peak(host.loaded.devices)
    if not peak.tells:
        return None
    with peak.counting():
        cache, logits = host.prefill(ids)
        host.feed(cache, logits.argmax(-1, keepdim=True))
    return peak.bytes


def joined(parts: Sequence[MemoryRecord]) -> MemoryRecord:
    """What the processes of one model hold together, each some heads of every layer: bytes add up, slots are a mean."""
    first = parts[0]
    peaks = [part.peak_bytes for part in parts if part.peak_bytes is not None]
    return replace(
        first,
        kv_bytes=sum(part.kv_bytes for part in parts),
        dense_bytes=sum(part.dense_bytes for part in parts),
        meta_bytes=sum(part.meta_bytes for part in parts),
        host_bytes=sum(part.host_bytes for part in parts),
        kept=round(sum(part.kept for part in parts) / len(parts), 2),
        touched=max(part.touched for part in parts),
        peak_bytes=sum(peaks) if len(peaks) == len(parts) else None,
    )
