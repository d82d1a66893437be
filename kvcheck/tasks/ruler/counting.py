"""Counting words: RULER's cwe (common words of a numbered list) and fwe (frequent words of a coded text)."""

from __future__ import annotations

import math
import random
from collections import Counter
from itertools import islice

from kvcheck.tasks.base import Turn
from kvcheck.tasks.ruler.fit import Draft, Order, Supply, check, distinct, fit, task
from kvcheck.tasks.ruler.words import coded, made_up, plain

COMMON = 10
FEWEST = 14
"""Words of the shortest list: the common ones and a few others."""
CWE_NEW_TOKENS = 120
CWE_HEAD = "Read the numbered list and count its words. List:"
CWE_QUESTION = f"\nQuestion: What are the {COMMON} most common words of the list?"
CWE_LEAD = f" The {COMMON} most common words are"

FWE_NEW_TOKENS = 50
DOTS = "..."
TOP = 3
FEWEST_CODED = 53
"""From here on the word of rank 4 always stands more often than that of rank 5."""
ZETA = math.pi**2 / 6
"""Riemann's zeta at 2, the exponent of the law."""
FWE_HEAD = "Read the coded text and count its words. Text:"
FWE_QUESTION = f"\nQuestion: What are the {TOP} most frequent coded words? The dots are no word."
FWE_LEAD = f" The {TOP} most frequent coded words are"


def repeats(length: int) -> tuple[int, int]:
    """How often a common word and another one stand in the list."""
    return (30, 3) if length >= 4096 else (6, 1)


def example_form(length: int) -> tuple[int, int, int] | None:
    """Words of the solved example, and how often a common one and another one stand there; None: it has no room."""
    if length < 1024:
        return None
    return (40, 10, 3) if length >= 4096 else (20, 3, 1)


def numbered(words: list[str], times: tuple[int, int], rng: random.Random) -> str:
    """The list: the first COMMON words so often, the others so often, in random order."""
    entries = [word for at, word in enumerate(words) for _ in range(times[at >= COMMON])]
    rng.shuffle(entries)
    return " ".join(["", *(f"{at}. {word}" for at, word in enumerate(entries, 1))])


def answered(words: list[str]) -> str:
    """The common words as the answer lists them."""
    return " ".join(f"{at}. {word}" for at, word in enumerate(words[:COMMON], 1))


def _vocabulary(order: Order) -> Supply[str]:
    """The words of a sample in random order: known ones, or where all of them do not fill the length, made-up ones.

    Never both: a word must not look like a common one.
    """
    rng = order.rng("/words")
    known = rng.sample(plain(), len(plain()))
    spent = order.tokens(numbered(known, repeats(order.length), order.rng("/order")))
    return Supply(iter(known) if spent > order.length else distinct(lambda: made_up(rng)))


def build_cwe(order: Order) -> Draft:
    """A list; it grows by one uncommon word."""
    words, form, before, shown = _vocabulary(order), example_form(order.length), "", 0
    if form is not None:
        shown = form[0]
        text = numbered(words.first(shown), (form[1], form[2]), order.rng("/example"))
        before = f"{CWE_HEAD}{text}{CWE_QUESTION}{CWE_LEAD} {answered(words.first(shown))}\n\n"
    times, gold = repeats(order.length), words.first(shown + COMMON)[shown:]
    limit = order.limit(CWE_NEW_TOKENS, answered(gold))
    turn = Turn(CWE_QUESTION, tuple(gold), limit, "string_match_all", target=answered(gold), lead=CWE_LEAD)

    def make(size: int) -> Draft:
        return Draft(before + CWE_HEAD + numbered(words.first(shown + size)[shown:], times, order.rng("/order")), turn)

    draft = fit(order, make, FEWEST)
    counts = Counter(draft.context.removeprefix(before + CWE_HEAD).split()[1::2])
    check(order, {word for word, _ in counts.most_common(COMMON)} == set(gold), "the common words are the asked ones")
    return draft


def shares(words: list[str], size: int) -> list[tuple[str, int]]:
    """How often every word stands in a text of some `size` words: Zipf's law with exponent 2, rounded down."""
    counts = (int(size / (rank * rank * ZETA)) for rank in range(1, len(words) + 1))
    return [(word, count) for word, count in zip(words, counts, strict=True) if count]


def build_fwe(order: Order) -> Draft:
    """A coded text; it grows with the number of words that the law shares out."""
    rng = order.rng()
    size = max((order.length - FWE_NEW_TOKENS) // 50, TOP + 2)
    words = [DOTS, *islice(distinct(lambda: coded(rng)), size - 1)]
    gold = tuple(words[1 : 1 + TOP])
    answer = " ".join(gold)
    limit = order.limit(FWE_NEW_TOKENS, answer)
    turn = Turn(FWE_QUESTION, gold, limit, "string_match_all", target=answer, lead=FWE_LEAD)

    def make(count: int) -> Draft:
        entries = [word for word, times in shares(words, count) for _ in range(times)]
        order.rng("/order").shuffle(entries)
        return Draft(" ".join([FWE_HEAD, *entries]), turn)

    draft = fit(order, make, FEWEST_CODED)
    counts = Counter(draft.context.removeprefix(FWE_HEAD).split()).most_common(TOP + 2)
    top = {word for word, _ in counts[: TOP + 1]}
    check(order, top == {DOTS, *gold} and counts[TOP][1] > counts[TOP + 1][1], "the frequent words are the asked ones")
    return draft


_CHANCE = COMMON / len(plain())
TASKS = (
    task("cwe", "global_information", False, _CHANCE, "the ten most common words of a numbered list", build_cwe),
    task("fwe", "global_information", False, 0.0, "the three most frequent words of a coded text", build_fwe),
)
