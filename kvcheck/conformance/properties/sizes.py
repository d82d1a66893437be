"""Memory: as declared, really freed, bounded."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

import torch

from kvcheck.cache.kv_cache import KVCache
from kvcheck.cache.method import MethodInfo
from kvcheck.cache.shape import ModelShape
from kvcheck.cache.view import FedCache, view
from kvcheck.conformance.base import LONGER, property_test
from kvcheck.conformance.others import chosen, is_foreign
from kvcheck.conformance.subject import NotServed, Subject, fail, foreign_rows
from kvcheck.measure.audit import SHORT
from kvcheck.measure.memory import held
from kvcheck.methods.adapters.foreign import SMOKE
from kvcheck.methods.adapters.presses import PressRunner

LONG = 320
"""Tokens of a prompt that is long enough to ask for freed memory."""
SLACK = 1 << 16
"""Bytes that may come and go."""


def stored(subject: Subject, cache: FedCache) -> ModelShape:
    """The shape of the model, with the bytes per element that the cache stores."""
    layer = subject.native(cache).layers[0]
    shape = subject.shape
    return ModelShape(shape.layers, shape.heads, shape.kv_heads, shape.head_dim, layer.dtype.itemsize)


def check(subject: Subject, cache: FedCache, rows: int, prompt: int, decoded: int, when: str) -> None:
    """Raise Violation unless bytes are as declared."""
    shape = stored(subject, cache)
    declared, found = subject.method.kv_bytes(shape, rows, prompt, decoded), held(cache)
    if declared is None:
        raise NotServed("it declares no bytes: they depend on the data")
    if declared != found.kv:
        fail(f"{when}, {found.kv:,} bytes are held, {declared:,} are declared")
    away = subject.method.host_bytes(shape, rows, prompt, decoded)
    if away is not None and away != found.host:
        fail(f"{when}, {found.host:,} bytes are held in host memory, {away:,} are declared")
    slots = subject.method.slots(shape, prompt, decoded)
    layers = [layer.stored for layer in subject.native(cache).layers]
    if slots is not None and list(slots) != layers:
        fail(f"{when}, the layers hold {layers} slots, {list(slots)} are declared")


@property_test(longest=LONGER)
def bytes_are_as_declared(subject: Subject) -> None:
    """Behind the prompt, and behind every token that is decoded, bytes and slots are those that the method declares."""
    draw = subject.draw
    if is_foreign(subject):
        return _of_foreign(subject, [1] * draw.steps)
    cache, _ = subject.prefill(subject.tokens(draw.prompt))
    check(subject, cache, draw.rows, draw.prompt, 0, "behind the prompt")
    for step, token in enumerate(subject.tokens(draw.steps, salt=2).split(1, dim=1)):
        subject.feed(cache, token)
        check(subject, cache, draw.rows, draw.prompt, step + 1, f"behind {step + 1} decoded tokens")
    return None


MORE = 1.02
"""Times the full cache that a method may hold which does not say why it holds more: counters, tables of codes."""
ROTATIONS = 2
"""Of one layer, of keys and of values: square matrices in 32 bits, which no text makes larger."""


def _of_foreign(subject: Subject, counts: Sequence[int]) -> None:
    """Bytes of a foreign cache behind a prompt, and behind follow-ups of so many tokens.

    As declared, else no more than the full cache takes, at a length at which counters are of no weight. In small models
    rotations would be of some, so that they are not counted.
    """
    if isinstance(subject.runner, PressRunner):
        raise NotServed("it declares no bytes")
    declared = subject.method.kv_bytes(subject.shape, 1, 1, 0) is not None
    if subject.method.info.exceeds and not declared:
        raise NotServed(f"it says why it holds more than the full cache: {subject.method.info.exceeds}")
    prompt, decoded = subject.draw.prompt if declared else LONG + subject.draw.prompt, 0
    fixed = 0 if declared else _rotations(subject)
    cache, _ = subject.prefill(subject.tokens(prompt, rows=1))
    for count in (0, *counts):
        if count:
            subject.feed(cache, subject.tokens(count, rows=1, salt=decoded))
        decoded += count
        wanted, size = subject.method.kv_bytes(subject.shape, 1, prompt, decoded), held(cache).kv
        dense = subject.shape.dense_bytes(1, prompt + decoded)
        when = f"behind a prompt of {prompt} and {decoded} decoded tokens, {size:,} bytes are held"
        if wanted is not None and wanted != size:
            fail(f"{when}, {wanted:,} are declared")
        if wanted is None and size - fixed > MORE * dense:
            fail(f"{when}, the full cache takes {dense:,}; it does not say why")


def _rotations(subject: Subject) -> int:
    """Bytes of a foreign cache that are there whatever it is fed, so far as rotations may be what they are of."""
    shape = subject.shape
    most = shape.layers * ROTATIONS * torch.float32.itemsize * shape.head_dim**2
    cache, _ = subject.prefill(subject.tokens(SMOKE, rows=1))
    return min(most, max(0, held(cache).kv - shape.dense_bytes(1, SMOKE)))


@property_test()
def a_block_takes_the_bytes_of_its_tokens(subject: Subject) -> None:
    """A follow-up that is fed in one forward takes the bytes and slots that it takes token by token."""
    draw = subject.draw
    if is_foreign(subject):
        return _block_as_tokens(subject)
    cache, _ = subject.prefill(subject.tokens(draw.prompt))
    subject.feed(cache, subject.tokens(draw.block, salt=1))
    check(subject, cache, draw.rows, draw.prompt, draw.block, f"behind a block of {draw.block} tokens")
    return None


def _block_as_tokens(subject: Subject) -> None:
    """The same of a foreign cache that appends what it is fed, whatever it declares."""
    ids, follow, _ = subject.texts(rows=1)
    block, _ = subject.prefill(ids)
    single = block.select([0])
    with subject.appending(block, single):
        subject.feed(block, follow)
        subject.one_by_one(single, follow)
    mine, theirs = held(block).kv, held(single).kv
    if mine != theirs:
        fail(f"a block of {follow.shape[1]} tokens takes {mine:,} bytes, token by token they take {theirs:,}")


@property_test()
def a_fork_holds_what_its_rows_need(subject: Subject) -> None:
    """Rows that are selected take their bytes along and no others; so do rows that are repeated."""
    draw = subject.draw
    if is_foreign(subject):
        return _one_of_a_batch(subject)
    cache, _ = subject.prefill(subject.tokens(draw.prompt))
    for rows in ([draw.rows - 1], [0, 0, draw.rows - 1]):
        check(subject, cache.select(rows), len(rows), draw.prompt, 0, f"rows {rows} of {draw.rows}, selected")
    return None


def _one_of_a_batch(subject: Subject) -> None:
    """A row that a foreign cache has taken out of its batch takes no more than it takes alone."""
    rows = subject.several
    ids = subject.tokens(subject.draw.prompt, rows=rows)
    batch, _ = subject.prefill(ids, subject.together)
    alone, _ = subject.prefill(ids[[rows - 1]], subject.together)
    mine, theirs = held(chosen(batch, [rows - 1])).kv, held(alone).kv
    if mine > MORE * theirs:
        fail(f"a row that was taken out of a batch of {rows} holds {mine:,} bytes, alone it holds {theirs:,}")


PARTS = (70, 1, 1, 33, 1, 45)
"""Tokens that are fed together, one part after the other: over the borders of groups, pages and windows."""


@property_test(share=0.3)
def bytes_stay_as_declared_in_long_decoding(subject: Subject) -> None:
    """Behind each part of a long follow-up, blocks and single tokens, bytes are as declared; in a fork of it too."""
    draw = subject.draw
    if is_foreign(subject):
        return _of_foreign(subject, PARTS)
    cache, _ = subject.prefill(subject.tokens(draw.prompt))
    check(subject, cache, draw.rows, draw.prompt, 0, "behind the prompt")
    decoded = _long(subject, cache, draw.rows, 0, "")
    _long(subject, cache.select([draw.rows - 1, 0]), 2, decoded, " in a fork")
    check(subject, cache, draw.rows, draw.prompt, decoded, "when a fork of it has gone on")
    return None


def _long(subject: Subject, cache: FedCache, rows: int, decoded: int, where: str) -> int:
    """Feed all parts and check the bytes behind each -> tokens decoded by then."""
    for count in PARTS:
        subject.feed(cache, subject.tokens(count, rows=rows, salt=decoded))
        decoded += count
        check(subject, cache, rows, subject.draw.prompt, decoded, f"behind {decoded} decoded tokens{where}")
    return decoded


def frees_nothing(info: MethodInfo) -> str:
    """Excuses methods that do not claim less memory."""
    return "" if info.frees_memory else "it does not claim to free memory"


@property_test(skip_reason=frees_nothing, share=0.3)
def memory_is_freed_in_every_row_of_every_sample(subject: Subject) -> None:
    """One prompt after the other, each row of each takes less memory than the full cache, and the same every time.

    So does each layer of which fewer slots are declared, and each layer where no bytes are declared.
    """
    length = max(LONG, SHORT) + subject.draw.prompt % 64
    sizes = []
    for number, salt in enumerate((0, 10, 0)):
        cache, _ = subject.prefill(subject.tokens(length, salt=salt))
        shape = subject.shape
        for row in range(subject.draw.rows):
            alone = cache.select([row])
            size = held(alone).kv
            dense = shape.dense_bytes(1, length)
            if size >= dense and not _declared_dense(subject, length):
                fail(f"sample {number + 1}, row {row}: {size:,} bytes are held, the full cache takes {dense:,}")
            sizes.append(size)
            native = view(alone).native
            if native is not None:
                _freed_in_layers(subject, native, length)
    first, last = sizes[: subject.draw.rows], sizes[-subject.draw.rows :]
    if first != last:
        fail(f"the same prompt takes {first} bytes at first and {last} bytes as the third sample")


def _freed_in_layers(subject: Subject, cache: KVCache, length: int) -> None:
    """Raise Violation where a layer holds as much as that of the full cache, and does not say so."""
    dense, slots = subject.shape.token_bytes(1) * length, subject.method.slots(subject.shape, length, 0)
    declared = subject.method.kv_bytes(subject.shape, 1, length, 0) is not None  # of all layers, asked elsewhere
    for index, layer in enumerate(cache.method_layers):
        size, fewer = held(layer).kv, not declared if slots is None else slots[index] < length or not declared
        if size >= dense and fewer:
            fail(f"layer {index}: {size:,} bytes are held, the full cache takes {dense:,}")


def _declared_dense(subject: Subject, length: int) -> bool:
    """Whether the method itself says that it frees nothing at this length."""
    declared = subject.method.kv_bytes(subject.shape, 1, length, 0)
    return declared is not None and declared >= subject.shape.dense_bytes(1, length)


def keeps_all_decoded(info: MethodInfo) -> str:
    """Excuses methods that keep what is decoded."""
    return "" if info.evicts_in_decode and info.frees_memory else "it does not claim to evict while decoding"


@property_test(skip_reason=keeps_all_decoded, share=0.15)
def memory_stays_bounded_while_decoding(subject: Subject) -> None:
    """Decoding as many tokens again as the prompt had takes less memory than keeping them all would."""
    length = 64 + subject.draw.prompt % 33
    if _keeps_all(subject, length):
        if _keeps_all(subject, FAR):
            fail(f"it says that it evicts while decoding, and declares that it keeps all of {2 * FAR:,} tokens")
        raise NotServed("by its parameters it keeps everything at this length")
    cache, _ = subject.prefill(subject.tokens(length))
    before = held(cache).kv
    subject.one_by_one(cache, subject.tokens(length, salt=2))
    grown, all_kept = held(cache).kv - before, subject.shape.dense_bytes(subject.draw.rows, length)
    if grown >= all_kept and foreign_rows(cache):
        raise NotServed("it does not declare from how many tokens on it evicts")
    if grown >= all_kept:
        fail(f"{length} decoded tokens take {grown:,} bytes more; keeping all of them takes {all_kept:,}")


FAR = 1 << 20
"""Tokens of which nothing that evicts keeps all."""


def _keeps_all(subject: Subject, length: int) -> bool:
    """Whether the method declares to keep a prompt of this length and as many decoded tokens in every layer, here."""
    slots = subject.method.slots(subject.shape, length, length)
    size = subject.method.kv_bytes(subject.shape, 1, length, length)
    away = size is not None and size < subject.shape.dense_bytes(1, 2 * length)  # rounded, or in host memory
    return slots is not None and min(slots) >= 2 * length and not away


SAMPLE = (200, 16, 1)
"""Tokens of prompt, follow-up and decoding: so many that even the smallest part of a leaked prompt shows."""


FEW, MANY = 4, 32
"""Samples, and those that it takes to fill a store of which these few did not: it grows no more then."""


@property_test(share=0.05)
def nothing_piles_up_over_samples(subject: Subject) -> None:
    """Sample after sample, no memory stays behind; a store of a certain size may fill up first."""
    sizes: list[int] = []
    with newborn():
        while len(sizes) < FEW or _grows(sizes):
            if len(sizes) == MANY:
                last = sizes[-1] - sizes[-2]
                fail(f"after each of {MANY} samples more tensors are alive, {last:,} bytes more after the last one")
            salt = len(sizes)
            subject.life(*(subject.tokens(length, salt=10 * salt + length) for length in SAMPLE))
            sizes.append(alive())


def _grows(sizes: list[int]) -> bool:
    """Whether each of the last two samples left more behind."""
    grown = [later - earlier for earlier, later in pairwise(sizes[1 - FEW :])]
    return min(grown) > 0 and sum(grown) > SLACK // 8


@contextmanager
def newborn() -> Iterator[None]:
    """Within, `gc.get_objects` gives only what came to be since: going through all else takes most of a second."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def alive() -> int:
    """Bytes of all tensors that something refers to and the garbage collector looks at, each storage once."""
    gc.collect()
    sizes = {}
    for one in gc.get_objects():
        if type(one) is torch.Tensor and one.layout == torch.strided and one.device.type != "meta":
            storage = one.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
    return sum(sizes.values())
