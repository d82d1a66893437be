"""Needles in essays, depth x length: the passkey of longctx_bench, and a sentence as NIAH's first version has it.

The essays are read from the Hub or from a folder of text files; none of them is part of kvcheck. Sources of the facts:
henryzhongsc/longctx_bench, eval/passkey_utils at the pinned commit; gkamradt/LLMTest_NeedleInAHaystack, version 1, and
NVIDIA/kvpress for the data set.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace

from kvcheck.core.errors import SpecError
from kvcheck.core.front import option
from kvcheck.tasks import lexicon
from kvcheck.tasks.base import Turn
from kvcheck.tasks.benchmarks import passkey, wording
from kvcheck.tasks.benchmarks.base import DataSet, Draft, Job, Row, Spot, Upstream, space_after
from kvcheck.tasks.filling import digits, unused

HUB = "alessiodevoto/paul_graham_essays"  # kvpress' haystack, all of it in the first row
FOLDER = "config/eval_config/paulgraham_passkey"
CODE = {
    7: "fffd445f4fe70313ba030ddccd117c3d4d76b3a9618e3370dea6a45d007808dd",
    64: "76d0cba06c36c4d139502b0eec83665fbc0da4e1b6ae6d6246f5211f010a795b",
}
COMMIT = "72204d09514f4c26aead889de3c892845ff007ee"
PARTS = ("instruction", "retrieval_target_template", "retrieval_target_placeholder", "retrieval_question")
LENGTHS = tuple(round(1000 + 15000 * i / 34) for i in range(35))  # of NIAH's first version, in tokens
DEPTHS = 35
MAX_NEW_TOKENS = 300
ROUNDS = 8
MOST = 20
"""No text of essays has tokens that are longer on average, in characters."""

_WORD = re.compile(r"\S+\s*")
_END = re.compile(r"\.(?=\s|$)")
_THINGS = (
    "draw the {thing} from the town wall",
    "count the lamps of the {thing}",
    "eat plums in front of the {thing}",
    "walk backwards around the {thing}",
    "wait at the {thing} until it rains",
)


def _parts(job: Job) -> list[str]:
    """Instruction, needle, its placeholder and question of a template. Raises SpecError where it is another file."""
    try:
        found = json.loads(job.template)["eval_params"]
        return [str(found[part]) for part in PARTS]
    except (ValueError, KeyError, TypeError) as error:
        raise SpecError(
            f"{job.data_set.name}: the template lacks eval_params with {', '.join(PARTS)} ({error!r})",
            f"copy {FOLDER} of longctx_bench again",
        ) from error


def key_among_words(row: Row, job: Job, spot: Spot, size: int, needle: bool = True) -> Draft:
    """The passkey: `length` words of the essays, the needle behind int(length * depth) of them, joined by blanks.

    Essays that are too short begin again, as upstream. The key does not occur in them. needle: False leaves it out.
    """
    instruction, template, mark, question = _parts(job)
    words = _WORD.findall(str(row["context"]))
    if not words:
        raise nothing(job)
    words = (words * (spot.length // len(words) + 1))[: spot.length]
    key = unused(lambda: digits(spot.rng, size), "".join(words))
    at = int(spot.length * spot.depth)
    fact = template.replace(mark, key) if needle else ""
    before, after = "".join(words[:at]).strip(), "".join(words[at:]).strip()
    start = len(instruction) + len(before) + 1
    context = instruction + " ".join([before, fact, after, ""] if needle else [before, after, ""])
    turn = Turn(
        question,
        (key,),
        passkey.MAX_NEW_TOKENS,
        job.metric,
        ((start, start + len(fact)),) if needle else (),
        start / len(context) if needle else None,
        subtask=f"depth {spot.depth:.2f}" if needle else "no needle",
        space=space_after(question),
    )
    return context, (turn,)


def seven(row: Row, job: Job, spot: Spot) -> Draft:
    """A key of 7 digits."""
    return key_among_words(row, job, spot, 7)


def sixty_four(row: Row, job: Job, spot: Spot) -> Draft:
    """A key of 64 digits."""
    return key_among_words(row, job, spot, 64)


def control(row: Row, job: Job, spot: Spot) -> Draft:
    """A key of 7 digits that is asked for and stands nowhere."""
    return key_among_words(row, job, spot, 7, needle=False)


def sentence(row: Row, job: Job, spot: Spot) -> Draft:
    """A sentence at the end of a sentence; graded by the two words of it that the essays do not have."""
    text = str(row["context"])
    if not text.strip():
        raise nothing(job)
    text = (text * (MOST * spot.length // len(text) + 1))[: MOST * spot.length]
    rng, city = spot.rng, spot.rng.choice(lexicon.CITIES)
    thing = unused(lambda: f"{rng.choice(lexicon.ADJECTIVES)} {rng.choice(lexicon.NOUNS)}", text)
    fact = f"\nThe best thing to do in {city} is to {rng.choice(_THINGS).format(thing=thing)}.\n"
    head, tail = job.template.split("{context}")
    context, start = planted(text, fact, head, spot, job)
    turn = Turn(
        tail.format(city=city),
        (thing,),
        MAX_NEW_TOKENS,
        job.metric,
        ((start, start + len(fact)),),
        start / len(context),
        subtask=f"depth {spot.depth:.2f}",
        target=fact.strip(),
    )
    return context, (turn,)


def planted(text: str, fact: str, head: str, spot: Spot, job: Job) -> tuple[str, int]:
    """(context of at most spot.length tokens, where the fact begins): head, the beginning of the text, the fact in it.

    The fact stands at its depth, counted in tokens, moved back to the end of a sentence; at depth 1 behind everything.
    Raises SpecError where the fact alone does not fit.
    """
    tokenizer = spot.tokenizer
    ids = tokenizer.encode(text)
    room = spot.length - len(tokenizer.encode(head + fact))
    for _ in range(ROUNDS):
        if room < 1:
            break
        kept = ids[:room]
        body = tokenizer.decode(kept)
        ends = [found.end() for found in _END.finditer(tokenizer.decode(kept[: int(len(kept) * spot.depth)]))]
        at = len(body) if spot.depth == 1 else (ends or [0])[-1]
        context = head + body[:at] + fact + body[at:]
        over = len(tokenizer.encode(context)) - spot.length
        if over <= 0:
            return context, len(head) + at
        room -= over
    raise SpecError(
        f"{job.data_set.name}: a needle does not fit into {spot.length} tokens", f"longer {option('lengths')}"
    )


def nothing(job: Job) -> SpecError:
    """The error of essays without a word."""
    return SpecError(f"{job.data_set.name}: the essays are empty", f"put texts there, or {option('data')} hub")


def _upstream(size: int) -> Upstream:
    file = f"20480words_10x10x3_{size}digits.json"
    return Upstream("henryzhongsc/longctx_bench", COMMIT, f"{FOLDER}/{file}", CODE[size], "text", file)


_SENTENCE = DataSet(
    "niah/sentence",
    HUB,
    "",  # no revision is known
    "data/test-*.parquet",
    {"context": str},
    "",
    DEPTHS,
    "no licence, all rights reserved by their author",
    "any_substring",
    MAX_NEW_TOKENS,
    "needle",
    True,
    ("single", "multi_request"),
    sentence,
    wording.NIAH_SENTENCE,
    chance=1 / len(lexicon.ADJECTIVES) / len(lexicon.NOUNS),
    lengths=LENGTHS,
    local=("essays.jsonl", "PaulGrahamEssays/*.txt", "*.txt"),
    depths=DEPTHS,
    doc="a sentence in essays, depth x length",
)
_SEVEN = replace(
    _SENTENCE,
    name="niah/7_digits",
    count=3 * passkey.DEPTHS,
    metric="passkey_exact",
    max_new_tokens=passkey.MAX_NEW_TOKENS,
    chat=False,
    build=seven,
    own=wording.NIAH_PASSKEY,
    upstream=_upstream(7),
    chance=1e-7,
    lengths=passkey.LENGTHS,
    depths=passkey.DEPTHS,
    words=True,
    doc="passkey of 7 digits in essays, lengths in words",
)
DATA_SETS = (
    _SEVEN,
    replace(
        _SEVEN,
        name="niah/64_digits",
        metric="passkey_partial",
        build=sixty_four,
        upstream=_upstream(64),
        chance=0.05,
        doc="passkey of 64 digits in essays, lengths in words",
    ),
    replace(
        _SEVEN,
        name="niah/no_needle",
        build=control,
        chance=0.0,
        doc="a key that the essays do not hold: every score must be 0",
    ),
    _SENTENCE,
)
