"""Metrics that read one of a known set of labels out of an answer."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence

from kvcheck.core.errors import SpecError
from kvcheck.tasks.metrics.text import WORD, first_line, holds_words, normalize


def _named_classes(prediction: str, classes: Sequence[str]) -> list[str]:
    if not classes:
        raise SpecError("metric classification: no class names", "give all class names as Turn.options")
    line = first_line(prediction)
    return [name for name in classes if name in line]


def classification(prediction: str, references: Sequence[str], options: Sequence[str] = ()) -> float:
    """1/k if the gold class is among the k class names (options) found in the answer's first line, else 0.0.

    A found name that is a proper part of the gold name is not counted.
    Source: LongBench metrics.py `classification_score` without its slip, see `classification_compat`.
    """
    named = _named_classes(prediction, options)

    def one(gold: str) -> float:
        kept = [name for name in named if name == gold or name not in gold]
        return 1.0 / len(kept) if gold in kept else 0.0

    return max(one(gold) for gold in references)


def classification_compat(prediction: str, references: Sequence[str], options: Sequence[str] = ()) -> float:
    """`classification` exactly as LongBench computes it: it deletes names while it walks the list.

    After a deletion the next name is skipped, so with two adjacent parts of the gold name one stays and the score is
    1/2 instead of 1. Source: LongBench metrics.py `classification_score`.
    """
    named = _named_classes(prediction, options)

    def one(gold: str) -> float:
        kept, place = list(named), 0
        while place < len(kept):
            if kept[place] in gold and kept[place] != gold:
                kept.remove(kept[place])  # the first equal name, and the walk still steps on
            place += 1
        return 1.0 / len(kept) if gold in kept else 0.0

    return max(one(gold) for gold in references)


def _letters(options: Sequence[str]) -> str:
    if len(options) > len(string.ascii_uppercase):
        raise SpecError(f"metric choice: {len(options)} options, more than there are letters", "give at most 26")
    return string.ascii_uppercase[: len(options)] if options else "ABCD"


def _gold(references: Sequence[str], options: Sequence[str]) -> tuple[str, list[str]]:
    """The gold letter and the gold texts; either one is found through the options where it is missing."""
    letters = _letters(options)
    bare = [reference.strip().strip("().").upper() for reference in references]
    marked = [letter for letter in bare if len(letter) == 1 and letter in letters]
    if not marked:
        marked = [letters[options.index(reference)] for reference in references if reference in options]
    if not marked:
        raise SpecError(
            f"metric choice: none of {tuple(references)!r} is a letter of {letters} or one of the options",
            "give the letter as a reference, or give Turn.options",
        )
    letter = marked[-1]
    texts = [text for text, short in zip(references, bare, strict=True) if short != letter]
    if not texts and options:
        texts = [options[letters.index(letter)]]
    return letter, texts


_NEXT_WORDS = "is|was|because|since|as|or|and|seems"


def _letter_pattern(letters: str) -> str:
    """A standalone letter: not beside a word character or hyphen, nor in "d'A", "A's", "C++", "C#" and "U.S.A".

    "A" and "I" before a space and a lowercase word are the article and the pronoun, unless that word is one of
    `_NEXT_WORDS`.
    """
    words = "".join(letter for letter in letters if letter in "AI")
    article = rf"[{words}](?!\s+(?!(?:{_NEXT_WORDS})\b)[a-z])"
    others = "".join(letter for letter in letters if letter not in "AI")
    either = rf"{article}|[{others}]" if others else article
    return rf"(?<!{WORD})(?<!-)(?<!{WORD}['’.])(?P<letter>{either})(?!{WORD}|[-+#]|['’]{WORD})"


def _by_text(prediction: str, letters: str, options: Sequence[str]) -> str | None:
    """The letter of the one option whose text the answer is, or contains as whole words."""
    answer = normalize(prediction)
    texts = {letter: normalize(text) for letter, text in zip(letters, options, strict=True)}
    equal = [letter for letter, text in texts.items() if text and text == answer]
    if len(equal) == 1:
        return equal[0]
    held = {letter: text for letter, text in texts.items() if text and holds_words(answer, text)}
    whole = [one for one, text in held.items() if not any(text != other and text in other for other in held.values())]
    return whole[0] if len(whole) == 1 else None


def chosen_letter(prediction: str, options: Sequence[str]) -> str | None:
    """The letter that an answer chooses, by the first of these rules that finds one; None if none does.

    1. It is stated: "answer", "option" or "choice", then "is", ":" or nothing, then a standalone letter.
    2. The answer begins with a standalone letter, brackets and quotes aside.
    3. The answer is the text of one option, or contains that of exactly one as whole words.
    4. The first bracketed or standalone letter anywhere.
    Letters are upper case; lower case counts in brackets and when the letter is the whole answer.
    """
    letters = _letters(options)
    small = letters.lower()
    text = re.sub(rf"\(([{small}])\)", lambda found: found.group().upper(), prediction.strip())
    if re.fullmatch(rf"[{small}][.):]?", text):
        return text[0].upper()
    letter = _letter_pattern(letters)
    stated = re.search(rf"(?i:\b(?:answer|option|choice))(?:\s+(?i:is))?\s*:?\s*[\"'(\[*]*{letter}", text)
    leading = re.match(rf"[\"'(\[*]*{letter}", text)
    found = stated or leading
    if found:
        return found.group("letter")
    by_text = _by_text(text, letters, options) if options else None
    if by_text:
        return by_text
    anywhere = re.search(letter, text)
    return anywhere.group("letter") if anywhere else None


def choice(prediction: str, references: Sequence[str], options: Sequence[str] = ()) -> float:
    """1.0 if the answer chooses the gold letter (see `chosen_letter`) or equals the gold text.

    references: the letter, the text, or both; options: the texts in order (their number sets the letters, else A-D).
    Not SCBench's rule, which reads "Answer: B" as A: that one is `choice_compat`.
    """
    gold, texts = _gold(references, options)
    if not options and normalize(prediction) in map(normalize, texts):
        return 1.0
    return float(chosen_letter(prediction, options) == gold)


def choice_compat(prediction: str, references: Sequence[str], options: Sequence[str] = ()) -> float:
    """SCBench's and InfiniteBench's rule for A-D as it is: the first character decides if it is one of A to D.

    "Answer: B" is read as A and "Definitely" as D. Else equality with a label (text or letter), else what follows one
    character after "answer is:", "answer:", "answer is" or "option is", else the first word that is part of "ABCD".
    Source: SCBench compute_scores.py `get_score_one_longbook_choice_eng`.
    """
    letter, texts = _gold(references, options)
    labels = [*texts, letter]
    text = prediction.strip()
    if not text:
        return 0.0
    if text[0] in "ABCD":
        return float(text[0] in labels)
    if text in labels:
        return 1.0
    text = re.sub(" +", " ", re.sub("[\n\"'.,?!{}]", " ", text))
    for cue in ("answer is:", "answer:", "answer is", "option is"):
        place = text.find(cue)
        if place >= 0:
            rest = text[place + len(cue) + 1 :]
            return float(len(text) > place + len(cue) and rest.startswith(tuple(labels)))
    word = next((word for word in text.split() if word in "ABCD"), "")
    return float(word in labels)


def longbench_v2(prediction: str, reference: str) -> float:
    """1.0 if "The correct answer is (X)", or without brackets, names the gold letter; asterisks are removed first.

    Unparsed is wrong. Source: LongBench v2 pred.py `extract_answer`.
    """
    text = prediction.replace("*", "")
    lead = "The correct answer is "
    found = re.search(lead + r"\(([A-D])\)", text) or re.search(lead + "([A-D])", text)
    return float(found is not None and found.group(1) == reference.strip())


def babilong(prediction: str, references: Sequence[str], options: Sequence[str] = ()) -> float:
    """1.0 if the labels named in the first sentence are exactly the gold ones.

    A reference longer than three characters may join several labels by commas ("e,n" is one label).
    options: the task's labels without those that the question names (the question is not known here).
    Source: BABILong metrics.py `compare_answers`.
    """
    if not options:
        raise SpecError("metric babilong: no labels", "give the task's labels that the question lacks as Turn.options")
    text = prediction.lower().split(".")[0].split("<context>")[0].split("<example>")[0]
    named = {label for label in map(str.lower, options) if label in text}
    golds = [set(gold.split(",")) if len(gold) > 3 else {gold} for gold in map(str.lower, references)]
    return float(named in golds)
