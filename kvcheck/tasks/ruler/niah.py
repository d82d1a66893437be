"""Needles in a haystack: RULER's niah_single_1..3, niah_multikey_1..3, niah_multivalue and niah_multiquery."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice

from kvcheck.tasks import lexicon
from kvcheck.tasks.base import Task, Turn
from kvcheck.tasks.filling import noise
from kvcheck.tasks.ruler.fit import SLOTS, Draft, Order, Page, Supply, check, distinct, fit, slots, spread, task
from kvcheck.tasks.ruler.words import identifier, keys, listed, number

NEW_TOKENS = 128
NEEDLE_TOKENS = 12
"""No needle has fewer with any tokenizer: bounds how many keys a haystack of needles takes."""
FEWEST = {"words": 3, "uuid": 2}
"""Blocks, sentences or other needles of the smallest haystack: a UUID takes so many tokens that 512 hold no more."""
BLOCK = "\n" + " ".join(lexicon.NOISE)


@dataclass(frozen=True)
class Form:
    """A variant. hay: "noise" (one block repeated), "essay" (sentences) or "needles".

    keys: needles with a key of their own that are hidden beside the haystack; values: per key; asked: keys asked for.
    key, value: "words" (keys only), "number" (values only) or "uuid".
    """

    hay: str
    keys: int = 1
    values: int = 1
    asked: int = 1
    key: str = "words"
    value: str = "number"


FORMS = {
    "niah_single_1": Form("noise"),
    "niah_single_2": Form("essay"),
    "niah_single_3": Form("essay", value="uuid"),
    "niah_multikey_1": Form("essay", keys=4),
    "niah_multikey_2": Form("needles"),
    "niah_multikey_3": Form("needles", key="uuid", value="uuid"),
    "niah_multivalue": Form("essay", values=4),
    "niah_multiquery": Form("essay", keys=4, asked=4),
}


@dataclass(frozen=True)
class Needle:
    """One sentence of the haystack that gives a value."""

    key: str
    value: str
    kind: str

    @property
    def text(self) -> str:
        """The sentence."""
        return f"A {self.kind} for {self.key} is {self.value}."


def needles(form: Form, rng: random.Random, most: int) -> Iterator[Needle]:
    """Endless needles, `form.values` of them in a row with the same key. most: how many keys will be drawn."""
    names = distinct(partial(identifier, rng) if form.key == "uuid" else keys(rng, most))
    values = distinct(partial(identifier if form.value == "uuid" else number, rng))
    for name in names:
        for value in islice(values, form.values):
            yield Needle(name, value, form.value)


def haystack(form: Form, rng: random.Random, others: Iterator[Needle]) -> Iterator[str]:
    """Endless lines or sentences, each with the blank or the line break before it."""
    if form.hay == "essay":
        yield from noise(rng, mixed=True)
    while True:
        yield BLOCK if form.hay == "noise" else f"\n{next(others).text}"


def build(form: Form, order: Order) -> Draft:
    """A sample of a variant; its haystack grows by a block, a sentence or a needle."""
    rng = order.rng()
    source = needles(form, rng, order.length // NEEDLE_TOKENS if form.hay == "needles" else form.keys)
    hidden = list(islice(source, form.keys * form.values))
    wanted = hidden[: form.asked * form.values]
    if form.hay == "essay":
        depths = [slot / (SLOTS - 1) for slot in slots(order, len(hidden), rng)]
    else:
        depths = spread(order, len(hidden), rng)
    places = sorted(zip(depths, hidden, strict=True), key=lambda pair: pair[0])
    hay = Supply(haystack(form, rng, source))

    def make(size: int) -> Draft:
        page = Page()
        page.add(_head(form))
        waiting = list(places)
        lines = hay.first(size)
        for at in range(size + 1):
            while waiting and round(waiting[0][0] * size) <= at:
                needle = waiting.pop(0)[1]
                page.add((" " if form.hay == "essay" else "\n") + needle.text, needle in wanted)
            if at < size:
                page.add(lines[at])
        return Draft(page.text, _turn(form, order, wanted, page))

    draft = fit(order, make, FEWEST[form.key])
    check(order, all(draft.context.count(needle.value) == 1 for needle in wanted), "every asked value stands once")
    asked = {needle.key for needle in wanted}
    check(
        order, all(draft.context.count(f" for {key} is ") == form.values for key in asked), "every key has its values"
    )
    return draft


def _plural(form: Form) -> str:
    return f"{form.value}s" if form.asked * form.values > 1 else form.value


def _head(form: Form) -> str:
    return f"Read the text and remember the {_plural(form)} in it, a question follows. Text:"


def _turn(form: Form, order: Order, wanted: list[Needle], page: Page) -> Turn:
    """The question that names the keys, and the beginning of an answer that names them again."""
    values = tuple(needle.value for needle in wanted)
    names = listed(list(dict.fromkeys(needle.key for needle in wanted)))
    verb, every = ("are", "all the") if len(values) > 1 else ("is", "the")
    phrase = f"{_plural(form)} for {names} in the text"
    return Turn(
        f"\nQuestion: What {verb} {every} {phrase}?",
        values,
        order.limit(NEW_TOKENS, listed(values)),
        "string_match_all",
        tuple(page.spans),
        page.depth,
        target=listed(values),
        lead=f" The {phrase} {verb}",
    )


def _doc(form: Form) -> str:
    hay = {"noise": "repeated lines", "essay": "sentences", "needles": "others like it"}[form.hay]
    many = form.asked * form.values
    what = "a UUID" if form.value == "uuid" else "a 7-digit number" if many == 1 else f"{many} 7-digit numbers"
    under = " under a UUID" if form.key == "uuid" else f" under {form.keys} keys" if form.asked > 1 else ""
    beside = f" and {form.keys - form.asked} other keys" if form.keys > form.asked else ""
    return f"{what}{under} among {hay}{beside}"


def _task(name: str, form: Form) -> Task:
    chance = 0.0 if form.value == "uuid" else 1 / 9e6
    return task(name, "needle", form.asked * form.values == 1, chance, _doc(form), partial(build, form))


TASKS = tuple(_task(name, form) for name, form in FORMS.items())
