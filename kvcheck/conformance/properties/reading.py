"""What is read: something is left out, and what matters is not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch

from kvcheck.cache.method import Lossless, MethodInfo, Stage
from kvcheck.cache.method_runner import MethodRunner
from kvcheck.conformance.base import other_prompt, property_test
from kvcheck.conformance.models import OUTLIER
from kvcheck.conformance.others import expect_all, fed, is_foreign, pieces
from kvcheck.conformance.subject import NotServed, Subject, equal, fail
from kvcheck.conformance.weights import attention_weights

LONG = 640
"""Tokens of a prompt of which no method that reads less than everything reads all."""
SAME = 1e-7
"""Of the spread of the logits: as near as two ways of computing the same thing are."""


def reads_all(info: MethodInfo) -> str:
    """Excuses methods that read everything, and those whose effect shows elsewhere."""
    if info.lossless == Lossless.ALWAYS:
        return "its answers are always those of the full cache"
    sparse = info.stage in (Stage.RETRIEVAL, Stage.GENERATION, Stage.LOADING)
    return other_prompt(info) or ("" if sparse else "it does not claim to read less than it holds")


@property_test(skip_reason=reads_all, share=0.15)
def what_reads_less_answers_otherwise(subject: Subject) -> None:
    """On a long text, a method that reads less than everything, or something else, does not answer as the full cache.

    What is fed behind a prompt answers otherwise, in a block and one by one; the prompt too where it is read sparsely.
    """
    length = LONG + subject.draw.prompt % 64
    ids, follow, steps = subject.tokens(length), subject.tokens(8, salt=1), subject.tokens(3, salt=2)
    lives = [_life(subject, runner, ids, follow, steps) for runner in (subject.runner, subject.dense)]
    parts = ("the prompt", "a follow-up block behind it", "decoding behind it")
    first = 0 if subject.method.info.stage == Stage.GENERATION else 1
    for name, mine, full in list(zip(parts, *lives, strict=True))[first:]:
        for row, (one, other) in enumerate(zip(mine, full, strict=True)):
            if float((one - other).abs().max()) <= SAME * float(other.std()):
                fail(f"row {row}: {name}, of {length} tokens, is answered as by the full cache: nothing was left out")


def _life(
    subject: Subject, runner: MethodRunner, ids: torch.Tensor, follow: torch.Tensor, steps: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The logits of a prompt, of a follow-up behind it, and of steps behind it alone."""
    cache, first = subject.prefill(ids, runner)
    fork = cache.select(range(subject.draw.rows))
    return first, subject.feed(fork, follow, runner), subject.one_by_one(cache, steps, runner)


def reads_as_much(info: MethodInfo) -> str:
    """Excuses methods that read what they hold. One from elsewhere says whether it does."""
    return "" if info.foreign or info.stage == Stage.RETRIEVAL else "it does not claim to read less than it holds"


@property_test(skip_reason=reads_as_much, share=0.05)
def a_query_reads_as_many_tokens_as_declared(subject: Subject) -> None:
    """Behind a long prompt, a token reads the keys and values of as many tokens as the method's `reads` says.

    In every layer and by every query head; counted by which values reach what the layer gives.
    """
    length = LONG + subject.draw.prompt % 64  # so long that a share of it is more than the fewest pages
    declared = subject.method.reads(subject.shape, length, 1)
    if declared is None:
        raise NotServed("it does not declare how many tokens a query reads")
    ids, token = subject.tokens(length, rows=1), subject.tokens(1, rows=1, salt=1)
    if is_foreign(subject):
        return _gives_as_many(subject, declared, ids, token)
    for index, many in enumerate(declared):
        counted = (attention_weights(subject, index, ids, token) > 0).sum(dim=1)
        if bool((counted != many).any()):
            head = int((counted != many).nonzero()[0])
            said = f"the values of {int(counted[head])} tokens of {length + 1} are read, {many} are declared"
            fail(f"layer {index}, query head {head}: {said}")
    return None


def _gives_as_many(subject: Subject, declared: Sequence[int], ids: torch.Tensor, token: torch.Tensor) -> None:
    """The same of a foreign cache: as many as its `update` gives to be attended to."""
    _, found, _ = fed(subject, ids, token)
    for index, many in enumerate(declared):
        read = found[index].read if index in found else None
        if read is not None and read[0].shape[2] != many:
            fail(f"layer {index} gives {read[0].shape[2]} tokens of {ids.shape[1] + 1} to be read, {many} are declared")


def by_place(info: MethodInfo) -> str:
    """Excuses methods that do not choose by queries, and those that change what they keep."""
    if info.foreign:
        return ""
    chooses = "queries" in info.needs or info.stage == Stage.RETRIEVAL
    if not chooses:
        return "what it keeps or reads does not depend on what is asked"
    return other_prompt(info) or ("" if info.verbatim else "it changes what it keeps")


PULL = 32.0
"""Added to one channel of all queries and of the planted keys, whose scores so grow by PULL² / sqrt(head_dim)."""


@property_test(skip_reason=by_place, share=0.3)
def what_every_query_asks_for_is_found(subject: Subject) -> None:
    """One token draws all attention of all queries: it is kept, found and read, as by the full cache."""
    length = LONG // 2 + subject.draw.prompt % 64
    (mark,) = marks(subject, 1)
    ids, follow, steps = (subject.tokens(many, salt=many) % mark for many in (length, 8, 9))
    ids[:, _early(subject, length)] = mark
    if is_foreign(subject):
        expect_all(subject, *pieces(ids, follow, steps))  # what it chooses by is not known
    with attracting(subject, [mark]):
        mine, full = subject.life(ids, follow, steps), subject.life(ids, follow, steps, runner=subject.dense)
    for name, one, other in zip(("a follow-up", "decoding"), mine[1:], full[1:], strict=True):
        equal(one, other, f"{name}, where one token draws all attention")


ASKED = (8, 1, 1, 1, 1)
"""Tokens fed together behind a prompt, among which others are planted: a follow-up, and generated text."""
IN_BLOCK, GENERATED = 3, 9
"""Places of what is planted, counted from the end of the prompt."""
SINCE = (90, 1, 1, 60, 1, 1)
"""Tokens fed since: more than what is evicted while decoding leaves of so short a prompt."""


def asked_later(info: MethodInfo) -> str:
    """Excuses methods that opt out of finding what is asked for at all."""
    return info.exempt.get("what_every_query_asks_for_is_found") or by_place(info)


@property_test(skip_reason=asked_later, share=0.2)
def what_is_asked_for_later_is_found_too(subject: Subject) -> None:
    """A token of a follow-up, or of generated text, draws all attention: it is found when much else has come since."""
    place = (IN_BLOCK, GENERATED)[subject.draw.seed % 2]
    what = ("the follow-up", "generated text")[subject.draw.seed % 2]
    length = SHORT + subject.draw.prompt % 64
    _read_as_by_the_full_cache(subject, length, [length + place], f"a token of {what}, number {length + place}, draws")


def looked_up(info: MethodInfo) -> str:
    """Excuses methods that look up, which find as many tokens as they read."""
    return asked_later(info) or ("it looks up afresh for every query" if info.stage == Stage.RETRIEVAL else "")


@property_test(skip_reason=looked_up, share=0.2)
def early_and_late_tokens_rank_alike(subject: Subject) -> None:
    """Tokens of the prompt, a follow-up and generated text draw attention alike: all of them are found in the end."""
    length = LONG // 2 + subject.draw.prompt % 64  # so long that the least of budgets holds what is pooled together
    places = [_early(subject, length), length + IN_BLOCK, length + GENERATED]
    _read_as_by_the_full_cache(subject, length, places, f"tokens {places} draw, alike,")


SHORT = 128
"""Tokens of a prompt of which methods that evict while decoding keep fewer than SINCE."""


def _early(subject: Subject, length: int) -> int:
    """A place in a prompt of this length, neither among the first tokens nor among the last."""
    return 16 + subject.draw.cut * (length - 64) // 1000


def _read_as_by_the_full_cache(subject: Subject, length: int, places: list[int], what: str) -> None:
    """Raise Violation unless what tokens at these places draw all attention to is answered as by the full cache."""
    parts = (length, *ASKED, *SINCE)
    planted = marks(subject, len(places))
    ids = subject.tokens(sum(parts)) % planted[0]
    ids[:, places] = torch.tensor(planted)
    if is_foreign(subject):
        expect_all(subject, *ids.split(parts, dim=1))  # what it chooses by is not known
    lives = []
    with attracting(subject, planted):
        for runner in (subject.runner, subject.dense):
            cache, _ = subject.prefill(ids[:, :length], runner)
            lives.append([subject.feed(cache, part, runner) for part in ids[:, length:].split(parts[1:], dim=1)])
    seen = length + sum(ASKED)
    for one, other in list(zip(*lives, strict=True))[len(ASKED) :]:
        seen += one.shape[1]
        equal(one, other, f"{what} all attention; behind {seen} tokens, mine and the full cache's answers")


def marks(subject: Subject, many: int) -> list[int]:
    """The last tokens of the vocabulary, to be planted where the text has none of them."""
    vocabulary = subject.loaded.model.get_input_embeddings().num_embeddings
    return list(range(vocabulary - many, vocabulary))


@contextmanager
def attracting(subject: Subject, planted: list[int]) -> Iterator[None]:
    """Have tokens draw all attention, in every layer, by a channel that hardly rotates; several of them alike.

    Raises NotServed for a model whose queries and keys do not come straight from q_proj and k_proj.
    """
    model, shape = subject.loaded.model, subject.shape
    layers = [layer.self_attn for layer in model.model.layers]
    if any(hasattr(each, "q_norm") or not hasattr(each, "q_proj") for each in layers):
        raise NotServed("queries and keys of the model are normalized, so that none can draw all attention")
    channel = shape.head_dim // 2 - 1
    fed: list[torch.Tensor] = []

    def note(module: torch.nn.Module, args: tuple[torch.Tensor, ...], kwargs: dict[str, torch.Tensor]) -> None:
        given = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
        fed[:] = [torch.isin(given, torch.tensor(planted)).unsqueeze(-1)]

    def ask(module: torch.nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        found = output.unflatten(-1, (shape.heads, shape.head_dim)).clone()
        found[..., channel] += PULL
        return found.flatten(-2)

    def offer(module: torch.nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        found = output.unflatten(-1, (shape.kv_heads, shape.head_dim)).clone()
        if len(planted) > 1:  # nothing but the pull tells them apart
            found.masked_fill_(fed[0].unsqueeze(-1), 0)
            found[..., channel] += OUTLIER * fed[0]
        found[..., channel] += PULL * fed[0]
        return found.flatten(-2)

    with ExitStack() as hooks:
        hooks.enter_context(model.register_forward_pre_hook(note, with_kwargs=True))
        for each in layers:
            hooks.enter_context(each.q_proj.register_forward_hook(ask))
            hooks.enter_context(each.k_proj.register_forward_hook(offer))
        yield
