"""Many cases together: contexts in clusters, clusters in strata; a guarded bootstrap of what varies within strata."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

from kvcheck.judging.stats.graded import bootstrap_interval, bootstrap_p

Array = NDArray[np.float64]


def cluster(values: Sequence[float] | Array, clusters: Sequence[Hashable]) -> tuple[Array, list[Hashable]]:
    """One number per cluster, whose mean is that of all values: its sum, over the mean size of a cluster.

    Returns them with the names of the clusters, in order of appearance.
    """
    places: dict[Hashable, int] = {}
    at = [places.setdefault(name, len(places)) for name in clusters]
    sums: Array = np.bincount(at, weights=np.asarray(values, dtype=float)).astype(np.float64)
    return sums * (len(places) / len(at)), list(places)


def within(values: Array, strata: Sequence[Hashable]) -> Array:
    """The values with the differences between strata taken out: same mean, and the variance of a stratified sample.

    What varies within a stratum of n is stretched by sqrt(n / (n - 1)), since its mean was estimated from it. A stratum
    of one keeps its distance from the mean of all.
    """
    mean = float(values.mean())
    names = {name: place for place, name in enumerate(dict.fromkeys(strata))}
    at = np.array([names[name] for name in strata])
    counts = np.bincount(at)
    own = np.where(counts > 1, np.bincount(at, weights=values) / counts, mean)
    stretch = np.sqrt(counts / np.maximum(1, counts - 1))
    return mean + (values - own[at]) * stretch[at]


def stratified_interval(
    values: Sequence[float] | Array,
    clusters: Sequence[Hashable],
    strata: Sequence[Hashable],
    alpha: float,
    *,
    lowest: float,
    highest: float,
) -> tuple[float, float]:
    """Interval of level 1 - alpha for the mean of `values`: clusters are drawn whole, within the strata they lie in.

    strata: of each value; one cluster lies in one stratum. lowest and highest: the ends of the range of a value. They
    are guards as in bootstrap_interval: a pool without any change has an interval of width above zero.
    """
    data = _spread(values, clusters, strata)
    return bootstrap_interval(data, alpha, lowest=min(lowest, data.min()), highest=max(highest, data.max()))


def stratified_p(
    values: Sequence[float] | Array,
    clusters: Sequence[Hashable],
    strata: Sequence[Hashable],
    limit: float,
    *,
    lowest: float,
) -> float:
    """One-sided p-value of "the mean is above `limit`", by the same bootstrap."""
    data = _spread(values, clusters, strata)
    return bootstrap_p(data, limit, lowest=min(lowest, data.min()))


def _spread(values: Sequence[float] | Array, clusters: Sequence[Hashable], strata: Sequence[Hashable]) -> Array:
    inside = dict(zip(clusters, strata, strict=True))
    data, names = cluster(values, clusters)
    return within(data, [inside[name] for name in names])
