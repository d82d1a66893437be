"""From a sample to token ids. No torch: every engine that works on tokens can use it."""

from __future__ import annotations

from dataclasses import dataclass, field

from kvcheck.errors import ContextTooLong, KvcheckError
from kvcheck.models.encoder import Encoder
from kvcheck.record import CaseId
from kvcheck.tasks.base import Sample, Turn

DRIFT_TOKENS = 64
"""Drift is measured on at most this many tokens of the reference answer."""


@dataclass
class Ask:
    """One question on its way: what is fed, and what came back.

    row: the context's row in its block. turn: which question of the sample. ids: tokens fed for the question.
    history: tokens between the context and ids (earlier questions and the method's own answers), multi-turn only.
    reference: tokens of the answer that earns the full score. answer: tokens produced, without the end token;
    ended: an end token closed it (else max_new_tokens did).
    """

    row: int
    turn: int
    ids: tuple[int, ...]
    reference: tuple[int, ...]
    limit: int
    history: tuple[int, ...] = ()
    answer: list[int] = field(default_factory=list)
    ended: bool = False
    nll: float | None = None
    agree: float | None = None
    kl: float | None = None

    @property
    def pending(self) -> tuple[int, ...]:
        """The answer's last token where it has not been fed: nothing came after it. The end token is never fed."""
        return () if self.ended else tuple(self.answer[-1:])

    @property
    def tail(self) -> tuple[int, ...]:
        """Everything after the context, up to the end of the question."""
        return self.history + self.ids

    def next(self, turn: int, question: tuple[int, ...], reference: tuple[int, ...], limit: int) -> Ask:
        """The next question in the same conversation: the model's own answer stays in the cache."""
        spoken = tuple(self.answer[: len(self.answer) - len(self.pending)])
        return Ask(self.row, turn, self.pending + question, reference, limit, self.tail + spoken)


class Prompter:
    """Token ids of the samples of one case."""

    def __init__(self, encoder: Encoder, case: CaseId, max_length: int | None) -> None:
        self.encoder = encoder
        self.case = case
        self.max_length = max_length

    def context(self, sample: Sample) -> list[int]:
        """[BOS +] context. Raises KvcheckError where the context has not exactly `case.length` tokens."""
        ids = self.encoder.encode(sample.context)
        if len(ids) != self.case.length:
            raise KvcheckError(
                f"{self.case}: the context of sample {sample.index} has {len(ids)} tokens "
                f"instead of {self.case.length}",
                "a task's generator fills its context to exactly the requested length with the tokenizer it is given",
            )
        self._check_fits(sample)
        return [*self.encoder.bos, *ids]

    def first(self, sample: Sample, row: int, turn: int) -> Ask:
        """The question `turn` asked right after the context."""
        asked = sample.turns[turn]
        return Ask(row, turn, tuple(self.encoder.encode(asked.question)), self.reference(asked), asked.max_new_tokens)

    def following(self, sample: Sample, ask: Ask) -> Ask | None:
        """The next turn of a conversation, None after the last one."""
        turn = ask.turn + 1
        if turn >= len(sample.turns):
            return None
        asked = sample.turns[turn]
        ids = tuple(self.encoder.encode(sample.separator + asked.question))
        return ask.next(turn, ids, self.reference(asked), asked.max_new_tokens)

    def reference(self, turn: Turn) -> tuple[int, ...]:
        """Tokens of the expected answer as they follow the question, at most DRIFT_TOKENS; no end token."""
        expected = turn.expected if turn.target or turn.references else ""
        if not expected:
            return ()
        asked = self.encoder.encode(turn.question)
        joined = self.encoder.encode(turn.question + turn.space + expected)
        ids = joined[len(asked) :] if joined[: len(asked)] == asked else self.encoder.encode(expected)
        return tuple(ids[:DRIFT_TOKENS])

    def answer(self, turn: Turn, ask: Ask) -> str:
        """The text of an answer, without the space that stands between question and answer."""
        return self.encoder.decode(ask.answer).removeprefix(turn.space)

    def _check_fits(self, sample: Sample) -> None:
        """Raise ContextTooLong where context, questions and longest answers exceed the model's limit."""
        if self.max_length is None:
            return
        used = self._turns(sample)
        spent = [len(self.encoder.encode(turn.question)) + turn.max_new_tokens for turn in used]
        asked = sum(spent) + len(self.encoder.encode(sample.separator)) * len(used)
        asked = asked if self.case.mode == "multi_turn" else max(spent)
        need = len(self.encoder.bos) + self.case.length + asked
        if need > self.max_length:
            most = max(self.max_length - need + self.case.length, 1)
            raise ContextTooLong(
                f"{self.case}: context, questions and answers take {need} tokens, "
                f"the model has room for {self.max_length}",
                f"--kv-lengths {most} at most, or a --kv-model with a longer context",
            )

    def _turns(self, sample: Sample) -> tuple[Turn, ...]:
        """The turns that the mode asks: `single` asks the first question only."""
        return sample.turns[:1] if self.case.mode == "single" else sample.turns
