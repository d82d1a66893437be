"""Backends that cannot fork: every question is sent as one prompt, with its context and the conversation before it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar, cast

from kvcheck.core.errors import KvcheckError, MethodFailed, MethodUnsupported
from kvcheck.core.front import option
from kvcheck.core.record import CaseId, CaseRecord, MemoryRecord
from kvcheck.runner.seam import Context, Drift, Measured, Question

if TYPE_CHECKING:
    from kvcheck.backends.base import AnsweringBackend, Measures

TOGETHER, MOST = 4, 32
"""Contexts and questions that are sent at a time."""
DIGITS = 6
T = TypeVar("T")
ACTS = "whether the method acts"
"""What is asked by all log-probabilities beside those of the full cache (kvcheck/judging/acted.py)."""
FULL_CACHE = "the engine tells the log-probabilities of the answer's tokens only"


@dataclass
class Waiting:
    """Questions that have been put together and not sent yet."""

    questions: list[Question]


@dataclass
class WholePrompts:
    """A method at work on a case, and some contexts of it: there is nothing to hold but their token ids."""

    backend: AnsweringBackend
    case: CaseId
    method: str
    blind: bool
    ids: Sequence[list[int]] = ()
    together: int = TOGETHER
    most: int = MOST
    aware: bool = True
    memory: MemoryRecord | None = None

    @classmethod
    @contextmanager
    def work(cls, backend: AnsweringBackend, case: CaseId, method_spec: str, aware: bool) -> Iterator[WholePrompts]:
        """Set a method to work. aware: whether the first question was meant to be visible at compression; it is."""
        yield cls(backend, case, method_spec, blind=not aware)

    def resume(self, record: CaseRecord) -> None:
        """Nothing is kept from one context to the next."""

    def contexts(self, key: object, contexts: Sequence[Context]) -> WholePrompts:
        """Take contexts. Raises KvcheckError for images."""
        if any(context.images for context in contexts):
            raise KvcheckError(
                f"{self.case} shows images, which a prompt of token ids has no place for",
                f"{option('tasks')} with text only",
            )
        self.ids = [context.ids for context in contexts]
        return self

    def measured(self, contexts: int) -> Measured:
        """Bytes where the backend tells them, and what was not measured."""
        lacks = self.backend.lacks
        why = {"forks": lacks["fork"], **{name: lacks[name] for name in ("memory", "latency") if name in lacks}}
        if self.memory is None and "memory" not in lacks:
            try:
                self.memory = cast("Measures", self.backend).measure_memory(self.method, self.case.length)
            except MethodUnsupported as error:  # with this method, where it can with others
                why["memory"] = error.message
        shown = self.memory is not None and self.memory.apart is not None
        unknown = ("agree", "kl") if shown else ("agree", "kl", ACTS)
        why |= dict.fromkeys(unknown, lacks.get("log_probs", FULL_CACHE))
        why |= {"nll": lacks["log_probs"]} if "log_probs" in lacks else {}
        why |= {"compression before the question": "the question is sent with its context"} if self.blind else {}
        return Measured(self.memory, not_measured=tuple(sorted(why.items())))

    # -- contexts ------------------------------------------------------------------------------------------------------

    def expect(self, questions: Sequence[Question], opening: bool) -> None:
        """Nothing can be shared."""

    def ask(self, questions: list[Question]) -> Waiting:
        """Questions right behind their contexts."""
        return Waiting(questions)

    def drift(self, group: Waiting) -> list[Drift]:
        """The mean of what the engine says of each reference answer."""
        questions = [question for question in group.questions if question.reference]
        if "log_probs" in self.backend.lacks or not questions:
            return [Drift()] * len(group.questions)
        pairs = [(self._prompt(question), list(question.reference)) for question in questions]
        found = iter(self._as_many(self.backend.log_probs(self.method, pairs), questions, "log_probs"))
        return [
            Drift(self._nll(question, next(found))) if question.reference else Drift() for question in group.questions
        ]

    def fork(self, group: Waiting) -> Waiting:
        """The questions themselves say what comes before them."""
        return group

    def generate(self, group: Waiting, keep: bool) -> list[Waiting]:
        """Send the prompts."""
        prompts = [(self._prompt(question), question.limit) for question in group.questions]
        found = self._as_many(self.backend.answer(self.method, prompts), group.questions, "answer")
        for question, answer in zip(group.questions, found, strict=True):
            if len(answer.ids) > question.limit:
                raise MethodFailed(
                    f"{self.method} answered {len(answer.ids)} tokens in {self.case}, of {question.limit}"
                )
            question.answer, question.ended = list(answer.ids), answer.ended
        return [group] if keep else []

    def go_on(self, group: Waiting, rows: list[int], questions: list[Question]) -> Waiting:
        """The next questions of a conversation; they carry it with them."""
        return Waiting(questions)

    def _prompt(self, question: Question) -> list[int]:
        return [*self.ids[question.row], *question.tail]

    def _nll(self, question: Question, found: Sequence[float]) -> float:
        """Nats per token of a reference answer."""
        if len(found) != len(question.reference):
            raise MethodFailed(
                f"{self.method} gave {len(found)} log-probabilities for {len(question.reference)} tokens in {self.case}"
            )
        return round(-sum(found) / len(found), DIGITS)

    def _as_many(self, found: Sequence[T], questions: Sequence[Question], what: str) -> Sequence[T]:
        """Refuse a backend that gave more or less than it was asked for."""
        if len(found) != len(questions):
            raise MethodFailed(f"the backend's {what} gave {len(found)} for {len(questions)} prompts in {self.case}")
        return found
