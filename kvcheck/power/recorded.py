"""What the simulations draw from: the stored records of the default profile, fp16's and every method's own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kvcheck.core.errors import MissingBaseline, SpecError, did_you_mean
from kvcheck.core.front import command
from kvcheck.core.record import CaseId, CaseRecord, TurnRecord
from kvcheck.judging.budget import case_alpha
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

    def alpha(self, level: float = 0.05) -> float:
        """The error rate of one case in a run of a method over all cases, as the gate sets it."""
        return case_alpha(level, len(self.cases))

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

    def nll_rises(self) -> tuple[float, ...]:
        """Nats per token that the reference answer got less likely, wherever a method loses an answer of fp16's."""
        found = []
        for method in self.methods:
            for now, then in self.turns(method):
                if then.score == 1 and now.score == 0 and now.nll is not None and then.nll is not None:
                    found.append(now.nll - then.nll)
        return tuple(found)


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
