"""What each built-in method may lose against fp16: the table `baselines/allowances.toml`, read and proposed."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from kvcheck.core.errors import BaselineError, MissingBaseline, SpecError, did_you_mean
from kvcheck.core.formats import Json, read_toml
from kvcheck.core.front import option
from kvcheck.core.paths import bundle
from kvcheck.core.record import AS_RECORDED, CAPABILITIES, CaseRecord, Run, Verdict
from kvcheck.judging.budget import Budget

REVIEWED_ON = "mini"
"""The embedded model whose records the shipped table comes from; other models are judged by the default budget."""
STEP = 5
"""A proposed allowance is a multiple of so many points: a table of exact drops would pretend to know more."""
SLACK = 0.005
"""Share of fp16's bytes by which other contexts, with questions of other lengths, may take more."""
HEAD = """\
# What each built-in method may lose against fp16 on the embedded model, in points of accuracy per case.
# Each number is the largest drop of a case of the capability in the shipped records, rounded up to a multiple of 5;
# a capability that loses no more than 2 points keeps the default of 2. Written by `kvcheck allowances RUN.json`; to be
# reviewed when a method or its record changes. A budget that the user gives goes before it.
"""


def shipped(model: str = REVIEWED_ON) -> Allowances:
    """The reviewed table for the model that it was reviewed on, an empty one for another. Raises BaselineError."""
    return Allowances.load(bundle("baselines") / "allowances.toml") if model == REVIEWED_ON else Allowances({})


@dataclass(frozen=True)
class Allowances:
    """The reviewed table of what each built-in method may lose per capability, in points.

        ["snapkv"]                      # the spec text: another setting is another method
        reason = "keeps a quarter of the slots; keys that no question pointed at are lost"
        string_retrieval = 40.0
        bytes = 0.30                    # optional, for every capability

    A budget that the user gives goes before it.
    """

    table: dict[str, dict[str, Json]]

    @classmethod
    def load(cls, path: Path) -> Allowances:
        """Read the TOML file; a missing file is an empty table. Raises BaselineError that names what is wrong."""
        if not path.exists():
            return cls({})
        try:
            table = read_toml(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise BaselineError(
                f"{path} cannot be read: {error}", "see the format in kvcheck/judging/allowances.py"
            ) from error
        known = (*CAPABILITIES, "bytes", "reason")
        for method, row in table.items():
            if not isinstance(row, dict):
                raise BaselineError(f"{path}: {method!r} is not a section", f'write ["{method}"] on a line of its own')
            if not str(row.get("reason", "")).strip():
                raise BaselineError(
                    f"{path}: [{method}] has no reason", 'every allowance is reviewed: add reason = "…"'
                )
            for name, value in row.items():
                if name not in known:
                    raise BaselineError(f"{path}: [{method}] has an unknown key {name!r}", did_you_mean(name, known))
                if name != "reason":
                    _check_allowance(path, method, name, value)
        return cls(table)

    def get(self, method: str, capability: str) -> Budget | None:
        """The budget of that method (its spec text) for that capability, or None when the table has no such row."""
        row = self.table.get(method)
        if row is None or capability not in row:
            return None
        return Budget(drop=row[capability], bytes=row.get("bytes"))

    def reason(self, method: str) -> str:
        """Why the method may lose what it may lose; "" when it is not in the table."""
        return str(self.table.get(method, {}).get("reason", ""))


def _check_allowance(path: Path, method: str, name: str, value: Json) -> None:
    try:
        Budget(**{"bytes" if name == "bytes" else "drop": value})
    except SpecError as error:
        raise BaselineError(f"{path}: [{method}] {name}: {error.message}", error.hint) from error


def accept_as_reviewed(verdicts: tuple[Verdict, ...]) -> tuple[Verdict, ...]:
    """The verdicts of a case whose drop has a reviewed allowance.

    Where the method repeats its own record and that drop lies within the allowance, the question "is the true drop
    within it?" is not left open: the allowance was reviewed with this very record on these very prompts.
    """
    if not any(one.question == "regression" and one.reason == AS_RECORDED for one in verdicts):
        return verdicts
    reason = "the drop that was reviewed, on the recorded prompts"
    return tuple(
        replace(one, outcome="pass", reason=reason)
        if one.question == "budget" and one.outcome == "inconclusive" and one.value <= one.limit
        else one
        for one in verdicts
    )


def propose(run: Run, reasons: dict[str, str]) -> Iterator[str]:
    """The table that the records of a run would just keep, as lines of TOML. reasons: by method.

    Raises MissingBaseline where the run has no fp16 record of a case, BaselineError where a method has no reason.
    """
    fp16 = {record.case.key: record for record in run.cases if record.method == "fp16"}
    by_method: dict[str, list[CaseRecord]] = {}
    for record in run.cases:
        if record.method != "fp16" and record.samples:
            by_method.setdefault(record.method, []).append(record)
    yield HEAD
    for method, records in by_method.items():
        if not reasons.get(method):
            raise BaselineError(f"{method} does not say what it does", "give its class a docstring")
        yield f"[{json.dumps(method)}]"
        yield f"reason = {json.dumps(reasons[method], ensure_ascii=False)}"
        for capability, worst in _worst(records, fp16).items():
            yield f"{capability} = {_rounded(worst)}"
        ratios = [record.memory.ratio for record in records if record.memory is not None]
        if ratios and max(ratios) > 0:  # what lies in host memory alone has no share to limit
            yield f"bytes = {_share(max(ratios))}"
        yield ""


def _share(ratio: float) -> float:
    """A share of fp16's bytes in hundredths, with SLACK; all of them is all of them."""
    return 1.0 if ratio == 1 else math.ceil(100 * (ratio + SLACK) - 1e-9) / 100


def _worst(records: list[CaseRecord], fp16: dict[str, CaseRecord]) -> dict[str, float]:
    """The largest drop of a case in points, by capability."""
    found: dict[str, float] = {}
    for record in records:
        if record.case.key not in fp16:
            raise MissingBaseline(
                f"the run has no fp16 record of {record.case}", f"add {option('methods')}=fp16 to the run"
            )
        drop = 100 * (fp16[record.case.key].accuracy - record.accuracy)
        found[record.capability] = max(drop, found.get(record.capability, drop))
    return {name: found[name] for name in CAPABILITIES if name in found}


def _rounded(drop: float) -> int:
    """The next multiple of STEP; the default budget where that is enough."""
    return 2 if drop <= 2 else STEP * math.ceil(drop / STEP - 1e-9)
