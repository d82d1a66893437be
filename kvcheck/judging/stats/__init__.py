"""Paired statistics. The unit is the context: d_i = baseline score - method score of context i, in [-1, 1].

Everything is pure and seeded: the same numbers in give the same numbers out.
"""

from kvcheck.judging.stats.binary import clopper_pearson, count_changes, mcnemar, paired_interval, tail
from kvcheck.judging.stats.graded import FINEST, bootstrap_interval, bootstrap_p, sign_flip
from kvcheck.judging.stats.multiple import weighted_holm
from kvcheck.judging.stats.power import detectable, detectable_change
from kvcheck.judging.stats.sequential import binary_sequence, confidence_sequence, log_capital
from kvcheck.judging.stats.stratified import cluster, stratified_interval, stratified_p

__all__ = [
    "FINEST",
    "binary_sequence",
    "bootstrap_interval",
    "bootstrap_p",
    "clopper_pearson",
    "cluster",
    "confidence_sequence",
    "count_changes",
    "detectable",
    "detectable_change",
    "log_capital",
    "mcnemar",
    "paired_interval",
    "sign_flip",
    "stratified_interval",
    "stratified_p",
    "tail",
    "weighted_holm",
]
