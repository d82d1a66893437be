"""The rules of LLMLingua-2: which tokens stay, given what its classifier thinks of each (as in llmlingua 0.2.2)."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

SPACE = "▁"
LONGEST = 512  # tokens that a classifier sees at once, two special ones among them
ENDS = frozenset(".\n")  # a chunk ends behind one of them


def chunks(pieces: Sequence[str]) -> list[slice]:
    """Cut a text into parts that the classifier can see, each behind its last end of a sentence where it has one."""
    found: list[slice] = []
    start = 0
    while start < len(pieces):
        last = start + LONGEST - 2
        if last < len(pieces):
            last = next((at for at in range(last, start, -1) if pieces[at] in ENDS), last)
        found.append(slice(start, min(last + 1, len(pieces))))
        start = found[-1].stop
    return found


@dataclass(frozen=True)
class Rules:
    """rate: share of the tokens that stay. force: characters that are always kept where they are a token. digits:
    so are tokens with a digit. drop: a forced word goes where it repeats itself with nothing kept between.
    """

    rate: float
    force: str
    digits: bool
    drop: bool

    def kept(self, pieces: Sequence[str], probabilities: Sequence[float]) -> list[int]:
        """The tokens of one chunk that stay, as indices, by the probability of each to be needed.

        Whole words stay or go. A word's worth is the mean of its tokens; what is worth more than a percentile, taken
        over tokens, stays: that of 1 - rate and one in a hundred more.
        """
        spans = self.words(pieces)
        texts = ["".join(pieces[span]) for span in spans]
        worth = [self.worth(pieces[span], probabilities[span]) for span in spans]
        if self.drop:
            worth = self.without_repeats(texts, worth)
        sizes = [span.stop - span.start for span in spans]
        least = np.percentile(np.repeat(worth, sizes), int(100 * (1 - self.rate) + 1))
        stay: list[int] = []
        last = ""
        for span, text, value in zip(spans, texts, worth, strict=True):
            repeats = self.drop and text == last and text in set(self.force)
            if (value > least or value == least == 1) and not repeats:
                stay += range(span.start, span.stop)
                last = text
        return stay

    def words(self, pieces: Sequence[str]) -> list[slice]:
        """A word begins at a space, at a punctuation mark, at a character of a script that writes no spaces, and at a
        forced token; what else comes belongs to it.
        """
        marks = {*string.punctuation, *self.force}
        starts = [at for at, piece in enumerate(pieces) if at == 0 or not piece.isascii() or piece in marks]  # ▁ is not
        return [slice(start, stop) for start, stop in pairwise([*starts, len(pieces)])]

    def worth(self, pieces: Sequence[str], probabilities: Sequence[float]) -> float:
        """What a word of these tokens is worth."""
        values = list(probabilities)
        if pieces[0].lstrip(SPACE) in set(self.force):
            values[0] = 1.0
        if self.digits:
            values = [1.0 if re.search(r"\d", piece) else p for piece, p in zip(pieces, values, strict=True)]
        return sum(values) / len(values)

    def without_repeats(self, texts: Sequence[str], worth: Sequence[float]) -> list[float]:
        """A forced word that comes again, with nothing worth keeping between, is worth nothing."""
        least = np.percentile(worth, int(100 * (1 - self.rate)))
        found, before, between = list(worth), "", False
        for at, (text, value) in enumerate(zip(texts, worth, strict=True)):
            if text not in set(self.force):
                between = between or bool(value > least)
                continue
            if text == before and not between:
                found[at] = 0.0
            before, between = text, False
        return found
