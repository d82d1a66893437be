"""Multi-tasking: two kinds of questions on one context (SCBench Mix.Sum+NIAH, Mix.RepoQA+KV)."""

from __future__ import annotations

from kvcheck.core.record import MODES
from kvcheck.tasks import lexicon
from kvcheck.tasks.base import Sample, Task, TaskInfo, Tokenizer, Turn
from kvcheck.tasks.code import comments, function_turn, functions
from kvcheck.tasks.filling import Unit, compose, digits, identifiers, noise, sample_rng, strata
from kvcheck.tasks.global_information import reports, summary_turn
from kvcheck.tasks.needle import needle_text, needle_turn

TURNS = 4


def generate_summary_with_needles(
    seed: int, index: int, length: int, tokenizer: Tokenizer, turns: int = TURNS
) -> Sample:
    """Reports with needles between their points; summaries and needles are asked in turn."""
    each = turns // 2
    rng = sample_rng("summary_with_needles", 1, seed, length, index)
    names = identifiers(rng, lexicon.TOOLS)
    asked, units = reports(rng, names, each + 2)
    needles = [(next(names), digits(rng, 7)) for _ in range(each)]
    units += [Unit(needle_text(*pair), depth) for pair, depth in zip(needles, strata(rng, each), strict=True)]
    others = noise(rng, index % 2 == 1)
    context = compose("Read the text and answer. Notes:", units, others, length, tokenizer, rng)
    questions: list[Turn] = []
    for (name, points), (holder, key) in zip(asked[:each], needles, strict=True):
        questions += [summary_turn(name, points, context)]
        questions += [needle_turn(holder, key, needle_text(holder, key), context)]
    return Sample("summary_with_needles", index, context.text, tuple(questions))


def generate_code_and_kv(seed: int, index: int, length: int, tokenizer: Tokenizer, turns: int = TURNS) -> Sample:
    """Functions with key-value pairs scattered between them; both are asked in turn."""
    each = turns // 2
    rng = sample_rng("code_and_kv", 1, seed, length, index)
    names, keys = identifiers(rng, lexicon.PLANTS), identifiers(rng)
    asked, units = functions(rng, names, each)
    pairs = [(next(keys), next(keys), digits(rng, 8)) for _ in range(each + 6)]
    facts = [f"\n{first} {second}={value};" for first, second, value in pairs]
    depths: list[float | None] = [*strata(rng, each), *[None] * 6]
    units += [Unit(fact, depth) for fact, depth in zip(facts, depths, strict=True)]
    others = comments(rng, index % 2 == 1)
    context = compose("# Read the functions", units, others, length, tokenizer, rng)
    pool = tuple(source for _, source, _ in asked)
    questions: list[Turn] = []
    for place, (described, source, unit) in enumerate(asked):
        first, second, value = pairs[place]
        questions.append(function_turn(described, source, unit, context, pool))
        questions.append(
            Turn(
                f"\nQuestion: What is the value of {first} {second}? Answer: {first} {second}=",
                (value,),
                8,
                "substring",
                context.evidence(facts[place]),
                context.depth(facts[place]),
                subtask="kv",
                space="",
            )
        )
    return Sample("code_and_kv", index, context.text, tuple(questions))


TASKS = (
    Task(
        TaskInfo("summary_with_needles", 1, "multi_task", MODES, False, 0.145, "summaries and needles in one context"),
        generate_summary_with_needles,
    ),
    Task(
        TaskInfo("code_and_kv", 1, "multi_task", MODES, True, 0.0, "functions and key-value pairs in one context"),
        generate_code_and_kv,
    ),
)
