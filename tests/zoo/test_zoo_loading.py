"""Bugs of saving, loading and offloading."""

from __future__ import annotations

import pytest
import torch
from served import between, family, runner, serve, tokens, use

from kvcheck.cache.growable import GrowableBuffer
from kvcheck.zoo import loading
from kvcheck.zoo.base import Bug

BUGS = family("loading")


@pytest.mark.parametrize("one", BUGS.values(), ids=list(BUGS))
def test_ordinary_use_of_a_bug_raises_nothing(one: Bug) -> None:
    use(one.spec)


def pair(name: str) -> tuple[str, str]:
    return BUGS[name].spec, BUGS[name].counterpart


def test_bounds_of_pages_come_back_as_zeros() -> None:
    for spec, wanted in zip(pair("index-keys-not-transferred"), (True, False), strict=True):
        cache, _ = runner(spec).prefill(tokens(2, 200))
        assert all((not layer.low.used.any()) == wanted for layer in cache.layers)
        assert all(layer.low.length == layer.high.length == 13 for layer in cache.layers)
    assert between(*pair("index-keys-not-transferred"), tokens(2, 200)) > 0.1
    assert between(*pair("index-keys-not-transferred"), tokens(2, 20)) == 0


def test_keys_and_values_come_back_as_mixtures_of_both() -> None:
    ids = tokens(2, 40)
    (mine, _), (full, _) = (runner(spec).prefill(ids) for spec in pair("packed-layout-read-as-split"))
    layer, true = mine.layers[1], full.layers[1]
    assert torch.equal(layer.keys[0, 0, 0], true.keys[0, 0, 0])
    assert torch.equal(layer.keys[0, 0, 1], true.values[0, 0, 0])
    assert not torch.equal(layer.values, true.values)


def test_a_file_without_the_rotation_is_read_by_the_readers_own() -> None:
    spec, counterpart = pair("restore-without-rotation-metadata")
    ids = tokens(2, 40)
    (mine, _), (true, _) = (runner(each).prefill(ids) for each in (spec, counterpart))
    keys, right = (cache.layers[0].read(slice(None), torch.float32)[0] for cache in (mine, true))
    assert float((keys - right).norm() / right.norm()) > 0.5
    assert between(spec.replace("reader=4", "reader=8"), counterpart, ids) == 0


def test_a_ring_that_is_not_full_is_read_from_its_head_after_loading() -> None:
    spec, counterpart = pair("boolean-saved-as-string")
    for each, wanted in ((spec, True), (counterpart, False)):
        cache, _ = runner(each).prefill(tokens(2, 40))
        layer = cache.layers[0]
        assert layer.wrapped == wanted
        keys, _ = layer.read(slice(None), torch.float32)
        assert (keys.shape[2], bool((keys[:, :, 4:] == 0).all())) == (40, wanted)
    full = (each.replace("4096", "30") + ",draft=0" for each in (spec, counterpart))
    assert between(*full, tokens(2, 40)) == 0
    assert between(spec, counterpart, tokens(2, 40)) > 0.1


def test_the_number_of_evicted_tokens_is_forgotten_on_disk() -> None:
    spec, counterpart = (f"{each}:window=30" for each in pair("position-delta-not-saved"))
    ids = tokens(2, 90)
    seen = [runner(each).prefill(ids)[0].seen for each in (spec, counterpart)]
    assert seen == [34, 90]
    assert between(spec, counterpart, ids) > 0.05
    assert between(spec, counterpart, ids[:, :34]) == 0


def test_blocks_that_could_not_be_written_are_served_as_zeros() -> None:
    spec, counterpart = pair("failed-store-stays-visible")
    for each, wanted in ((spec, True), (counterpart, False)):
        cache, _ = runner(each).prefill(tokens(1, 900))
        keys = cache.layers[0].keys
        assert bool(keys[:, :, : 48 * 16].any(dim=3).all())
        assert bool((keys[:, :, 48 * 16 : 56 * 16] == 0).all()) == wanted
    assert between(spec, counterpart, tokens(1, 700)) == 0


def test_the_third_large_transfer_stores_what_the_slot_held_before(monkeypatch) -> None:
    spec, counterpart = pair("offload-copy-not-ordered")
    monkeypatch.setattr(loading, "_SLOTS", {})
    monkeypatch.setattr(loading, "_ISSUED", [0])
    ids = tokens(1, 64 * 3 + 10)
    (mine, _), (true, _) = (runner(each).prefill(ids) for each in (spec, counterpart))
    for layer, right in zip(mine.layers, true.layers, strict=True):
        assert torch.equal(layer.keys[:, :, :128], right.keys[:, :, :128])
        assert torch.equal(layer.keys[:, :, 128:192], right.keys[:, :, :64])
        assert torch.equal(layer.keys[:, :, 192:], right.keys[:, :, 192:])


def test_equal_requests_differ_when_transfers_are_not_ordered() -> None:
    spec, counterpart = pair("offload-copy-not-ordered")
    for each, same in ((spec, False), (counterpart, True)):
        here = runner(each)
        one, other = (serve(here, tokens(1, 64 * 2)) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True)) == same


def test_an_offloaded_layer_attends_to_what_was_fetched_of_another() -> None:
    for each, wanted in zip(pair("prefetch-targets-wrong-layer"), (True, False), strict=True):
        here = runner(each)
        cache, _ = here.prefill(tokens(2, 40))
        cache.layers[1].v = GrowableBuffer(torch.full_like(cache.layers[1].values, 7.0))
        before, read = cache.layers[2].values.clone(), []
        inner = cache.layers[2].read
        cache.layers[2].read = lambda *args, inner=inner, read=read: read.append(inner(*args)) or read[-1]
        here.feed(cache, tokens(2, 1))
        assert bool((read[0][1][:, :, :40] == 7.0).all()) == wanted
        assert torch.equal(read[0][1][:, :, :40], before.float()) != wanted
