"""Which bugs are told from their correct counterparts by what a model answers, as tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvcheck.report.table import Code, Table

if TYPE_CHECKING:
    from kvcheck.zoo.told import Told

HEAD = """\
<!-- written by `kvcheck told --md`; do not edit -->
# Bugs told from their counterparts by answers

Known bugs of public projects ([the zoo](zoo.md)) beside the correct method that each was made from, on a model. The
audit, which refuses many of them before anything is asked, is left out, and the properties too: what is shown is what
answers alone say. Each cell has by how much the bug is worse (points of accuracy; nats per token of the reference
answers' negative log-likelihood, and of KL from the full cache) and p of a one-sided paired t-test over contexts.
"""
WORDS = {"accuracy": "accuracy", "nll": "nll", "kl": "KL"}
"""What metrics are called in tables."""


@dataclass(frozen=True)
class Looked:
    """What was found on one model."""

    model: str
    found: Sequence[Told]


def tables(looked: Looked, kinds: Mapping[str, str]) -> Iterator[Table]:
    """By task. kinds: what bugs stand for, by their names."""
    for task in dict.fromkeys(one.task for one in looked.found):
        mine = [one for one in looked.found if one.task == task]
        rows = []
        for bug in dict.fromkeys(one.bug for one in mine):
            these = [one for one in mine if one.bug == bug]
            first = (Code(bug), kinds.get(bug, ""), Code(_without_module(these[0].counterpart)))
            rows.append((*first, *_cells(these)))
        head = (task, "stands for", "in", *WORDS.values(), "told by, from so many contexts on")
        yield Table(head, "<<<>>><", rows)


def _without_module(spec: str) -> str:
    """A spec by the class alone.

    >>> _without_module("kvcheck.zoo.counterparts.ring.Ring:window=512")
    'Ring:window=512'
    """
    name, colon, parameters = spec.partition(":")
    return name.rpartition(".")[2] + colon + parameters


def _cells(these: Sequence[Told]) -> tuple[str, ...]:
    """One bug on one task: each metric, and the one that tells it first."""
    if these[0].failed:
        return "", "", "", f"fails: {these[0].failed}"
    by = {one.metric: _cell(one) for one in these}
    able = [one for one in these if one.since is not None]
    best = min(able, key=lambda one: (one.since or 0, one.p), default=None)
    told = "-" if best is None else f"{WORDS[best.metric]}, {best.since} of {best.n}"
    return (*(by.get(metric, "") for metric in WORDS), told)


def _cell(one: Told) -> str:
    worse = f"{100 * one.worse + 0.0:+.1f}" if one.metric == "accuracy" else f"{one.worse + 0.0:+.4f}"
    return f"{worse} ({one.p:.3f})" if one.p >= 0.0005 else f"{worse} (< 0.001)"


def text(found: Sequence[Looked], kinds: Mapping[str, str]) -> Iterator[str]:
    """Lines for a terminal."""
    for one in found:
        yield one.model
        for table in tables(one, kinds):
            yield from table.text(160)
            yield ""
        yield said(one)
        yield ""


def markdown(found: Sequence[Looked], kinds: Mapping[str, str], how: str) -> Iterator[str]:
    """Lines of Markdown. how: contexts and length."""
    yield HEAD
    yield how
    yield ""
    for one in found:
        yield from (f"## {one.model}", "")
        for table in tables(one, kinds):
            yield from table.markdown()
        yield from (said(one), "")


def said(looked: Looked) -> str:
    """How many bugs are told at all, and by what."""
    bugs = dict.fromkeys(one.bug for one in looked.found)
    by = {
        metric: {one.bug for one in looked.found if one.metric == metric and one.since is not None} for metric in WORDS
    }
    counts = ", ".join(f"{len(names)} by {WORDS[metric]}" for metric, names in by.items())
    return f"{len(set().union(*by.values()))} of {len(bugs)} bugs are told: {counts}."
