"""What the shipped records say of the built-in methods, by model: accuracy by capability, KL from fp16, and bytes."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

from kvcheck.core.record import CAPABILITIES, CaseRecord

MODELS = {
    "mini": "the embedded model, default profile",
    "smollm2": "SmolLM2-135M, a pretrained model (`--kv-model smollm2`), profile `real`",
}
"""The models that methods are shown on, by the name of their records."""


@dataclass(frozen=True)
class Recorded:
    """The records of one spec. accuracy: by capability, mean over the cases; turns: by turn, in multi-turn mode.

    kl: from fp16, in nats, mean over the cases; kl_by_task: over those of each task. least, most: KV bytes as a share
    of fp16's, over the cases. None where they were not measured.
    """

    spec: str
    accuracy: dict[str, float]
    turns: tuple[float, ...]
    kl: float | None
    least: float | None
    most: float | None
    kl_by_task: dict[str, float] = field(default_factory=dict)

    @property
    def bytes_text(self) -> str:
        """ "0.50" or "0.21-0.31"; empty without a measurement."""
        if self.least is None or self.most is None:
            return ""
        ends = dict.fromkeys(f"{end:.2f}" for end in (self.least, self.most))
        return "-".join(ends)

    @property
    def kl_text(self) -> str:
        """ "0.004"; empty without a measurement."""
        return "" if self.kl is None else f"{self.kl:.3f}"


@lru_cache(maxsize=len(MODELS))
def recorded(model: str = "mini") -> dict[str, Recorded]:
    """Every shipped record on a model, by spec; fp16 first."""
    from kvcheck.judging.shipped import records

    return {spec: summary(spec, cases) for spec, cases in records(model).items()}


def of_name(name: str, model: str = "mini") -> list[Recorded]:
    """The records of a method in all its recorded settings, the default first."""
    return [one for spec, one in recorded(model).items() if spec.partition(":")[0] == name]


def shown(name: str, model: str = "mini") -> Recorded | None:
    """What stands for a method in one line: its default, the first recorded setting of a default without a record."""
    return next(iter(of_name(name, model)), None)


def summary(spec: str, cases: list[CaseRecord]) -> Recorded:
    """Pool the cases of one method."""
    from kvcheck.report.rows import drift, turns

    accuracy = {}
    for capability in CAPABILITIES:
        scores = [case.accuracy for case in cases if case.capability == capability and case.scored]
        if scores:
            accuracy[capability] = sum(scores) / len(scores)
    tasks: dict[str, list[float]] = {}
    for case in cases:
        if (one := drift([case]).get("kl")) is not None:
            tasks.setdefault(case.case.task, []).append(one)
    divergences = [one for found in tasks.values() for one in found]
    kl = sum(divergences) / len(divergences) if divergences else None
    ratios = sorted(case.memory.ratio for case in cases if case.memory is not None)
    least, most = (ratios[0], ratios[-1]) if ratios else (None, None)
    by_task = {task: sum(found) / len(found) for task, found in tasks.items()}
    return Recorded(spec, accuracy, tuple(turns(cases)), kl, least, most, by_task)
