"""The script that made the embedded model: a stopped run goes on as if it had not been stopped."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kvcheck.core import paths
from kvcheck.fixtures.training.data import batch, row
from kvcheck.fixtures.training.recipe import RECIPE
from kvcheck.fixtures.training.tokenizer import build_tokenizer
from kvcheck.fixtures.training.train import Recipe, Round, Stage, Trainer
from kvcheck.models.encoder import Encoder
from kvcheck.tasks import TASKS

SHORT = Recipe(rounds=(Round(1e-3, (Stage(2, 300, 310),)), Round(1e-4, (Stage(2, 300, 320),))), tokens_per_step=600)
ENCODER = Encoder(build_tokenizer())


def trainer(out: Path) -> Trainer:
    from transformers import LlamaConfig, LlamaForCausalLM

    out.mkdir(exist_ok=True)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(ENCODER.tokenizer), **sizes))
    return Trainer(model, ENCODER, [TASKS.get("needle"), TASKS.get("kv")], SHORT, out)


def test_a_resumed_run_gives_the_weights_of_an_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = trainer(tmp_path / "straight")
    straight.run()
    stopped = trainer(tmp_path / "stopped")
    monkeypatch.setattr(stopped, "recipe", Recipe(rounds=SHORT.rounds[:1], tokens_per_step=600))
    stopped.run()
    stopped.save()
    resumed = trainer(tmp_path / "stopped")
    resumed.resume()
    resumed.run()
    assert straight.step == resumed.step == 4
    for name, weight in straight.model.state_dict().items():
        assert torch.equal(weight, resumed.model.state_dict()[name]), name


def test_each_round_warms_up_and_cools_down() -> None:
    for one in RECIPE.rounds:
        rates = [one.rate_at(step) for step in range(one.steps)]
        assert max(rates) == pytest.approx(one.rate, rel=0.1)
        assert rates[0] < 0.1 * one.rate
        assert rates[-1] < 0.06 * one.rate


def test_only_answers_weigh_fully_and_they_end_in_the_end_token() -> None:
    sample = TASKS.get("needle").generate(0, 0, 300, ENCODER)
    one = row(sample, ENCODER)
    ids, targets, weights = batch([one])
    (end,) = ENCODER.eos
    answered = [(list(targets[0, start:stop]), weights[0, start:stop]) for start, stop in one.spans]
    for turn, (tokens, weight) in zip(sample.turns, answered, strict=True):
        assert tokens == [*ENCODER.encode(turn.space + turn.expected), end]
        assert bool((weight == 1).all())
    assert int((weights == 1).sum()) == sum(len(tokens) for tokens, _ in answered)
    assert ids.shape == targets.shape == weights.shape


@given(st.text(max_size=60))
@settings(max_examples=60, deadline=None)
def test_any_text_survives_the_tokenizer(text: str) -> None:
    assert ENCODER.decode(ENCODER.encode(text)) == text


def test_the_shipped_tokenizer_is_the_one_that_the_script_builds() -> None:
    from transformers import AutoTokenizer

    shipped = AutoTokenizer.from_pretrained(paths.bundle("fixtures") / "mini")
    assert shipped.get_vocab() == ENCODER.tokenizer.get_vocab()
    text = TASKS.get("code_and_kv").generate(0, 0, 400, ENCODER).context
    assert Encoder(shipped).encode(text) == ENCODER.encode(text)
