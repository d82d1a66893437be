"""What shall be the next embedded model, as it is before training: mini's heads over six layers, with a sink."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest
import torch

from kvcheck.core import paths
from kvcheck.fixtures.training import grow
from kvcheck.fixtures.training.data import draw, row
from kvcheck.fixtures.training.tokenizer import build_tokenizer
from kvcheck.fixtures.training.train import exact_match, loss_of
from kvcheck.models.encoder import Encoder
from kvcheck.tasks import TASKS

pytestmark = pytest.mark.nightly  # nothing of this is shipped yet
ENCODER = Encoder(build_tokenizer())
IDS = torch.tensor([row(TASKS.get("needle").generate(5, 0, 300, ENCODER), ENCODER).ids])


@pytest.fixture(scope="module")
def grown() -> Any:
    return grow.start(paths.bundle("fixtures") / "mini").eval()


@torch.no_grad()
def attention(model: Any) -> torch.Tensor:
    """(layers, heads) of the late queries to the first token."""
    model.set_attn_implementation("eager")
    said = model(IDS, output_attentions=True)
    return torch.stack([layer[0, :, -64:, 0].mean(-1) for layer in said.attentions])


def test_it_finds_before_any_training_what_mini_finds(grown: Any) -> None:
    found = {name: exact_match(grown, TASKS.get(name), 300, 3, ENCODER) for name in ("needle", "few_shot", "qa_single")}
    assert min(found.values()) > 0.5, found


def test_heads_rest_on_the_first_token_in_all_layers_but_the_first(grown: Any) -> None:
    shares = attention(grown).mean(-1)
    assert shares[0] < 0.05
    assert (shares[1:] > 0.2).all(), shares


@torch.no_grad()
def test_the_first_token_has_no_value(grown: Any) -> None:
    read = grow._given(grown, grown.model.layers[3].self_attn, IDS)
    values = grown.model.layers[3].self_attn.v_proj(read)[0].norm(dim=-1)
    assert values[0] < 0.1 * values[1:].median()


@torch.no_grad()
def test_outliers_change_no_answer_and_are_there(grown: Any) -> None:
    before, keys = grown(IDS).logits, []
    model = copy.deepcopy(grown)
    grow.dress(model)
    assert (model(IDS).logits - before).abs().max() < 1e-3 * before.std()
    for layer in model.model.layers:
        each = layer.self_attn.k_proj(grow._given(model, layer.self_attn, IDS))[0, 1:, : layer.self_attn.head_dim]
        keys.append(float(each.abs().mean(0).max() / each.abs().mean(0).median()))
    assert min(keys) > 4, keys


def test_training_leaves_the_sink_alone_and_changes_the_rest(grown: Any) -> None:
    ids, targets = IDS, torch.roll(IDS, -1, 1)
    loss_of(grown, ids, targets, torch.ones(ids.shape), grow.RECIPE).backward()
    inner = grown.model.layers[2].self_attn
    slow = [at for at in range(inner.k_proj.out_features) if at % 32 == grow.SLOWEST]
    assert not inner.k_proj.weight.grad[slow].any()
    assert not inner.k_proj.weight.grad[:, grow.SINK].any()
    assert inner.k_proj.weight.grad.any()
    assert not grown.model.embed_tokens.weight.grad[0].any()
    assert grown.model.embed_tokens.weight.grad.any()
    grown.zero_grad()


def test_lost_evidence_is_asked_for_in_its_share_of_the_sequences() -> None:
    tasks, odds = [TASKS.get("needle")], {"needle": 1.0}
    whole, absent, cut = (
        draw(tasks, odds, 300, ENCODER, random.Random(3), lost) for lost in ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0))
    )
    answer = tuple(whole.targets[slice(*whole.spans[0])])
    assert answer == tuple(absent.targets[slice(*absent.spans[0])])
    text = ENCODER.decode(list(answer[:-1])).strip()
    assert text in ENCODER.decode(whole.ids[: whole.spans[0][0]])
    assert text not in ENCODER.decode(absent.ids[: absent.spans[0][0]])
    assert len(cut.ids) < 0.9 * len(whole.ids)
