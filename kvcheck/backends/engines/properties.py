"""Properties of the life of a KV cache in an engine: what its schedulers, pools and prefix caches must not change.

Each asks the same prompts in two ways and has a witness that the way was really taken: the prefix cache was hit, the
prompt was read in pieces, the pool was too small for all. Without it nothing is said (NotTried); it never "holds".
Answers are compared by their log-probabilities, within what the engine differs from itself, and where settings lose
something by themselves, within twice that: chunks and blocks may fall otherwise there.

An engine that kvcheck sets is set to each way in turn. One that runs elsewhere is what it was started as: its pool is
filled until it is too small, its pieces and drafts are counted, and it is held against its reference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from kvcheck.backends.engines import lives
from kvcheck.backends.engines.base import (
    CANCELS,
    CHUNK,
    COUNTS,
    DENSE,
    FLUSHES,
    MOVES,
    NEWEST,
    POOL,
    PREFIX,
    ROOMY,
    SALTS,
    WEIGHS,
    Prompt,
    Reply,
    Served,
)
from kvcheck.backends.engines.bench import (
    COARSE,
    COUNTED,
    LARGER,
    LENGTH,
    PIECE,
    PIECES,
    TOKENS,
    Bench,
    Broken,
    Excused,
    NotTried,
    alone,
    expect_given_back,
    expect_hit,
    filling,
    mapped_bytes,
    used,
)
from kvcheck.backends.engines.noise import apart
from kvcheck.backends.engines.specs import FULL
from kvcheck.core.errors import MethodFailed


def the_same_prompt_twice_is_alike(bench: Bench) -> str:
    """An answer is what it was a moment ago, and what it is in company, but for rounding."""
    noise = bench.session.noise
    if noise.log_prob > COARSE:
        raise Broken(f"the engine at full {noise}")
    return f"the engine at full {noise}"


def a_prefix_hit_is_a_miss(bench: Bench) -> str:
    """A prompt whose beginning comes from the prefix cache is answered as one that is read, at every block border."""
    bench.can(PREFIX)
    border = LENGTH + 2 * bench.block
    prompts = bench.prompts(border - 1, border, border + 1)
    longer = [
        Prompt([*one.ids[: border - 1 - cut], *reversed(one.ids[-40:])], TOKENS)  # inside a block, and behind the text
        for one in prompts
        for cut in (0, bench.block // 2)
    ]
    with bench.engine({CHUNK: PIECE}) as plain:
        want, behind = alone(plain, prompts), alone(plain, longer)
    with bench.engine({CHUNK: PIECE, PREFIX: 1}) as served:
        cold, hit, again, more = (alone(served, some) for some in (prompts, prompts, prompts, longer))
    expect_hit([*hit, *again, *more], [*cold, *cold, *behind])
    bench.same("what comes from the prefix cache", [*cold, *hit, *again, *more], [*want * 3, *behind])
    return ""


def together_is_alone(bench: Bench) -> str:
    """Prompts of many lengths that are answered together are answered as each would be by itself."""
    texts = bench.prompts(100, 300, LENGTH, LENGTH + bench.block + 1)
    prompts = [replace(one, limit=3 * TOKENS) for one in texts]
    with bench.engine() as served:
        want = alone(served, prompts)
        got = served.answer(prompts)
    if not _met(got, want):
        raise NotTried("no prompt waited for another one: they were not answered together")
    bench.same("together", got, want)
    return ""


def _met(got: Sequence[Reply], want: Sequence[Reply]) -> bool:
    """Whether prompts shared steps: one waited for another, or was answered while another one was."""
    if all(one.chunks is not None for one in got):
        return sum((one.chunks or 0) - (other.chunks or 0) for one, other in zip(got, want, strict=True)) > 0
    pairs = [(one, other) for one in got for other in got if one is not other]
    return any(one.first < other.first < one.seconds for one, other in pairs)


def a_small_pool_changes_nothing(bench: Bench) -> str:
    """Where the pool has no room for all, prompts wait or begin again, and are answered alike."""
    if POOL not in bench.session.info.ways:
        return _a_full_pool_changes_nothing(bench)
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


def _a_full_pool_changes_nothing(bench: Bench) -> str:
    """The same of a pool that is what it is: it is filled by prompts for which there is room, and not for answers."""
    bench.can(COUNTS)
    with bench.engine() as served:
        room, n = filling(served)
        share = int(room) // n
        long, short = share - 3 * bench.block, share // 4 - TOKENS  # the short ones come last, and are to begin again
        texts = [*bench.prompts(long, n=n - 1), *bench.prompts(short, n=4)]
        prompts = [replace(one, limit=5 * TOKENS) for one in texts]
        want, before = alone(served, prompts), served.counts().preempted
        got, after = served.answer(prompts), served.counts().preempted
    if before is None or after is None or after <= before:
        raise NotTried(f"no request lost its blocks, though {n} were to fill a pool of {room:.0f} tokens")
    bench.same(f"in a pool of {room:.0f} tokens for more", got, want)
    return f"{after - before:.0f} times a request lost its blocks"


def what_was_evicted_is_read_again(bench: Bench) -> str:
    """A prompt that others have driven out of the prefix cache is answered as at first."""
    bench.can(PREFIX)
    blocks = 3 * -(-(LENGTH + TOKENS) // bench.block)
    (first,) = bench.prompts(LENGTH)
    with bench.engine() as served:
        (want,) = served.answer([first])
    with bench.engine({CHUNK: PIECE, PREFIX: 1, POOL: blocks}) as served:
        n = 4 if POOL in bench.session.info.ways else filling(served)[1] + 2
        cold, hit = alone(served, [first, first])
        alone(served, bench.prompts(LENGTH + 1, n=n)[1:])
        again, last = alone(served, [first, first])
    expect_hit([hit, last], [cold, cold])
    bench.same("what was evicted", [cold, hit, again, last], [want] * 4)
    if _kept(again, hit):
        raise NotTried(f"{n} other prompts drove nothing out of the prefix cache")
    return ""


def _kept(one: Reply, hit: Reply) -> bool:
    """Whether as much came from the cache as in a hit."""
    if one.cached is not None and hit.cached is not None:
        return one.cached >= hit.cached
    return one.chunks is None or hit.chunks is None or one.chunks <= hit.chunks


def a_chunked_prompt_is_the_whole(bench: Bench) -> str:
    """A prompt that is read in pieces is answered as one that is read at once."""
    if CHUNK not in bench.session.info.ways:
        return _its_pieces_are_the_whole(bench)
    prompts = bench.prompts(LENGTH, LENGTH + bench.block + 3)
    with bench.engine({CHUNK: 2 * LENGTH}) as served:
        want = alone(served, prompts)
    for piece in PIECES:
        with bench.engine({CHUNK: piece}) as served:
            got = alone(served, prompts)
        expect_hit(want, got, f"pieces of {piece} tokens were not taken")
        bench.same(f"in pieces of {piece} tokens", got, want)
    return ""


def _its_pieces_are_the_whole(bench: Bench) -> str:
    """The same of an engine whose pieces are what they are, beside its reference."""
    bench.can(COUNTS)
    prompts = bench.prompts(LENGTH, 3 * LENGTH)
    with bench.engine() as served:
        mine, got = _steps(served, prompts[-1]), alone(served, prompts)
    with bench.engine(method=FULL) as served:
        whole, want = _steps(served, prompts[-1]), alone(served, prompts)
    if mine < 2:
        raise NotTried(f"a prompt of {3 * LENGTH} tokens is read at once: start it with a smaller chunk")
    if mine <= whole:
        raise NotTried(f"the reference reads it in {whole:.0f} pieces, too: reference=URL of one with larger chunks")
    bench.same(f"in {mine:.0f} pieces, not {whole:.0f}", got, want, bench.beside)
    return ""


def _steps(served: Served, prompt: Prompt) -> float:
    """Pieces that a prompt is read in: steps of the scheduler until its first token. Raises NotTried."""
    before = served.counts().steps
    served.answer([replace(prompt, limit=1)])
    after = served.counts().steps
    if before is None or after is None:
        raise NotTried("it does not count its steps")
    return after - before


def what_was_cancelled_leaves_nothing(bench: Bench) -> str:
    """Prompts that are ended in the middle, of the prompt or of the answer, leave neither keys nor blocks behind."""
    bench.can(CANCELS)
    first, *others = bench.prompts(LENGTH, n=6)
    blocks = 2 * -(-(LENGTH + 4 * TOKENS) // bench.block)
    with bench.engine({CHUNK: PIECE, POOL: blocks, PREFIX: 1}) as served:
        served.answer([first])  # it is known then how long one takes
        before = used(bench, served)
        dropped = [one for one in others if served.cancel(replace(one, limit=4 * TOKENS), 0)]
        running = [served.cancel(replace(first, limit=4 * TOKENS), tokens) for tokens in (TOKENS, 2)]
        if not dropped or not all(running):
            raise NotTried("a request was over, or its prompt read, before it could be cancelled")
        expect_given_back(bench, served, before, "after cancelled requests")
        try:
            got = alone(served, [*dropped, first])
        except MethodFailed as error:
            raise Broken(f"after cancelled requests: {error.message}") from None
    with bench.engine({CHUNK: PIECE}) as served:
        want = alone(served, [*dropped, first])
    bench.same("after cancelled requests", got, want)
    return ""


def a_later_turn_is_as_recomputed(bench: Bench) -> str:
    """A conversation that goes on from the prefix cache is answered as one that is read from its beginning."""
    bench.can(PREFIX)
    firsts = bench.prompts(LENGTH, LENGTH - TOKENS)  # the second one's answer ends where a block does
    with bench.engine({CHUNK: PIECE, PREFIX: 1}) as served:
        said = alone(served, firsts)
        seconds = [
            Prompt([*first.ids, *reply.tokens, *first.ids[40:90]], TOKENS)
            for first, reply in zip(firsts, said, strict=True)
        ]
        later = alone(served, seconds)
    with bench.engine({CHUNK: PIECE}) as served:
        want = alone(served, seconds)
    expect_hit(later, want)
    bench.same("the second turn", later, want)
    return ""


def flushed_is_cold(bench: Bench) -> str:
    """After a flush nothing comes from the prefix cache, and answers are what they were."""
    bench.can(FLUSHES, PREFIX)
    prompts = bench.prompts(LENGTH, n=2)
    with bench.engine({CHUNK: PIECE, PREFIX: 1}) as served:
        cold, hit = alone(served, prompts), alone(served, prompts)
        expect_hit(hit, cold)
        served.flush()
        got = alone(served, prompts)
    if _crossed(got, cold):
        raise Broken("after a flush a prompt still came from the prefix cache")
    bench.same("after a flush", got, cold)
    return ""


def a_salt_is_a_wall(bench: Bench) -> str:
    """What one tenant has asked serves no other, and each is answered as if alone."""
    bench.can(SALTS, PREFIX)
    mine = bench.prompts(LENGTH, n=2)
    theirs = [replace(one, salt="another tenant") for one in mine]
    with bench.engine({CHUNK: PIECE, PREFIX: 1}) as served:
        cold, hit, other, again = (alone(served, some) for some in (mine, mine, theirs, mine))
    if min(one.cached or 0 for one in (*hit, *again)) < LENGTH // 2:
        raise NotTried("the prefix cache was not hit, or it does not tell")
    crossed = sum((one.cached or 0) > LENGTH // 2 for one in other)
    if crossed:
        raise Broken(f"{crossed} of {len(other)} prompts of one tenant came from what another one had asked")
    bench.same("behind a salt", [*other, *again], [*cold, *cold])
    return ""


def _crossed(got: Sequence[Reply], cold: Sequence[Reply]) -> int:
    """Prompts of which more came from a cache than when they were new."""
    pairs = zip(got, cold, strict=True)
    return sum(one.chunks != first.chunks or (one.cached or 0) > (first.cached or 0) for one, first in pairs)


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


def bytes_are_as_counted(bench: Bench) -> str:
    """Of two pools the larger one maps as much more memory as the engine counts for it."""
    bench.can(COUNTS, POOL)
    (prompt,) = bench.prompts(40)
    blocks = 2 * -(-(len(prompt.ids) + TOKENS) // bench.block)
    _pool(bench, prompt, blocks)  # what is mapped once, with the first engine
    few, small = _pool(bench, prompt, blocks)
    many, large = _pool(bench, prompt, blocks + int(LARGER / (few / blocks)))
    counted, mapped = (many - few), (large - small)
    said = f"{mapped / 2**20:.1f} MiB are mapped for {counted / 2**20:.1f} MiB that it counts"
    if abs(mapped - counted) > COUNTED * counted:
        raise Broken(said)
    return said


def _pool(bench: Bench, prompt: Prompt, blocks: int) -> tuple[float, int]:
    """(bytes of a pool of so many blocks by the engine's own count, bytes that the process maps for that engine).

    Raises NotTried where one of them is not told.
    """
    before = mapped_bytes()
    with bench.engine({POOL: blocks}) as served:
        served.answer([prompt])
        counted, after = served.counts().pool, mapped_bytes()
    if not counted:
        raise NotTried("it does not tell the bytes of its pool")
    if before is None or after is None:
        raise NotTried("this system does not tell what the process maps")
    return counted, after - before


def moved_positions_answer_alike(bench: Bench) -> str:
    """Keys that are moved to the positions of evicted ones are read as where they were.

    Of a prompt two blocks are evicted that are nearly as old as its beginning, so that all that is newer moves by the
    same distance, and what asks for it, too: only the few keys before them come nearer. What eviction itself loses
    there, twice, is allowed.
    """
    if MOVES not in bench.session.info.uses(bench.settings):
        raise Excused("its settings move no keys")
    bench.can(MOVES, NEWEST, ROOMY)
    prompts = [replace(one, limit=3 * TOKENS) for one in bench.prompts(LENGTH, n=3)]
    kept = LENGTH - 2 * bench.block
    tight = {ROOMY: kept, NEWEST: kept - 2 * bench.block}
    with bench.engine(method=FULL) as served:
        full = alone(served, prompts)
    with bench.engine({**tight, MOVES: 0}) as served:
        stayed = alone(served, prompts)
    own = max(apart(one, other) for one, other in zip(stayed, full, strict=True))
    if own <= bench.rounding:
        raise NotTried(f"nothing was evicted from {LENGTH} tokens with room for {kept}")
    if 2 * own > COARSE:
        raise NotTried(f"the eviction of two blocks moves log-probabilities by {own:.2g} nats by itself")
    with bench.engine({**tight, MOVES: 1}) as served:
        got = alone(served, prompts)
    if all(one == other for one, other in zip(map(_said, got), map(_said, stayed), strict=True)):
        raise NotTried("its answers are, bit for bit, those without moving: no key was moved")
    bench.same("moved keys", got, stayed, 2 * own)
    return ""


def _said(reply: Reply) -> tuple[tuple[int, ...], tuple[float, ...]]:
    return reply.tokens, reply.log_probs


Property = Callable[[Bench], str]
PROPERTIES: dict[str, Property] = {
    one.__name__: one
    for one in (
        the_same_prompt_twice_is_alike,
        a_prefix_hit_is_a_miss,
        what_was_evicted_is_read_again,
        together_is_alone,
        a_small_pool_changes_nothing,
        a_chunked_prompt_is_the_whole,
        what_was_cancelled_leaves_nothing,
        a_later_turn_is_as_recomputed,
        flushed_is_cold,
        a_salt_is_a_wall,
        lives.speculation_changes_nothing,
        lives.a_block_that_others_read_never_changes,
        lives.an_abort_leaves_the_others_alone,
        lives.blocks_are_as_counted,
        lives.nothing_piles_up,
        lives.settings_in_pairs_change_nothing,
        a_budget_above_the_prompt_is_full,
        a_threshold_that_drops_nothing_is_dense,
        moved_positions_answer_alike,
        bytes_are_as_counted,
    )
}
"""In the order of their value."""
