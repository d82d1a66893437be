"""Questions on documents: RULER's qa_1 (one document answers) and qa_2 (two hops), on generated documents."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice

from kvcheck.tasks import lexicon
from kvcheck.tasks.base import Turn
from kvcheck.tasks.filling import digits, noise
from kvcheck.tasks.ruler.fit import Draft, Order, Page, Supply, check, distinct, fit, spread, task
from kvcheck.tasks.semantic_retrieval import RELATIONS, fact

NEW_TOKENS = 32
FAMILY = 5
"""Documents on people of one last name: the nearest distractors, RULER's paragraphs of the same article."""
OWN = 10
"""Documents that belong to a question of two hops; the random ones come on top."""
MANY = 60_000
"""Tokens from which on there are more documents than first and last names give people."""
LINE = "Read the documents and give only the answer, nothing else."


@dataclass(frozen=True)
class Document:
    """Sentences, each with the blank before it; the evidence of the question among them."""

    sentences: tuple[str, ...]
    evidence: str = ""


class World:
    """The people and firms of one sample, none of them twice. filler: sentences in a document beside its facts."""

    def __init__(self, order: Order) -> None:
        self.rng = order.rng()
        self.filler = min(8, max(0, order.length // 512 - 1))
        self.letters = tuple("BCDEFGHJKLMNPQRSTVWXYZ") if order.length > MANY else ()
        self.last = self.rng.choice(lexicon.LAST_NAMES)
        others = [name for name in lexicon.LAST_NAMES if name != self.last]
        self.family = distinct(lambda: self._name(self.last))
        self.people = distinct(lambda: self._name(self.rng.choice(others)))
        self.firms = distinct(lambda: self.rng.choice(lexicon.FIRMS) + digits(self.rng, 3))
        self.prose = noise(self.rng, mixed=True)

    def _name(self, last: str) -> str:
        first = self.rng.choice(lexicon.FIRST_NAMES)
        return f"{first} {self.rng.choice(self.letters)} {last}" if self.letters else f"{first} {last}"

    def document(self, facts: list[str], evidence: str = "") -> Document:
        """The facts in random order among filler."""
        sentences = facts + list(islice(self.prose, self.filler))
        self.rng.shuffle(sentences)
        return Document(tuple(sentences), evidence)


def _laid_out(documents: list[Document], places: list[float]) -> Page:
    """The documents by their places, numbered from 1."""
    page = Page()
    page.add(LINE)
    ordered = sorted(zip(places, documents, strict=True), key=lambda pair: pair[0])
    for number, (_, document) in enumerate(ordered, 1):
        page.add(f"\n\nDocument {number}:\n")
        for at, sentence in enumerate(document.sentences):
            page.add(sentence if at else sentence.lstrip(), sentence == document.evidence)
    return page


def _fitted(order: Order, own: list[Document], others: Iterator[Document], question: str, answer: str) -> Draft:
    """The documents of the question and as many others as fit, in random order. Grows by a document."""
    documents = Supply(chain(own, others))
    rng = order.rng("/places")
    found = Supply(chain(spread(order, 2, rng), iter(rng.random, None)))
    limit = order.limit(NEW_TOKENS, answer)

    def make(size: int) -> Draft:
        page = _laid_out(documents.first(size), found.first(size))
        turn = Turn(
            f"\n\n{LINE}\n\nQuestion: {question}",
            (answer,),
            limit,
            "string_match_part",
            tuple(page.spans),
            page.depth,
            lead="\nAnswer:",
        )
        return Draft(page.text, turn)

    return fit(order, make, len(own))


def _person(world: World, name: str) -> tuple[dict[str, tuple[str, str]], list[str]]:
    """A fact of every relation: relation -> (sentence, answer), and the sentences."""
    facts = {relation: fact(world.rng, name, relation) for relation in sorted(RELATIONS)}
    return facts, [sentence for sentence, _ in facts.values()]


def build_qa_1(order: Order) -> Draft:
    """What one document says of a person; other people of that last name come first among the other documents."""
    world = World(order)
    name, relation = next(world.family), world.rng.choice(sorted(RELATIONS))
    facts, sentences = _person(world, name)
    sentence, answer = facts[relation]
    own = [world.document(sentences, sentence)]
    for other in islice(world.family, FAMILY - 1):
        own.append(world.document(_person(world, other)[1]))
    others = (world.document(_person(world, other)[1]) for other in world.people)
    draft = _fitted(order, own, others, RELATIONS[relation][1].format(name), answer)
    check(order, draft.context.count(f"{name} ") == len(RELATIONS), "a person has one document")
    return draft


@dataclass(frozen=True)
class Pair:
    """A person and the firm that the person works for, each with a document; answer: the firm's city."""

    name: str
    firm: str
    answer: str
    documents: tuple[Document, Document]


def _pair(world: World, name: str, firm: str, asked: bool = False, city: str = "") -> Pair:
    """city: the asked one's answer, which no other document of the question gives."""
    rng = world.rng
    home, place = rng.sample([other for other in lexicon.CITIES if other != city], 2)
    joined, opened = f" {name} went to {firm}.", f" They opened {firm} in {place}."
    lives = f" {name} {rng.choice(RELATIONS['live'][0])} {home}."
    sign = f" The sign of {firm} is {rng.choice(lexicon.COLORS)}."
    person = world.document([joined, lives], joined if asked else "")
    return Pair(name, firm, place, (person, world.document([opened, sign], opened if asked else "")))


def build_qa_2(order: Order) -> Draft:
    """The city of the firm that a person works for; relatives at firms of like names are the other own documents."""
    world = World(order)
    base = world.rng.choice(lexicon.FIRMS)
    alike = distinct(lambda: base + digits(world.rng, 3))
    gold = _pair(world, next(world.family), next(alike), asked=True)
    own = list(gold.documents)
    for name, firm in islice(zip(world.family, alike, strict=False), OWN // 2 - 1):
        own += _pair(world, name, firm, city=gold.answer).documents
    strangers = (firm for firm in world.firms if not firm.startswith(base))
    others = (
        document for pair in zip(world.people, strangers, strict=False) for document in _pair(world, *pair).documents
    )
    question = f"In which city is the firm that {gold.name} works for?"
    draft = _fitted(order, own, others, question, gold.answer)
    check(order, draft.context.count(f"{gold.name} went to ") == 1, "a person works for one firm")
    check(order, draft.context.count(f"They opened {gold.firm} in ") == 1, "a firm is in one city")
    return draft


_CHANCE = sum(1 / len(answers) for _, _, _, answers in RELATIONS.values()) / len(RELATIONS)
TASKS = (
    task("qa_1", "semantic_retrieval", True, _CHANCE, "a fact of one document among many", build_qa_1),
    task(
        "qa_2", "semantic_retrieval", True, 1 / len(lexicon.CITIES), "a fact over two documents among many", build_qa_2
    ),
)
