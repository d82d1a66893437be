"""A needle among images: a fact that stands in the text, or one that an image shows. For models that see.

Part of no profile: `--kv-tasks image_needle`. Every context holds plates, images of eight digits along the top of a
plain field (kvcheck/tasks/images.py), each named by the sentence that it stands in. About half of the tokens are slots
of images; what is left is text.

- image_needle/text: the code that is asked for is written out, among plates. Who keeps the text answers.
- image_needle/image: it is shown by a plate, and was never text. Who drops or blurs the slots of that plate does not.
"""

from __future__ import annotations

from functools import partial

from kvcheck.core.errors import SpecError
from kvcheck.core.front import option
from kvcheck.core.record import MODES
from kvcheck.tasks import lexicon
from kvcheck.tasks.base import Sample, Task, TaskInfo, Tokenizer
from kvcheck.tasks.filling import Unit, compose, digits, identifiers, noise, sample_rng, strata
from kvcheck.tasks.images import MARK, Colour, plate
from kvcheck.tasks.needle import needle_text, needle_turn

FIELDS: dict[str, Colour] = {
    "red": (220, 30, 30), "blue": (40, 70, 220), "green": (30, 150, 50), "yellow": (245, 225, 40),
    "purple": (130, 40, 160), "orange": (250, 140, 20), "brown": (120, 75, 35), "gray": (128, 128, 128),
}  # fmt: skip
"""The plain colours of the fields, by name."""
SIZE = 8
TURNS = 4
SHARE = 2
"""One in so many tokens of the context is a slot of an image."""
LEAST, MOST = 2, 64
LENGTHS = (512, 1024, 2048, 4096, 8192)
HEADER = "Read the text and answer. Text:"


def plates(length: int, tokenizer: Tokenizer) -> int:
    """How many plates a context of `length` tokens has. Raises SpecError where two do not fit.

    Where an image takes few tokens, the sentences around them are what there is room for.
    """
    each, sentence = len(tokenizer.encode(MARK)), len(tokenizer.encode(needle_text(lexicon.OBJECTS[0] + "00", MARK)))
    count = min(MOST, length // SHARE // each, length // SHARE // (sentence - each))
    if count < LEAST:
        raise SpecError(
            f"an image takes {each} tokens with this model, a context of {length} has no room for {LEAST}",
            f"{option('lengths')} {SHARE * LEAST * max(each, sentence - each)} at least",
        )
    return count


def _generate(kind: str, seed: int, index: int, length: int, tokenizer: Tokenizer, turns: int = TURNS) -> Sample:
    """Plates and written codes; `kind` says which of the two are asked for."""
    name = f"image_needle/{kind}"
    rng = sample_rng(name, 1, seed, length, index)
    names = identifiers(rng, lexicon.OBJECTS)
    shown = [(next(names), digits(rng, SIZE)) for _ in range(plates(length, tokenizer))]
    written = [(next(names), digits(rng, SIZE)) for _ in range(min(turns, len(shown)))]
    units = {owner: needle_text(owner, MARK) for owner, _ in shown}
    units |= {owner: needle_text(owner, code) for owner, code in written}
    both = [*shown, *written]
    placed = [Unit(units[owner], depth) for (owner, _), depth in zip(both, strata(rng, len(both)), strict=True)]
    context = compose(HEADER, placed, noise(rng, index % 2 == 1), length, tokenizer, rng)
    asked = (shown if kind == "image" else written)[:turns]
    questions = tuple(needle_turn(owner, code, units[owner], context) for owner, code in asked)
    pictures = {owner: plate(code, rng.choice(list(FIELDS.values()))) for owner, code in shown}
    order = sorted(pictures, key=lambda owner: context.spans[units[owner]])
    return Sample(name, index, context.text, questions, images=tuple(pictures[owner] for owner in order))


def _task(kind: str, doc: str) -> Task:
    info = TaskInfo(f"image_needle/{kind}", 1, "needle", MODES, True, 1e-8, doc, LENGTHS)
    return Task(info, partial(_generate, kind))


TASKS = (
    _task("text", "8-digit needles in the text, among images"),
    _task("image", "8-digit needles that images show"),
)
