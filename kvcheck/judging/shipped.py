"""The records that ship with kvcheck as one run, each method judged against fp16's."""

from __future__ import annotations

from dataclasses import replace

import kvcheck
from kvcheck.core.errors import BaselineError
from kvcheck.core.paths import bundle
from kvcheck.core.record import CaseRecord, Run, RunHeader
from kvcheck.judging.compare import compare_runs
from kvcheck.store.baselines import open_place
from kvcheck.store.text import ModelId

MODEL = "mini"


def shipped() -> Run:
    """All methods on the embedded model, with verdicts by the default budget. It takes about two seconds a method."""
    records, model = _records()
    if "fp16" not in records:
        raise BaselineError(
            f"{bundle('baselines')} holds no records of fp16", "pip install --force-reinstall kvcheck brings them back"
        )
    settings = {"against": "fp16", "alpha": "0.05", "seed": "0"}
    header = RunHeader(kvcheck.__version__, "", False, {}, {}, model.fingerprint, model.name, settings)
    full = Run(header, tuple(records["fp16"]))
    found = full
    for method, cases in records.items():
        if method != "fp16":
            judged = compare_runs(full, Run(header, tuple(cases))).run
            found = replace(
                found,
                cases=(*found.cases, *cases),
                verdicts={**found.verdicts, **judged.verdicts},
                failures={**found.failures, **judged.failures},
            )
    return found


def _records() -> tuple[dict[str, list[CaseRecord]], ModelId]:
    """By method, fp16 first; and their model."""
    store = open_place(bundle("baselines"))
    entries = [entry for entry in store.entries() if entry.model.name == MODEL]
    if not entries:
        raise BaselineError(f"{bundle('baselines')} holds no records of {MODEL}", "kvcheck baselines list")
    found = {
        entry.method: [one for case in entry.cases if (one := store.get(entry.model, entry.method, case)) is not None]
        for entry in sorted(entries, key=lambda entry: (entry.method != "fp16", entry.method))
    }
    return found, entries[0].model
