"""fp16 through the engine equals plain transformers in the same dtypes: a broken harness shows here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.cache_utils import Cache, DynamicLayer

from kvcheck.core.record import MODES, CaseId
from kvcheck.models import LoadedModel
from kvcheck.runner.case import Runner


class RoundedLayer(DynamicLayer):
    """transformers' own full cache, with keys and values rounded to float16 as they enter."""

    def update(self, key_states: Any, value_states: Any, *args: Any, **kwargs: Any) -> Any:
        return super().update(key_states.half().float(), value_states.half().float(), *args, **kwargs)


@pytest.fixture(scope="module")
def plain(folder: Path) -> Any:
    """The same weights with transformers' sdpa."""
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="sdpa").eval()


def generate(plain: Any, ids: list[int], limit: int) -> list[int]:
    """model.generate, greedy, on a rounded cache; without the end token."""
    cache = Cache(layers=[RoundedLayer() for _ in range(plain.config.num_hidden_layers)])
    ends = plain.generation_config.eos_token_id
    out = plain.generate(
        torch.tensor([ids]), past_key_values=cache, max_new_tokens=limit, do_sample=False, pad_token_id=2
    )[0, len(ids) :].tolist()
    return out[:-1] if out[-1] in ends else out


def expected(plain: Any, runner: Runner, case: CaseId, index: int) -> list[str]:
    """The answers to one sample, every one from the whole conversation so far."""
    encoder, sample = runner.backend.encoder, runner.samples["toy", 1, case.seed, case.length, index]
    context = [*encoder.bos, *encoder.encode(sample.context)]
    history, answers = list(context), []
    for number, turn in enumerate(sample.turns[:1] if case.mode == "single" else sample.turns):
        if case.mode == "multi_request":
            history = list(context)
        elif number:
            history += encoder.encode(sample.separator)
        history += encoder.encode(turn.question)
        answer = generate(plain, history, turn.max_new_tokens)
        history += answer
        answers.append(encoder.decode(answer).removeprefix(" "))
    return answers


@pytest.mark.parametrize("mode", MODES)
def test_same_answers_in_every_mode(plain: Any, runner: Runner, case: Callable[..., CaseId], mode: str) -> None:
    wanted = case(mode, n=6)
    record = runner.run_case(wanted, "fp16")
    for sample in record.samples:
        assert [turn.answer for turn in sample.turns] == expected(plain, runner, wanted, sample.index)
    lengths = {len(turn.answer.split()) for sample in record.samples for turn in sample.turns}
    assert len(lengths) >= 3, "the answers should end at different times"


def test_the_drift_of_fp16_is_the_likelihood_under_plain_transformers(
    plain: Any, runner: Runner, case: Callable[..., CaseId], loaded: LoadedModel
) -> None:
    record = runner.run_case(case("single", n=3), "fp16")
    encoder = loaded.tokenizer
    for sample in record.samples:
        shown = runner.samples["toy", 1, 0, 40, sample.index]
        prompt = [*encoder.bos, *encoder.encode(shown.context), *encoder.encode(shown.turns[0].question)]
        answer = encoder.encode(shown.turns[0].references[0])
        cache = Cache(layers=[RoundedLayer() for _ in range(plain.config.num_hidden_layers)])
        with torch.no_grad():
            logits = plain(torch.tensor([prompt + answer]), past_key_values=cache).logits[0, len(prompt) - 1 : -1]
        nll = torch.nn.functional.cross_entropy(logits, torch.tensor(answer)).item()
        assert sample.turns[0].nll == pytest.approx(nll, abs=1e-4)
        assert (sample.turns[0].agree, sample.turns[0].kl) == (1.0, 0.0)
