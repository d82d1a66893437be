"""What the other embedded models are trained from: mini's weights in another architecture."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kvcheck.core import paths
from kvcheck.fixtures.training import hybrid, window
from kvcheck.fixtures.training.shipped import load
from kvcheck.fixtures.training.tokenizer import build_tokenizer
from kvcheck.fixtures.training.train import Round, Stage
from kvcheck.models.encoder import Encoder
from kvcheck.tasks import TASKS

MINI = paths.bundle("fixtures") / "mini"
IDS = torch.randint(2, 1169, (1, 120), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model.eval()(IDS).logits


def test_windows_change_nothing_in_a_text_that_fits_into_them() -> None:
    assert torch.allclose(logits(window.start(MINI)), logits(load(MINI)), atol=1e-4)


def test_windows_hide_what_lies_before_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(window, "WINDOW", 16)
    assert not torch.allclose(logits(window.start(MINI)), logits(load(MINI)), atol=0.1)


def test_the_attention_of_the_hybrid_is_that_of_mini(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hybrid, "ATTENTION", (0, 1, 2, 3))
    mine, theirs = logits(hybrid.start(MINI)), logits(load(MINI))
    # pairs that mini rotates by at most 1e-4 a token are not rotated at all
    assert (mine - theirs).abs().max() < 0.05 * theirs.std()


def test_copying_teaches_the_mamba_layers_and_leaves_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hybrid, "COPYING", Round(1e-3, (Stage(3, 300, 301),), warmup=1))
    monkeypatch.setattr(hybrid, "ROWS", 1)
    model = hybrid.start(MINI)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    hybrid.copy(MINI, model, Encoder(build_tokenizer()), [TASKS.get("needle")])
    changed = {name for name, weight in model.state_dict().items() if not torch.equal(weight, before[name])}
    assert changed
    assert all(".mamba." in name for name in changed)
    assert {name.split(".")[2] for name in changed} == {"0", "3"}
