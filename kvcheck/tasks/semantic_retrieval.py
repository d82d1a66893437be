"""Semantic retrieval: the evidence says it in other words than the question (SCBench En.QA, Zh.QA, En.MultiChoice)."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from kvcheck.tasks import lexicon
from kvcheck.tasks.filling import Composed, Draft, Order, Unit, blend, identifiers, noise, strata, task

# relation: wordings in the text, question, lead-in of the answer, possible answers
RELATIONS = {
    "live": (("moved to", "settled in"), "Where does {} live?", "lives in", lexicon.CITIES),
    "work": (("trained as", "worked as"), "Which job does {} do?", "works as", lexicon.JOBS),
    "own": (("adopted the", "picked the"), "What kind does {} own?", "owns the", lexicon.ANIMALS),
}


def people(rng: random.Random) -> Iterator[str]:
    """Endless distinct full names."""
    seen: set[str] = set()
    while len(seen) < len(lexicon.FIRST_NAMES) * len(lexicon.LAST_NAMES):
        name = f"{rng.choice(lexicon.FIRST_NAMES)} {rng.choice(lexicon.LAST_NAMES)}"
        if name not in seen:
            seen.add(name)
            yield name


def fact(rng: random.Random, person: str, relation: str) -> tuple[str, str]:
    """One sentence about a person, and its answer."""
    wordings, _, _, answers = RELATIONS[relation]
    answer = rng.choice(answers)
    return f" {person} {rng.choice(wordings)} {answer}.", answer


def _story(order: Order, rng: random.Random) -> tuple[Composed, list[tuple[str, str, str, str]]]:
    """A context of facts about people; (person, relation, answer, sentence) of the asked ones.

    Every asked person has facts of the other relations too, and others share the first or the last name.
    """
    names = people(rng)
    asked, units, taken = [], [], set()
    for depth in strata(rng, order.turns):
        person, relation = next(names), rng.choice(sorted(RELATIONS))
        sentence, answer = fact(rng, person, relation)
        asked.append((person, relation, answer, sentence))
        units.append(Unit(sentence, depth))
        taken.add(person)
        units += [Unit(fact(rng, person, other)[0]) for other in sorted(RELATIONS) if other != relation]
        first, last = person.split()
        twins = (f"{first} {rng.choice(lexicon.LAST_NAMES)}", f"{rng.choice(lexicon.FIRST_NAMES)} {last}")
        for twin in twins:
            if twin not in taken:
                taken.add(twin)
                units.append(Unit(fact(rng, twin, relation)[0]))

    def record() -> str:
        person = next(name for name in names if name not in taken)
        return fact(rng, person, rng.choice(sorted(RELATIONS)))[0]

    others = blend(rng, record, noise(rng, order.index % 2 == 1), 0.3)
    return order.compose("Read the text and answer. Notes:", units, others, rng), asked


@task("qa_single", "semantic_retrieval", False, 0.02, "a fact asked in other words")
def qa_single(order: Order) -> Draft:
    """Who lives, works, owns what: one sentence answers, in other words than the question."""
    rng = order.rng()
    context, asked = _story(order, rng)
    return context, tuple(
        context.turn(
            f"\nQuestion: {RELATIONS[relation][1].format(person)} Answer: {person} {RELATIONS[relation][2]}",
            (answer,),
            4,
            "qa_f1",
            sentence,
        )
        for person, relation, answer, sentence in asked
    )


@task("choice", "semantic_retrieval", True, 0.25, "a fact asked with four options")
def choice(order: Order) -> Draft:
    """The same facts asked with four options; the letter is graded."""
    rng = order.rng()
    context, asked = _story(order, rng)
    questions = []
    for person, relation, answer, sentence in asked:
        _, question, lead, answers = RELATIONS[relation]
        options = [answer, *rng.sample([other for other in answers if other != answer], 3)]
        rng.shuffle(options)
        letter = lexicon.LETTERS[options.index(answer)]
        listed = ", ".join(f"{option} is {name}" for option, name in zip(options, lexicon.LETTERS, strict=True))
        questions.append(
            context.turn(
                f"\nQuestion: {question.format(person)} Options: {listed}. Answer: {person} {lead}",
                (letter, answer),
                4,
                "choice",
                sentence,
                options=tuple(options),
                target=f"{answer} is {letter}",
            )
        )
    return context, tuple(questions)


@task("qa_multi", "semantic_retrieval", False, 0.34, "a fact spread over two documents")
def qa_multi(order: Order) -> Draft:
    """Two documents together answer: who works for which firm, and where that firm has its office."""
    rng = order.rng()
    names, firms = people(rng), identifiers(rng, lexicon.FIRMS)
    asked, units = [], []
    depths = strata(rng, 2 * order.turns)
    for turn in range(order.turns):
        person, firm, city = next(names), next(firms), rng.choice(lexicon.CITIES)
        job, office = f" {person} went to {firm}.", f" They opened {firm} in {city}."
        asked.append((person, firm, city, job, office))
        units += [Unit(job, depths[2 * turn]), Unit(office, depths[2 * turn + 1])]
        twin = f"{firm.rstrip('0123456789')}{rng.randrange(100):02d}"
        if twin != firm:
            units.append(Unit(f" They opened {twin} at {rng.choice(lexicon.CITIES)}."))

    def record() -> str:
        if rng.random() < 0.5:
            return f" {next(names)} went to {next(firms)}."
        return f" They opened {next(firms)} in {rng.choice(lexicon.CITIES)}."

    others = blend(rng, record, noise(rng, order.index % 2 == 1), 0.3)
    context = order.compose("Read the text and answer. Documents:", units, others, rng)
    return context, tuple(
        context.turn(
            f"\nQuestion: Which firm does {person} work for and in which city? Answer: {person} works for",
            (f"{firm} in {city}",),
            8,
            "qa_f1",
            job,
            office,
        )
        for person, firm, city, job, office in asked
    )


def _zh_noise(rng: random.Random, mixed: bool) -> Iterator[str]:
    """Endless Chinese filler."""
    fixed = [f"{noun}很{adjective}。" for noun, adjective in zip(lexicon.ZH_NOUNS, lexicon.ZH_ADJECTIVES, strict=False)]
    count = 0
    while True:
        if mixed:
            near, noun, far = (rng.choice(w) for w in (lexicon.ZH_ADJECTIVES, lexicon.ZH_NOUNS, lexicon.ZH_ADJECTIVES))
            yield f"{near}的{noun}很{far}。"
        else:
            yield fixed[count % len(fixed)]
        count += 1


def _zh_people(rng: random.Random) -> Callable[[], str]:
    seen: set[str] = set()

    def person() -> str:
        while True:
            name = rng.choice(lexicon.ZH_SURNAMES) + rng.choice(lexicon.ZH_GIVEN) + rng.choice(lexicon.ZH_GIVEN)
            if name not in seen:
                seen.add(name)
                return name

    return person


@task("qa_zh", "semantic_retrieval", False, 0.06, "a fact asked in Chinese")
def qa_zh(order: Order) -> Draft:
    """The same in Chinese: who moved where."""
    rng = order.rng()
    person = _zh_people(rng)
    asked, units = [], []

    def sentence(name: str, city: str) -> str:
        return f"{name}{rng.choice(('搬到', '定居'))}{city}。"

    for depth in strata(rng, order.turns):
        name, city = person(), rng.choice(lexicon.ZH_CITIES)
        text = sentence(name, city)
        asked.append((name, city, text))
        units.append(Unit(text, depth))

    def record() -> str:
        return sentence(person(), rng.choice(lexicon.ZH_CITIES))

    others = blend(rng, record, _zh_noise(rng, order.index % 2 == 1), 0.4)
    context = order.compose("请阅读下面的文字。", units, others, rng)
    return context, tuple(
        context.turn(
            f"\n问题：{name}住在哪里？回答：{name}住在", (city,), 4, "f1_zh_chars", text, space="", mark="回答："
        )
        for name, city, text in asked
    )


TASKS = (qa_single, qa_multi, qa_zh, choice)
