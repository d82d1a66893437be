"""Paired statistics. The unit is the context: d_i = baseline score - method score of context i, in [-1, 1].

Everything is pure and seeded: the same numbers in give the same numbers out.
"""

from kvcheck.judging.stats.binary import clopper_pearson, count_changes, mcnemar, paired_interval, tail
from kvcheck.judging.stats.graded import bootstrap_interval, sign_flip
from kvcheck.judging.stats.multiple import holm
from kvcheck.judging.stats.power import detectable, detectable_change
from kvcheck.judging.stats.sequential import binary_sequence, confidence_sequence, log_capital

__all__ = [
    "binary_sequence",
    "bootstrap_interval",
    "clopper_pearson",
    "confidence_sequence",
    "count_changes",
    "detectable",
    "detectable_change",
    "holm",
    "log_capital",
    "mcnemar",
    "paired_interval",
    "sign_flip",
    "tail",
]
