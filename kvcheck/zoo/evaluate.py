"""The gate over the zoo: would the tasks and the properties that a default run tries have caught this bug?

A faulty method stands for its correct counterpart after a bad commit: its records are judged as the counterpart's would
be, against the counterpart's own record (the stored one, else measured here). Both ways are tried by themselves, each
until it catches the bug: tasks, case by case and then all together, and properties. A fault that the audit, a crash or
bytes show in a case is not yet shown by answers: that is tried on.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from kvcheck.conformance.base import names
from kvcheck.conformance.runner import TRIALS, examine
from kvcheck.core.errors import BaselineError, KvcheckError, SpecError
from kvcheck.core.front import words
from kvcheck.core.record import BY_ANSWERS, BY_BYTES, BY_REFUSAL, FAILS, CaseId, CaseRecord, Verdict, ZooRecord
from kvcheck.core.settings import Settings
from kvcheck.judging.budget import Budget, case_alpha, judge, sequential
from kvcheck.judging.pooled import Compared, judge_pooled
from kvcheck.methods import make
from kvcheck.store.baselines import ModelId, Store
from kvcheck.tasks import profiles

if TYPE_CHECKING:
    from kvcheck.backends.base import Engine
    from kvcheck.backends.transformers.session import Session


@dataclass(frozen=True)
class Candidate:
    """Who is judged. family: "counterparts" for a correct method; faulty, counterpart: specs."""

    name: str
    family: str
    faulty: str
    counterpart: str
    url: str = ""

    @property
    def correct(self) -> bool:
        """Whether it is a counterpart, which must not be accused."""
        return self.faulty == self.counterpart


Shown = tuple[str, str]
"""(BY_ANSWERS, BY_BYTES or BY_REFUSAL; the reason)."""


def by_answers(found: list[Shown]) -> bool:
    """Whether answers show it."""
    return any(way == BY_ANSWERS for way, _ in found)


def first_of_each_way(found: list[Shown]) -> list[Shown]:
    """What shows a bug, once for each way."""
    firsts: dict[str, Shown] = {}
    for shown in found:
        firsts.setdefault(shown[0], shown)
    return list(firsts.values())


def _reasons(failed: list[Verdict]) -> str:
    return "; ".join(f"{one.question}: {one.reason}" for one in failed)


class Evaluation:
    """The gate, on one engine. records: of counterparts and fp16, measured once.

    Raises KvcheckError for an engine that holds no model in this process.
    """

    def __init__(self, engine: Engine, settings: Settings, store: Store) -> None:
        self.engine, self.settings, self.store = engine, settings, store
        self.session = in_process(engine)
        self.model = ModelId.of(engine.model_name, engine.fingerprint)
        self.records: dict[tuple[str, str], CaseRecord] = {}
        self.cases, self.rest = rungs(settings)
        self.alpha = case_alpha(settings.alpha, len(gated(settings)))

    def examine(self, candidate: Candidate) -> ZooRecord:
        """Try properties, then tasks. A correct method is tried to the end of both.

        Raises MethodUnsupported where a fault of the user's method has no place in it.
        """
        make(candidate.faulty).runner(self.session.loaded)
        start = time.perf_counter()
        properties, trials = self.properties(candidate)
        between = time.perf_counter()
        measured: list[Compared] = []
        tasks, samples = self.tasks(candidate, self.cases_of(candidate), measured)
        if not properties and not tasks and not candidate.correct:
            tasks, more = self.tasks(candidate, self.rest, measured)
            samples += more
        tasks = tasks if candidate.correct else first_of_each_way(tasks)
        end = time.perf_counter()
        self.session.runners.pop(candidate.faulty, None)  # what it keeps from prompt to prompt would add up
        return ZooRecord(
            name=candidate.name,
            family=candidate.family,
            counterpart=candidate.counterpart,
            correct=candidate.correct,
            url=candidate.url,
            properties=tuple(properties),
            trials=trials,
            property_seconds=round(between - start, 1),
            cases=tuple(text for _, text in tasks),
            ways=tuple(way for way, _ in tasks),
            samples=samples,
            case_seconds=round(end - between, 1),
        )

    def properties(self, candidate: Candidate) -> tuple[list[str], int]:
        """Those that fail (the first one, for a bug), each with its reason, and the trials until then."""
        found, trials = [], 0
        for name in names():
            said = examine(name, candidate.faulty, TRIALS[self.settings.profile], self.settings.seed)
            trials += said.trials
            if said.outcome == FAILS:
                found.append(f"{name}: {said.reason}")
                if not candidate.correct:
                    break
        return found, trials

    def tasks(self, candidate: Candidate, cases: list[CaseId], measured: list[Compared]) -> tuple[list[Shown], int]:
        """What fails, each with its reason, and the contexts until then: until answers show it, for a bug.

        All cases are judged together where none of them shows it by its answers. measured: those of before, to which
        these are added.
        """
        found, samples = list[Shown](), 0
        for case in cases:
            shown, one = self.case(candidate, case)
            found += [(way, f"{case}: {reason}") for way, reason in shown]
            if one is not None:
                measured.append(one)
                samples += len(one.record.samples)
            if not candidate.correct and by_answers(shown):
                return found, samples
        pooled = judge_pooled(measured, Budget(drop=None), self.settings.alpha) if measured else {}
        for scope, verdicts in pooled.items():
            failed = [one for one in verdicts if one.outcome == "fail"]
            found += [(BY_ANSWERS, f"{scope}: {_reasons(failed)}")] if failed else []
        return found, samples

    def cases_of(self, candidate: Candidate) -> list[CaseId]:
        """All; none of a correct method without a stored record, which could only be held against itself."""
        known = any(self.store.get(self.model, candidate.counterpart, case) is not None for case in self.cases)
        return self.cases if known or not candidate.correct else []

    def case(self, candidate: Candidate, case: CaseId) -> tuple[list[Shown], Compared | None]:
        """How a case fails and why, [] where it does not; and what was measured, None where it came to no end."""
        fp16, own = self.reference(case, "fp16"), self.reference(case, candidate.counterpart)
        budget = Budget(drop=None)  # what the correct method loses against fp16 is no fault

        def clear(so_far: CaseRecord) -> bool:
            return sequential(replace(so_far, method=candidate.counterpart), fp16, own, budget, self.alpha)

        try:
            record = replace(self.engine.run_case(case, candidate.faulty, clear), method=candidate.counterpart)
            verdicts = judge(record, fp16, own, budget, self.alpha)
        except BaselineError:
            raise  # of the references, not of the method
        except KvcheckError as error:
            return [(BY_REFUSAL, str(error).splitlines()[0])], None
        failed, found = [one for one in verdicts if one.outcome == "fail"], list[Shown]()
        for way in (BY_ANSWERS, BY_BYTES):
            mine = [one for one in failed if (one.question == "bytes") == (way == BY_BYTES)]
            found += [(way, _reasons(mine))] if mine else []
        return found, Compared(record, fp16, own, drop=False)

    def reference(self, case: CaseId, method: str) -> CaseRecord:
        """The stored record of a correct method where it holds enough contexts, else one that is measured here."""
        key = (str(case), method)
        if key not in self.records:
            stored = self.store.get(self.model, method, case)
            enough = stored is not None and len(stored.samples) >= case.n
            found = stored if enough and stored is not None else self.engine.run_case(case, method)
            self.records[key] = found
        return self.records[key]


def in_process(engine: Engine) -> Session:
    """The backend of this process, which faulty methods are put into. Raises KvcheckError where there is another."""
    from kvcheck.backends.transformers.session import Session

    backend = getattr(engine, "backend", None)
    if not isinstance(backend, Session):
        raise KvcheckError(
            "the zoo puts faulty methods into a model of this process, and this engine holds none here",
            "kvcheck zoo --model mini runs it on the embedded model",
        )
    return backend


def gated(settings: Settings) -> list[CaseId]:
    """The cases of a gate with these settings."""
    chosen = (settings.profile, settings.lengths, settings.tasks, settings.modes, settings.contexts)
    return profiles.cases(*chosen, None, settings.seed)


def rungs(settings: Settings) -> tuple[list[CaseId], list[CaseId]]:
    """The cases that are tried, and those for a bug that nothing else shows.

    Each task once, in its richest mode, at the shortest length, of the default profile with as many contexts as in the
    quick one; then at the longer lengths. Tasks that show nothing would otherwise take most of the time.
    """
    modes = ("multi_turn", "multi_request", "single")
    found = gated(settings)
    richest = {case.task: case.mode for case in sorted(found, key=lambda case: -modes.index(case.mode))}
    ladder = sorted((one for one in found if one.mode == richest[one.task]), key=lambda one: (one.length, one.task))
    first = [case for case in ladder if case.length == ladder[0].length]
    few = gated(replace(settings, profile="quick")) if settings.profile == "default" else found
    counts = {case.key: case.n for case in few}
    return [replace(case, n=counts.get(case.key, case.n)) for case in first], ladder[len(first) :]


def candidates(names: tuple[str, ...], methods: tuple[str, ...]) -> Iterator[Candidate]:
    """The bugs of these names or families (none: all) and their counterparts; of a user's own methods, their mutants.

    Raises SpecError for an unknown name, and for names beside methods.
    """
    from kvcheck.zoo.base import bugs
    from kvcheck.zoo.mutants import mutants

    if methods:
        if set(names) - {"all"}:
            hint = f"leave the names out: kvcheck zoo --method=SPEC, or pytest {words(zoo='all', methods='SPEC')}"
            raise SpecError(f"{', '.join(names)}: bugs of the zoo cannot be put around a method of your own", hint)
        for method in methods:
            yield from (Candidate(f"{name} in {method}", "mutants", spec, method) for name, spec in mutants(method))
            yield Candidate(method, "counterparts", method, method)
        return
    found = bugs(tuple(name for name in names if name != "all"))
    for one in found:
        yield Candidate(one.name, one.family, one.spec, one.counterpart, one.url)
    for counterpart in dict.fromkeys(one.counterpart for one in found):
        yield Candidate(counterpart, "counterparts", counterpart, counterpart)
