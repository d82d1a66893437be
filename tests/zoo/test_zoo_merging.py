"""Every bug of merging does what it says, and its counterpart does not."""

from __future__ import annotations

import pytest
import torch
from counterpart_checks import family, runner_of, used, used_right, words

from kvcheck.zoo import merging as zoo
from kvcheck.zoo.counterparts.fragments import Fragments
from kvcheck.zoo.counterparts.merge_on_evict import MergeOnEvict


@pytest.mark.parametrize(("kind", "right"), [(MergeOnEvict, True), (zoo.MergeQuantileOverIneligible, False)])
def test_merging_stops_where_many_are_not_eligible(kind: type[MergeOnEvict], right: bool) -> None:
    """The merged share of 1,000 evicted tokens of which a share is below the bound on the cosine."""
    merged = []
    for unlike in (0, 250, 500, 700):
        alike = torch.cat([torch.linspace(0.1, 0.4, unlike), torch.linspace(0.7, 0.9, 1000 - unlike)]).view(1, 1, -1)
        merged.append(int(kind(similarity=0.6, fraction=0.75).chosen(alike).sum()))
    assert merged == ([750, 562, 375, 225] if right else [750, 750, 0, 0])


def test_it_merges_as_often_as_it_should_where_all_are_eligible() -> None:
    alike = torch.rand(2, 3, 40, generator=torch.Generator().manual_seed(0))
    chosen = [
        kind(similarity=0.0, fraction=0.5).chosen(alike) for kind in (MergeOnEvict, zoo.MergeQuantileOverIneligible)
    ]
    assert torch.equal(*chosen)


@pytest.mark.parametrize(("kind", "right"), [(Fragments, True), (zoo.FragmentsJoinedWithoutRerotation, False)])
def test_all_pieces_but_the_first_carry_the_rotation_of_the_first(kind: type[Fragments], right: bool) -> None:
    runner = runner_of(kind(piece=20))
    piece = words(1, 20)
    for part in runner.joined((piece, piece)):
        assert torch.equal(part.values[:, :, :20], part.values[:, :, 20:])
        assert torch.equal(part.keys[:, :, :20], part.keys[:, :, 20:]) is not right
    single = runner_of(kind(piece=20, fresh=5)).prefill(words(1, 25))[1]
    assert torch.allclose(single, runner_of("fp16").prefill(words(1, 25))[1], atol=0.05)


@pytest.mark.parametrize("one", family("merging"), ids=lambda one: one.name)
def test_ordinary_use_raises_nothing(one) -> None:
    for tokens in (1, 150):
        mine, right = used(one.spec, tokens), used_right(one.counterpart, tokens)
        assert [each.shape for each in mine] == [each.shape for each in right]
        assert all(bool(each.isfinite().all()) for each in right)
