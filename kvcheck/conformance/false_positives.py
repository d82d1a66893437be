"""Does a property accuse a correct method? All properties on many methods, with several seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from time import perf_counter

from kvcheck.conformance import NAMES
from kvcheck.conformance.runner import TRIALS, examine
from kvcheck.core.record import FAILS, PropertyRecord
from kvcheck.methods import METHODS, make
from kvcheck.report.recorded import shown


@dataclass(frozen=True)
class Tried:
    """What all properties say of one method with one seed, and the seconds that it took."""

    method: str
    seed: int
    found: tuple[PropertyRecord, ...]
    seconds: float

    @property
    def trials(self) -> int:
        """Of all properties."""
        return sum(one.trials for one in self.found)

    @property
    def false_positives(self) -> list[PropertyRecord]:
        """The properties that accuse the method."""
        return [one for one in self.found if one.outcome == FAILS]


def correct() -> tuple[str, ...]:
    """The specs of all registered methods, as they are tried on a text."""
    found = {name: shown(name) for name in METHODS.names()}  # a default that texts do not suit has no record
    return tuple(name if one is None else one.spec for name, one in found.items())


def attempt(
    specs: Sequence[str],
    seeds: Sequence[int],
    profile: str,
    jobs: int,
    tick: Callable[[Tried], None] = lambda one: None,
) -> list[Tried]:
    """All properties on every spec with every seed, in `jobs` processes, which change no result -> by spec, then seed.

    profile: "quick", "default" or "full", for the trials of a property. tick is told what is done. Raises SpecError for
    a spec that cannot be made.
    """
    for spec in specs:
        make(spec)
    work = [(spec, seed, TRIALS[profile]) for seed in seeds for spec in specs]
    found = []
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:  # torch's threads do not survive a fork
        for done in as_completed([pool.submit(_attempt, *each) for each in work]):
            found.append(done.result())
            tick(found[-1])
    return sorted(found, key=lambda one: (specs.index(one.method), one.seed))


def _attempt(spec: str, seed: int, trials: int) -> Tried:
    """All properties on one method."""
    start = perf_counter()
    found = tuple(examine(name, spec, trials, seed) for name in NAMES)
    return Tried(spec, seed, found, round(perf_counter() - start, 1))
