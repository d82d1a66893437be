"""What is read: something is left out, and what matters is not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import torch

from kvcheck.cache.method import Lossless, MethodInfo, Stage
from kvcheck.cache.method_runner import MethodRunner
from kvcheck.conformance.base import other_prompt, property_test
from kvcheck.conformance.subject import NotServed, Subject, equal, fail
from kvcheck.conformance.weights import attention_weights

LONG = 640
"""Tokens of a prompt of which no method that reads less than everything reads all."""
DEEP = ("scaled", "qwen2")
"""The small models with most layers, for methods that leave the first ones as they are."""
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
    deep = _deep(subject)
    length = LONG + deep.draw.prompt % 64
    ids, follow, steps = deep.tokens(length), deep.tokens(8, salt=1), deep.tokens(3, salt=2)
    lives = [_life(deep, runner, ids, follow, steps) for runner in (deep.runner, deep.dense)]
    parts = ("the prompt", "a follow-up block behind it", "decoding behind it")
    first = 0 if deep.method.info.stage == Stage.GENERATION else 1
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


def _deep(subject: Subject) -> Subject:
    """The trial on a small model of more layers. Raises NotServed where the method serves none."""
    for architecture in (subject.draw.architecture, *DEEP):
        try:
            found = Subject(subject.spec, replace(subject.draw, architecture=architecture))
        except NotServed:
            continue
        if found.shape.layers > 2:
            return found
    raise NotServed("the small models that it serves have two layers, which it may leave as they are")


def reads_as_much(info: MethodInfo) -> str:
    """Excuses methods that read what they hold."""
    return "" if info.stage == Stage.RETRIEVAL else "it does not claim to read less than it holds"


@property_test(skip_reason=reads_as_much, share=0.05)
def a_query_reads_as_many_tokens_as_declared(subject: Subject) -> None:
    """Behind a long prompt, a token reads the keys and values of as many tokens as the method's `reads` says.

    In every layer and by every query head; counted by which values reach what the layer gives.
    """
    deep = _deep(subject)
    length = LONG // 2 + deep.draw.prompt % 64
    declared = deep.method.reads(deep.shape, length, 1)
    if declared is None:
        raise NotServed("it does not declare how many tokens a query reads")
    ids, token = deep.tokens(length, rows=1), deep.tokens(1, rows=1, salt=1)
    for index, many in enumerate(declared):
        counted = (attention_weights(deep, index, ids, token) > 0).sum(dim=1)
        if bool((counted != many).any()):
            head = int((counted != many).nonzero()[0])
            said = (
                f"layer {index}, query head {head}: the values of {int(counted[head])} tokens of {length + 1} are read"
            )
            fail(f"{said}, {many} are declared")


def by_place(info: MethodInfo) -> str:
    """Excuses methods that do not choose by queries, and those that change what they keep."""
    chooses = "queries" in info.needs or info.stage == Stage.RETRIEVAL
    if not chooses:
        return "what it keeps or reads does not depend on what is asked"
    return other_prompt(info) or ("" if info.verbatim else "it changes what it keeps")


PULL = 32.0
"""Added to one channel of all queries and of the planted keys, whose scores so grow by PULL² / sqrt(head_dim)."""


@property_test(skip_reason=by_place, share=0.3)
def what_every_query_asks_for_is_found(subject: Subject) -> None:
    """One token draws all attention of all queries: it is kept, found and read, as by the full cache."""
    deep = _deep(subject)
    length = LONG // 2 + deep.draw.prompt % 64
    mark = deep.loaded.model.get_input_embeddings().num_embeddings - 1
    ids, follow, steps = (deep.tokens(many, salt=many) % mark for many in (length, 8, 9))
    ids[:, 16 + deep.draw.cut * (length - 64) // 1000] = mark
    with attracting(deep, mark):
        mine, full = deep.life(ids, follow, steps), deep.life(ids, follow, steps, runner=deep.dense)
    for name, one, other in zip(("a follow-up", "decoding"), mine[1:], full[1:], strict=True):
        equal(one, other, f"{name}, where one token draws all attention")


@contextmanager
def attracting(subject: Subject, mark: int) -> Iterator[None]:
    """Have a token draw all attention, in every layer, by a channel that hardly rotates.

    Raises NotServed for a model whose queries and keys do not come straight from q_proj and k_proj.
    """
    model, shape = subject.loaded.model, subject.shape
    layers = [layer.self_attn for layer in model.model.layers]
    if any(hasattr(each, "q_norm") or not hasattr(each, "q_proj") for each in layers):
        raise NotServed("queries and keys of the model are normalized, so that none can draw all attention")
    channel = shape.head_dim // 2 - 1
    fed: list[torch.Tensor] = []

    def note(module: torch.nn.Module, args: tuple[torch.Tensor, ...], kwargs: dict[str, torch.Tensor]) -> None:
        fed[:] = [kwargs["input_ids"] if "input_ids" in kwargs else args[0]]

    def ask(module: torch.nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        found = output.unflatten(-1, (shape.heads, shape.head_dim)).clone()
        found[..., channel] += PULL
        return found.flatten(-2)

    def offer(module: torch.nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        found = output.unflatten(-1, (shape.kv_heads, shape.head_dim)).clone()
        found[..., channel] += PULL * (fed[0] == mark).unsqueeze(-1)
        return found.flatten(-2)

    with ExitStack() as hooks:
        hooks.enter_context(model.register_forward_pre_hook(note, with_kwargs=True))
        for each in layers:
            hooks.enter_context(each.q_proj.register_forward_hook(ask))
            hooks.enter_context(each.k_proj.register_forward_hook(offer))
        yield
