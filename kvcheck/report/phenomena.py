"""What models make of one change to their full cache, as tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvcheck.report.table import Code, Table

if TYPE_CHECKING:
    from kvcheck.zoo.phenomena import Anatomy, Seen

HEAD = """\
<!-- written by `kvcheck phenomena --md`; do not edit -->
# What a model can show

One change at a time is made to the keys and values of a prompt, and the rest of the engine is left as it is. A change
that moves nothing on a model is a fault that no gate can see by answers there. Rise of the reference answers' negative
log-likelihood, and KL from the unchanged cache, both in nats per token.
"""
EMPTY = 1000.0
"""Times the median key channel from which on it is one that nothing is in."""
SEEN = 0.001
"""Nats of KL above which a change is more than rounding."""


@dataclass(frozen=True)
class Looked:
    """One model, looked at."""

    model: str
    anatomy: Anatomy
    seen: Sequence[Seen]


def tables(found: Sequence[Looked], words: dict[str, str]) -> Iterator[Table]:
    """How the models look inside, then what changes do to them, by task. words: what is changed, by its name."""
    rows = [_anatomy(one) for one in found]
    yield Table(
        ("model", "layers", "attention to the first token", "layers with 0.2 and more", "largest key channel / median"),
        "<>>>>",
        rows,
    )
    for task in dict.fromkeys(seen.task for one in found for seen in one.seen):
        by = [{seen.change: seen for seen in one.seen if seen.task == task} for one in found]
        body = [(text, *(cell for each in by for cell in _cells(each[name]))) for name, text in words.items()]
        heads = [head for one in found for head in (f"nll, {one.model}", "KL")]
        yield Table((task, *heads), "<" + ">" * len(heads), body)


def _anatomy(one: Looked) -> tuple[str, ...]:
    sink, outliers = one.anatomy.sink, one.anatomy.outliers
    large = sum(each >= 0.2 for each in sink)
    spread = " to ".join(f"{each:.1f}" if each < EMPTY else "others are 0" for each in (min(outliers), max(outliers)))
    return (Code(one.model), str(len(sink)), f"{min(sink):.2f} to {max(sink):.2f}", str(large), spread)


def _cells(seen: Seen) -> tuple[str, str]:
    return f"{seen.nll + 0.0:+.3f}", f"{seen.kl:.4f}"


def text(found: Sequence[Looked], words: dict[str, str]) -> Iterator[str]:
    """Lines for a terminal."""
    for table in tables(found, words):
        yield from table.text()
        yield ""


def markdown(found: Sequence[Looked], words: dict[str, str], how: str) -> Iterator[str]:
    """Lines of Markdown. how: contexts and length."""
    yield HEAD
    yield how
    yield ""
    for table in tables(found, words):
        yield from table.markdown()
    for one in found:
        blind = [words[name] for name in words if all(each.kl < SEEN for each in one.seen if each.change == name)]
        said = ", ".join(blind) or "nothing of this: it shows all"
        yield f"- `{one.model}` does not show (KL below {SEEN:g} nats on every task): {said}."
