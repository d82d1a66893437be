"""A method in an engine, set up for one property after another: prompts, tolerance, engines of its own, witnesses."""

from __future__ import annotations

import mmap
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from kvcheck.backends.engines.base import COUNTS, PREFIX, Prompt, Reply, Served, Settings
from kvcheck.backends.engines.noise import apart
from kvcheck.backends.engines.session import EngineSession, Said
from kvcheck.backends.engines.specs import FULL
from kvcheck.core.spec import Value

ROUNDING = {"float32": 1e-4}
"""Nats by which the same sums in another order move a log-probability; some 20 times what was seen."""
ROUNDING_16 = 5e-2
"""The same where 16 bits are computed with."""
TIMES = 10
"""Times the measured noise that may be rounding."""
COARSE = 0.5
"""Nats from which on settings lose so much by themselves that nothing could be told."""
LENGTH, TOKENS = 512, 8
"""Tokens of most prompts, and of all answers."""
PIECE = 128
"""Tokens of a piece that prompts are read in, so that a hit is seen by fewer of them."""
PIECES = (64, 100)
"""The same where pieces are what is tried: at the borders of blocks, and across them."""
SHORT = 64
"""Tokens of a prompt that is read at once, and behind which nothing is evicted yet."""
LOAD = 64
"""Prompts that are sent at most to fill a pool."""
LARGER, COUNTED = 512 * 2**20, 0.1
"""Bytes by which a pool is larger than another one, and the share of them that a count may be off by."""
PATIENCE = 3.0
"""Seconds in which an engine gives back what was cancelled."""


class Broken(Said):
    """A property that does not hold."""


class NotTried(Said):
    """A property of which nothing can be said, with the reason."""


class Excused(NotTried):
    """A property that is about something that the settings make no use of."""


@dataclass
class Bench:
    """A method in an engine, for one property after another. tolerance: nats, see the top of this file."""

    session: EngineSession
    method: str
    _tolerance: float | None = None
    _beside: float | None = None

    @property
    def block(self) -> int:
        """Tokens of a block."""
        return self.session.info.block_of(self.settings)

    @property
    def settings(self) -> Settings:
        """Of the method."""
        return dict(self.session.chosen.settings_of(self.method).params)

    @property
    def rounding(self) -> float:
        """Nats by which an answer may differ from itself."""
        return max(ROUNDING.get(self.session.dtype, ROUNDING_16), TIMES * self.session.noise.log_prob)

    @property
    def tolerance(self) -> float:
        """Nats. Raises NotTried where the settings lose so much that no fault could show."""
        if self._tolerance is None:
            self._tolerance = self._own(LENGTH)
        return self._fine(self._tolerance)

    @property
    def beside(self) -> float:
        """Nats, beside the reference: a fault that only long prompts show does not excuse itself. Raises NotTried."""
        if self._beside is None:
            self._beside = self._own(SHORT)
        return self._fine(self._beside)

    def _own(self, length: int) -> float:
        """Twice what the settings lose by themselves, in prompts of so many tokens; not less than rounding."""
        prompts = self.prompts(length, n=2)
        full = [self.session.replies(FULL, [one])[0] for one in prompts]
        with self.engine() as served:  # without what a prefix cache does to them
            mine = alone(served, prompts)
        own = max(apart(one, other) for one, other in zip(mine, full, strict=True))
        return max(self.rounding, 2 * own if own > self.rounding else 0.0)

    def _fine(self, tolerance: float) -> float:
        if tolerance > COARSE:
            raise NotTried(f"its settings move log-probabilities by {tolerance / 2:.2g} nats by themselves")
        return tolerance

    def prompts(self, *lengths: int, n: int = 1) -> list[Prompt]:
        """Prompts of these lengths, each `n` times, no two of which begin alike for long."""
        wanted = [length for length in lengths for _ in range(n)]
        texts = self.session.texts(max(wanted), len(wanted))
        return [Prompt(text[:length], TOKENS) for text, length in zip(texts, wanted, strict=True)]

    def can(self, *ways: str) -> None:
        """Raise NotTried where the engine has no such way, or cannot do that."""
        info = self.session.info
        lacking = [way for way in ways if way not in info.ways and way not in info.can]
        if lacking:
            raise NotTried(f"{info.name} has no {lacking[0]}")

    @contextmanager
    def engine(self, changed: Mapping[str, int] | None = None, method: str = "") -> Iterator[Served]:
        """An engine of its own, set to these ways. Without a word, prompts are read in pieces and nothing is kept."""
        ways = self.session.info.ways
        found: dict[str, Value] = {}
        for way, number in {PREFIX: 0, **(changed or {})}.items():
            found |= ways[way](number) if way in ways else {}
        with self.session.fresh(method or self.method, found) as served:
            yield served

    def same(self, what: str, got: Sequence[Reply], want: Sequence[Reply], tolerance: float | None = None) -> None:
        """Raise Broken where answers differ by more than the tolerance."""
        allowed = self.tolerance if tolerance is None else tolerance
        far = [apart(one, other) for one, other in zip(got, want, strict=True)]
        if max(far) > allowed:
            worst = far.index(max(far))
            tokens = "another token" if got[worst].tokens != want[worst].tokens else "the same tokens"
            raise Broken(
                f"{what}: {sum(one > allowed for one in far)} of {len(far)} answers differ, by {max(far):.2g} nats in "
                f"the log-probability of a token ({tokens}); {allowed:.1g} is rounding"
            )


def alone(served: Served, prompts: Sequence[Prompt]) -> list[Reply]:
    """Each by itself."""
    return [served.answer([one])[0] for one in prompts]


def expect_hit(got: Sequence[Reply], than: Sequence[Reply], what: str = "the prefix cache was not hit") -> None:
    """The witness of a hit: tokens that came from a cache are told, or the prompt was read in fewer pieces.

    Raises NotTried.
    """
    missed = [one for one, other in zip(got, than, strict=True) if not _came(one, other)]
    if missed:
        raise NotTried(f"{what}: {len(missed)} of {len(got)} prompts were read as if nothing had been kept")


def _came(one: Reply, other: Reply) -> bool:
    if one.cached is not None:
        return one.cached > (other.cached or 0)  # beginnings that prompts share by themselves
    return one.chunks is not None and other.chunks is not None and one.chunks < other.chunks


def used(bench: Bench, served: Served) -> float | None:
    """Tokens that the blocks in use have room for, None where the engine does not tell."""
    return served.counts().used if COUNTS in bench.session.info.can else None


def expect_given_back(bench: Bench, served: Served, before: float | None, what: str) -> None:
    """Raise Broken where more is in use than before, also after a while."""
    until = time.monotonic() + PATIENCE
    while before is not None and (now := used(bench, served)) is not None and now > before:
        if time.monotonic() > until:
            raise Broken(f"{what}: blocks for {now - before:.0f} tokens are not given back")
        time.sleep(0.02)


def mapped_bytes() -> int | None:
    """Of the virtual memory of this process, touched or not: a pool is mapped as a whole. None where nobody tells."""
    try:
        return mmap.PAGESIZE * int(Path("/proc/self/statm").read_text("ascii").split()[0])
    except OSError:
        return None


def filling(served: Served) -> tuple[float, int]:
    """(tokens that its pool has room for, prompts of LENGTH that fill it). Raises NotTried where that is too many."""
    room = served.counts().room
    if room is None:
        raise NotTried("it does not tell how large its pool is")
    n = max(2, int(room) // LENGTH)
    if n > LOAD:
        raise NotTried(f"its pool has room for {room:.0f} tokens: start it with one of {LOAD * LENGTH} at most")
    return room, n
