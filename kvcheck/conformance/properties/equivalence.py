"""Two ways that must lead to the same answers."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from kvcheck.cache.full import FullCache
from kvcheck.cache.kv_cache import CacheLayer
from kvcheck.cache.method import MethodInfo, Stage
from kvcheck.cache.method_runner import MethodRunner
from kvcheck.cache.rows import Batch
from kvcheck.cache.shape import ModelShape
from kvcheck.conformance.base import LONGER, not_lossless, other_prompt, property_test
from kvcheck.conformance.others import expect_all, fed, filled, is_foreign, pieces
from kvcheck.conformance.properties.positions import dense_layers
from kvcheck.conformance.subject import ROUNDING, TOLERANCE, NotServed, Subject, equal, fail
from kvcheck.methods.fp16 import Fp16
from kvcheck.models.rotary import blurred


def own_prefill(info: MethodInfo) -> str:
    """Excuses methods whose prompt is not read by the full cache's attention."""
    return "" if info.shares_prefill or info.foreign else "its prompt's own forward is not that of the full cache"


@property_test(skip_reason=not_lossless, longest=LONGER)
def everything_held_is_the_full_cache(subject: Subject) -> None:
    """Where everything is held, prompt, follow-up block and decoding give the logits of the full cache."""
    if is_foreign(subject) and subject.method.lossless() is None:
        expect_all(subject, *pieces(*subject.texts()))  # it does not say when it does
        whole = subject.new_runner()
    else:
        whole = subject.lossless_runner()
    mine, full = subject.life(*subject.texts(), runner=whole), subject.life(*subject.texts(), runner=subject.dense)
    equal(mine, full, f"{whole.method.spec} and fp16", allowance(subject, mine, full))


@dataclass(frozen=True)
class RoundedAgain(FullCache):
    """The full cache with a rounding more: that of a method that stores another form of what it is given."""

    def layer(self, shape: ModelShape, index: int) -> CacheLayer:
        """A layer that reads so."""
        return RoundedLayer(shape, index, self)


class RoundedLayer(CacheLayer):
    """Reads a third of what it stores, rounded to 16 bits, three times."""

    def read(self, rows: slice, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """All stored keys and values of these rows of the batch, in `dtype`."""
        keys, values = ((each / 3).to(self.dtype) for each in super().read(rows, torch.float64))
        return keys.to(dtype) * 3, values.to(dtype) * 3


def allowance(subject: Subject, mine: list[torch.Tensor], full: list[torch.Tensor]) -> float:
    """How far the logits of a method that is exact may be from the full cache's, in spreads.

    TOLERANCE; where that does not do, also what a rounding in float32 makes of this very text, as a method may compute
    attention so in a model of float64; and if it stores keys and values in another form, what a rounding of these does.
    """
    if apart(mine, full) <= TOLERANCE:
        return TOLERANCE
    exact = subject.life(*subject.texts(), runner=subject.dense)
    with blurred(subject.loaded.model, ROUNDING):
        allowed = TOLERANCE + 2 * apart(subject.life(*subject.texts(), runner=subject.dense), exact)
    if subject.method.info.verbatim:
        return allowed
    lives = [subject.life(*subject.texts(), runner=each.runner(subject.loaded)) for each in (RoundedAgain(), Fp16())]
    return allowed + 2 * apart(*lives)


def apart(mine: list[torch.Tensor], full: list[torch.Tensor]) -> float:
    """The largest difference, in spreads of the logits that it is of."""
    return max(float((one - other).abs().max() / other.std()) for one, other in zip(mine, full, strict=True))


@property_test(skip_reason=own_prefill)
def the_prompt_is_read_as_by_the_full_cache(subject: Subject) -> None:
    """A method that compresses after the prompt leaves the logits of the prompt as they are."""
    ids = subject.tokens(subject.draw.prompt)
    if is_foreign(subject):
        expect_all(subject, ids)
        equal(read(subject, ids)[1], read_densely(subject, ids), "all tokens of the prompt")
        return
    mine, full = [subject.prefill(ids)[1]], [subject.prefill(ids, subject.dense)[1]]
    names = ["the last token of the prompt"]
    if type(subject.runner).prefill is MethodRunner.prefill:
        mine.append(subject.feed(subject.runner.build(), ids))
        full.append(read_densely(subject, ids))
        names.append("all tokens of the prompt")
    allowed = allowance(subject, mine, full)
    for name, one, other in zip(names, mine, full, strict=True):
        equal(one, other, name, allowed)


def read(subject: Subject, ids: torch.Tensor) -> tuple[Batch, torch.Tensor]:
    """A foreign cache behind prompts (R, n), and the logits of all of their tokens."""
    batch, _, (logits,) = fed(subject, ids)
    return batch, logits


def read_densely(subject: Subject, ids: torch.Tensor) -> torch.Tensor:
    """The logits of all tokens with the full cache."""
    return subject.feed(subject.dense.build(), ids, subject.dense)


@property_test(skip_reason=own_prefill)
def a_prompt_in_two_chunks_is_the_prompt(subject: Subject) -> None:
    """A prompt that is fed in several forwards gives the same cache and the same answers as in one."""
    ids, follow, _ = subject.texts()
    cut = subject.draw.prompt * subject.draw.cut // 1000
    if not 0 < cut < subject.draw.prompt:
        raise NotServed("a prompt of one token cannot be cut")
    if is_foreign(subject):
        expect_all(subject, ids, follow)
        expect_all(subject, ids[:, :cut], ids[:, cut:])
        (once, every), (cut_up, _, logits) = read(subject, ids), fed(subject, ids[:, :cut], ids[:, cut:])
        equal(torch.cat(logits, 1), every, "the tokens of the prompt")
        mine, theirs = (subject.feed(each, follow, subject.together) for each in (cut_up, once))
        return equal(mine, theirs, "the follow-up")
    whole, last = subject.prefill(ids)
    parts = subject.native(subject.runner.build())
    with parts.prefilling():
        subject.feed(parts, ids[:, :cut])
        end = subject.feed(parts, ids[:, cut:])[:, -1]
    equal(end, last, "the last token of the prompt")
    return equal(subject.feed(parts, follow), subject.feed(whole, follow), "the follow-up")


@property_test(skip_reason=own_prefill)
def an_absorbed_prompt_is_the_prompt(subject: Subject) -> None:
    """A prompt that the full cache has read, handed over layer by layer, gives the answers of one read directly."""
    ids, follow, steps = subject.texts()
    if is_foreign(subject):
        return _handed_over(subject, ids, follow)
    direct, _ = subject.prefill(ids)
    full = subject.dense.build()
    with full.recording() as taken:
        subject.feed(full, ids, subject.dense)
    absorbed = subject.native(subject.runner.build())
    absorbed.absorb(taken)
    equal(subject.feed(absorbed, follow), subject.feed(direct, follow), "the follow-up")
    return equal(subject.one_by_one(absorbed, steps), subject.one_by_one(direct, steps), "decoding")


def _handed_over(subject: Subject, ids: torch.Tensor, follow: torch.Tensor) -> None:
    """The same of a foreign cache that keeps all: what the full cache has read goes in by its own `update`."""
    expect_all(subject, ids)
    (direct, _), absorbed = read(subject, ids), filled(subject, dense_layers(subject, ids))
    mine, theirs = (subject.feed(each, follow, subject.together) for each in (absorbed, direct))
    equal(mine, theirs, "the follow-up")


@property_test(longest=LONGER)
def a_block_is_its_tokens_one_by_one(subject: Subject) -> None:
    """A follow-up in one forward gives the logits, and leaves the cache, of its tokens one by one, in every turn."""
    ids, follow, steps = subject.texts()
    block, _ = subject.prefill(ids)
    single = block.select(range(subject.draw.rows))
    for turn in ("first", "second"):
        with subject.appending(block, single):
            mine = [subject.feed(block, follow), subject.one_by_one(block, steps)]
            theirs = [subject.one_by_one(single, follow), subject.one_by_one(single, steps)]
        equal(mine[0], theirs[0], f"the follow-up of the {turn} turn")
        equal(mine[1], theirs[1], f"decoding in the {turn} turn")


def otherwise(info: MethodInfo) -> str:
    """Excuses methods that read a prompt otherwise than what follows it."""
    return (
        ""
        if info.foreign or info.stage == Stage.ARCHITECTURE
        else "what follows a prompt is read otherwise than the prompt"
    )


@property_test(skip_reason=otherwise, longest=LONGER)
def a_prompt_and_what_follows_are_one_text(subject: Subject) -> None:
    """An architecture of its own reads a text in one pass as it does as a prompt, a follow-up and decoding."""
    texts = subject.texts()
    if is_foreign(subject):
        expect_all(subject, *pieces(*texts))
        expect_all(subject, torch.cat(texts, dim=1))
    whole = subject.prefill(torch.cat(texts, dim=1))[1]
    equal(subject.life(*texts)[2][:, -1], whole, "the last token, fed behind the others, and in one prompt with them")


@property_test()
def a_block_begins_as_its_first_token(subject: Subject) -> None:
    """The first token of a follow-up gets the same logits whether others are fed with it or not."""
    ids, follow, _ = subject.texts()
    block, _ = subject.prefill(ids)
    single = block.select(range(subject.draw.rows))
    equal(subject.feed(block, follow)[:, :1], subject.feed(single, follow[:, :1]), "the first token of a follow-up")


@property_test()
def a_later_token_never_changes_earlier_logits(subject: Subject) -> None:
    """Causality within a follow-up: what comes later in the block does not change what came before."""
    ids, follow, _ = subject.texts()
    cache, _ = subject.prefill(ids)
    fork = cache.select(range(subject.draw.rows))
    mine, theirs = subject.feed(cache, follow), subject.feed(fork, changed(follow))
    equal(mine[:, :-1], theirs[:, :-1], "tokens of a follow-up before its last one")


@property_test(skip_reason=other_prompt)
def a_later_token_of_the_prompt_never_changes_earlier_logits(subject: Subject) -> None:
    """Causality within the prompt."""
    ids = subject.tokens(subject.draw.prompt)
    if is_foreign(subject) and ids.shape[1] > 1:
        expect_all(subject, ids)
        mine, theirs = (read(subject, each)[1][:, :-1] for each in (ids, changed(ids)))
        return equal(mine, theirs, "tokens of the prompt before its last one")
    if type(subject.runner).prefill is not MethodRunner.prefill or ids.shape[1] == 1:
        raise NotServed("the logits of its prompt cannot be seen, or there is one token only")
    before, after = (subject.feed(subject.runner.build(), each)[:, :-1] for each in (ids, changed(ids)))
    return equal(before, after, "tokens of the prompt before its last one")


def changed(ids: torch.Tensor) -> torch.Tensor:
    """The same with another last token in every row."""
    return torch.cat([ids[:, :-1], (ids[:, -1:] + 7) % 1000], dim=1)


@property_test()
def the_newest_token_is_seen(subject: Subject) -> None:
    """What was just fed matters, turn after turn: another last token of a follow-up changes what comes next."""
    ids, follow, steps = subject.texts()
    cache, _ = subject.prefill(ids)
    for turn in ("first", "second"):
        answers = []
        for text in (changed(follow), follow):
            fork = cache.select(range(subject.draw.rows))
            subject.feed(fork, text)
            answers.append(subject.feed(fork, steps[:, :1]))
        for row, (one, other) in enumerate(zip(*answers, strict=True)):
            if torch.equal(one, other):
                fail(
                    f"row {row}, {turn} turn: the next token gives the same logits, whatever the last one before it was"
                )
        cache = fork
        subject.one_by_one(cache, steps)
