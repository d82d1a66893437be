"""The counterparts of the zoo: as correct as the method that they are a form of, and as large as they say."""

from __future__ import annotations

import pytest
import torch
from served import between, loaded, runner, tokens

from kvcheck.cache.shape import ModelShape
from kvcheck.measure.audit import audit
from kvcheck.methods import make

COUNTERPARTS = "kvcheck.zoo.counterparts"
SAME = {
    f"{COUNTERPARTS}.live_session.LiveSession": "fp16",
    f"{COUNTERPARTS}.prefix_store.PrefixStore": "fp16",
    f"{COUNTERPARTS}.prefix_store.PrefixStore:capacity=8": "fp16",
    f"{COUNTERPARTS}.prefix_store.PrefixStore:staging=3": "fp16",
    f"{COUNTERPARTS}.prefix_store.RetriedStore": "fp16",
    f"{COUNTERPARTS}.prefix_store.TenantStore": "fp16",
    f"{COUNTERPARTS}.paged.Paged": "fp16",
    f"{COUNTERPARTS}.neighbour.Neighbour": "fp16",
    f"{COUNTERPARTS}.prefetch.Prefetch": "fp16",
    f"{COUNTERPARTS}.quests.StoredQuest": "quest",
    f"{COUNTERPARTS}.quests.DraftedQuest": "quest",
    f"{COUNTERPARTS}.paged.PagedQuest": "quest",
    f"{COUNTERPARTS}.neighbour.NeighbourQuest": "quest",
    f"{COUNTERPARTS}.ring.Ring:window=60": "streaming_llm:window=60",
    f"{COUNTERPARTS}.ring.Ring:window=60,draft=0": "streaming_llm:window=60",
    f"{COUNTERPARTS}.rotated_store.RotatedStore:reader=4": f"{COUNTERPARTS}.rotated_store.RotatedStore",
    f"{COUNTERPARTS}.rotated_store.RotatedStore:size=1": "flexgen:group=8",
}
ALL = [*SAME, f"{COUNTERPARTS}.prefix_store.TieredStore", f"{COUNTERPARTS}.quests.JointQuest"]
PROMPTS = ((1, 1), (2, 17), (3, 130), (2, 64), (2, 200), (3, 128))
CLOSE = 5e-3


@pytest.mark.parametrize("spec", SAME)
def test_a_counterpart_answers_as_the_method_that_it_is_a_form_of(spec: str) -> None:
    prompts = [tokens(rows, length, seed=length) for rows, length in PROMPTS]
    prompts += [prompts[2], torch.cat([prompts[2][:, :70], tokens(3, 60, seed=5)], dim=1)]
    assert between(spec, SAME[spec], *prompts) < CLOSE


def test_a_second_tier_costs_no_more_than_its_rounding() -> None:
    spec = f"{COUNTERPARTS}.prefix_store.TieredStore"
    assert between(spec, "fp16", tokens(2, 30)) < 1e-4  # one block: all of it in the first tier
    assert 1e-4 < between(spec, "fp16", tokens(2, 200)) < 0.1


def test_a_joint_choice_of_all_pages_is_the_full_cache() -> None:
    assert between(f"{COUNTERPARTS}.quests.JointQuest:budget=400", "fp16", tokens(2, 200)) < CLOSE


@pytest.mark.parametrize("spec", ALL)
def test_a_counterpart_holds_what_it_declares(spec: str) -> None:
    method, here, full = make(spec), runner(spec), runner("fp16")
    for rows, length in ((2, 1), (3, 150), (2, 64), (1, 200)):
        ids = tokens(rows, length, seed=length)
        reference = full.build()
        with reference.recording() as prefilled:
            full.feed(reference, ids)
        cache, _ = here.prefill(ids)
        assert audit(cache, prefilled, method).problems == ()
        for at in range(3):
            here.feed(cache, tokens(rows, 1, seed=at))
        assert audit(cache, prefilled, method).problems == ()
        rows_left = [layer.select([0]) for layer in prefilled]
        assert audit(cache.select([0]), rows_left, method).problems == ()


@pytest.mark.parametrize("spec", [name for name in ALL if make(name).info.shares_prefill])
def test_a_counterpart_takes_in_a_prompt_that_was_prefilled_elsewhere(spec: str) -> None:
    method, ids, full = make(spec), tokens(2, 150), runner("fp16")
    reference = full.build()
    with reference.recording() as prefilled:
        full.feed(reference, ids)
    cache = method.build(ModelShape.of(loaded().model.config))
    cache.absorb(prefilled)
    assert audit(cache, prefilled, method).problems == ()


@pytest.mark.parametrize("spec", [name for name in SAME if not make(name).info.frees_memory and SAME[name] == "fp16"])
def test_beams_of_a_lossless_counterpart_move_as_those_of_the_full_cache(spec: str) -> None:
    mine, full, beams = runner(spec), runner("fp16"), torch.tensor([1, 1, 0])
    logits = []
    for here in (mine, full):
        cache, _ = here.prefill(tokens(3, 70))
        here.feed(cache, tokens(3, 1, seed=7))
        cache.reorder_cache(beams)
        here.feed(cache, tokens(3, 1, seed=8))
        cache.reorder_cache(beams.flip(0))
        logits.append(here.feed(cache, tokens(3, 1, seed=9)))
    torch.testing.assert_close(*logits, atol=CLOSE, rtol=CLOSE)


def test_a_rollback_of_quest_leaves_what_was_there_before() -> None:
    spec = f"{COUNTERPARTS}.quests.DraftedQuest"
    here, later = runner(spec), tokens(2, 90, seed=5)
    wanted, _ = here.prefill(tokens(2, 150))
    cache = wanted.select([0, 1])
    here.feed(cache, later)
    for layer in cache.layers:
        layer.crop(150)
    assert torch.equal(here.feed(cache, later, 9), here.feed(wanted, later, 9))
    for layer in cache.layers:
        layer.crop(-1000)
        assert (layer.seen, layer.stored, layer.low.length) == (0, 0, 0)


@pytest.mark.parametrize("spec", SAME)
def test_a_counterpart_that_was_reset_is_as_new(spec: str) -> None:
    here, ids, later = runner(spec), tokens(2, 90), tokens(2, 3, seed=4)
    used, _ = here.prefill(tokens(3, 150, seed=2))
    used.reset()
    logits = [[here.feed(cache, ids), here.feed(cache, later, 3)] for cache in (used, here.build())]
    assert all(torch.equal(one, other) for one, other in zip(*logits, strict=True))
