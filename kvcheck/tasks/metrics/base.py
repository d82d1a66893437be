"""What a metric is: a named, documented rule that grades one answer. Pure Python, nothing heavy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from kvcheck.core.errors import SpecError


class Rule(Protocol):
    """Grades a prediction against all its references; see `Metric.score`."""

    def __call__(self, prediction: str, references: Sequence[str], options: Sequence[str]) -> float:
        """The score in [0, 1]."""
        ...


@dataclass(frozen=True)
class Metric:
    """A metric: `rule` does the work, `score` checks the input first.

    binary: every score is 0.0 or 1.0. source: the benchmark and code that the rule reproduces; "kvcheck" for our own.
    refuses_empty: an empty reference would be found in every answer (or in none), so it is an error.
    """

    name: str
    binary: bool
    rule: Rule
    source: str
    doc: str
    refuses_empty: bool = False

    def score(self, prediction: str, references: Sequence[str], options: Sequence[str] = ()) -> float:
        """Grade one answer; in [0, 1]. Raises SpecError for references or options that cannot be graded against."""
        if isinstance(references, str) or isinstance(options, str):
            raise SpecError(
                f"metric {self.name}: references and options are sequences of strings, got one string",
                "write (text,) instead of text: SCBench's own qa_chn scores are halved by this slip",
            )
        if not references:
            raise SpecError(f"metric {self.name}: no reference to grade against", "give Turn.references at least one")
        if self.refuses_empty and not all(reference.strip() for reference in references):
            raise SpecError(f"metric {self.name}: an empty reference cannot be graded against", "remove it")
        return float(self.rule(prediction, references, options))


def best_of(pair: Callable[[str, str], float]) -> Rule:
    """The rule of a metric that is defined per reference: the best score over the references."""

    def rule(prediction: str, references: Sequence[str], options: Sequence[str]) -> float:
        return max(float(pair(prediction, reference)) for reference in references)

    return rule
