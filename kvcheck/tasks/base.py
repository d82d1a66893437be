"""What a task is: a seeded, versioned source of samples with a metric. No torch here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from kvcheck.core.record import prompt_digest
from kvcheck.tasks.images import Image


class Tokenizer(Protocol):
    """All that a generator asks of a tokenizer."""

    def encode(self, text: str) -> list[int]:
        """Token ids of the text, without special tokens."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, without special tokens, its blanks as they are."""
        ...


@dataclass(frozen=True)
class Turn:
    """One question about the context.

    question ends with the lead-in of the answer ("... The code of otter is"), as the benchmarks do; `space` stands
    between the two (so the text that teacher forcing feeds is question + space + expected).
    evidence: (start, end) character spans in the context that the answer needs. depth: their mean relative position.
    lead: the beginning of the answer, where the benchmark gives it: right behind the question, under a chat template
    behind the assistant's header. stop: strings that end an answer, which is cut before them.
    mark: what stands in the question before its lead-in (" Answer: "), "" where there is none. Under a chat template,
    which has a header for that, the mark goes, and the lead-in stands behind the header: see `apart`.
    max_new_tokens: 0 where nothing is asked (TaskInfo.scored): the reference is text that goes on behind the question.
    """

    question: str
    references: tuple[str, ...]
    max_new_tokens: int
    metric: str
    evidence: tuple[tuple[int, int], ...] = ()
    depth: float | None = None
    subtask: str = ""
    options: tuple[str, ...] = ()
    space: str = " "
    target: str = ""
    lead: str = ""
    stop: tuple[str, ...] = ()
    mark: str = field(default="", repr=False)

    @property
    def apart(self) -> tuple[str, str]:
        """(question, beginning of the answer) as a chat template has them, in two messages.

        >>> Turn("Who? Answer: It is", ("Ann",), 4, "exact", mark=" Answer: ").apart
        ('Who?', 'It is')
        """
        question, mark, begun = self.question.rpartition(self.mark or "\0")
        return (question, begun + self.lead) if mark else (self.question, self.lead)

    @property
    def expected(self) -> str:
        """The answer text that earns the full score, as teacher forcing feeds it (without `space`)."""
        return self.target or self.references[0]


@dataclass(frozen=True)
class Sample:
    """One shared context and its turns.

    A question begins with its own line break; `separator` joins an answer to the next question in multi-turn mode.
    chat: the benchmark puts this prompt into the model's chat template. row: id of the row in its data set.
    images: what the context shows, in the order of the marks (kvcheck/tasks/images.py) that stand for them there.
    """

    task: str
    index: int
    context: str
    turns: tuple[Turn, ...]
    separator: str = ""
    chat: bool = False
    row: str = ""
    images: tuple[Image, ...] = field(default=(), repr=False)  # thousands of cells

    @property
    def digest(self) -> str:
        """Identifies everything that the model is shown and everything that it is graded against."""
        parts = [self.context, *(image.digest for image in self.images)]
        for turn in self.turns:
            parts += [turn.question, *([turn.lead] if turn.lead else []), *turn.references]
        return prompt_digest(*parts)


@dataclass(frozen=True)
class TaskInfo:
    """The declaration of a task. chance: analytic score of a guess among the candidates of the right form.

    exact: contexts have `length` tokens; False: at most so many, as the rows of a data set have. words: `length` counts
    words, and contexts have as many tokens as that takes (exact is False). history: what stands before a later question
    of a conversation, the model's "own" answers or the "gold" ones. most: samples that there are, 0 for any number.
    scored: False where no question is answered and graded: the likelihood of the references is all that is measured.
    ranked: in multi_request, each reference is ranked among those of the context's other questions: it costs a few
    tokens for each, and tells something where hardly a model answers right.
    """

    name: str
    version: int
    capability: str
    modes: tuple[str, ...]
    binary: bool
    chance: float
    doc: str
    lengths: tuple[int, ...] = (512, 1024, 2048)
    exact: bool = True
    words: bool = False
    history: str = "own"
    most: int = 0
    scored: bool = True
    ranked: bool = False


class Generate(Protocol):
    """A generator: a pure function of its arguments; `turns` is the number of questions where it can be chosen."""

    def __call__(self, seed: int, index: int, length: int, tokenizer: Tokenizer, turns: int = ...) -> Sample:
        """One sample."""
        ...


@dataclass(frozen=True)
class Task:
    """A task: its declaration and its generator `generate(seed, index, length, tokenizer) -> Sample`.

    The context of the sample has `length` tokens of the tokenizer, see TaskInfo.exact and .words.
    """

    info: TaskInfo
    generate: Generate

    @property
    def text(self) -> str:
        """Digest of the user's text that its samples are drawn from, "" where what is shipped is enough."""
        return ""

    @property
    def facts(self) -> dict[str, str]:
        """What else decides a score (data set and revision, template, truncation, metric): recorded, and compared."""
        return {}
