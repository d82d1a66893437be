"""What the runner and a backend hand each other: plain data, and the little that is asked of a tokenizer. No torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from kvcheck.core.record import MemoryRecord, Weight
from kvcheck.tasks.base import Tokenizer
from kvcheck.tasks.images import Image


class Encoder(Tokenizer, Protocol):
    """The tokenizer of the model under test: it adds nothing to a text. One from Hugging Face may lie in `tokenizer`,
    whose chat template is used then. `facts`, a table of texts, may say what decides its ids ("tokenizers": "0.23.1"):
    where those of two records differ, it is compared to say why."""

    @property
    def bos(self) -> tuple[int, ...]:
        """Ids that the tokenizer puts before a text, () where it puts none."""
        ...

    @property
    def eos(self) -> frozenset[int]:
        """Ids that end an answer."""
        ...


@dataclass(frozen=True)
class Context:
    """One context as it is fed: the index of its sample, its token ids, and what its images show."""

    index: int
    ids: list[int]
    images: tuple[Image, ...] = ()


@dataclass(frozen=True)
class Drift:
    """How the answer that earns the full score looks to the method, means over its tokens; None: not measured.

    nll: in nats per token. agree: share of the places where the likeliest token is the full cache's; kl: from it.
    rank: 1 where the answer is likelier than all others that were asked about (Question.others).
    """

    nll: float | None = None
    agree: float | None = None
    kl: float | None = None
    rank: int | None = None


@dataclass
class Question:
    """One question on its way: what is fed, and what came back.

    row: the context's row in its block. turn: which question of the sample. ids: tokens fed for the question.
    history: tokens between the context and ids (earlier questions and their answers), multi-turn only; before: the
    question that it goes on from, None for the first.
    reference: tokens of the answer that earns the full score. others: those of other answers that it is ranked among.
    answer: tokens produced, without the end token;
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
    drift: Drift = Drift()
    others: tuple[tuple[int, ...], ...] = ()
    before: Question | None = field(default=None, repr=False, compare=False)

    @property
    def pending(self) -> tuple[int, ...]:
        """The answer's last token where it has not been fed: nothing came after it. The end token is never fed."""
        return () if self.ended else tuple(self.answer[-1:])

    @property
    def tail(self) -> tuple[int, ...]:
        """Everything after the context, up to the end of the question."""
        return self.history + self.ids

    @property
    def said(self) -> tuple[int, ...]:
        """The same, with the reference behind it."""
        return self.tail + self.reference

    def next(self, turn: int, ids: tuple[int, ...], reference: tuple[int, ...], limit: int) -> Question:
        """The next question in the same conversation: the model's own answer stays in the cache."""
        spoken = tuple(self.answer[: len(self.answer) - len(self.pending)])
        return Question(self.row, turn, self.pending + ids, reference, limit, self.tail + spoken, before=self)

    def instead(self, turn: int, ids: tuple[int, ...], reference: tuple[int, ...], limit: int) -> Question:
        """The next question where another answer, which `ids` begins with, stands in the place of the model's."""
        return Question(self.row, turn, ids, reference, limit, self.tail, before=self)


@dataclass(frozen=True)
class Answer:
    """What a backend that takes whole prompts says to one: token ids without the end token; ended: that one came."""

    ids: tuple[int, ...]
    ended: bool


@dataclass(frozen=True)
class Measured:
    """What was measured beside the answers of a case so far.

    memory: means over its contexts. weights: what each context held, by its index. not_measured: (what, why).
    """

    memory: MemoryRecord | None
    weights: dict[int, Weight] = field(default_factory=dict)
    not_measured: tuple[tuple[str, str], ...] = ()
