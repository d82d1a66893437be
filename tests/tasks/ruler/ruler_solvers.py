"""Solvers that read a sample of RULER as a person would, and know nothing of how it was made."""

from __future__ import annotations

import re
from collections import Counter

from ruler_samples import NEEDLE

from kvcheck.tasks.semantic_retrieval import RELATIONS


def lines(sample):
    return sample.context.partition("Text:")[2].strip("\n").split("\n")


def hidden(sample):
    """key -> values, as the haystack gives them."""
    found: dict[str, list[str]] = {}
    for key, value in NEEDLE.findall(sample.context):
        found.setdefault(key, []).append(value)
    return found


def traced(text):
    """variable -> value, every assignment followed to its number."""
    known: dict[str, str] = {}
    for name, given in re.findall(r"([A-Z]{5}) = (\w+)\.", text):
        known[name] = known.get(given, given)
    return known


def counted(text):
    return Counter(re.findall(r" \d+\. ([a-z]+)", text))


def listing(sample):
    """The asked list, without the solved example."""
    return sample.context.rpartition("List:")[2]


def documents(sample):
    found = re.findall(r"Document (\d+):\n(.*)", sample.context)
    assert [int(number) for number, _ in found] == list(range(1, len(found) + 1))
    return [text for _, text in found]


def relation_of(question):
    """The relation that is asked, and the person."""
    for relation, (_, asked, _, _) in RELATIONS.items():
        if match := re.search(re.escape(asked).replace(r"\{\}", "(.+)"), question):
            return relation, match.group(1)
    raise AssertionError(question)


def told(text, person, relation):
    """What a text says of a person."""
    wordings = "|".join(RELATIONS[relation][0])
    return re.findall(rf"\b{person} (?:{wordings}) (\w+)\.", text)
