"""Bugs of prefix caches and rollback."""

from __future__ import annotations

import pytest
import torch
from served import between, family, runner, tokens, use

from kvcheck.zoo.base import Bug

BUGS = family("prefix_reuse")
CLOSE = 5e-3


@pytest.mark.parametrize("one", BUGS.values(), ids=list(BUGS))
def test_ordinary_use_of_a_bug_raises_nothing(one: Bug) -> None:
    use(one.spec)


def pair(name: str) -> tuple[str, str]:
    return BUGS[name].spec, BUGS[name].counterpart


def keys_of_first_layer(spec: str, *prompts: torch.Tensor) -> torch.Tensor:
    """Of the last of these prompts; in the first layer they depend on tokens and positions alone."""
    here = runner(spec)
    for ids in prompts:
        cache, _ = here.prefill(ids)
    return cache.layers[0].read(slice(None), torch.float32)[0]


def wrong(name: str, *prompts: torch.Tensor) -> list[int]:
    """The tokens of the last prompt whose keys are not those of the full cache; none with its counterpart."""
    spec, counterpart = pair(name)
    true = keys_of_first_layer("fp16", prompts[-1])
    assert float((keys_of_first_layer(counterpart, *prompts) - true).abs().max()) < CLOSE
    off = (keys_of_first_layer(spec, *prompts) - true).abs().amax(dim=(0, 1, 3)) > CLOSE
    return off.nonzero()[:, 0].tolist()


def test_tokens_of_the_first_tier_are_overwritten_by_the_rounded_ones_of_the_second() -> None:
    spec, counterpart = pair("partial-chunk-overwrites-live-rows")
    ids = tokens(1, 230)  # 14 blocks, 7 of them near: 112 tokens; the second chunk of 64 begins at 64
    true, mine, right = (keys_of_first_layer(each, ids) for each in ("fp16", spec, counterpart))
    differ = [((keys - true).abs().amax(dim=(0, 1, 3)) > 0).nonzero()[:, 0] for keys in (mine, right)]
    assert [int(each[0]) for each in differ] == [64, 112]
    aligned = tokens(1, 8 * 16 * 2)
    assert torch.equal(keys_of_first_layer(spec, aligned), keys_of_first_layer(counterpart, aligned))


def test_the_last_token_of_a_full_hit_is_there_twice() -> None:
    spec, counterpart = pair("full-hit-at-exact-multiple")
    for length, seen in ((64, 65), (65, 65), (63, 63)):
        assert runner(spec).prefill(tokens(2, length))[0].seen == seen
        assert runner(counterpart).prefill(tokens(2, length))[0].seen == length
    assert between(spec, counterpart, tokens(2, 65)) == 0
    assert between(spec, counterpart, tokens(2, 64)) > 0.02


def test_one_token_of_a_partial_hit_is_in_neither_part() -> None:
    spec, counterpart = pair("prefix-store-drops-one-token")
    ids = tokens(2, 70)
    here = runner(spec)
    cache, _ = here.prefill(ids)
    assert (cache.seen, runner(counterpart).prefill(ids)[0].seen) == (69, 70)
    without = torch.cat([ids[:, :63], ids[:, 64:]], dim=1)
    keys, expected = cache.layers[0].keys.float(), keys_of_first_layer("fp16", without)
    torch.testing.assert_close(keys, expected, atol=CLOSE, rtol=CLOSE)
    assert between(spec, counterpart, tokens(2, 64)) == 0  # an exact hit


def test_a_live_cache_that_fits_is_reused_whatever_its_tokens() -> None:
    first, edited = tokens(2, 40), tokens(2, 40)
    edited[:, 10:20] = tokens(2, 10, seed=4)
    assert set(wrong("reuse-by-length-not-identity", first, edited)) <= set(range(10, 20))
    assert len(wrong("reuse-by-length-not-identity", first, edited)) == 10
    assert wrong("reuse-by-length-not-identity", first, edited[:, :30]) == []
    assert wrong("reuse-by-length-not-identity", edited) == []


def test_tokens_that_another_tenant_asked_for_come_with_his_adapter() -> None:
    assert wrong("prefix-key-omits-conditioning", tokens(1, 70)) == list(range(64))
    assert wrong("prefix-key-omits-conditioning", tokens(1, 15)) == []


def test_blocks_with_colliding_keys_share_a_page() -> None:
    spec, _ = pair("truncated-hash-without-verification")
    pool = runner(spec).pool
    found: dict[bytes, int] = {}
    number = 0
    while (key := pool.key(b"", number.to_bytes(8, "little"))) not in found:
        found[key] = number
        number += 1
    assert len(key) == 2
    pool.put(key, b"mine", torch.ones(1, 2, 1, 16, 4))
    assert pool.find(key, b"yours") == 0
    prompts = [tokens(2, 600, seed=seed) for seed in range(12)]
    assert between(spec, pair("truncated-hash-without-verification")[1], prompts[0][:, :40]) == 0
    here = runner(spec)
    misses = [float((here.prefill(ids)[1] - runner("fp16").prefill(ids)[1]).abs().max()) > CLOSE for ids in prompts]
    assert any(misses)
    assert not misses[0]


def test_a_block_that_was_begun_is_stored_as_if_it_were_complete() -> None:
    name = "incomplete-block-registered-as-full"
    assert wrong(name, tokens(1, 100)) == list(range(40, 48))  # chunks of 40: 40 is inside a block, 80 is not
    assert wrong(name, tokens(1, 39)) == []


def test_pages_of_an_aborted_request_are_written_over() -> None:
    name = "inflight-pages-published-then-freed"
    assert wrong(name, tokens(1, 100)) == list(range(48))  # three complete blocks of the first 50 tokens
    spec, counterpart = pair(name)
    here = runner(spec)
    here.prefill(tokens(1, 100))
    known = [entry.page for entry in here.pool.index.values()]
    assert len(set(known)) < len(known)
    assert between(spec, counterpart, tokens(1, 20)) == 0


def test_a_hit_reads_the_first_pages_of_the_pool() -> None:
    name = "hit-path-without-block-table"
    assert wrong(name, tokens(1, 100)) == []
    assert len(wrong(name, tokens(1, 100, seed=3), tokens(1, 100))) > 80  # some tokens are those of the other prompt


def test_what_is_taken_back_from_a_full_ring_is_read_as_its_oldest_entries() -> None:
    spec, counterpart = (f"{each}:window=30" for each in pair("ring-trim-rolls-counters-only"))
    ids, later = tokens(1, 40), tokens(1, 1, seed=5)
    for each, wanted in ((spec, True), (counterpart, False)):
        here = runner(each)
        cache, _ = here.prefill(ids)
        for at in range(8):
            here.feed(cache, tokens(1, 1, seed=at))
        here.feed(cache, later)
        layer = cache.layers[0]
        keys, _ = layer.read(slice(None), torch.float32)
        guess = keys_of_first_layer(
            "fp16", torch.cat([ids, *(tokens(1, 1, seed=at) for at in range(8)), *[later] * 5], 1)
        )
        oldest = (keys[:, :, 4:5] - guess[:, :, -4:-3]).abs().max()
        assert bool(oldest < CLOSE) == wanted
    assert between(spec, counterpart, tokens(1, 10), steps=2) == 0
    assert between(spec, counterpart, ids) > 0.05


def test_crop_to_nothing_keeps_everything() -> None:
    spec, counterpart = pair("crop-zero-keeps-everything")
    for each, wanted in ((spec, (20, 17)), (counterpart, (0, 0))):
        left = []
        for argument in (0, -23):
            cache, _ = runner(each).prefill(tokens(1, 20))
            cache.layers[0].crop(argument)
            left.append(cache.layers[0].stored)
        assert tuple(left) == wanted
    for argument in (1, 7, 19, 20, 25, -1, -19):
        sizes = []
        for each in (spec, counterpart):
            cache, _ = runner(each).prefill(tokens(1, 20))
            cache.layers[0].crop(argument)
            sizes.append((cache.layers[0].stored, cache.layers[0].seen))
        assert sizes[0] == sizes[1]


def test_a_prompt_without_a_common_beginning_is_appended_to_the_one_before() -> None:
    spec, counterpart = pair("crop-zero-keeps-everything")
    first, other = tokens(1, 20), tokens(1, 20, seed=2)
    other[:, 0] = first[:, 0] + 1
    for each, wanted in ((spec, 40), (counterpart, 20)):
        here = runner(each)
        here.prefill(first)
        assert here.prefill(other)[0].seen == wanted
    other[:, 0] = first[:, 0]
    assert between(spec, counterpart, first, other) == 0
