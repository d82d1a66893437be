"""Multi-tasking: two kinds of questions on one context (SCBench Mix.Sum+NIAH, Mix.RepoQA+KV)."""

from __future__ import annotations

from kvcheck.tasks import lexicon
from kvcheck.tasks.base import Turn
from kvcheck.tasks.code import comments, function_turn, functions
from kvcheck.tasks.filling import Draft, Order, Unit, digits, identifiers, noise, strata, task
from kvcheck.tasks.global_information import reports, summary_turn
from kvcheck.tasks.needle import needle_text, needle_turn


@task("summary_with_needles", "multi_task", False, 0.145, "summaries and needles in one context")
def summary_with_needles(order: Order) -> Draft:
    """Reports with needles between their points; summaries and needles are asked in turn."""
    each = order.turns // 2
    rng = order.rng()
    names = identifiers(rng, lexicon.TOOLS)
    asked, units = reports(rng, names, each + 2)
    needles = [(next(names), digits(rng, 7)) for _ in range(each)]
    units += [Unit(needle_text(*pair), depth) for pair, depth in zip(needles, strata(rng, each), strict=True)]
    others = noise(rng, order.index % 2 == 1)
    context = order.compose("Read the text and answer. Notes:", units, others, rng)
    questions: list[Turn] = []
    for (name, points), (holder, key) in zip(asked[:each], needles, strict=True):
        questions += [summary_turn(name, points, context)]
        questions += [needle_turn(holder, key, needle_text(holder, key), context)]
    return context, tuple(questions)


@task("code_and_kv", "multi_task", True, 0.0, "functions and key-value pairs in one context")
def code_and_kv(order: Order) -> Draft:
    """Functions with key-value pairs scattered between them; both are asked in turn."""
    each = order.turns // 2
    rng = order.rng()
    names, keys = identifiers(rng, lexicon.PLANTS), identifiers(rng)
    asked, units = functions(rng, names, each)
    pairs = [(next(keys), next(keys), digits(rng, 8)) for _ in range(each + 6)]
    facts = [f"\n{first} {second}={value};" for first, second, value in pairs]
    depths: list[float | None] = [*strata(rng, each), *[None] * 6]
    units += [Unit(fact, depth) for fact, depth in zip(facts, depths, strict=True)]
    others = comments(rng, order.index % 2 == 1)
    context = order.compose("# Read the functions", units, others, rng)
    pool = tuple(source for _, source, _ in asked)
    questions: list[Turn] = []
    for place, (described, source, unit) in enumerate(asked):
        first, second, value = pairs[place]
        questions.append(function_turn(described, source, unit, context, pool))
        questions.append(
            context.turn(
                f"\nQuestion: What is the value of {first} {second}? Answer: {first} {second}=",
                (value,),
                8,
                "substring",
                facts[place],
                subtask="kv",
                space="",
            )
        )
    return context, tuple(questions)


TASKS = (summary_with_needles, code_and_kv)
