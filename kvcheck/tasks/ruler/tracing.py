"""Variable tracing: RULER's vt. One chain of assignments among noise, behind a solved example."""

from __future__ import annotations

from itertools import islice, pairwise

from kvcheck.tasks.base import Turn
from kvcheck.tasks.ruler.fit import Draft, Order, Page, check, distinct, fit, largest, task
from kvcheck.tasks.ruler.niah import BLOCK
from kvcheck.tasks.ruler.words import capitals

HOPS = 4
NEW_TOKENS = 30
EXAMPLE = 500
"""Tokens of the solved example, as in RULER; a quarter of the length where that is less."""
HEAD = "Read the text and remember every assignment in it. Text:"


class Chain:
    """A value, and the variables that get it one from the other."""

    def __init__(self, value: str, names: list[str], places: list[float]) -> None:
        self.value, self.names, self.places = value, names, places
        self.facts = [f"{b} = {a}." for a, b in pairwise([value, *names])]

    def page(self, blocks: int) -> Page:
        """The assignments in their order at their places among so many blocks of noise."""
        page = Page()
        page.add(HEAD)
        at = 0
        for place, fact in zip(self.places, self.facts, strict=True):
            until = int(place * (blocks + 1))
            page.add(BLOCK * (until - at))
            page.add(f"\n{fact}", True)
            at = until
        page.add(BLOCK * (blocks - at))
        return page

    @property
    def question(self) -> str:
        """Asks for every variable of the chain."""
        return f"\nQuestion: Which variables hold {self.value}, directly or by way of others?"

    @property
    def lead(self) -> str:
        """Says how many there are."""
        return f" The {len(self.names)} variables that hold {self.value} are"

    def solved(self, blocks: int) -> str:
        """A text with its question and its answer."""
        return f"{self.page(blocks).text}{self.question}{self.lead} {' '.join(self.names)}\n\n"


def build(order: Order) -> Draft:
    """A sample; its haystack grows by a block of noise."""
    rng = order.rng()
    names = distinct(lambda: capitals(rng))
    values = distinct(lambda: str(rng.randrange(10**4, 10**5)))

    def chain() -> Chain:
        places = sorted(rng.random() for _ in range(HOPS + 1))
        return Chain(next(values), list(islice(names, HOPS + 1)), places)

    example, asked = chain(), chain()
    room = min(EXAMPLE, order.length // 4)
    before = example.solved(largest(lambda size: order.tokens(example.solved(size)), room, 0) or 0)

    def make(size: int) -> Draft:
        page = asked.page(size)
        spans = tuple((start + len(before), end + len(before)) for start, end in page.spans)
        context = before + page.text
        depth = sum(start for start, _ in spans) / len(spans) / len(context)
        answer = " ".join(asked.names)
        limit = order.limit(NEW_TOKENS, answer)
        turn = Turn(
            asked.question, tuple(asked.names), limit, "string_match_all", spans, depth, target=answer, lead=asked.lead
        )
        return Draft(context, turn)

    draft = fit(order, make, 1)
    check(order, draft.context.count(asked.value) == 1, "the value stands once")
    check(order, all(draft.context.count(f"{name} = ") == 1 for name in asked.names), "a variable is set once")
    return draft


TASKS = (task("vt", "string_retrieval", False, 0.0, "variable tracing over four hops", build),)
