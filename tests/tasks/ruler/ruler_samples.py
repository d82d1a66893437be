"""Samples of RULER's tasks, what the tables say of them, and how their tokens are counted."""

from __future__ import annotations

import re
from functools import cache

from kvcheck.tasks import TASKS, lexicon
from kvcheck.tasks.metrics import score
from kvcheck.tasks.ruler import TASKS as RULER

NAMES = tuple(task.info.name for task in RULER)
NIAH = tuple(name for name in NAMES if "niah" in name)
LENGTHS = (512, 1024, 4096)

# niah: keys (None: nothing but needles), values per key, keys asked, pattern of a key, pattern of a value, haystack
WORDS, NUMBER = r"[a-z]+-[a-z]+", r"\d{7}"
UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"
HAYSTACKS = {
    "ruler/niah_single_1": (1, 1, 1, WORDS, NUMBER, "noise"),
    "ruler/niah_single_2": (1, 1, 1, WORDS, NUMBER, "essay"),
    "ruler/niah_single_3": (1, 1, 1, WORDS, UUID, "essay"),
    "ruler/niah_multikey_1": (4, 1, 1, WORDS, NUMBER, "essay"),
    "ruler/niah_multikey_2": (None, 1, 1, WORDS, NUMBER, "needles"),
    "ruler/niah_multikey_3": (None, 1, 1, UUID, UUID, "needles"),
    "ruler/niah_multivalue": (1, 4, 1, WORDS, NUMBER, "essay"),
    "ruler/niah_multiquery": (4, 1, 4, WORDS, NUMBER, "essay"),
}
NEEDLE = re.compile(r"A (?:number|uuid) for (\S+) is (\S+)\.")
BLOCK = " ".join(lexicon.NOISE)


class Pieces:
    """Another tokenizer: words with their blank in pieces of four letters, digits in threes, every mark by itself."""

    def __init__(self) -> None:
        self.ids: dict[str, int] = {}

    def encode(self, text: str) -> list[int]:
        found = re.findall(r" ?[A-Za-z]{1,4}| ?\d{1,3}|\.\.\.|\s|[^\sA-Za-z\d]", text)
        return [self.ids.setdefault(piece, len(self.ids)) for piece in found]

    def decode(self, ids) -> str:
        known = list(self.ids)
        return "".join(known[token] for token in ids)


PIECES = Pieces()


@cache
def sample_of(name, tokenizer, index=0, length=1024, seed=7):
    return TASKS.get(name).generate(seed, index, length, tokenizer)


def samples(name, tokenizer, count=40, length=1024, seed=7):
    return [sample_of(name, tokenizer, index, length, seed) for index in range(count)]


def graded(turn, answer):
    return score(turn.metric, answer, turn.references, turn.options)


def total(sample, tokenizer):
    """Tokens as RULER counts them: prompt, beginning of the answer, longest answer."""
    (turn,) = sample.turns
    texts = (sample.context, turn.question, turn.lead)
    return sum(len(tokenizer.encode(text)) for text in texts) + turn.max_new_tokens


def unit(name, sample, tokenizer):
    """Tokens of the largest piece by which the haystack can have grown."""
    if name == "ruler/cwe":
        entries = re.findall(r" \d+\. [a-z]+", sample.context)
        return 3 * max(len(tokenizer.encode(entry)) for entry in entries) + 3
    if name == "ruler/fwe":  # one more word to share out can be one more of several words
        return 4 * len(tokenizer.encode(" abcdef"))
    if "qa" in name:
        pieces = sample.context.split("\n\n")
    else:
        pieces = re.split(r"\n|(?<=\.) (?!The sky|The sun|Here|There)", sample.context.rpartition("Text:")[2])
        pieces = [piece for piece in pieces if HAYSTACKS.get(name, " ")[-1] != "essay" or not NEEDLE.match(piece)]
    return max(len(tokenizer.encode("\n\n" + piece)) for piece in pieces) + 1
