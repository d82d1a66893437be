"""Bugs of beam search."""

from __future__ import annotations

import pytest
import torch
from served import family, loaded, runner, tokens, use

from kvcheck.cache.shape import ModelShape
from kvcheck.methods import make
from kvcheck.zoo.base import Bug

BUGS = family("beam")
BEAMS = torch.tensor([1, 1, 0])


@pytest.mark.parametrize("one", BUGS.values(), ids=list(BUGS))
def test_ordinary_use_of_a_bug_raises_nothing(one: Bug) -> None:
    use(one.spec)


def search(spec: str) -> None:
    """Beam search as transformers does it."""
    cache = make(spec).build(ModelShape.of(loaded().model.config))
    loaded().model.generate(
        tokens(1, 140), past_key_values=cache, num_beams=3, max_new_tokens=20, do_sample=False, pad_token_id=0
    )


@pytest.mark.parametrize("one", BUGS.values(), ids=list(BUGS))
def test_beam_search_raises_nothing(one: Bug) -> None:
    search(one.spec)
    search(one.counterpart)


def moved(spec: str, length: int = 150) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Keys of layer 0 as they should be and as they are, each of the tokens up to the last forward, after a reorder."""
    here = runner(spec)
    cache, _ = here.prefill(tokens(3, length))
    wanted = [each.clone() for each in cache.layers[0].read(slice(None), torch.float32)]
    cache.reorder_cache(BEAMS)
    return [each[BEAMS] for each in wanted], list(cache.layers[0].read(slice(None), torch.float32))


@pytest.mark.parametrize("name", BUGS)
def test_reordered_rows_are_those_that_were_asked_for_in_every_counterpart(name: str) -> None:
    for one, other in zip(*moved(BUGS[name].counterpart), strict=True):
        assert torch.equal(one, other)


def test_the_quantized_part_stays_where_it_is() -> None:
    wanted, found = moved(BUGS["reorder-only-residual"].spec)
    assert torch.equal(found[0][:, :, 128:], wanted[0][:, :, 128:])
    assert not torch.equal(found[0][:, :, :128], wanted[0][:, :, :128])
    wanted, found = moved(BUGS["reorder-only-residual"].spec, length=100)  # nothing is quantized yet
    assert torch.equal(found[0], wanted[0])


def test_a_beam_sees_what_its_sibling_wrote() -> None:
    one = BUGS["beams-write-to-shared-context"]
    for spec, wanted in ((one.spec, True), (one.counterpart, False)):
        here = runner(spec)
        cache, _ = here.prefill(tokens(3, 40))
        cache.reorder_cache(BEAMS)
        different = torch.tensor([[5], [9], [17]])
        here.feed(cache, different)
        keys = cache.layers[0].read(slice(None), torch.float32)[0]
        assert torch.equal(keys[0, :, -1], keys[1, :, -1]) == wanted
        assert not torch.equal(keys[0, :, -1], keys[2, :, -1])
        cache.batch_repeat_interleave(2)
        assert cache.layers[0].positions.shape == (6, 2, 41)
        here.feed(cache, torch.arange(6).unsqueeze(1) + 3)
        assert cache.select([1, 2]).layers[0].keys.shape[0] == 2


def test_a_beam_takes_over_the_last_page_alone() -> None:
    one = BUGS["beam-copy-on-write-missing"]
    wanted, found = moved(one.spec)
    assert torch.equal(found[0][:, :, 144:], wanted[0][:, :, 144:])
    stays = found[0][1]
    assert torch.equal(stays, wanted[0][1])
    assert not torch.equal(found[0][0, :, :144], wanted[0][0, :, :144])
    assert bool(found[0].isfinite().all())
