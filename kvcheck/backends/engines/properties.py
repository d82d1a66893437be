"""Properties of the life of a KV cache in an engine: what its schedulers, pools and prefix caches must not change.

Each asks the same prompts in two ways and has a witness that the way was really taken: the prefix cache was hit, the
prompt was read in pieces, the pool was too small for all. Without it nothing is said (NotTried); it never "holds".
Answers are compared by their log-probabilities, within what the engine differs from itself, and where settings lose
something by themselves, within twice that: chunks and blocks may fall otherwise there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from kvcheck.backends.engines.base import (
    CANCELS,
    CHUNK,
    DENSE,
    FLUSHES,
    POOL,
    PREFIX,
    ROOMY,
    WEIGHS,
    Prompt,
    Reply,
    Served,
    Settings,
)
from kvcheck.backends.engines.noise import apart
from kvcheck.backends.engines.session import EngineSession, Said
from kvcheck.backends.engines.specs import FULL
from kvcheck.core.errors import MethodFailed
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
            prompts = self.prompts(LENGTH, n=2)
            mine, full = ([self.session.replies(method, [one])[0] for one in prompts] for method in (self.method, FULL))
            own = max(apart(one, other) for one, other in zip(mine, full, strict=True))
            self._tolerance = max(self.rounding, 2 * own if own > self.rounding else 0.0)
        if self._tolerance > COARSE:
            raise NotTried(f"its settings move log-probabilities by {self._tolerance / 2:.2g} nats by themselves")
        return self._tolerance

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


def _fewer(got: Sequence[Reply], than: Sequence[Reply], what: str) -> None:
    """The witness of a hit. Raises NotTried."""
    pairs = list(zip(got, than, strict=True))
    missed = [one for one, other in pairs if one.chunks is None or other.chunks is None or one.chunks >= other.chunks]
    if missed:
        raise NotTried(f"{what}: {len(missed)} of {len(pairs)} prompts were read as if nothing had been kept")


def the_same_prompt_twice_is_alike(bench: Bench) -> str:
    """An answer is what it was a moment ago, and what it is in company, but for rounding."""
    noise = bench.session.noise
    if noise.log_prob > COARSE:
        raise Broken(f"the engine at full {noise}")
    return f"the engine at full {noise}"


def a_prefix_hit_is_a_miss(bench: Bench) -> str:
    """A prompt whose beginning comes from the prefix cache is answered as one that is read, at every block border."""
    bench.can(PREFIX, CHUNK)
    border = LENGTH + 2 * bench.block
    prompts = bench.prompts(border - 1, border, border + 1)
    longer = [Prompt([*one.ids, *reversed(one.ids[-40:])], TOKENS) for one in prompts]
    with bench.engine({CHUNK: PIECE}) as plain:
        want, behind = alone(plain, prompts), alone(plain, longer)
    with bench.engine({CHUNK: PIECE, PREFIX: 1}) as served:
        cold, hit, again, more = (alone(served, some) for some in (prompts, prompts, prompts, longer))
    _fewer([*hit, *again, *more], [*cold, *cold, *behind], "the prefix cache was not hit")
    bench.same("what comes from the prefix cache", [*cold, *hit, *again, *more], [*want, *want, *want, *behind])
    return ""


def together_is_alone(bench: Bench) -> str:
    """Prompts of many lengths that are answered together are answered as each would be by itself."""
    prompts = bench.prompts(100, 300, LENGTH, LENGTH + bench.block + 1)
    with bench.engine() as served:
        want = alone(served, prompts)
        got = served.answer(prompts)
    waited = sum((one.chunks or 0) - (other.chunks or 0) for one, other in zip(got, want, strict=True))
    if waited <= 0:
        raise NotTried("no prompt waited for another one: they were not answered together")
    bench.same("together", got, want)
    return ""


def a_small_pool_changes_nothing(bench: Bench) -> str:
    """Where the pool has no room for all, prompts wait or begin again, and are answered alike."""
    bench.can(POOL)
    each = -(-(LENGTH + TOKENS) // bench.block)
    blocks = each + each // 2
    prompts = bench.prompts(LENGTH, n=3)
    with bench.engine() as served:
        want = alone(served, prompts)
    with bench.engine({POOL: blocks}) as served:
        got = served.answer(prompts)
        try:
            served.answer(bench.prompts(bench.block * (blocks + 2)))
        except MethodFailed:
            pass
        else:
            raise NotTried(
                f"a pool of {blocks} blocks took a prompt of {blocks + 2}: it is not the pool that was asked for"
            )
    bench.same(f"with a pool of {blocks} blocks for {len(prompts) * each}", got, want)
    return ""


def a_chunked_prompt_is_the_whole(bench: Bench) -> str:
    """A prompt that is read in pieces is answered as one that is read at once."""
    bench.can(CHUNK)
    prompts = bench.prompts(LENGTH, LENGTH + bench.block + 3)
    with bench.engine({CHUNK: 2 * LENGTH}) as served:
        want = alone(served, prompts)
    for piece in PIECES:
        with bench.engine({CHUNK: piece}) as served:
            got = alone(served, prompts)
        _fewer(want, got, f"pieces of {piece} tokens were not taken")
        bench.same(f"in pieces of {piece} tokens", got, want)
    return ""


def what_was_cancelled_leaves_nothing(bench: Bench) -> str:
    """Prompts that are ended in the middle, of the prompt or of the answer, leave neither keys nor blocks behind."""
    bench.can(CANCELS, CHUNK, POOL)
    prompts = bench.prompts(LENGTH, n=2)
    blocks = 2 * -(-(LENGTH + 4 * TOKENS) // bench.block)
    with bench.engine({CHUNK: PIECE}) as served:
        want = alone(served, prompts)
    long = Prompt(prompts[0].ids, 4 * TOKENS)
    with bench.engine({CHUNK: PIECE, POOL: blocks}) as served:
        running = [served.cancel(long, after) for after in (2, LENGTH // PIECE + TOKENS, 1, LENGTH // PIECE + 2)]
        if not all(running):
            raise NotTried("a request was over before it could be cancelled")
        try:
            got = alone(served, prompts)
        except MethodFailed as error:
            raise Broken(f"after {len(running)} cancelled requests: {error.message}") from None
    bench.same("after cancelled requests", got, want)
    return ""


def a_later_turn_is_as_recomputed(bench: Bench) -> str:
    """A conversation that goes on from the prefix cache is answered as one that is read from its beginning."""
    bench.can(PREFIX, CHUNK)
    (first,) = bench.prompts(LENGTH)
    with bench.engine({CHUNK: PIECE, PREFIX: 1}) as served:
        (said,) = served.answer([first])
        second = Prompt([*first.ids, *said.tokens, *first.ids[40:90]], TOKENS)
        (later,) = served.answer([second])
    with bench.engine({CHUNK: PIECE}) as served:
        (want,) = served.answer([second])
    _fewer([later], [want], "the prefix cache was not hit")
    bench.same("the second turn", [later], [want])
    return ""


def flushed_is_cold(bench: Bench) -> str:
    """After a flush nothing comes from the prefix cache, and answers are what they were."""
    bench.can(FLUSHES, PREFIX, CHUNK)
    prompts = bench.prompts(LENGTH, n=2)
    with bench.engine({CHUNK: PIECE, PREFIX: 1}) as served:
        cold, hit = alone(served, prompts), alone(served, prompts)
        _fewer(hit, cold, "the prefix cache was not hit")
        served.flush()
        got = alone(served, prompts)
    if any(one.chunks != other.chunks for one, other in zip(got, cold, strict=True)):
        raise Broken("after a flush a prompt still came from the prefix cache")
    bench.same("after a flush", got, cold)
    return ""


def a_budget_above_the_prompt_is_full(bench: Bench) -> str:
    """Eviction with room for the whole context evicts nothing."""
    if ROOMY not in bench.session.info.uses(bench.settings):
        raise Excused("its settings evict nothing")
    bench.can(ROOMY, WEIGHS)
    prompts = bench.prompts(LENGTH, n=2)
    with bench.engine() as served:
        held = served.weigh(prompts[0])
    if held.end_slots >= held.prompt_slots:
        raise NotTried(f"with its own settings nothing is evicted from {LENGTH} tokens")
    with bench.engine(method=FULL) as served:
        want = alone(served, prompts)
    with bench.engine({ROOMY: 4 * LENGTH}) as served:
        got = alone(served, prompts)
    bench.same(f"with room for {4 * LENGTH} tokens", got, want, bench.rounding)
    return ""


def a_threshold_that_drops_nothing_is_dense(bench: Bench) -> str:
    """Sparse attention that is set to drop nothing answers as dense attention, in the first piece of a prompt and
    behind it."""
    if DENSE not in bench.session.info.uses(bench.settings):
        raise Excused("its settings have no threshold of sparse attention")
    bench.can(DENSE)
    prompts = bench.prompts(200, LENGTH, LENGTH + 100)
    with bench.engine(method=FULL) as served:
        want = alone(served, prompts)
    with bench.engine() as served:
        sparse = alone(served, prompts)
    if max(apart(one, other) for one, other in zip(sparse, want, strict=True)) <= bench.rounding:
        raise NotTried("with its own threshold it is dense, too")
    with bench.engine({DENSE: 0}) as served:
        got = alone(served, prompts)
    bench.same(f"prompts of {', '.join(str(len(one.ids)) for one in prompts)} tokens", got, want, bench.rounding)
    return ""


Property = Callable[[Bench], str]
PROPERTIES: dict[str, Property] = {
    one.__name__: one
    for one in (
        the_same_prompt_twice_is_alike,
        a_prefix_hit_is_a_miss,
        together_is_alone,
        a_small_pool_changes_nothing,
        a_chunked_prompt_is_the_whole,
        what_was_cancelled_leaves_nothing,
        a_later_turn_is_as_recomputed,
        flushed_is_cold,
        a_budget_above_the_prompt_is_full,
        a_threshold_that_drops_nothing_is_dense,
    )
}
"""In the order of their value."""
