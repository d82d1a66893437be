"""PyramidKV: SnapKV with budgets that fall with depth. arXiv 2406.02069, Zefan-Cai/KVCache-Factory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from kvcheck.cache import checks
from kvcheck.cache.method import Lossless, MethodInfo, Stage
from kvcheck.cache.shape import ModelShape
from kvcheck.core.errors import MethodUnsupported
from kvcheck.methods.snapkv import SnapKV


@dataclass(frozen=True)
class PyramidKV(SnapKV):
    """SnapKV whose budget falls linearly from the first layer to the last; the mean over layers is C.

    budget, window, kernel, pooling: as in SnapKV, with C = budget and Bd = C - w. beta: the last layer gets about
    Bd // beta tokens before the window, the first one 2·Bd - Bd // beta.

    With lo = Bd // beta and hi = 2·Bd - lo (where hi >= p - w: hi = p - w, lo = 2·Bd - hi), layer l keeps
    m_l = hi - l·((hi - lo) // (L - 1)) tokens before the window. Prompts of at most C tokens are kept whole, and for
    p < 2·Bd every layer keeps Bd, as in SnapKV (the official rule). Flooring makes the mean exceed C by up to (L-1)/2.

    Bytes: 2·B·G·d·2·Σ_l (min(p, m_l + w) + decoded). Errors: SpecError for values out of range, MethodUnsupported for
    models of one layer. Differences from the official code: those of SnapKV; a share as budget.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        summary="SnapKV with more slots in early layers and fewer in late ones",
        stage=Stage.COMPRESSION,
        paper="arXiv 2406.02069",
        formula="2·B·G·d·2·Σ_l (min(p, m_l + w) + decoded)",
        refuses="models of one layer",
        knob="budget",
        needs=("queries",),
        variant="one choice per kv head (mean over its query heads); budgets by the official integer rule",
        lossless=Lossless.at("budget=1.0"),
    )

    beta: int = 20

    def __post_init__(self) -> None:
        """Raise SpecError for values out of range."""
        super().__post_init__()
        checks.whole(self.name(), "beta", self.beta, 1, 20)

    def check(self, shape: ModelShape) -> None:
        """A pyramid needs two layers."""
        if shape.layers < 2:
            raise MethodUnsupported("pyramidkv needs a model of at least 2 layers; this one has 1", "use snapkv")

    def slots(self, shape: ModelShape, prompt: int, decoded: int) -> tuple[int, ...]:
        """min(p, m_l + w) and everything decoded."""
        if prompt <= self.cap(prompt):
            return (prompt + decoded,) * shape.layers
        each = (self.prefix(shape.layers, index, prompt) + self.window for index in range(shape.layers))
        return tuple(min(prompt, slots) + decoded for slots in each)

    def prefix(self, layers: int, index: int, prompt: int) -> int:
        """m_l: slots for tokens before the window in layer `index`."""
        base = self.cap(prompt) - self.window
        if prompt < 2 * base:
            return base
        low = base // self.beta
        high = 2 * base - low
        if high >= prompt - self.window:
            high = prompt - self.window
            low = 2 * base - high
        return high - index * ((high - low) // (layers - 1))


METHOD = PyramidKV
