"""In bfloat16 and float16: nothing but keys and values is kept in 16 bits, and every method answers as in float32."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from toys import cut, prompt

from kvcheck.cache.kv_cache import KVCache
from kvcheck.cache.ragged import RaggedLayer
from kvcheck.cache.shape import ModelShape, Prefilled
from kvcheck.measure.audit import audit
from kvcheck.methods import METHODS, make
from kvcheck.methods.fp16 import Fp16
from kvcheck.models import LoadedModel, load

SHAPE = ModelShape(layers=2, heads=4, kv_heads=2, head_dim=32, rope=tuple(10_000 ** (-at / 16) for at in range(16)))
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
OWN_RUNNER = {"cacheblend", "cake", "duo_attention", "kvzip", "llmlingua2", "look_m", "mixattention"}
MORE = ("kivi:bits=4", "fp8:scale=token", "snapkv+kivi:bits=4", "look_m:text_prior=false", "quest:dense_layers=0")
CHANGED = {
    "flexgen": "flexgen:group=32",
    "inf_llm": "inf_llm:local=64,retrieved=64",
    "kvmerger": "kvmerger:threshold=0.2",
    "retrieval_attention": "retrieval_attention:window=32,top_k=16",
}
LAYERS = (*(CHANGED.get(name, name) for name in METHODS.names() if name not in OWN_RUNNER), *MORE)
MODELS = (*(name for name in METHODS.names() if name != "look_m"), *MORE)
NEAR = {"bfloat16": 0.08, "float16": 0.025}
"""Mean distance of the distributions over the next token: 0.015 and 0.002 of the full cache, more of what chooses."""
every_layer = pytest.mark.parametrize("text", LAYERS)
both_dtypes = pytest.mark.parametrize("name", DTYPES)


def widened(parts: list[Prefilled]) -> list[Prefilled]:
    """The very same numbers in float32."""
    return [Prefilled(part.keys.float(), part.values.float(), part.queries.float()) for part in parts]


def run(text: str, parts: list[Prefilled], dtype: torch.dtype, steps: int) -> tuple[KVCache, list[torch.Tensor]]:
    """The cache of a prompt and `steps` more tokens, a block of three, then one by one; and the attention of those."""
    cache, ends = make(text).build(SHAPE, dtype), parts[0].keys.shape[2]
    start = ends - steps
    cache.absorb(cut(parts, 0, start))
    outs = []
    for first, last in [(start, start + 3), *((at, at + 1) for at in range(start + 3, ends))]:
        for index, part in enumerate(cut(parts, first, last)):
            cache.update(part.keys, part.values, index)
            outs.append(cache.layers[index].attend(part.queries))
    return cache, outs


@every_layer
@both_dtypes
def test_a_method_keeps_in_16_bits_what_it_keeps_of_the_same_numbers_in_32(text: str, name: str) -> None:
    """So scores, bounds and counts are not rounded to 16 bits before they are compared."""
    parts = prompt(320, SHAPE, dtype=DTYPES[name])
    narrow, _ = run(text, parts, DTYPES[name], 20)
    wide, _ = run(text, widened(parts), torch.float32, 20)
    for one, other in zip(narrow.layers, wide.layers, strict=True):
        assert one.positions.dtype == torch.int32
        assert torch.equal(one.positions, other.positions)
        if isinstance(one, RaggedLayer):
            assert torch.equal(one.valid, other.valid)


@every_layer
@both_dtypes
def test_attention_in_16_bits_is_that_of_32_within_the_error_of_the_dtype(text: str, name: str) -> None:
    parts = prompt(320, SHAPE, dtype=DTYPES[name])
    _, narrow = run(text, parts, DTYPES[name], 12)
    _, wide = run(text, widened(parts), torch.float32, 12)
    assert {out.dtype for out in narrow} == {DTYPES[name]}
    error = max(float((one.float() - other).abs().max()) for one, other in zip(narrow, wide, strict=True))
    assert error < 8 * torch.finfo(DTYPES[name]).eps


@every_layer
@both_dtypes
def test_products_beyond_the_range_of_float16_do_no_harm(text: str, name: str) -> None:
    """Scores, squares and norms of numbers around 200 exceed 65,504."""
    drawn = prompt(320, SHAPE, dtype=torch.float32)
    large = [Prefilled(*((each * 200).to(DTYPES[name]) for each in (p.keys, p.values, p.queries))) for p in drawn]
    _, outs = run(text, large, DTYPES[name], 12)
    assert all(bool(out.isfinite().all()) for out in outs)


@both_dtypes
@pytest.mark.parametrize("text", ["h2o:budget=100000", "inf_llm:local=100000"])
def test_attention_received_is_summed_in_32_bits(text: str, name: str) -> None:
    """Of 1,500 queries, whose weights sum up to one each: bfloat16 counts up to 256, float16 up to 2,048."""
    cache = make(text).build(SHAPE)
    cache.absorb(prompt(1500, SHAPE, rows=1, dtype=DTYPES[name]))
    layer = cache.layers[0]
    received = layer.scores if text.startswith("h2o") else layer.received
    assert float(received.sum()) == pytest.approx(1500 * SHAPE.heads, rel=1e-4)


@pytest.mark.parametrize("text", [text for text in LAYERS if text != "corm"])  # which finds all of it important
@both_dtypes
def test_the_audit_finds_nothing_wrong_with_a_long_prompt_in_16_bits(text: str, name: str) -> None:
    """Beyond the 256 and 2,048 to which the dtypes count: slots still hold what stands at their positions."""
    parts, method = prompt(2300, SHAPE, rows=1, dtype=DTYPES[name]), make(text)
    cache = method.build(SHAPE)
    cache.absorb(parts)
    assert audit(cache, parts, method).problems == ()


# -- a model in 16 bits ------------------------------------------------------------------------------------------------


@cache
def model(dtype: torch.dtype) -> LoadedModel:
    """The embedded model."""
    return load("mini", torch.device("cpu"), dtype)


@cache
@torch.inference_mode()
def answered(text: str, dtype: torch.dtype) -> tuple[torch.Tensor, tuple[str, ...]]:
    """Logits behind a prompt, in a block and of single tokens (R, n, V), and what the audit finds after the prompt."""
    from kvcheck.tasks import TASKS

    loaded = model(dtype)
    words = loaded.tokenizer.encode(TASKS.get("kv").generate(0, 0, 300, loaded.tokenizer).context)
    more = torch.randint(3, 400, (1, 24), generator=torch.Generator().manual_seed(0))
    ids = torch.cat([torch.tensor([words]), more], dim=1)
    runner, full = make(text).runner(loaded), Fp16().build(loaded.shape)
    with full.recording() as dense:
        loaded.model(ids[:, :300], past_key_values=full, logits_to_keep=1)
    found, logits = runner.prefill(ids[:, :300])
    problems = audit(found, dense, runner.method).problems
    outs = [logits[:, None], runner.feed(found, ids[:, 300:308], 8)]
    outs += [runner.feed(found, ids[:, at : at + 1]) for at in range(308, 324)]
    return torch.cat(outs, dim=1), problems


@both_dtypes
@pytest.mark.parametrize("text", MODELS)
def test_a_model_in_16_bits_answers_nearly_as_in_32(text: str, name: str) -> None:
    """A dtype that does not fit would raise, an overflow would give NaN."""
    narrow, _ = answered(text, DTYPES[name])
    wide, _ = answered(text, torch.float32)
    assert narrow.dtype == DTYPES[name]
    apart = (narrow.float().softmax(-1) - wide.softmax(-1)).abs().sum(-1) / 2
    assert float(apart.mean()) < NEAR[name]


@both_dtypes
@pytest.mark.parametrize("text", MODELS)
def test_the_audit_finds_nothing_wrong_with_a_model_in_16_bits(text: str, name: str) -> None:
    assert answered(text, DTYPES[name])[1] == ()
