"""Bugs of batches."""

from __future__ import annotations

import pytest
import torch
from served import between, family, far_off, runner, serve, tokens, use

from kvcheck.measure.memory import held
from kvcheck.zoo.base import Bug

BUGS = family("batching")
CLOSE = 5e-3


@pytest.mark.parametrize("one", BUGS.values(), ids=list(BUGS))
def test_ordinary_use_of_a_bug_raises_nothing(one: Bug) -> None:
    use(one.spec)


def pair(name: str) -> tuple[str, str]:
    return BUGS[name].spec, BUGS[name].counterpart


def test_a_batch_is_held_in_plain_layers() -> None:
    spec, counterpart = pair("inherited-method-swaps-plain-cache")
    sizes = {
        each: [held(runner(each).prefill(tokens(rows, 300))[0]).kv for rows in (1, 2)] for each in (spec, counterpart)
    }
    assert sizes[spec][0] == sizes[counterpart][0]
    assert sizes[counterpart][1] == 2 * sizes[counterpart][0]
    assert sizes[spec][1] == held(runner("fp16").prefill(tokens(2, 300))[0]).kv
    assert between(spec, counterpart, tokens(1, 300)) == 0


def test_the_padding_is_context() -> None:
    spec, counterpart = (f"{each}:longer=8" for each in pair("padding-mask-dropped-by-generator"))
    ids = tokens(2, 40)
    cache, first = runner(spec).prefill(ids)
    assert (cache.seen, cache.layers[0].stored) == (48, 48)
    padded = torch.nn.functional.pad(ids, (8, 0))
    assert float((first - runner("fp16").prefill(padded)[1]).abs().max()) < CLOSE
    assert between(spec, "fp16", ids) > 0.05
    assert between(*(each.replace("=8", "=0") for each in (spec, counterpart)), ids) == 0


def test_a_cold_row_of_a_mixed_batch_reads_page_zero() -> None:
    spec, counterpart = pair("cold-row-gets-slot-zero")
    warm, cold = tokens(1, 50), tokens(1, 50, seed=2)
    for each, wanted in ((spec, False), (counterpart, True)):
        here = runner(each)
        here.prefill(warm)
        cache, _ = here.prefill(torch.cat([warm, cold]))
        keys, true = cache.layers[0].keys, runner("fp16").prefill(torch.cat([warm, cold]))[0].layers[0].keys
        assert torch.allclose(keys[0], true[0], atol=CLOSE)
        assert torch.allclose(keys[1], true[1], atol=CLOSE) == wanted
        assert torch.equal(keys[1, :, :16], keys[0, :, :16]) != wanted
    assert between(spec, counterpart, torch.cat([warm, cold])) == 0  # all cold
    assert between(spec, counterpart, warm, warm) == 0


def test_a_row_grows_into_pages_of_the_sequence_before_it() -> None:
    spec, counterpart = pair("stale-page-table-tail")
    long, short = tokens(2, 200), tokens(2, 120, seed=2)
    assert between(spec, counterpart, short) == 0
    assert between(counterpart, "fp16", long, short) < CLOSE
    assert between(spec, counterpart, long, short) > 0.1
    assert between(spec, counterpart, long, short[:, :60]) == 0  # within its first pages


def test_new_tokens_are_written_over_the_newest_of_the_prompt() -> None:
    spec, counterpart = (f"{each}:longer=8" for each in pair("append-position-from-max-offset"))
    ids = tokens(2, 40)
    for each, wanted in ((spec, 48), (counterpart, 49)):
        here = runner(each)
        cache, _ = here.prefill(ids)
        before = cache.layers[0].k.used.clone()
        here.feed(cache, tokens(2, 1))
        assert cache.layers[0].columns == wanted
        same = torch.equal(cache.layers[0].k.used[:, :, 40], before[:, :, 40])
        assert same == (each == counterpart)
    assert far_off(serve(runner(spec), ids)[:1], serve(runner(counterpart), ids)[:1]) == 0
    assert between(spec, counterpart, ids) > 0.05


def test_a_row_goes_on_with_the_padding_of_the_one_that_has_left() -> None:
    spec, counterpart = (f"{each}:longer=8" for each in pair("filter-leaves-side-metadata"))
    ids = tokens(3, 40)
    assert runner(spec).prefill(ids)[0].layers[0].pads.tolist() == [0, 8, 8, 8]
    assert runner(counterpart).prefill(ids)[0].layers[0].pads.tolist() == [8, 8, 8]
    logits = []
    for each in (spec, counterpart):
        here = runner(each)
        cache, _ = here.prefill(ids)
        logits.append(here.feed(cache, tokens(3, 1)))
    off = (logits[0] - logits[1]).abs().amax(dim=(1, 2))
    assert [bool(each > 1e-3) for each in off] == [True, False, False]


def test_a_copy_of_a_row_evicts_the_first_tokens() -> None:
    spec, counterpart = pair("sinks-lost-when-row-extracted")
    for each, kept in ((spec, []), (counterpart, [0, 1, 2, 3])):
        here = runner(each)
        cache, _ = here.prefill(tokens(2, 100))
        assert cache.layers[0].positions[0, 0, :4].tolist() == [0, 1, 2, 3]
        copy = cache.select([1])
        here.feed(copy, tokens(1, 1))
        assert [at for at in copy.layers[0].positions[0, 0].tolist() if at < 10] == kept
        here.feed(cache, tokens(2, 1))
        assert cache.layers[0].positions[0, 0, :4].tolist() == [0, 1, 2, 3]
