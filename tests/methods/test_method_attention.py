"""The full cache equals plain transformers, and what kvcheck cannot serve is refused."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import transformers
from toys import KINDS, SHAPE, cut, dense, feed, model_of, prompt, tokens
from transformers.cache_utils import Cache, DynamicLayer

from kvcheck.cache import attention
from kvcheck.cache.kernels import attend_one, probabilities
from kvcheck.cache.shape import ModelShape
from kvcheck.core.errors import KvcheckError, MethodUnsupported
from kvcheck.methods import make
from kvcheck.methods.fp16 import Fp16

GREEDY = {
    "max_new_tokens": 24,
    "do_sample": False,
    "pad_token_id": 0,
    "eos_token_id": None,
    "return_dict_in_generate": True,
    "output_logits": True,
}


class RoundedLayer(DynamicLayer):
    """transformers' own full cache, with float16 rounding on entry: the reference for what runs on CPU."""

    def update(self, key_states, value_states, *args, **kwargs):
        return super().update(key_states.half().float(), value_states.half().float())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_fp16_generates_as_plain_transformers_bit_for_bit(kind, dtype):
    model, ids = model_of(kind, dtype), tokens(2, 40)
    plain = model.generate(ids, **GREEDY)
    attention.use(model)
    mine = model.generate(ids, past_key_values=Fp16().build(ModelShape.of(model.config), dtype), **GREEDY)
    assert torch.equal(plain.sequences, mine.sequences)
    for theirs, ours in zip(plain.logits, mine.logits, strict=True):
        assert torch.equal(theirs, ours)


@pytest.mark.parametrize("kind", KINDS)
def test_fp16_rounds_as_plain_transformers_with_rounded_keys_does(kind):
    model, ids = model_of(kind), tokens(2, 40)
    plain = model.generate(ids, past_key_values=Cache(layer_class_to_replicate=RoundedLayer), **GREEDY)
    attention.use(model)
    mine = model.generate(ids, past_key_values=Fp16().build(ModelShape.of(model.config)), **GREEDY)
    assert torch.equal(plain.sequences, mine.sequences)
    for theirs, ours in zip(plain.logits, mine.logits, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_direct_calls_with_a_prompt_a_block_and_tokens_equal_one_forward(kind):
    model, ids = model_of(kind), tokens(2, 60)
    plain = model(ids).logits
    attention.use(model)
    cache = Fp16().build(ModelShape.of(model.config), torch.float32)
    parts = [
        model(ids[:, start:stop], past_key_values=cache).logits
        for start, stop in ((0, 40), (40, 55), (55, 56), (56, 60))
    ]
    torch.testing.assert_close(torch.cat(parts, 1), plain, atol=1e-4, rtol=1e-4)
    assert cache.get_seq_length() == 60


def test_beam_search_reorders_the_rows():
    model, ids = model_of(), tokens(2, 20)
    wanted = {"max_new_tokens": 8, "num_beams": 3, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    plain = model.generate(ids, **wanted)
    attention.use(model)
    cache = Fp16().build(ModelShape.of(model.config), torch.float32)
    assert torch.equal(plain, model.generate(ids, past_key_values=cache, **wanted))


def test_a_query_head_reads_the_kv_head_of_its_block():
    shape = ModelShape(layers=1, heads=6, kv_heads=2, head_dim=8)
    parts = prompt(20, shape, dtype=torch.float32)
    cache = Fp16().build(shape, torch.float32)
    outs = [feed(cache, cut(parts, 0, 15))[0], feed(cache, cut(parts, 15, 19))[0], feed(cache, cut(parts, 19, 20))[0]]
    keys, values, queries = parts[0].keys, parts[0].values, parts[0].queries
    wanted = dense(queries, keys, values, past=0)
    torch.testing.assert_close(torch.cat(outs, 1).double(), wanted, atol=1e-5, rtol=1e-5)
    one = attend_one(queries[:, :, -1:], keys, values, None).transpose(1, 2)
    torch.testing.assert_close(one.double(), wanted[:, -1:], atol=1e-5, rtol=1e-5)
    interleaved = queries.view(2, 3, 2, 20, 8).transpose(1, 2).reshape(2, 6, 20, 8)
    assert not torch.allclose(dense(interleaved, keys, values, past=0), wanted, atol=1e-2)


@pytest.mark.parametrize("past", [0, 7])
def test_probabilities_are_causal_and_add_up_to_one(past):
    parts = prompt(12)[0]
    found = probabilities(parts.queries[:, :, past:], parts.keys, 8**-0.5, past)
    assert found.shape == (2, 2, 2, 12 - past, 12)
    torch.testing.assert_close(found.sum(-1), torch.ones(2, 2, 2, 12 - past))
    for row in range(12 - past):
        assert bool((found[..., row, past + row + 1 :] == 0).all())


def test_padding_is_refused():
    model = attention.use(model_of())
    mask = torch.ones(2, 10, dtype=torch.long)
    cache = Fp16().build(ModelShape.of(model.config))
    model(tokens(2, 10), attention_mask=mask, past_key_values=cache)
    mask[0, 0] = 0
    with pytest.raises(MethodUnsupported, match="padded"):
        model(tokens(2, 10), attention_mask=mask, past_key_values=Fp16().build(ModelShape.of(model.config)))


def test_a_mask_of_the_callers_own_is_refused():
    model = attention.use(model_of())
    mask = torch.zeros(1, 1, 4, 4)
    with pytest.raises(MethodUnsupported, match="its own causal mask"):
        model(tokens(1, 4), attention_mask=mask, past_key_values=Fp16().build(ModelShape.of(model.config)))


@pytest.mark.parametrize("given", ["none", "dynamic"])
def test_attending_without_a_kvcheck_cache_is_an_error_that_names_the_remedy(given):
    model = attention.use(model_of())
    cache = transformers.DynamicCache() if given == "dynamic" else None
    with pytest.raises(KvcheckError, match=r"method\.build\(ModelShape\.of"):
        model(tokens(1, 4), past_key_values=cache, use_cache=cache is not None)


def test_a_cache_left_behind_by_another_forward_is_not_taken():
    model, other = attention.use(model_of()), model_of()
    shape = ModelShape.of(model.config)
    other(tokens(1, 4), past_key_values=Fp16().build(shape))  # attends through sdpa and leaves a layer pending
    with pytest.raises(KvcheckError, match="no kvcheck cache is in use"):
        model(tokens(1, 4), use_cache=False)


def test_a_model_that_attends_otherwise_is_noticed_at_its_second_forward():
    model = model_of()
    cache = Fp16().build(ModelShape.of(model.config))
    model(tokens(1, 4), past_key_values=cache)
    with pytest.raises(KvcheckError, match="does not attend through kvcheck"):
        model(tokens(1, 1), past_key_values=cache)


def test_a_sliding_window_shorter_than_the_text_is_refused():
    model = attention.use(model_of("Mistral", sliding_window=16))
    shape = ModelShape.of(model.config)
    model(tokens(1, 16), past_key_values=Fp16().build(shape))
    with pytest.raises(MethodUnsupported, match="sliding window of 16 tokens"):
        model(tokens(1, 17), past_key_values=Fp16().build(shape))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (ModelShape(3, 4, 4, 8), "2 kv heads of dimension 8"),
        (ModelShape(3, 4, 2, 16), "the cache was built for 2 of 16"),
        (ModelShape(2, 4, 2, 8), "the cache was built for 2 layers"),
    ],
)
def test_a_cache_of_another_shape_is_refused(shape, message):
    model = attention.use(model_of())
    with pytest.raises(MethodUnsupported, match=message):
        model(tokens(1, 4), past_key_values=Fp16().build(shape))


def test_another_number_of_rows_is_refused():
    model = attention.use(model_of())
    cache = Fp16().build(ModelShape.of(model.config))
    model(tokens(2, 4), past_key_values=cache)
    with pytest.raises(KvcheckError, match="holds 2 sequences and was given tokens of 3"):
        model(tokens(3, 1), past_key_values=cache)


def test_the_shape_of_a_config_is_read_and_a_model_without_attention_refused():
    assert ModelShape.of(model_of("Qwen2").config) == ModelShape(3, 4, 2, 8)
    with pytest.raises(MethodUnsupported, match="mamba"):
        ModelShape.of(transformers.MambaConfig())


@pytest.mark.parametrize("mask", ["attention_chunk_size", "use_bidirectional_attention"])
def test_a_model_whose_mask_is_not_causal_over_all_tokens_is_refused(mask):
    """Such a mask never reaches the attention function: the model would run, and attend to the wrong tokens."""
    config = SimpleNamespace(num_hidden_layers=2, num_attention_heads=2, hidden_size=32, **{mask: 8})
    with pytest.raises(MethodUnsupported, match=mask):
        ModelShape.of(config)


def test_cropping_is_refused():
    with pytest.raises(MethodUnsupported, match="cropped"):
        Fp16().build(SHAPE).layers[0].crop(-1)


@pytest.mark.parametrize(
    "text", ["fp16", "snapkv:budget=0.25,window=8", "h2o:budget=64", "kivi:bits=4", "streaming_llm:window=1.0"]
)
def test_a_method_knows_its_spec(text):
    assert str(make(text).spec) == text
