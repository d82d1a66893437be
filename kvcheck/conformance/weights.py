"""Attention weights as they really are, whatever the cache is made of.

What a layer gives for a token is a weighted sum of values. Where the values of some tokens are unit vectors and those
of all others are zero, the sum spells out the weights: nothing of the cache is asked, so nothing can be told wrong.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from kvcheck.conformance.subject import NotServed, Subject


def attention_weights(subject: Subject, index: int, prompt: torch.Tensor, token: torch.Tensor) -> torch.Tensor:
    """What a token (1, 1), fed behind a prompt (1, n), gives to each of n + 1 tokens in layer `index`: (H, n + 1).

    One row of a batch spells out the weights of head_dim tokens. Queries are made small, so that no weight is too small
    to be seen; which keys score highest stays as it is. Raises NotServed where the prompt is not fed to the model once,
    in its order, and where its values are not of a projection of their own.
    """
    shape, length = subject.shape, prompt.shape[1] + 1
    rows = -(-length // shape.head_dim)
    with spelled_out(subject, index) as seen:
        cache, _ = subject.prefill(prompt.expand(rows, -1))
        if seen.fed != length - 1:
            raise NotServed("it does not feed its prompt to the model once, from beginning to end")
        subject.feed(cache, token.expand(rows, -1))
    return seen.output.unflatten(1, (shape.heads, shape.head_dim)).transpose(0, 1).flatten(1)[:, :length]


class Seen:
    """fed: tokens that passed by. output (rows, H·d): the attention of the last one."""

    fed = 0
    output: torch.Tensor


SMALL = 2.0**-6
"""A factor of all queries."""


@contextmanager
def spelled_out(subject: Subject, index: int) -> Iterator[Seen]:
    """Have the values of head_dim tokens be unit vectors in one layer, and all others zero: the first ones of the
    text in row 0, the next in row 1, and so on."""
    shape, seen = subject.shape, Seen()
    attention = subject.loaded.model.model.layers[index].self_attn
    if not all(hasattr(attention, name) for name in ("q_proj", "v_proj", "o_proj")):
        raise NotServed("the model has no projection of values of its own")

    def values(module: torch.nn.Module, args: object, output: torch.Tensor) -> torch.Tensor:
        places = torch.arange(seen.fed, seen.fed + output.shape[1])
        seen.fed += output.shape[1]
        units = torch.nn.functional.one_hot(places % shape.head_dim, shape.head_dim)
        mine = places // shape.head_dim == torch.arange(len(output)).unsqueeze(1)
        return (units * mine.unsqueeze(2)).to(output.dtype).repeat(1, 1, shape.kv_heads)

    def small(module: torch.nn.Module, args: object, output: torch.Tensor) -> torch.Tensor:
        return output * SMALL

    def note(module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        seen.output = args[0][:, -1]

    with (
        attention.v_proj.register_forward_hook(values),
        attention.q_proj.register_forward_hook(small),
        attention.o_proj.register_forward_pre_hook(note),
    ):
        yield seen
