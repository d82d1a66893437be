"""What the simulations draw from: the stored records of the default profile, fp16's and every method's own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from kvcheck.core.errors import MissingBaseline, SpecError, did_you_mean
from kvcheck.core.front import command
from kvcheck.core.record import CaseId, CaseRecord, TurnRecord, context_score
from kvcheck.store.baselines import ModelId, Store, open_store
from kvcheck.tasks import profiles

MODEL = "mini"
RECORD = f"record them: {command('fp16', 'snapkv', record='new')}"


@dataclass(frozen=True)
class Recorded:
    """cases: those of the profile. records: by (method, case key), whole for every method that is listed."""

    model: ModelId
    cases: tuple[CaseId, ...]
    methods: tuple[str, ...]
    records: dict[tuple[str, str], CaseRecord]

    def pair(self, method: str, case: CaseId) -> tuple[CaseRecord, CaseRecord]:
        """(own, fp16): the stored records of a case."""
        return self.records[method, case.key], self.records["fp16", case.key]

    def turns(self, method: str) -> Iterator[tuple[TurnRecord, TurnRecord]]:
        """Every recorded turn of a method with fp16's."""
        for case in self.cases:
            own, fp16 = self.pair(method, case)
            theirs = {sample.index: sample for sample in fp16.samples}
            for sample in own.samples:
                yield from zip(sample.turns, theirs[sample.index].turns, strict=True)

    @cached_property
    def nll_rises(self) -> tuple[float, ...]:
        """Nats per token that the reference answer got less likely, wherever a method loses an answer of fp16's."""
        found = []
        for method in self.methods:
            for now, then in self.turns(method):
                if then.score == 1 and now.score == 0 and now.nll is not None and then.nll is not None:
                    found.append(now.nll - then.nll)
        return tuple(found)

    @cached_property
    def scores_alone(self) -> Recorded:
        """The same without any nll and KL, so that the scores alone must tell."""
        return replace(self, records={name: _scores_alone(one) for name, one in self.records.items()})

    @cached_property
    def quick(self) -> Recorded:
        """The cases of the quick profile, which are cases of the others with fewer contexts."""
        return replace(self, cases=tuple(profiles.cases("quick")))

    def scopes(self, kind: str) -> tuple[str, ...]:
        """The names of its capabilities or tasks, as verdicts spell them."""
        records = (self.pair("fp16", case)[1] for case in self.cases)
        names = {one.capability if kind == "capability" else one.case.task for one in records}
        return tuple(f"{kind} {name}" for name in sorted(names))

    def within(self, scope: str) -> tuple[CaseId, ...]:
        """The cases of a scope: all for "run" or "", else those of "capability NAME" or "task NAME"."""
        kind, _, name = scope.partition(" ")
        if kind == "capability":
            return tuple(case for case in self.cases if self.pair("fp16", case)[1].capability == name)
        return tuple(case for case in self.cases if kind != "task" or case.task == name)

    def divergence(self, method: str) -> float:
        """Mean KL from fp16, in nats, over the turns in which it was measured; 0 where it was in none."""
        found = [now.kl for now, _ in self.turns(method) if now.kl is not None]
        return float(np.mean(found)) if found else 0.0

    def accuracy(self, method: str, scope: str = "") -> float:
        """Mean score of the contexts of a scope, in [0, 1]."""
        means = [
            (float(np.mean([context_score(one) for one in self.pair(method, case)[0].samples])), case.n)
            for case in self.within(scope)
        ]
        return sum(mean * n for mean, n in means) / sum(n for _, n in means)


def _scores_alone(record: CaseRecord) -> CaseRecord:
    samples = (
        replace(one, turns=tuple(replace(turn, nll=None, kl=None) for turn in one.turns)) for one in record.samples
    )
    return replace(record, samples=tuple(samples))


def load(uri: str | None = None, model: str = MODEL, profile: str = "default") -> Recorded:
    """Read the baselines of a model. Methods that lack a case of the profile are left out.

    Raises MissingBaseline where fp16, or every method, lacks one; SpecError for an unknown model.
    """
    store = open_store(uri, rootdir=Path.cwd())
    found = _model(store, model)
    cases = tuple(profiles.cases(profile))
    records: dict[tuple[str, str], CaseRecord] = {}
    methods = []
    for method in sorted({entry.method for entry in store.entries() if entry.model == found}):
        whole = {case.key: store.get(found, method, case) for case in cases}
        known = {key: one for key, one in whole.items() if one is not None}
        if all(case.key in known and len(known[case.key].samples) >= case.n for case in cases):
            methods.append(method)
            records.update({(method, key): one for key, one in known.items()})
    if "fp16" not in methods:
        raise MissingBaseline(f"fp16 has no record of every case of the {profile} profile on {model}", RECORD)
    return Recorded(found, cases, tuple(methods), records)


def _model(store: Store, name: str) -> ModelId:
    """The model of that name which has fp16 records."""
    entries = store.entries()
    known = sorted({entry.model.name for entry in entries})
    if not known:
        raise MissingBaseline("there are no baselines here", RECORD)
    if name not in known:
        raise SpecError(f"no baselines of the model {name!r}", did_you_mean(name, known))
    models = [entry.model for entry in entries if entry.model.name == name and entry.method == "fp16"]
    if not models:
        raise MissingBaseline(f"no fp16 record on {name}", RECORD)
    return models[0]
