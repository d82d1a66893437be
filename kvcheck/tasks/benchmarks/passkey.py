"""The passkey grid of longctx_bench, depth x length, over filler of our own; over essays it is `niah`.

300 prompts upstream: ten lengths, ten depths, three repetitions. Ten samples of a length have the ten depths, in an
order that spreads them, so 30 samples are a row of the grid. The sentences are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from kvcheck.tasks.base import Sample, Task, TaskInfo, Tokenizer, Turn
from kvcheck.tasks.filling import Unit, compose, digits, grid_depth, noise, sample_rng, unused

VERSION = 2
DEPTHS = 10
DECOYS = 3
LENGTHS = (512, 2730, 4949, 7168, 9386, 11605, 13824, 16042, 18261, 20480)
MAX_NEW_TOKENS = 256
HEADER = "One fact is hidden in this text. Keep it in mind, it is asked for at the end.\n"
NEEDLES = (
    ("The key that opens the old gate", "Note it well: {key}."),
    ("The number that stops the mill", "Do not forget {key}."),
    ("The code of the blue locker", "Remember {key}, it is asked for."),
    ("The sign that the ferryman knows", "Keep {key} in mind."),
    ("The mark on the last barrel", "Whoever asks is told {key}."),
    ("The price of the silent bell", "That is {key}, and nothing else."),
)
"""(subject, reminder): the needle says what the subject is, the reminder repeats its key."""


@dataclass(frozen=True)
class Form:
    """One grid. size: digits of a key. words: its lengths are counted in words. needle: False in the control."""

    name: str
    size: int
    doc: str
    words: bool = False
    needle: bool = True


class Words:
    """Counts words as other tokenizers count tokens: one id for each piece of text between blanks."""

    def __init__(self) -> None:
        self._ids: dict[str, int] = {}

    def encode(self, text: str) -> list[int]:
        """The ids of the words."""
        return [self._ids.setdefault(word, len(self._ids)) for word in text.split()]

    def decode(self, ids: Sequence[int]) -> str:
        """The words, with one blank between them."""
        known = list(self._ids)
        return " ".join(known[one] for one in ids)


WORDS = Words()


def generate(form: Form, seed: int, index: int, length: int, tokenizer: Tokenizer, turns: int = 1) -> Sample:
    """One prompt: a key at its depth, three decoys (keys of other things) anywhere.

    The context has exactly `length` tokens, or words. At every depth one repetition has filler that repeats, the next
    one filler that does not. The key occurs nowhere but in the needle; without a needle nowhere at all.
    """
    name = f"passkey/{form.name}"
    rng = sample_rng(name, VERSION, seed, length, index)
    depth, repetition = grid_depth(index, DEPTHS), index // DEPTHS
    (subject, reminder), *others = rng.sample(NEEDLES, 1 + DECOYS)
    decoys = [Unit(f" {other} is {digits(rng, form.size)}.") for other, _ in others]
    key = unused(lambda: digits(rng, form.size), "".join(unit.text for unit in decoys))  # the filler has no digits
    fact = f" {subject} is {key}. {reminder.format(key=key)}"
    units = [Unit(fact, depth), *decoys] if form.needle else decoys
    filler = noise(rng, (index + repetition) % 2 == 1)
    context = compose(HEADER, units, filler, length, WORDS if form.words else tokenizer, rng)
    turn = Turn(
        f"\nWhat is {subject[0].lower()}{subject[1:]}? {subject} is",
        (key,),
        MAX_NEW_TOKENS,
        "passkey_exact" if form.size < 64 else "passkey_partial",
        context.evidence(fact) if form.needle else (),
        context.depth(fact) if form.needle else None,
        subtask=f"depth {depth:.2f}" if form.needle else "no needle",
    )
    return Sample(name, index, context.text, (turn,), row=f"depth={depth:.2f}/repetition={repetition}")


def _task(form: Form) -> Task:
    chance = (1e-7 if form.size < 64 else 0.05) if form.needle else 0.0
    modes, name = ("single", "multi_request"), f"passkey/{form.name}"
    info = TaskInfo(
        name, VERSION, "needle", modes, form.size < 64, chance, form.doc, LENGTHS, exact=not form.words,
        words=form.words,
    )  # fmt: skip
    return Task(info, partial(generate, form))


FORMS = (
    Form("7_digits", 7, "passkey of 7 digits, depth x length"),
    Form("64_digits", 64, "passkey of 64 digits, depth x length"),
    Form("7_digits_words", 7, "passkey of 7 digits, lengths in words", words=True),
    Form("64_digits_words", 64, "passkey of 64 digits, lengths in words", words=True),
    Form("no_needle", 7, "a key that the text does not hold: every score must be 0", needle=False),
)
TASKS = tuple(map(_task, FORMS))
