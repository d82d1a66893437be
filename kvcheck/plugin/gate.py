"""Where records meet baselines and the budget: judge a case, look after a block, record baselines."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kvcheck.backends.engines import specs
from kvcheck.core.errors import MissingBaseline
from kvcheck.core.front import command
from kvcheck.core.record import RECORDED_NOW, RUN, CaseId, CaseRecord, Run, Verdict
from kvcheck.core.settings import Settings
from kvcheck.judging.acted import judge_acted
from kvcheck.judging.asked import budget_of, compared
from kvcheck.judging.budget import Budget, case_alpha, expect_records, judge, sequential
from kvcheck.judging.informative import noted, why_not
from kvcheck.judging.pairing import expect_same_inputs
from kvcheck.judging.pooled import Compared, judge_pooled, looks, most_telling
from kvcheck.judging.rescoring import Prompts
from kvcheck.plugin import cases, state
from kvcheck.report import explain
from kvcheck.report.rows import drift
from kvcheck.report.text import plural
from kvcheck.store.baselines import ModelId, Store, open_store
from kvcheck.store.reader import About

if TYPE_CHECKING:
    from kvcheck.backends.base import Engine


@dataclass(frozen=True)
class Judged:
    """A record with what it was compared with and the answers."""

    record: CaseRecord
    fp16: CaseRecord | None
    own: CaseRecord | None
    verdicts: tuple[Verdict, ...]
    baseline: str = ""


def shown(file: str, root: Path) -> str:
    """A file of a store as messages name it: from rootdir on, where it lies there."""
    return file.removeprefix(f"{root}/") if "://" not in file else file


Judge = Callable[..., Iterable[Verdict]]
"""Called as `pytest_kvcheck_judge` is, without config."""


class Gate:
    """Judges cases. records: those of this session by (str(case), method), which fp16 may be taken from."""

    def __init__(
        self,
        settings: Settings,
        root: Path,
        model: ModelId,
        records: dict[tuple[str, str], CaseRecord],
        judge: Judge,
    ) -> None:
        self.settings = settings
        self.model = model
        self.records = records
        self._judge = judge
        self._root = root
        self._in_engine = specs.chosen(settings) is not None
        self.store = open_store(settings.baselines, root)
        self._prompts = Prompts(model, settings, [settings.model])
        self.alpha = case_alpha(settings.alpha, len(cases.cases(settings, None)) * settings.times)

    @classmethod
    def of_run(cls, run: Run, settings: Settings, root: Path) -> Gate:
        """For the cases of a run, by kvcheck's own judge, whatever hooks say."""
        records = {(str(one.case), one.method): one for one in run.cases}
        return cls(settings, root, ModelId.of(run.header.model_name, run.header.model), records, judge)

    def budget(self, case: CaseId, method: str) -> Budget:
        """What a method may cost. The contexts of a further seed are asked what the others are."""
        _, own = self.references(replace(case, seed=self.settings.seed), method)
        return budget_of(self.settings.budget, own, self.settings.asks)

    def references(self, case: CaseId, method: str) -> tuple[CaseRecord | None, CaseRecord | None]:
        """(fp16, own): the stored records, and as fp16 the one of this session where none of that size is stored. own
        is that of another method where --kv-against names one.

        A case that is about to be recorded anew is not held against the record that it replaces, nor are the other
        methods of that session against an fp16 record that is being replaced. fp16 itself is then its own reference, as
        is that of a real engine where none is stored: it is measured for the methods beside it.
        """
        against, writes = self.settings.asks, self.settings.record
        renews = writes in ("changed", "all")
        name = method if method == "fp16" else self.settings.rival or method
        own = None if against == "fp16" or renews else self.store.get(self.model, name, case)
        fp16 = self.store.get(self.model, "fp16", case)
        if method == "fp16" and not writes and not self._in_engine:
            return fp16, own
        if fp16 is None or renews or len(fp16.samples) < case.n:
            fp16 = self.records.get((str(case), "fp16"), fp16)
        return fp16, own

    def expect_baseline(self, case: CaseId, method: str) -> None:
        """Raise BaselineError for a bad file, MissingBaseline where a record that judging needs is missing or small.

        fp16 without a record is measured all the same: it stands in for it when other methods of the session come.
        """
        fp16, own = self.references(case, method)
        rival = self.settings.rival
        if rival is not None and method != "fp16" and own is None:
            raise MissingBaseline(
                f"no record of {rival} for {case} on this model", f"record it: {command(rival, record='new')}"
            )
        if method != "fp16" and not self._first(own):
            expect_records(case, fp16, own, self.budget(case, method), self.settings.asks)

    def judge(self, record: CaseRecord) -> Judged:
        """All verdicts on a record. Raises MissingBaseline, NotComparable, MethodFailed."""
        fp16, own = self.references(record.case, record.method)
        for other, whose in ((fp16, "fp16"), (own, record.method)):
            if other is not None:  # whether or not a question asks for it: the summary shows it beside the method
                expect_same_inputs(record, other, whose)
        first = self._first(own)
        verdicts = self._judge(
            record=record,
            fp16=fp16,
            own=record if first else own,
            budget=self.budget(record.case, record.method),
            alpha=self.alpha,
            against=self.settings.asks,
        )
        if first:
            verdicts = tuple(
                replace(one, reason=RECORDED_NOW) if one.question == "regression" else one for one in verdicts
            )
        if own is None and self.settings.asks != "fp16" and not self.settings.record:
            reason = "no stored record of this method (--kv-record=new writes one)"
            told = dict.fromkeys((*record.not_measured, ("regression", reason)))  # once, also where it was resumed
            record = replace(record, not_measured=tuple(told))
        return Judged(record, fp16, own, tuple(verdicts), self._where(record, fp16, own))

    def pooled(self, records: Iterable[CaseRecord]) -> dict[str, tuple[Verdict, ...]]:
        """Verdicts by scope on all cases of one method. Raises MissingBaseline, NotComparable."""
        mine = [one for one in records if one.samples]
        compared = [self._compared(one) for one in mine]
        found = judge_pooled(compared, self._limits, self.settings.alpha, looks=looks(self.settings.times))
        if self.settings.record:
            found = {scope: tuple(map(noted, verdicts)) for scope, verdicts in found.items()}
        acted = judge_acted([(one, self.references(one.case, one.method)[0]) for one in mine])
        return found if acted is None else {**found, RUN: (*found.get(RUN, ()), acted)}

    def most_telling(self, records: Iterable[CaseRecord], question: str) -> list[CaseId]:
        """The cases of a method of which more contexts tell most about an open question on its run."""
        return most_telling([self._compared(one) for one in records], question, self._limits)

    @property
    def _limits(self) -> Budget:
        return Budget(**self.settings.budget)

    def _compared(self, record: CaseRecord) -> Compared:
        fp16, own = self.references(record.case, record.method)
        own = record if self._first(own) else own
        return compared(record, fp16, own, self.budget(record.case, record.method), self.settings.asks)

    def _first(self, own: CaseRecord | None) -> bool:
        """Whether a method that is to be held to its own record alone is being recorded: it is its own reference."""
        return own is None and self.settings.asks == "self" and bool(self.settings.record)

    def _where(self, record: CaseRecord, fp16: CaseRecord | None, own: CaseRecord | None) -> str:
        """The files that the record was compared with."""
        names = ["fp16"] if fp16 is not None else []
        names += [own.method] if own is not None and record.method != "fp16" else []
        files = (self.store.source(self.model, name, record.case) for name in names)
        return ", ".join(shown(file, self._root) for file in files if file) or "the records of this session"

    def message(self, judged: Judged) -> str:
        """What a failed case says."""
        settings, strict = self.settings.texts(), self.settings.strict
        session = explain.Session(settings, strict, judged.baseline, self.alpha, self._prompts)
        return "\n".join(explain.failure(judged.record, judged.fp16, judged.verdicts, session))

    def look(self, record: CaseRecord) -> tuple[str, bool]:
        """(verdict so far in words, may the case stop): asked after every block of contexts."""
        fp16, own = self.references(record.case, record.method)
        accuracy = so_far(record)
        if self.settings.record or (fp16 is None and own is None):
            return accuracy, False
        stop = sequential(record, fp16, own, self.budget(record.case, record.method), self.alpha, self.settings.asks)
        return f"{accuracy}, {'it loses too much' if stop else 'going on'}", stop


def so_far(record: CaseRecord) -> str:
    """What a case has shown after a block, in words."""
    if record.scored:
        return f"accuracy {record.accuracy:.2f}"
    return f"nll {drift([record]).get('nll', 0.0):.3f}"


GATE: pytest.StashKey[Gate] = pytest.StashKey()


def gate(config: pytest.Config, session: Engine) -> Gate:
    """The gate of this process, made once."""
    if GATE not in config.stash:
        mine = state.of(config)
        model = ModelId.of(session.model_name, session.fingerprint)
        judge = partial(config.hook.pytest_kvcheck_judge, config=config)
        config.stash[GATE] = Gate(mine.settings, config.rootpath, model, mine.records, judge)
    return config.stash[GATE]


def store(config: pytest.Config) -> Store:
    """Where baselines are read and written: the user's folder above the shipped ones.

    In kvcheck's own checkout the shipped ones are written.
    """
    return open_store(state.settings(config).baselines, config.rootpath)


def record(config: pytest.Config, run: Run) -> Iterator[str]:
    """Write the baselines of a run, fp16 first, and say what changed. Cases that failed to run are not in it."""
    verb = state.settings(config).record or "new"
    model = ModelId.of(run.header.model_name, run.header.model)
    where = store(config)
    about: About = {"kvcheck": run.header.kvcheck, "packages": run.header.packages}
    methods = sorted({one.method for one in run.cases if one.samples}, key=lambda name: (name != "fp16", name))
    for method in methods:
        records = [one for one in run.cases if one.method == method and one.samples]
        changes = where.record(model, method, records, verb, about)
        if changes.written:
            yield f"recorded {plural(changes.written, 'case')} of {method} in {shown(changes.path, config.rootpath)}"
        else:
            held = dict.fromkeys(where.source(model, method, one.case) for one in records)
            files = [shown(file, config.rootpath) for file in held if file] or [shown(changes.path, config.rootpath)]
            yield f"nothing to record for {method}: {', '.join(files)} is up to date"
        yield from (f"  {line}" for line in changes.lines)
        blind = sum(bool(why_not(one)) for one in records) if method == "fp16" else 0
        if blind:
            yield f"  {blind} of {plural(len(records), 'case')} not informative: no loss of accuracy can show there"
