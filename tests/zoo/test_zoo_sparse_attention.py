"""Bugs of sparse attention."""

from __future__ import annotations

import pytest
import torch
from served import between, family, runner, tokens, use

from kvcheck.zoo.base import Bug

BUGS = family("sparse_attention")


@pytest.mark.parametrize("one", BUGS.values(), ids=list(BUGS))
def test_ordinary_use_of_a_bug_raises_nothing(one: Bug) -> None:
    use(one.spec)


def pair(name: str) -> tuple[str, str]:
    return BUGS[name].spec, BUGS[name].counterpart


def chosen(spec: str, length: int) -> torch.Tensor:
    """The pages that a random token chooses in the last layer, behind a random prompt."""
    cache, _ = runner(spec).prefill(tokens(2, length))
    layer = cache.layers[3]
    query = torch.randn(2, 4, 1, 64, generator=torch.Generator().manual_seed(0))
    return layer.choose(query, torch.tensor([(length - 1) // 16]))


def test_many_pages_score_nothing_and_the_last_are_chosen() -> None:
    spec, counterpart = pair("selector-scores-collapse-to-zero")
    with torch.inference_mode():
        pages = chosen(spec, 2100)  # 132 pages; a budget of an eighth is 17 of them
        assert torch.equal(pages, torch.arange(132 - 17, 132).expand_as(pages))
        assert not torch.equal(pages, chosen(counterpart, 2100))
        assert torch.equal(chosen(spec, 2048), chosen(counterpart, 2048))


def test_heads_choose_for_themselves() -> None:
    spec, counterpart = pair("selector-wrong-head-aggregation")
    mine, joint = chosen(spec, 400), chosen(counterpart, 400)
    assert all(torch.equal(joint[:, head], joint[:, 0]) for head in range(4))
    assert not all(torch.equal(mine[:, head], mine[:, 0]) for head in range(4))
    assert between(spec, counterpart, tokens(2, 30)) == 0


def test_bounds_outlive_a_rollback_by_more_than_there_is() -> None:
    spec, counterpart = pair("index-buffer-crop-out-of-step")
    for argument, stale in ((-220, 12), (-200, 0), (-50, 0), (0, 0), (90, 0)):
        for each, wanted in ((spec, stale), (counterpart, 0)):
            cache, _ = runner(each).prefill(tokens(2, 200))
            layer = cache.layers[2]
            layer.crop(argument)
            assert layer.low.length == layer.high.length == -(-layer.seen // 16) + wanted


def test_a_refilled_cache_chooses_by_stale_bounds() -> None:
    answers = []
    for each in pair("index-buffer-crop-out-of-step"):
        here = runner(each)
        cache, _ = here.prefill(tokens(2, 200))
        for layer in cache.layers:
            layer.crop(-220)
        here.feed(cache, tokens(2, 200, seed=3))
        answers.append(here.feed(cache, tokens(2, 20, seed=4), 20))
    assert not torch.allclose(*answers, atol=1e-3)


def history(spec: str, *lengths: int) -> list[torch.Tensor]:
    """Logits behind a prompt, after prompts of these lengths."""
    here = runner(spec)
    for length in lengths:
        here.prefill(tokens(2, length, seed=length))
    cache, _ = here.prefill(tokens(2, 250))
    return [here.feed(cache, tokens(2, 1, seed=at)) for at in range(4)]


def test_answers_depend_on_what_earlier_requests_left_of_the_pool() -> None:
    spec, counterpart = pair("pages-in-physical-order")
    assert all(torch.equal(a, b) for a, b in zip(history(spec), history(counterpart), strict=True))
    used = [history(each, 300, 130, 270) for each in (spec, counterpart)]
    assert not torch.allclose(used[0][0], used[1][0], atol=1e-3)
    assert all(torch.equal(a, b) for a, b in zip(used[1], history(counterpart), strict=True))


def test_bounds_of_a_padded_row_are_those_of_other_tokens() -> None:
    spec, counterpart = pair("pads-pooled-into-blocks")
    ids = tokens(2, 200)
    mine, true, alone = (runner(each).prefill(ids)[0].layers[0].low.used for each in (spec, counterpart, "quest"))
    torch.testing.assert_close(true, alone, atol=2e-3, rtol=2e-3)
    assert mine.shape == true.shape
    assert not torch.allclose(mine, true, atol=0.05)
    assert between(f"{spec}:longer=0", f"{counterpart}:longer=0", ids) == 0


def test_odd_layers_have_no_bounds() -> None:
    for each, wanted in zip(pair("compressed-write-only-in-one-branch"), ([True, False] * 2, [True] * 4), strict=True):
        here = runner(each)
        cache, _ = here.prefill(tokens(2, 200))
        here.feed(cache, tokens(2, 20))
        assert [bool(layer.low.used.any()) for layer in cache.layers] == wanted
    spec = pair("compressed-write-only-in-one-branch")[0]
    pages = chosen(spec, 400)  # 25 pages, 4 of them chosen
    assert torch.equal(pages, torch.tensor([0, 1, 2, 24]).expand_as(pages))
