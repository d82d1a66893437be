"""Run files that were written before each method had one spec."""

from __future__ import annotations

from kvcheck.core.record import Run
from kvcheck.methods import METHODS, canonical_of
from kvcheck.store.journal import Kept


def in_one_form(*runs: Run) -> list[Run]:
    """The runs with the one spec of each built-in method, `snapkv` for `snapkv:budget=0.5`, where their methods differ.

    Which parameters say the default is asked of the code of the methods, which needs torch.
    """
    methods = [{one.method for one in run.cases} for run in runs]
    differ = set().union(*methods) - methods[0].intersection(*methods)
    if not differ:
        return list(runs)
    own = {name for name, origin in METHODS.origins().items() if origin.startswith("kvcheck.methods.")}
    names = {method: canonical_of(method, own) for method in differ}

    def name(method: str) -> str:
        return names.get(method, method)

    return [Kept.of_run(run).renamed(name).run(run.header) for run in runs]
