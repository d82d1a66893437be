"""The records that ship with kvcheck as one run, each method judged against fp16's."""

from __future__ import annotations

from dataclasses import replace

import kvcheck
from kvcheck.core.errors import BaselineError
from kvcheck.core.paths import bundle
from kvcheck.core.record import CaseRecord, Run, RunHeader
from kvcheck.judging.compare import compare_runs
from kvcheck.store.baselines import open_place

MODEL = "mini"


def shipped() -> Run:
    """All methods on the embedded model, with verdicts by the default budget. It takes about two seconds a method."""
    known = records(MODEL)
    if "fp16" not in known:
        raise BaselineError(
            f"{bundle('baselines')} holds no records of fp16", "pip install --force-reinstall kvcheck brings them back"
        )
    settings = {"against": "fp16", "alpha": "0.05", "seed": "0"}
    header = RunHeader(kvcheck.__version__, "", False, {}, {}, known["fp16"][0].model, MODEL, settings)
    full = Run(header, tuple(known["fp16"]))
    found = full
    for method, cases in known.items():
        if method != "fp16":
            judged = compare_runs(full, Run(header, tuple(cases))).run
            found = replace(
                found,
                cases=(*found.cases, *cases),
                verdicts={**found.verdicts, **judged.verdicts},
                failures={**found.failures, **judged.failures},
            )
    return found


def records(model: str) -> dict[str, list[CaseRecord]]:
    """Those of a model by method, fp16 first; {} where none ship."""
    store = open_place(bundle("baselines"))
    return {
        entry.method: [one for case in entry.cases if (one := store.get(entry.model, entry.method, case)) is not None]
        for entry in sorted(store.entries(), key=lambda entry: (entry.method != "fp16", entry.method))
        if entry.model.name == model
    }
