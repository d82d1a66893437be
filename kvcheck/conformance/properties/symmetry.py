"""What must not matter: the order of the heads, and where in the text a text begins."""

from __future__ import annotations

import torch

from kvcheck.cache.method import MethodInfo, Stage
from kvcheck.cache.method_runner import MethodRunner
from kvcheck.conformance.base import other_prompt, property_test
from kvcheck.conformance.subject import ROUNDING, NotServed, Subject, Violation, equal
from kvcheck.models.rotary import blurred, moved, rotaries


@property_test(skip_reason=other_prompt)
def the_order_of_kv_heads_does_not_matter(subject: Subject) -> None:
    """A model whose kv heads come in another order, with all that belongs to them, gives the same answers."""
    texts = subject.texts()
    wanted = subject.life(*texts)
    permute_heads(subject)
    subject.runner = subject.new_runner()
    equal(subject.life(*texts), wanted, "kv heads in another order")


def permute_heads(subject: Subject) -> None:
    """Reverse the kv heads of every layer, and their query heads with them, in place."""
    shape = subject.shape
    if shape.kv_heads == 1:
        raise NotServed("one kv head has no order")
    kv = list(range(shape.kv_heads))[::-1]
    query = [head * shape.group + member for head in kv for member in range(shape.group)]
    for layer in subject.loaded.model.model.layers:
        attention = layer.self_attn
        for module, order in ((attention.q_proj, query), (attention.k_proj, kv), (attention.v_proj, kv)):
            _rows(module, order, shape.head_dim)
        weight = attention.o_proj.weight
        each = weight.data.view(weight.shape[0], shape.heads, shape.head_dim)
        weight.data = each[:, query].reshape(weight.shape).contiguous()


def _rows(module: torch.nn.Linear, order: list[int], head_dim: int) -> None:
    """Permute the heads that a projection gives."""
    for tensor in (module.weight, module.bias):
        if tensor is not None:
            each = tensor.data.view(len(order), head_dim, *tensor.shape[1:])
            tensor.data = each[order].reshape(tensor.shape).contiguous()


def rounds(info: MethodInfo) -> str:
    """Excuses methods whose rounding or whose chunks depend on where a token stands."""
    if info.stage == Stage.LOADING and not info.shares_prefill:
        return "its chunks have places of their own"
    return other_prompt(info) or ("" if info.verbatim else "keys that are rotated further are rounded otherwise")


SHIFT = 37
"""Tokens by which a text is moved."""
ROTATED = 2e-3
"""Of the spread: models rotate by angles in float32."""


@property_test(skip_reason=rounds)
def where_a_text_begins_does_not_matter(subject: Subject) -> None:
    """With rotary positions, a text that begins at position 37 gives the same answers as at 0.

    Rotations are computed in float32: where a method chooses between scores that are all but tied (by the norm of keys
    on a model that normalizes them), a rounding decides, and nothing can be said.
    """
    texts = subject.texts()
    keep_all_digits(subject)
    wanted = subject.life(*texts)
    if not rotaries(subject.loaded.model):
        raise NotServed("the model has no rotary embedding")
    with moved(subject.loaded.model, SHIFT):
        answers = subject.life(*texts)
    try:
        equal(answers, wanted, "the text at another place", tolerance=ROTATED)
    except Violation:
        if hangs_on_roundings(subject, wanted):
            raise NotServed("it decides between numbers that differ by a rounding") from None
        raise


def hangs_on_roundings(subject: Subject, wanted: list[torch.Tensor]) -> bool:
    """Whether rotations that are off by what float32 rounds them by lead to other answers than `wanted`."""
    with blurred(subject.loaded.model, ROUNDING):
        answers = subject.life(*subject.texts())
    try:
        equal(answers, wanted, "", tolerance=ROTATED)
    except Violation:
        return True
    return False


def keep_all_digits(subject: Subject) -> None:
    """Have the method store what it is given without rounding: keys that are rotated further are rounded otherwise."""
    if type(subject.runner).build is MethodRunner.build:
        build, shape = subject.method.build, subject.shape
        subject.runner.build = lambda: build(shape, torch.float64)  # type: ignore[method-assign]
