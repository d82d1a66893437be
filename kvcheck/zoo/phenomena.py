"""What a model makes of one change to its full cache: which faults can be seen on it at all?

Each change is made to the keys and values of the prompt, once, before anything is asked; what comes later is stored as
it is. A change that moves nothing on a model is a fault that this model cannot show by answers, whatever the gate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from kvcheck.cache import checks
from kvcheck.cache.kernels import probabilities
from kvcheck.cache.kv_cache import CacheLayer
from kvcheck.cache.method import Method, MethodInfo, Stage
from kvcheck.cache.quantize import quantize
from kvcheck.cache.rotary import rotate
from kvcheck.core.record import CaseId
from kvcheck.tasks import find

if TYPE_CHECKING:
    from kvcheck.backends.base import Engine
    from kvcheck.backends.transformers import Session
    from kvcheck.cache.shape import ModelShape
    from kvcheck.models import LoadedModel

TASKS = {"completion/prose": "single", "needle_multi": "multi_request"}
"""What is asked, and in which mode: free prose, which every model can go on with, and facts that must be found."""
GROUP = 32
"""Tokens or channels that share a scale, where keys and values are rounded."""
LATE = 64
"""Queries at the end of the prompt whose attention to the first token is looked at."""

Change = Callable[["ChangedLayer"], None]


def _without(first: int, count: int) -> Change:
    """Take tokens out."""
    return lambda layer: layer.without(first, count) if layer.stored > first + count else None


def _silent(layer: ChangedLayer) -> None:
    """The first token has the value zero."""
    layer.values[:, :, 0] = 0


def _rounded(what: str, bits: int, dim: int) -> Change:
    """Keys ("k") or values ("v") in codes of so many bits, in groups along tokens (2) or channels (3)."""

    def change(layer: ChangedLayer) -> None:
        states = layer.keys if what == "k" else layer.values
        whole = states.shape[dim] // GROUP * GROUP
        groups = states.narrow(dim, 0, whole).unflatten(dim, (-1, GROUP))
        codes, scale, low = quantize(groups, bits, dim + 1)
        back = codes.float() * scale.unsqueeze(dim + 1).float() + low.unsqueeze(dim + 1).float()
        states.narrow(dim, 0, whole).copy_(back.flatten(dim, dim + 1))

    return change


def _farther(by: int) -> Change:
    """What is asked later stands so many positions farther behind the prompt than it does; below 0: nearer."""

    def change(layer: ChangedLayer) -> None:
        if layer.shape.rope is not None:
            at = torch.full((layer.stored,), -by, device=layer.keys.device)
            layer.keys.copy_(rotate(layer.keys, at, layer.shape.rope))

    return change


def _noisy(share: float) -> Change:
    """Noise on the keys, of this share of what varies in each channel."""

    def change(layer: ChangedLayer) -> None:
        generator = torch.Generator(layer.keys.device).manual_seed(layer.index)
        noise = torch.randn(layer.keys.shape, generator=generator, device=layer.keys.device)
        layer.keys.add_(share * layer.keys.float().std(dim=2, keepdim=True) * noise)

    return change


def _empty(layer: ChangedLayer, heads: slice = slice(None)) -> None:
    layer.keys[:, heads] = 0
    layer.values[:, heads] = 0


def _one_layer(share: float, heads: slice = slice(None)) -> Change:
    """The layer at this share of the depth reads zeros, or some of its heads do."""
    return lambda layer: _empty(layer, heads) if layer.index == round(share * (layer.shape.layers - 1)) else None


CHANGES: Mapping[str, tuple[str, Change]] = {
    "first": ("the first token is gone", _without(0, 1)),
    "next": ("tokens 1 to 3 are gone", _without(1, 3)),
    "middle": ("three tokens at place 100 are gone", _without(100, 3)),
    "silent": ("the first token's value is zero", _silent),
    "keys_token_4": ("keys in 4 bits per token", _rounded("k", 4, 3)),
    "keys_token_2": ("keys in 2 bits per token", _rounded("k", 2, 3)),
    "keys_channel_4": ("keys in 4 bits per channel", _rounded("k", 4, 2)),
    "keys_channel_2": ("keys in 2 bits per channel", _rounded("k", 2, 2)),
    "values_token_4": ("values in 4 bits per token", _rounded("v", 4, 3)),
    "values_token_2": ("values in 2 bits per token", _rounded("v", 2, 3)),
    "farther_8": ("questions 8 positions too far", _farther(8)),
    "farther_64": ("questions 64 positions too far", _farther(64)),
    "farther_1024": ("questions 1,024 positions too far", _farther(1024)),
    "nearer_8": ("questions 8 positions too near", _farther(-8)),
    "noise_2": ("2 % of noise on keys", _noisy(0.02)),
    "noise_10": ("10 % of noise on keys", _noisy(0.1)),
    "last_layer": ("the last layer reads zeros", _one_layer(1.0)),
    "middle_layer": ("a middle layer reads zeros", _one_layer(0.5)),
    "one_head": ("one head of a middle layer reads zeros", _one_layer(0.5, slice(0, 1))),
}
"""What is changed, in words, and how."""


@dataclass(frozen=True)
class Changed(Method):
    """The full cache with one change: of CHANGES. Errors: SpecError for another name.

    An architecture of its own as far as the audit is concerned, which else refuses keys that are not the prompt's.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        summary="the full cache with one change of its prompt",
        stage=Stage.ARCHITECTURE,
        frees_memory=False,
        verbatim=False,
    )

    change: str = "first"

    def __post_init__(self) -> None:
        """Raise SpecError for an unknown change."""
        checks.one_of(self.name(), "change", self.change, tuple(CHANGES))

    def layer(self, shape: ModelShape, index: int) -> CacheLayer:
        """A layer that is changed when the prompt is in."""
        return ChangedLayer(shape, index, self)


class ChangedLayer(CacheLayer):
    """Changed once. Its keys (B, G, n, d) and values are written to in place: they belong to this cache alone."""

    method: Changed

    def compress(self, queries: torch.Tensor) -> None:
        """Make the change."""
        CHANGES[self.method.change][1](self)


@dataclass(frozen=True)
class Seen:
    """What a change does to the answers of a task: rise of the reference's nll, and KL from fp16, in nats."""

    change: str
    task: str
    nll: float
    kl: float


def measure(engine: Engine, contexts: int, length: int, changes: Sequence[str] = tuple(CHANGES)) -> Iterator[Seen]:
    """Every change on every task, over so many contexts of this length."""
    for task, mode in TASKS.items():
        case = CaseId(task, find(task).info.version, mode, length, 0, contexts)
        base = _drift(engine, case, "fp16")[0]
        for change in changes:
            nll, kl = _drift(engine, case, f"{Changed.name()}:change={change}")
            yield Seen(change, task, nll - base, kl)


def _drift(engine: Engine, case: CaseId, spec: str) -> tuple[float, float]:
    """Mean nll of the references and KL from fp16 over the turns of a case."""
    turns = [turn for sample in engine.run_case(case, spec).samples for turn in sample.turns]
    nll, kl = ([value for turn in turns if (value := getattr(turn, name)) is not None] for name in ("nll", "kl"))
    return sum(nll) / len(nll), sum(kl) / len(kl)


@dataclass(frozen=True)
class Anatomy:
    """How keys and attention of a model look, by layer.

    sink: attention of the last queries of a prompt to its first token, mean over heads. outliers: the largest channel
    of the keys over the median one, by mean size, the largest over kv heads.
    """

    sink: tuple[float, ...]
    outliers: tuple[float, ...]


def prose(backend: Session, length: int) -> torch.Tensor:
    """(1, length or somewhat more) token ids of the first context of prose, begun as prompts are."""
    task = find("completion/prose")
    context = task.generate(0, 0, length, backend.encoder).context
    return torch.tensor([[*backend.loaded.tokenizer.bos, *backend.encoder.encode(context)]])


@torch.inference_mode()
def anatomy(loaded: LoadedModel, ids: torch.Tensor) -> Anatomy:
    """Of a text of token ids (1, n)."""
    cache, _ = Probe().runner(loaded).prefill(ids.to(loaded.device))
    layers = [layer for layer in cache.layers if isinstance(layer, ProbeLayer)]
    return Anatomy(tuple(layer.sink for layer in layers), tuple(layer.outliers for layer in layers))


@dataclass(frozen=True)
class Probe(Method):
    """The full cache, whose layers note what they see."""

    info: ClassVar[MethodInfo] = MethodInfo(
        summary="the full cache, looked at", stage=Stage.COMPRESSION, frees_memory=False, needs=("queries",)
    )

    def layer(self, shape: ModelShape, index: int) -> CacheLayer:
        """A layer that looks when the prompt is in."""
        return ProbeLayer(shape, index, self)


class ProbeLayer(CacheLayer):
    """Looks once: see Anatomy."""

    sink: float
    outliers: float

    def compress(self, queries: torch.Tensor) -> None:
        """Note the attention of the last queries to the first token, and the spread of the key channels."""
        late = queries[:, :, -LATE:]
        weights = probabilities(late, self.keys, self.scaling, self.stored - late.shape[2])
        self.sink = float(weights[..., 0].mean())
        sizes = self.keys.float().abs().mean(dim=2)
        self.outliers = float((sizes.amax(dim=-1) / sizes.median(dim=-1).values.clamp(min=1e-6)).amax())
