"""kvpress's presses through the adapter: as in kvpress's own pipeline, and refused with the reason."""

from __future__ import annotations

import pytest
import torch
from presses import REFUSED, SPECS

from kvcheck.core.errors import MethodUnsupported, SpecError
from kvcheck.core.spec import Spec
from kvcheck.measure.memory import held
from kvcheck.methods import make
from kvcheck.methods.adapters.recognise import build

kvpress = pytest.importorskip("kvpress", reason="kvpress is not installed: pip install 'kvcheck[kvpress]'")
STEPS = 12
TOKEN = 4 * 2 * 4 * 64 * 2


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """Downloads fail at once."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def pipeline_answer(mini, press, prompt, question):
    """Greedy tokens of kvpress's own pipeline, from token ids."""
    pipe = object.__new__(kvpress.KVPressTextGenerationPipeline)  # its constructor wants a tokenizer and a device
    pipe.model, pipe.tokenizer = mini.model, Words()
    before, mini.model.config._attn_implementation = mini.model.config._attn_implementation, "sdpa"
    try:
        with torch.no_grad():
            given = {"context_ids": prompt, "questions_ids": [question]}
            return pipe._forward(given, max_new_tokens=STEPS, press=press)[0]
    finally:
        mini.model.config._attn_implementation = before


class Words:
    """Stands in for a tokenizer: an answer is its numbers."""

    def decode(self, ids, **kwargs):
        return " ".join(str(int(one)) for one in ids)


def adapter_answer(mini, text, prompt, question):
    """The same through kvcheck."""
    runner = make(text).runner(mini)
    with torch.inference_mode():
        cache, _ = runner.prefill(prompt)
        logits = runner.feed(cache, question)
        answer = [int(logits[0, -1].argmax())]
        while len(answer) < STEPS and answer[-1] != mini.model.generation_config.eos_token_id:
            answer.append(int(runner.feed(cache, torch.tensor([[answer[-1]]]))[0, -1].argmax()))
    return " ".join(map(str, answer))


SAME = [
    "SnapKVPress",
    "KnormPress",
    "StreamingLLMPress",
    "TOVAPress",
    "ExpectedAttentionPress",
    "KeyRerotationPress",
    "AdaKVPress",
    "ThinKPress",
    "ChunkPress",
    "KVzipPress",
    "DecodingPress",
    "PrefillDecodingPress",
    "CompressionRatioDecodingPress",
    "DMSPress",
]


@pytest.mark.parametrize("name", SAME)
def test_answers_are_those_of_kvpresss_own_pipeline(name, mini):
    for seed in range(2):
        generator = torch.Generator().manual_seed(seed)
        prompt = torch.randint(20, 1000, (1, 300), generator=generator)
        question = torch.randint(20, 1000, (1, 6), generator=generator)
        spec = Spec.parse(SPECS[name])
        theirs = pipeline_answer(mini, build(spec, getattr(kvpress, name)), prompt, question)
        assert adapter_answer(mini, SPECS[name], prompt, question) == theirs


DRAWS = ("RandomPress", "LeverageScorePress", "CompactorPress")
"""Presses that draw random numbers."""
CLAIMS_LESS = ("SimLayerKVPress", "ComposedPress")
"""Presses that may free memory and are not held to it: lazy layers may be none, a part of several may free nothing."""


@pytest.mark.parametrize("name", sorted(set(SPECS) - set(REFUSED)))
def test_every_press_serves_a_prompt_a_question_and_forks(name, mini):
    ids = torch.randint(20, 1000, (2, 320), generator=torch.Generator().manual_seed(1))
    method = make(SPECS[name])
    runner = method.runner(mini)
    with torch.inference_mode():
        cache, logits = runner.prefill(ids)
        fork = cache.select([1, 0])
        one = runner.feed(fork, ids[:, :9])
        again = runner.feed(cache, ids[:, :9])
    assert bool(logits.isfinite().all() and one.isfinite().all())
    if name not in DRAWS:
        torch.testing.assert_close(one, runner.feed(runner.prefill(ids.flip(0))[0], ids[:, :9]), atol=1e-4, rtol=0)
    assert one.shape == again.shape
    assert method.info.frees_memory == (held(runner.prefill(ids)[0]).kv < 2 * 320 * TOKEN) or name in CLAIMS_LESS


def test_the_specs_name_every_press():
    assert set(SPECS) == {name for name in kvpress.__all__ if name.endswith("Press")}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_run_here_is_refused_with_the_reason(name, mini):
    with pytest.raises(MethodUnsupported) as error:
        make(SPECS[name]).runner(mini)
    assert name in str(error.value)
    assert len(error.value.message) > len(SPECS[name]) + 20


def test_each_row_has_the_masks_of_its_own(mini):
    ids = torch.randint(20, 1000, (2, 200), generator=torch.Generator().manual_seed(2))
    runner = make(SPECS["AdaKVPress"]).runner(mini)
    with torch.inference_mode():
        together = runner.feed(runner.prefill(ids)[0], ids[:, :4])
        alone = [runner.feed(runner.prefill(row)[0], row[:, :4]) for row in ids.split(1)]
    assert torch.equal(together, torch.cat(alone))
    assert all(module.masked_key_indices is None for module in mini.model.modules() if hasattr(module, "layer_idx"))


def test_fp16_is_the_same_before_and_after_a_press(mini):
    ids = torch.randint(20, 1000, (1, 200), generator=torch.Generator().manual_seed(3))
    runner = make("fp16").runner(mini)
    with torch.inference_mode():
        before = runner.prefill(ids)[1]
        make(SPECS["AdaKVPress"]).runner(mini).prefill(ids)
        assert torch.equal(before, runner.prefill(ids)[1])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("kvpress.SnapKVPress:compression_ratoi=0.5", "did you mean compression_ratio"),
        ("kvpress.SnapKVPress:compression_ratio=1.5", "Compression ratio must be between 0 and 1"),
        ("kvpress.AdaKVPress", "needs press"),
        ("kvpress.AdaKVPress:press=snapkv", "not an import path"),
        ("kvpress.AdaKVPress:press='kvpress.ThinKPress'", "requires a ScorerPress"),
        ("kvpress.PerLayerCompressionPress:press=kvpress.KnormPress,compression_ratios='0.2;x'", "is not float"),
        ("kvpress.SnapPress", "did you mean SnapKVPress"),
    ],
)
def test_parameters_are_checked_before_anything_runs(text, reason):
    with pytest.raises(SpecError, match=reason):
        make(text)
