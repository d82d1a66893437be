"""The case loop: make samples and prompts, have a backend answer them block by block, grade, record."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, cast

from kvcheck.core.errors import KvcheckError, MethodUnsupported, SpecError
from kvcheck.core.front import option
from kvcheck.core.record import (
    ACCURACY,
    CLEAR,
    CaseId,
    CaseRecord,
    LatencyRecord,
    MemoryRecord,
    SampleRecord,
    TurnRecord,
)
from kvcheck.core.settings import Settings
from kvcheck.core.spec import Spec
from kvcheck.runner.modes import Block, alike
from kvcheck.runner.prompts import Prompter, prompter
from kvcheck.runner.seam import Context, Question
from kvcheck.runner.whole_prompts import WholePrompts
from kvcheck.tasks.base import Sample, Task

if TYPE_CHECKING:
    from kvcheck.backends.base import AnsweringBackend, Backend, Engine, ForkingBackend, Measures, Timer, Work

OnBlock = Callable[[CaseRecord], bool]
"""Called after every block of contexts with the record so far; True ends the case."""

Progress = Callable[[int, int], None]
"""Called with (contexts done, contexts in all)."""

OFFERS = {"fork": "work", "log_probs": "log_probs", "memory": "measure_memory", "latency": "measure_latency"}
"""What a backend may lack, and the method that offers it."""
NOTHING_ASKED = "nothing is asked: nll, agree and kl alone are measured"
KEPT = 4096
"""Samples that are remembered."""


def find_task(case: CaseId, settings: Settings) -> Task:
    """The task of a case. Raises SpecError for an unknown one, another version, or a mode that it does not have."""
    from kvcheck.tasks import find

    task = find(case.task, settings.data, settings.compat, alone=case.mode == "multi_request", text=settings.text)
    if task.info.version != case.version:
        raise SpecError(f"{case}: the task {case.task} is at version {task.info.version}", "record the baseline again")
    if case.mode not in task.info.modes:
        raise SpecError(f"{case}: the task {case.task} has no mode {case.mode}", f"it has {', '.join(task.info.modes)}")
    return task


@dataclass
class Runner:
    """Runs cases on a backend. samples: generated once for all modes and methods.

    Raises SpecError for a backend that offers less than it says.
    """

    backend: Backend
    settings: Settings
    samples: dict[Hashable, Sample] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _expect_able(self.backend)

    @property
    def model_name(self) -> str:
        """What the user typed."""
        return self.backend.model_name

    @property
    def fingerprint(self) -> str:
        """Identifies what is under test beside the method: configuration, weights and tokenizer."""
        return self.backend.fingerprint

    @property
    def lacks(self) -> Mapping[str, str]:
        """What the backend cannot do, with the reasons."""
        return self.backend.lacks

    def run_case(
        self,
        case: CaseId,
        method_spec: str,
        on_block: OnBlock | None = None,
        progress: Progress | None = None,
        so_far: CaseRecord | None = None,
    ) -> CaseRecord:
        """Answer the questions of a case, block by block.

        After every block of contexts `on_block` gets the record so far, and ends the case by returning True. so_far:
        what an interrupted run has of the case; its contexts are not measured again. Raises ContextTooLong,
        MethodFailed, MethodUnsupported, SpecError.
        """
        task = find_task(case, self.settings)
        with self._work(case, method_spec) as work:
            asking = self._prompter(task, case)
            if not task.info.exact:
                self.sample(task, case, case.n - 1)  # a row too many is said before any is run
            record, done = so_far, list(so_far.samples) if so_far is not None else []
            if so_far is not None:
                work.resume(so_far)
                if on_block is not None and on_block(so_far):
                    return so_far
            for indices in _left(case, work.together if task.info.exact else 1, {sample.index for sample in done}):
                samples = [self.sample(task, case, index) for index in indices]
                done += _answered(samples, asking, work)
                record = self._record(task, asking, str(Spec.parse(method_spec)), done, work)
                if progress is not None:
                    progress(len(done), case.n)
                if on_block is not None and on_block(record):
                    break
        if record is None:
            raise KvcheckError(f"{case} has no samples", f"{option('n')} 1 is the least")
        return record

    def measure_latency(self, method_spec: str, length: int, timer: Timer | None = None) -> tuple[LatencyRecord, ...]:
        """Time to first token and per output token, as ratios to fp16. Raises MethodUnsupported where it cannot be."""
        self._expect("latency")
        return cast("Measures", self.backend).measure_latency(method_spec, length, timer)

    def measure_memory(self, method_spec: str, length: int) -> MemoryRecord:
        """Bytes held of one context of this length. Raises MethodUnsupported where it cannot be."""
        self._expect("memory")
        return cast("Measures", self.backend).measure_memory(method_spec, length)

    def _expect(self, what: str) -> None:
        """Raise MethodUnsupported where the backend cannot measure it."""
        if what in self.backend.lacks:
            raise MethodUnsupported(f"{self.model_name}: {what} is not measured ({self.backend.lacks[what]})")

    def sample(self, task: Task, case: CaseId, index: int) -> Sample:
        """A sample, generated once for all modes and methods."""
        key = _key(case, index, task.info.exact)
        if key not in self.samples:
            if len(self.samples) >= KEPT:
                self.samples.clear()
            sample = task.generate(case.seed, index, case.length, self.backend.encoder)
            _expect_asked(sample, task)
            self.samples[key] = sample
        return self.samples[key]

    def _work(self, case: CaseId, method_spec: str) -> AbstractContextManager[Work]:
        """The method at work on the case. Whether the first question is visible when the cache is compressed is the
        mode's to say, unless the settings do."""
        aware = {"yes": True, "no": False}.get(self.settings.query_aware, case.mode != "multi_request")
        if "fork" in self.backend.lacks:
            return WholePrompts.work(cast("AnsweringBackend", self.backend), case, method_spec, aware)
        return cast("ForkingBackend", self.backend).work(case, method_spec, aware)

    def _prompter(self, task: Task, case: CaseId) -> Prompter:
        """What makes token ids of the task's samples. Raises SpecError where a chat template is wanted and missing."""
        backend = self.backend
        return prompter(task, case, self.sample(task, case, 0), backend.encoder, backend.max_length, self.settings)

    def _switches(self, task: Task, prompter: Prompter) -> tuple[tuple[str, str], ...]:
        """What decides the scores of a public benchmark; of a task of our own, only what is not as usual."""
        chat = prompter.chat.digest
        found = [("chat", chat)] * bool(chat) + [("history", "gold")] * prompter.gold
        found += [("text", task.text)] * bool(task.text)
        found += [("think", str(prompter.think))] * bool(prompter.think)
        if not task.facts:
            return tuple(found)
        usual = {"chat": "no", "history": "own", "decoding": self.backend.decoding}
        usual["stop"] = ",".join(map(str, sorted(self.backend.encoder.eos)))
        return tuple(sorted({**task.facts, **usual, **dict(found)}.items()))

    def _record(self, task: Task, prompter: Prompter, method: str, done: list[SampleRecord], work: Work) -> CaseRecord:
        """What the case has produced so far."""
        info, case, measured = task.info, prompter.case, work.measured(len(done))
        memory = measured.memory
        if memory is not None and memory.claims is None:  # whoever says nothing claims nothing
            memory = replace(memory, claims="")
        return CaseRecord(
            case=case,
            method=method,
            model=self.fingerprint,
            capability=info.capability,
            query_aware=work.aware,
            binary=info.binary,
            chance=info.chance,
            samples=tuple(replace(sample, weight=measured.weights.get(sample.index)) for sample in done),
            memory=memory,
            stopped="all samples" if len(done) == case.n else CLEAR,
            not_measured=(*[(ACCURACY, NOTHING_ASKED)] * (not info.scored), *measured.not_measured),
            switches=self._switches(task, prompter),
            inputs=prompter.inputs,
        )


def driven(opened: Engine | Backend, settings: Settings) -> Engine:
    """What runs the cases of a run: what was opened, where it runs cases by itself, else a runner that drives it."""
    return cast("Engine", opened) if hasattr(opened, "run_case") else Runner(cast("Backend", opened), settings)


def _expect_able(backend: Backend) -> None:
    """Raise SpecError where a backend has not what it must have, or says that it lacks what nobody asks of it."""
    name, lacks = f"the backend {type(backend).__name__}", getattr(backend, "lacks", {})
    unknown = [what for what in lacks if what not in OFFERS]
    if unknown:
        raise SpecError(f"{name}.lacks names {', '.join(unknown)}", f"it may name {', '.join(OFFERS)}")
    whole = "fork" in lacks
    calls = [call for what, call in OFFERS.items() if what not in lacks and (whole or what != "log_probs")]
    needs = ("model_name", "fingerprint", "encoder", "max_length", "decoding", "lacks", *["answer"] * whole, *calls)
    missing = [need for need in needs if not hasattr(backend, need)]
    if missing:
        raise SpecError(
            f"{name} has no {', '.join(missing)}",
            "kvcheck/backends/base.py says what it must have; what it cannot do, `lacks` names with the reason",
        )


def _expect_asked(sample: Sample, task: Task) -> None:
    """Raise KvcheckError where a task asks nothing and says that its answers are graded, or the other way round."""
    limits = [turn.max_new_tokens for turn in sample.turns if bool(turn.max_new_tokens) != task.info.scored]
    if limits:
        raise KvcheckError(
            f"{sample.task}: TaskInfo.scored is {task.info.scored}, and a turn has max_new_tokens={limits[0]}",
            "0 for every turn of a task that asks nothing (scored=False), 1 or more for every other",
        )


def _answered(samples: list[Sample], asking: Prompter, work: Work) -> list[SampleRecord]:
    """Have the questions of some contexts answered, those of equal lengths together, and grade the answers.

    Where a token reaches over the seam to the question, a context is shorter by that.
    """
    contexts = [Context(one.index, asking.context(one), one.images) for one in samples]
    done: list[SampleRecord] = []
    for part in alike(range(len(samples)), lambda at: len(contexts[at].ids)):
        some, key = [samples[at] for at in part], tuple(samples[at].index for at in part)
        taken = work.contexts(_key(asking.case, key, asking.exact), [contexts[at] for at in part])
        answered = Block(taken, asking, some, work.most).run()
        done += [_graded(sample, asked, asking) for sample, asked in zip(some, answered, strict=True)]
    return sorted(done, key=lambda sample: sample.index)


def _graded(sample: Sample, questions: list[Question], prompter: Prompter) -> SampleRecord:
    """The answers to one sample with their scores."""
    turns = tuple(_turn(sample, question, prompter) for question in questions)
    return SampleRecord(sample.index, sample.digest, turns, fed=prompter.fed(sample), graded=prompter.graded(sample))


def _turn(sample: Sample, question: Question, prompter: Prompter) -> TurnRecord:
    """Grade one answer."""
    from kvcheck.tasks.metrics import score

    turn, drift = sample.turns[question.turn], question.drift
    if not turn.max_new_tokens:
        if drift.nll is None:
            raise KvcheckError(
                f"{sample.task} measures how likely its text is, and the engine gives no log-probabilities",
                f"{option('tasks')} with a task that asks something",
            )
        return TurnRecord(0.0, "", turn.subtask, turn.depth, drift.nll, drift.agree, drift.kl)
    answer, ended = prompter.answer(turn, question)
    graded = score(turn.metric, answer, turn.references, turn.options)
    return TurnRecord(graded, answer, turn.subtask, turn.depth, drift.nll, drift.agree, drift.kl, ended, drift.rank)


def _left(case: CaseId, size: int, done: set[int]) -> Iterator[list[int]]:
    """The contexts that are still to be measured, `size` at a time.

    One by one where they are rows of a data set: those differ in length, and nothing is padded.
    """
    for start in range(0, case.n, size):
        left = [index for index in range(start, min(start + size, case.n)) if index not in done]
        if left:
            yield left


def _key(case: CaseId, which: Hashable, exact: bool) -> Hashable:
    """What names the contexts `which` (indices) of a case, whatever the method; and whatever the mode.

    Not where contexts are rows of a data set (TaskInfo.exact), which are cut otherwise when they are read alone.
    """
    key = (case.task, case.version, case.seed, case.length, which)
    return key if exact else (*key, case.mode)
