"""Keys, values and words of the RULER tasks, all drawn from a generator that is handed in."""

from __future__ import annotations

import random
import string
import uuid
from collections.abc import Callable, Sequence
from functools import cache
from math import prod

from kvcheck.tasks import lexicon

THINGS = lexicon.OBJECTS + lexicon.NOUNS
FORMS = (
    (lexicon.ADJECTIVES + lexicon.COLORS, THINGS),
    (lexicon.ADJECTIVES, lexicon.COLORS, THINGS),
    (lexicon.ADJECTIVES, lexicon.COLORS, lexicon.OBJECTS, lexicon.NOUNS),
)
"""Parts of a key such as quiet-otter: some 7,000, 60,000 and 1,500,000 keys."""

CONSONANTS, VOWELS = "bdfgklmnprstvz", "aeiou"
SYLLABLES = tuple(a + b for a in CONSONANTS for b in VOWELS)


def number(rng: random.Random) -> str:
    """A number of seven digits."""
    return str(rng.randrange(10**6, 10**7))


def identifier(rng: random.Random) -> str:
    """A random UUID, 36 characters."""
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))


def keys(rng: random.Random, count: int) -> Callable[[], str]:
    """Draws keys such as quiet-otter; longer ones where more than `count` short ones are hard to find."""
    form = next((form for form in FORMS if prod(map(len, form)) > 1.4 * count), FORMS[-1])
    return lambda: "-".join(rng.choice(part) for part in form)


def capitals(rng: random.Random) -> str:
    """Five capital letters: the name of a variable."""
    return "".join(rng.choice(string.ascii_uppercase) for _ in range(5))


def coded(rng: random.Random) -> str:
    """Six small letters that mean nothing."""
    return "".join(rng.choice(string.ascii_lowercase) for _ in range(6))


@cache
def plain() -> tuple[str, ...]:
    """Some 280 words of the lexicon, none of which stands inside another: the metric has no word boundaries."""
    groups = (lexicon.JOBS, lexicon.OBJECTS, lexicon.NOUNS, lexicon.VERBS)
    words = [word for group in (*groups, lexicon.ADJECTIVES, lexicon.ADVERBS, lexicon.COLORS) for word in group]
    kept: list[str] = []
    for word in words:
        if not any(word in other or other in word for other in kept):
            kept.append(word)
    return tuple(kept)


def made_up(rng: random.Random) -> str:
    """A word of three syllables such as balomi; there are 343,000, and being as long none stands inside another."""
    return "".join(rng.choice(SYLLABLES) for _ in range(3))


def listed(items: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join(part for part in (", ".join(items[:-1]), items[-1]) if part)
