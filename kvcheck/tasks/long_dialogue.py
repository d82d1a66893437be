"""Long dialogues: twenty turns in one cache, which grows by what is told in them.

What is told in one turn is asked for in a later one, so turns stand in their order and none can be asked alone. Turns
of one number look alike in all contexts, so that contexts are fed together to the end.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import cycle

from kvcheck.tasks import lexicon
from kvcheck.tasks.base import Turn
from kvcheck.tasks.filling import ANSWER, Draft, Order, Unit, blend, digits, identifiers, noise, strata, task, unused
from kvcheck.tasks.semantic_retrieval import RELATIONS, fact, people

TURNS = 20
LENGTHS = (512, 2048)
MODES = ("multi_turn",)
DECOYS = 3


@dataclass(frozen=True)
class Asked:
    """A turn: `told` stands before its question. unit: the piece of the context that answers, "" where none does."""

    question: str
    answer: str
    unit: str = ""
    told: str = ""


def _draft(
    order: Order, rng: random.Random, header: str, script: list[Asked], decoys: list[str], others: Iterator[str]
) -> Draft:
    """The context that the script asks about, with decoys and other text, and the turns."""
    facts = [asked.unit for asked in script if asked.unit]
    units = [Unit(text, depth) for text, depth in zip(facts, strata(rng, len(facts)), strict=True)]
    context = order.compose(f"Read the text and answer. {header}:", units + list(map(Unit, decoys)), others, rng)
    turns = []
    for one in script:
        question = f"\n{header}:{one.told}{one.question}" if one.told else one.question
        turn = Turn(question, (one.answer,), 4, "qa_f1", mark=ANSWER)
        if one.unit:
            turn = replace(turn, evidence=context.evidence(one.unit), depth=context.depth(one.unit))
        turns.append(turn)
    return context, turns


def _telling(turns: int) -> int:
    """How many turns may tell something. The last quarter asks for what the context said, when it is far behind."""
    return turns - turns // 4


# -- dialogue ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fact:
    """What is so with a person, by a relation of RELATIONS."""

    person: str
    relation: str
    answer: str

    @property
    def told(self) -> tuple[str, ...]:
        """It in a sentence, in all words that there are; the last are those of the question."""
        wordings, _, lead, _ = RELATIONS[self.relation]
        return tuple(f" {self.person} {words} {self.answer}." for words in (*wordings, lead))

    def asked(self, unit: str = "", told: str = "") -> Asked:
        """The question for it."""
        _, question, lead, _ = RELATIONS[self.relation]
        text = f"\nQuestion: {question.format(self.person)} Answer: {self.person} {lead}"
        return Asked(text, self.answer, unit, told)


@task("dialogue", "semantic_retrieval", False, 0.02, "facts that change in 20 turns", MODES, LENGTHS, TURNS)
def dialogue(order: Order) -> Draft:
    """Who lives, works, owns what: told in the context and in turns, changed, asked for again; the newest counts.

    A round has three turns: a fact of the context is asked for; it is told that it has changed, and who was new in the
    round before is asked for; the changed fact is asked for again, and somebody new is introduced. A change is told in
    all words that there are, because the old answer was given in those of the question.
    """
    rng = order.rng()
    names, relations = people(rng), cycle(sorted(RELATIONS))
    known: list[Fact] = []

    def other(one: Fact, *taken: str) -> Fact:
        answers = [answer for answer in RELATIONS[one.relation][3] if answer not in (one.answer, *taken)]
        return replace(one, answer=rng.choice(answers))

    def drawn(*taken: str) -> Fact:
        return other(Fact(next(names), next(relations), ""), *taken)

    def opening() -> tuple[Fact, Asked]:
        known.append(drawn())
        return known[-1], known[-1].asked(unit=rng.choice(known[-1].told[:2]))

    script: list[Asked] = []
    new: Fact | None = None
    for _ in range(_telling(order.turns) // 3):
        old, first = opening()
        second = opening()[1] if new is None else new.asked()
        changed = other(old, second.answer)
        new = drawn(changed.answer)
        script += [first, replace(second, told="".join(changed.told)), changed.asked(told=new.told[0])]
    script += [opening()[1] for _ in range(order.turns - len(script))]
    everybody = " ".join(one.question for one in script)
    decoys = []
    for one in known:
        first_name, _, last_name = one.person.partition(" ")
        twins = (f"{first_name} {rng.choice(lexicon.LAST_NAMES)}", f"{rng.choice(lexicon.FIRST_NAMES)} {last_name}")
        decoys += [fact(rng, twin, one.relation)[0] for twin in twins if twin not in everybody]

    def record() -> str:
        return fact(rng, next(names), rng.choice(sorted(RELATIONS)))[0]

    return _draft(order, rng, "Notes", script, decoys, blend(rng, record, noise(rng, order.index % 2 == 1), 0.3))


# -- tool_log ----------------------------------------------------------------------------------------------------------


@task("tool_log", "string_retrieval", False, 1e-4, "outputs of earlier calls in 20 turns", MODES, LENGTHS, TURNS)
def tool_log(order: Order) -> Draft:
    """A transcript of calls and their outputs, which begins in the context and grows by one call a turn.

    Half of the turns ask for an output of the context, the others for those of the turns before, which are further
    behind the later it is.
    """
    rng = order.rng()
    names = identifiers(rng)
    script: list[Asked] = []
    waiting: list[Asked] = []

    def call(known: str = "") -> Asked:
        """A call whose output is not among those that are known."""
        name, output = next(names), unused(lambda: digits(rng, 4), known)
        question = f"\nQuestion: What is the code of {name}? Answer: The code of {name} is"
        return Asked(question, output, f" call: The code of {name} is {output}.")

    for turn in range(order.turns):
        telling = 0 < turn < _telling(order.turns)
        asked = replace(waiting.pop(0), unit="") if telling and turn % 2 and waiting else call()
        if telling:
            waiting.append(call(asked.answer))
            asked = replace(asked, told=waiting[-1].unit)
        script.append(asked)
    decoys = [call().unit for _ in range(DECOYS)]
    return _draft(order, rng, "Text", script, decoys, noise(rng, order.index % 2 == 1))


TASKS = (dialogue, tool_log)
