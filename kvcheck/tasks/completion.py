"""Tasks that every language model can do: nothing is asked, the text goes on. Part of no list and no usual profile.

Small pretrained models fail at most questions and are good at going on with a text. So the text is natural, or the
question is left out, and a model that was never taught to answer can be graded:

- completion/prose: how likely the next 64 tokens of a natural text are, behind a long context of it. No answer.
- completion/echo: a sentence of the context is begun again, and must be gone on with.
- completion/needle, completion/kv, completion/many_shot: needle_multi, kv and many_shot without their question.

The text of the first two is what ships in fixtures/prose, the same bytes everywhere, or a file of the user's.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path

from kvcheck.core.errors import SpecError
from kvcheck.core.front import option
from kvcheck.core.paths import bundle
from kvcheck.core.record import prompt_digest
from kvcheck.core.values import utf8_text
from kvcheck.tasks.base import Sample, Task, TaskInfo, Tokenizer, Turn
from kvcheck.tasks.filling import VERSION, Draft, Order, Unit, sample_rng, strata, task
from kvcheck.tasks.global_information import shots
from kvcheck.tasks.needle import needle_text, needles
from kvcheck.tasks.string_retrieval import pairs

LENGTHS = (512, 1024, 2048, 4096)
LANGUAGE = "language_modelling"
CUE, NEXT = 8, 64
"""Words behind the context that are fed as the question, and of the reference; its first 64 tokens count."""
GOLDEN = 0.6180339887498949
"""Places that are so far apart, modulo 1, lie evenly whatever their number."""
STARTS = 200
"""Places that are tried for a context of exactly so many tokens, a word apart."""
GIVEN, ASKED = 5, 6
"""Words of a sentence that are given, and that are asked."""
WIDE = "\u3040-\u30ff\u3400-\u9fff"
"""Scripts without blanks between words, of which each character is one."""
_WORD = re.compile(rf"\s*(?:[{WIDE}]|[^\s{WIDE}]+)")
_SENTENCE = re.compile(r"(?<=[a-z)]\.) (?=[A-Z])")


@dataclass(frozen=True)
class Text:
    """A natural text. path: a file of the user's, None for the one that ships."""

    path: Path | None = None

    @cached_property
    def whole(self) -> str:
        """All of it. Raises SpecError where the file cannot be read."""
        return utf8_text(self.path or bundle("fixtures") / "prose" / "text.txt").strip()

    @cached_property
    def sentences(self) -> tuple[str, ...]:
        """Its sentences of usual length, each once, no two with the same beginning. Raises SpecError for too few."""
        found: dict[str, str] = {}
        for block in re.split(r"\n\s*\n", self.whole):
            for sentence in _SENTENCE.split(" ".join(block.split())):
                if GIVEN + ASKED <= len(sentence.split()) <= 30 and re.fullmatch(r"[A-Z][A-Za-z ,;'()-]+\.", sentence):
                    found.setdefault(beginning(sentence), sentence)
        if len(found) < 50:
            raise SpecError(
                f"{self.name} has {len(found)} sentences of {GIVEN + ASKED} to 30 words in plain letters, and 50 are "
                "needed",
                f"{option('text', 'FILE')} with more, or leave it out: a text of Python's documentation ships",
            )
        return tuple(found.values())

    @property
    def name(self) -> str:
        """How messages call it."""
        return str(self.path) if self.path is not None else "the text that ships"

    @property
    def digest(self) -> str:
        """Of a file of the user's, else ""."""
        return prompt_digest(self.whole) if self.path is not None else ""


def beginning(sentence: str) -> str:
    """The words of a sentence that are given."""
    return " ".join(sentence.split()[:GIVEN])


# -- prose -------------------------------------------------------------------------------------------------------------


def _prose(text: Text, seed: int, index: int, length: int, tokenizer: Tokenizer) -> Sample:
    """A stretch of the text: the context, a few words that are fed as a question, and what comes then.

    The stretches of a case lie evenly over the text, beginning with a paragraph where one is near.
    """
    shift = sample_rng("completion/prose", VERSION, seed, length, 0).random()
    at = int((shift + index * GOLDEN) % 1.0 * len(text.whole))
    paragraph = text.whole.find("\n", at, at + 2000)
    words = _words_from(text.whole, at if paragraph < 0 else paragraph)
    for start in range(STARTS):
        count = _filling(words[start:], length, tokenizer)
        if count is None:
            continue
        if len(words) < start + count + CUE + NEXT:
            break
        parts = words[start:][:count], words[start + count :][:CUE], words[start + count + CUE :][:NEXT]
        context, cue, rest = ("".join(part) for part in parts)
        return Sample("completion/prose", index, context.lstrip(), (Turn(cue, (rest,), 0, "", space=""),))
    raise SpecError(
        f"{text.name} has no stretch of exactly {length} tokens with {CUE + NEXT} words behind it: "
        f"it has {len(words)} words, and {len(tokenizer.encode(text.whole))} tokens",
        f"a shorter {option('lengths')}, or {option('text', 'FILE')} with a longer text",
    )


def _words_from(text: str, at: int) -> list[str]:
    """The words of a text, each with the white space before it, from a place to the end and on from its beginning.

    What is cut at the place stands whole at the end.
    """
    whole = _split(text)
    first = next((number for number, start in enumerate(whole[1]) if start >= at), 0)
    before = [f"\n{whole[0][0].lstrip()}", *whole[0][1:first]] if first else []
    return [*whole[0][first:], *before]


@cache
def _split(text: str) -> tuple[list[str], list[int]]:
    """(words, where they start) of a text."""
    found = [(match[0], match.start()) for match in _WORD.finditer(text)]
    return [word for word, _ in found], [start for _, start in found]


def _filling(words: list[str], length: int, tokenizer: Tokenizer) -> int | None:
    """How many words take exactly `length` tokens, None where no number does."""

    def tokens(count: int) -> int:
        return len(tokenizer.encode("".join(words[:count]).lstrip()))

    low, high = 0, len(words) + 1  # fewer tokens than asked for; more of them, or no such words
    guess = min(length, len(words))
    while low + 1 < high:
        found = tokens(guess)
        if found == length:
            return guess
        low, high = (guess, high) if found < length else (low, guess)
        guess = min(max(guess * length // max(1, found), low + 1), high - 1)
    return None


# -- echo --------------------------------------------------------------------------------------------------------------


def _echo(text: Text, order: Order) -> Draft:
    """Sentences in any order; some are begun again, one per slice of the context, and must be gone on with."""
    rng = order.rng()
    others = _shuffled(text.sentences, rng)
    asked = [next(others) for _ in range(order.turns)]
    units = [Unit(f" {sentence}", depth) for sentence, depth in zip(asked, strata(rng, order.turns), strict=True)]
    rest = (f" {sentence}" for sentence in others if sentence not in asked)
    context = order.compose("Text:", units, rest, rng)
    turns = []
    for sentence in asked:
        answer = " ".join(sentence.split()[GIVEN : GIVEN + ASKED]).rstrip(".,;")
        room = len(order.tokenizer.encode(f" {answer}")) + 2
        asks = f"\n\n{beginning(sentence)}"
        turns.append(context.turn(asks, (answer,), room, "substring", f" {sentence}", stop=("\n",), mark="\n\n"))
    return context, turns


def _shuffled(sentences: tuple[str, ...], rng: random.Random) -> Iterator[str]:
    """All of them in random order, again and again."""
    while True:
        yield from rng.sample(sentences, len(sentences))


# -- without a question ------------------------------------------------------------------------------------------------


@task("completion/needle", "needle", True, 1e-7, "four 7-digit needles, without a question", lengths=LENGTHS)
def needle(order: Order) -> Draft:
    """As needle_multi, but that the sentence with the code is begun, and nothing is asked."""
    context, asked = needles(order)
    turns = []
    for name, key in asked:
        begun, fact, room = f"\nThe code of {name} is", needle_text(name, key), len(key) // 2 + 6
        turns.append(context.turn(begun, (key,), room, "passkey_exact", fact, stop=(".", "\n"), mark="\n"))
    return context, turns


def ranked(made: Task) -> Task:
    """The same task with TaskInfo.ranked."""
    return replace(made, info=replace(made.info, ranked=True))


@ranked
@task("completion/kv", "string_retrieval", True, 1e-8, "random key-value pairs, without a question", lengths=LENGTHS)
def kv(order: Order) -> Draft:
    """As kv, but that the pair is begun, and nothing is asked."""
    context, asked = pairs(order)
    return context, [
        context.turn(f"\n{key}=", (value,), 8, "substring", fact, space="", stop=(";", "\n"), mark="\n")
        for key, value, fact in asked
    ]


@task("completion/many_shot", "global_information", True, 1 / 6, "in-context classification, without a question")
def many_shot(order: Order) -> Draft:
    """As many_shot, but that a case is begun, and nothing is asked."""
    context, asked = shots(order)
    return context, [
        Turn(f"\n{colour} {cue} type", (label,), 4, "exact", stop=(";", "\n"), mark="\n")
        for colour, cue, label in asked
    ]


@dataclass(frozen=True)
class TextTask(Task):
    """A task over a natural text."""

    source: Text

    @property
    def text(self) -> str:
        return self.source.digest


def over(text: Text) -> tuple[Task, Task]:
    """The tasks over a text: prose and echo."""
    doc, modes = "how likely the next 64 tokens of a natural text are", ("single", "multi_request")
    info = TaskInfo("completion/prose", VERSION, LANGUAGE, modes, False, 0.0, doc, LENGTHS, scored=False)

    def prose(seed: int, index: int, length: int, tokenizer: Tokenizer, turns: int = 1) -> Sample:
        """One sample."""
        return _prose(text, seed, index, length, tokenizer)

    def echo(order: Order) -> Draft:
        """One sample."""
        return _echo(text, order)

    made = task("completion/echo", LANGUAGE, True, 0.0, "go on with a sentence of the text", lengths=LENGTHS)(echo)
    return TextTask(info, prose, text), TextTask(made.info, made.generate, text)


@cache
def of_file(path: str) -> dict[str, Task]:
    """The tasks over a file of the user's, by name. Raises SpecError where it cannot be read."""
    return {one.info.name: one for one in over(Text(Path(path).expanduser()))}


TASKS = (*over(Text()), needle, kv, many_shot)
