"""KVMerger: runs of neighbouring keys that are alike become one. arXiv 2407.08454 (no official code found)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn.functional import cosine_similarity, pad

from kvcheck.cache import checks, scoring
from kvcheck.cache.kv_cache import CacheLayer
from kvcheck.cache.method import Lossless, Method, MethodInfo, Stage
from kvcheck.cache.ragged import RaggedLayer
from kvcheck.cache.shape import ModelShape


@dataclass(frozen=True)
class KVMerger(Method):
    """Once, after the prompt: merge each run of neighbouring tokens whose keys are alike into one slot.

    Neighbours i, i + 1 are joined where the cosine of their keys (post-RoPE) exceeds `threshold`; heavy hitters (the
    `heavy` share with the largest attention from the whole prompt) and the newest tokens (`recent`) are joined to
    nothing. In a run the pivot p is the token with the largest attention; weights are w_i ∝ exp(-|k_p - k_i|² / 2σ²)
    with σ² = mean_i |k_p - k_i|² / 2, and key and value of the slot are Σ w_i·k_i and Σ w_i·v_i, at the pivot's
    position. Rows and kv heads hold different numbers of slots. What is decoded is appended and not merged.

    threshold: ε; above 1, nothing is merged. heavy, recent: shares of the prompt, or numbers of tokens.

    Bytes: 2·d·2·Σ slots over layers, rows and kv heads; it depends on the data. Errors: SpecError for values out of
    range.
    Left open by the sources, and chosen: σ (theirs is circular); attention of a kv head is that of its group. A slot
    that stands for several tokens gets the softmax weight of one, as there.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        summary="merges runs of neighbouring tokens whose keys are alike; heads keep different numbers of slots",
        stage=Stage.COMPRESSION,
        paper="arXiv 2407.08454",
        formula="2·d·2·Σ slots over layers, rows and kv heads (depends on the data)",
        knob="threshold",
        verbatim=False,
        needs=("queries",),
        variant="Gaussian weights with a bandwidth of our own, guarded against 0; merges after the prompt only",
        lossless=Lossless.at("threshold=1.0"),
        exempt={
            "memory_is_freed_in_every_row_of_every_sample": (
                "it merges neighbours that are alike, and tokens at random are not"
            ),
        },
    )

    threshold: float = 0.75
    heavy: float | int = 0.1
    recent: float | int = 0.1

    def __post_init__(self) -> None:
        """Raise SpecError for values out of range."""
        checks.share(self.name(), "threshold", self.threshold, -1, 1.1, 0.75)
        checks.budget(self.name(), "heavy", self.heavy)
        checks.budget(self.name(), "recent", self.recent)

    def layer(self, shape: ModelShape, index: int) -> CacheLayer:
        """A layer that merges once, after the prompt."""
        return KVMergerLayer(shape, index, self)

    def protected(self, prompt: int) -> frozenset[int]:
        """The newest tokens."""
        return frozenset(range(max(0, prompt - checks.tokens(self.recent, prompt, least=1)), prompt))


class KVMergerLayer(RaggedLayer):
    """Merges runs."""

    method: KVMerger

    def compress(self, queries: torch.Tensor) -> None:
        """Find the runs, and put one slot in the place of each."""
        if self.stored < 2:
            return
        keys, values, received = self.keys, self.values, scoring.column_sums(queries, self.keys, self.scaling)
        starts = ~pad(self._joined(keys, received), (1, 0), value=False)
        runs = starts.flatten().cumsum(0) - 1
        weights, pivots = _weights(keys.float().flatten(0, 2), received.flatten(), runs)
        merged = (_sums(weights.unsqueeze(1) * each.float().flatten(0, 2), runs) for each in (keys, values))
        wide_keys, wide_values = (_at(starts, part.to(self.dtype), keys) for part in merged)
        at = pivots % keys.shape[2]
        self.store(wide_keys, wide_values, _at(starts, at.int(), self.positions), starts)

    def _joined(self, keys: torch.Tensor, received: torch.Tensor) -> torch.Tensor:
        """(B, G, n - 1): whether token i and its successor are one run."""
        heavy, recent = (checks.tokens(size, self.stored, least=1) for size in (self.method.heavy, self.method.recent))
        alone = torch.zeros(keys.shape[:3], dtype=torch.bool, device=keys.device)
        alone.scatter_(2, scoring.top(received, min(heavy, self.stored)), True)
        alone[:, :, -recent:] = True
        alike = cosine_similarity(keys[:, :, :-1].float(), keys[:, :, 1:].float(), dim=3) > self.method.threshold
        return alike & ~alone[:, :, :-1] & ~alone[:, :, 1:]


def _weights(keys: torch.Tensor, received: torch.Tensor, runs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(weight of every token in its run, index of the pivot of every run). keys (N, d), received and runs (N,)."""
    count = int(runs[-1]) + 1
    most = received.new_full((count,), float("-inf")).scatter_reduce(0, runs, received, "amax")
    index = torch.arange(len(runs), device=runs.device)
    candidates = torch.where(received == most[runs], index, len(runs))
    pivots = candidates.new_full((count,), len(runs)).scatter_reduce(0, runs, candidates, "amin")
    far = (keys - keys[pivots[runs]]).square().sum(dim=1)
    spread = (_sums(far, runs) / _sums(torch.ones_like(far), runs))[runs]  # 2 · sigma^2
    raw = torch.where(spread > 0, torch.exp(-far / spread.clamp(min=1e-12)), torch.ones_like(far))
    return raw / _sums(raw, runs)[runs], pivots


def _sums(values: torch.Tensor, runs: torch.Tensor) -> torch.Tensor:
    """Sum over the tokens of every run."""
    return values.new_zeros(int(runs[-1]) + 1, *values.shape[1:]).index_add_(0, runs, values)


def _at(starts: torch.Tensor, parts: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A tensor as `like`, with the part of every run at its start."""
    out = torch.zeros_like(like)
    out[starts] = parts
    return out


METHOD = KVMerger
