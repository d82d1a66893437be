"""One store, many ways in and out: each way in is tried with each way out, not each class once."""

from __future__ import annotations

from collections.abc import Callable

import torch

from kvcheck.cache.kv_cache import KVCache
from kvcheck.cache.method_runner import MethodRunner
from kvcheck.cache.view import FedCache
from kvcheck.conformance.base import property_test
from kvcheck.conformance.others import verb
from kvcheck.conformance.properties.positions import dense_layers
from kvcheck.conformance.properties.state import copied, saved
from kvcheck.conformance.subject import NotServed, Subject, equal

Way = Callable[[Subject, torch.Tensor], FedCache]


@property_test(share=0.15)
def every_way_in_leads_to_the_same_by_every_way_out(subject: Subject) -> None:
    """However a prompt came into a cache, each way to go on answers as behind one that was simply fed."""
    ids, follow, steps = subject.texts()
    every, last = range(subject.draw.rows), [subject.draw.rows - 1]
    ways_out: dict[str, Callable[[FedCache], torch.Tensor]] = {
        "a block": lambda cache: subject.feed(cache, follow),
        "single steps": lambda cache: subject.one_by_one(cache, steps),
        "a row alone": lambda cache: subject.feed(cache.select(last), follow[last]),
    }
    wanted = {way: out(subject.prefill(ids)[0]) for way, out in ways_out.items()}
    for came, into in WAYS_IN.items():
        try:
            cache = into(subject, ids)
        except NotServed:  # another property says so, and why
            continue
        for way, out in ways_out.items():
            equal(out(cache.select(every)), wanted[way], f"{way} behind a prompt that was {came}")


def in_pieces(subject: Subject, ids: torch.Tensor) -> KVCache:
    """Fed in two forwards."""
    cut = subject.draw.prompt * subject.draw.cut // 1000
    if not 0 < cut < subject.draw.prompt:
        raise NotServed("a prompt of one token cannot be cut")
    cache = _fresh(subject)
    with cache.prefilling():
        subject.feed(cache, ids[:, :cut])
        subject.feed(cache, ids[:, cut:])
    return cache


def handed_over(subject: Subject, ids: torch.Tensor) -> KVCache:
    """Read by the full cache, and absorbed."""
    cache = _fresh(subject)
    cache.absorb(dense_layers(subject, ids))
    return cache


def reset(subject: Subject, ids: torch.Tensor) -> KVCache:
    """Fed into a cache that held another text."""
    cache = _fresh(subject)
    subject.feed(cache, subject.tokens(subject.draw.block, salt=90))
    with verb(cache, "reset"):
        cache.reset()
    subject.feed(cache, ids)
    return cache


def _fresh(subject: Subject) -> KVCache:
    """An empty cache that the model's own forward fills. Raises NotServed where a prompt comes in otherwise."""
    if not subject.method.info.shares_prefill or type(subject.runner).prefill is not MethodRunner.prefill:
        raise NotServed("its prompt's own forward is not that of the full cache")
    return subject.native(subject.runner.build())


def _saved(subject: Subject, ids: torch.Tensor) -> FedCache:
    """Through torch.save and torch.load."""
    return saved(subject.native(subject.prefill(ids)[0]))


def _copied(subject: Subject, ids: torch.Tensor) -> FedCache:
    """By copy.deepcopy, where the rows of a cache are together."""
    return copied(subject.prefill(ids)[0])


def taken_out(subject: Subject, ids: torch.Tensor) -> FedCache:
    """Fed in a larger batch, of which its rows are taken."""
    others = subject.tokens(subject.draw.prompt, rows=1, salt=91)
    return subject.prefill(torch.cat([others, ids]))[0].select(range(1, subject.draw.rows + 1))


WAYS_IN: dict[str, Way] = {
    "fed in two pieces": in_pieces,
    "handed over": handed_over,
    "fed into a cache that was reset": reset,
    "saved and loaded": _saved,
    "copied": _copied,
    "fed in a larger batch": taken_out,
}
