"""InfLLM equals its definition, computed here from keys and queries that were never rotated, one token at a time."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
import transformers
from toys import KINDS, ROPE, SHAPE, absorbed, cut, dense, feed, model_of, prompt, states, tokens
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from kvcheck.cache import attention
from kvcheck.cache.rotary import rotate, unrotate
from kvcheck.cache.shape import ModelShape, Prefilled
from kvcheck.core.errors import KvcheckError, MethodUnsupported, SpecError
from kvcheck.measure.memory import held
from kvcheck.methods import make
from kvcheck.methods.inf_llm import InfLLM

ONE = ModelShape(layers=1, heads=4, kv_heads=2, head_dim=8, rope=ROPE)
STILL = ModelShape(layers=1, heads=4, kv_heads=2, head_dim=8, rope=(0.0,) * 4)


def turned(states: torch.Tensor, positions: torch.Tensor | int, rope: tuple[float, ...] = ROPE) -> torch.Tensor:
    """Rotated by complex numbers, in float64: channel c is the real part of a number, c + d/2 its imaginary part."""
    real, imaginary = states.double().chunk(2, dim=-1)
    angle = torch.as_tensor(positions).double().unsqueeze(-1) * torch.tensor(rope, dtype=torch.float64)
    number = torch.complex(real, imaginary) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat([number.real, number.imag], dim=-1)


def rotated(part: Prefilled, rope: tuple[float, ...] = ROPE) -> Prefilled:
    """What a model hands over of keys and queries that were never rotated."""
    at = torch.arange(part.keys.shape[2])
    keys, queries = (turned(each, at, rope).float() for each in (part.keys, part.queries))
    return Prefilled(keys, part.values.float(), queries)


class Reference:
    """InfLLM of one row of a batch, by the definition: lists of positions, float64, no storage, no shortcuts."""

    def __init__(self, part: Prefilled, method: InfLLM, prompt: int, rope: tuple[float, ...] = ROPE) -> None:
        self.q, self.k, self.v = (each[0].double() for each in (part.queries, part.keys, part.values))
        self.method, self.rope = method, rope
        self.width, self.most = method.width(prompt), method.most(prompt)
        self.votes = torch.zeros(self.q.shape[0], self.k.shape[1], dtype=torch.float64)
        self.blocks: list[list[int]] = []
        self.vectors: list[torch.Tensor] = []

    def vector(self, block: list[int]) -> torch.Tensor:
        """Per query head the mean of the keys that received most (H, d)."""
        rows = []
        for head in range(self.q.shape[0]):
            best = sorted(block, key=lambda at, head=head: (-float(self.votes[head, at]), at))
            rows.append(self.k[head // 2, best[: self.method.representatives]].mean(0))
        return torch.stack(rows)

    def group(self, start: int, stop: int) -> torch.Tensor:
        """Attention of tokens that look blocks up together -> (q, H, d)."""
        far = turned(self.q[:, start:stop], self.width - 1, self.rope)
        fits = [float((far.mean(1) * vector).sum()) for vector in self.vectors]
        best = sorted(range(len(fits)), key=lambda at: (-fits[at], at))[: self.most]
        found = [at for block in sorted(best) for at in self.blocks[block]]
        in_blocks = {at for block in self.blocks for at in block}
        out = torch.zeros(stop - start, *self.q[:, 0].shape, dtype=torch.float64)
        for token in range(start, stop):
            near = list(range(max(0, token - self.width + 1), token + 1))
            old = [at for at in range(token - self.width + 1) if at not in in_blocks]
            for head in range(self.q.shape[0]):
                keys, values = self.k[head // 2], self.v[head // 2]
                query = turned(self.q[head, token], token, self.rope)
                scores = turned(keys[near], torch.tensor(near), self.rope) @ query
                scores = torch.cat([scores, keys[found + old] @ far[head, token - start]])
                weights = (scores / keys.shape[1] ** 0.5).softmax(0)
                out[token - start, head] = weights @ values[near + found + old]
                self.votes[head, near] += weights[: len(near)]
        left = [at for at in range(stop) if at not in in_blocks]
        while len(left) - self.method.init - self.method.block >= self.width:
            self.blocks.append(left[self.method.init : self.method.init + self.method.block])
            self.vectors.append(self.vector(self.blocks[-1]))
            left = [at for at in left if at not in self.blocks[-1]]
        return out

    def take(self, start: int, stop: int) -> torch.Tensor:
        """Attention of the tokens of one forward -> (1, q, H, d)."""
        starts = range(start, stop, self.method.exc)
        return torch.cat([self.group(at, min(at + self.method.exc, stop)) for at in starts])[None]


def compare(method: InfLLM, n: int, sizes: list[int], shape: ModelShape = ONE) -> tuple[Reference, object, Prefilled]:
    """Feed a prompt of n tokens and blocks of these sizes; every output must be that of the reference."""
    plain = prompt(n + sum(sizes), shape, rows=1, seed=3, dtype=torch.float32)[0]
    part = rotated(plain, shape.rope)
    reference, cache, at = Reference(plain, method, n, shape.rope), method.build(shape, torch.float32), 0
    for size in (n, *sizes):
        out = feed(cache, cut([part], at, at + size))[0]
        torch.testing.assert_close(out.double(), reference.take(at, at + size), atol=1e-4, rtol=1e-4)
        at += size
    return reference, cache.layers[0], part


@pytest.mark.parametrize("sizes", [[1] * 12, [11], [1, 9, 1]])
@pytest.mark.parametrize("method", [
    InfLLM(4, 12, 4, 8, 2, 8), InfLLM(0, 0.2, 5, 0.2, 1, 7), InfLLM(3, 6, 4, 1000, 4, 16), InfLLM(2, 1, 2, 4, 2, 5),
    InfLLM(90, 12, 4, 8, 2, 8),
])  # fmt: skip
def test_prompt_follow_up_and_decoded_tokens_attend_as_defined(method, sizes):
    reference, layer, part = compare(method, 60, sizes)
    end = 60 + sum(sizes)
    assert [at for block in reference.blocks for at in block] == list(range(method.init, method.init + layer.away)), (
        "blocks are in order"
    )
    near = [at for at in range(end) if not method.init <= at < method.init + layer.away]
    assert torch.equal(layer.k.used, part.keys[:, :, near])
    assert torch.equal(layer.read(slice(None), torch.float32)[0], part.keys)
    torch.testing.assert_close(layer.received.double(), reference.votes[None][:, :, near], atol=1e-4, rtol=1e-4)
    if reference.vectors:
        wanted = torch.stack(reference.vectors, 1)[None]
        torch.testing.assert_close(layer.vectors.used.double(), wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("n", "local"), [(40, 44), (40, 1000), (3, 8)])
def test_a_text_that_fits_the_window_is_the_full_cache(n, local):
    method, parts = InfLLM(2, local, 4, 8, 2, 8), prompt(n + 4)
    cache, at = method.build(SHAPE), 0
    for size in (n, 3, 1):
        for out, part in zip(feed(cache, cut(parts, at, at + size)), parts, strict=True):
            seen = slice(0, at + size)
            wanted = dense(part.queries[:, :, at : at + size], part.keys[:, :, seen], part.values[:, :, seen], at)
            torch.testing.assert_close(out.double(), wanted, atol=1e-5, rtol=1e-5)
        at += size


def test_retrieving_all_blocks_is_dense_only_where_positions_do_not_matter():
    method = InfLLM(2, 8, 4, 1000, 2, 8)
    for shape, same in ((STILL, True), (ONE, False)):
        part = prompt(60, shape)[0]
        cache = method.build(shape)
        for start, stop in ((0, 50), (50, 59), (59, 60)):
            out = feed(cache, cut([part], start, stop))[0].double()
            wanted = dense(part.queries[:, :, start:stop], part.keys[:, :, :stop], part.values[:, :, :stop], start)
            assert torch.allclose(out, wanted, atol=1e-5) == same
        assert cache.layers[0].vectors.length == 12


GOLDEN = [(4224, 0, 4096), (4352, 1, 4096), (8192, 31, 4096), (10000, 45, 4112), (4000, 0, 4000), (4100, 0, 4096)]


@pytest.mark.parametrize(("n", "blocks", "rest"), GOLDEN)
def test_blocks_are_counted_as_in_the_golden_table(n, blocks, rest):
    method, llama = InfLLM(128, 4096, 128), ModelShape(32, 32, 8, 128)
    assert method.blocks(n, 0) == blocks
    first = min(128, max(0, n - 4096))
    assert first + blocks * 128 + rest == n
    assert method.kv_bytes(llama, 1, n, 0) == 2 * 32 * 8 * 128 * 2 * (rest + first) + 32 * blocks * 32 * 128 * 2
    assert method.host_bytes(llama, 1, n, 0) == 2 * 32 * 8 * 128 * 2 * blocks * 128


@pytest.mark.parametrize("n", [1, 11, 15, 16, 19, 20, 21, 67])
def test_device_and_host_hold_every_token_once_after_each_step(n):
    method, parts = InfLLM(4, 12, 4, 8, 2, 8), prompt(n + 40)
    cache, at = absorbed(method, cut(parts, 0, n)), n
    for size in (0, 1, 1, 1, 5, 1, 25):
        if size:
            feed(cache, cut(parts, at, at + size))
            at += size
        away = max(0, at - 16) // 4 * 4
        near = [slot for slot in range(at) if not 4 <= slot < 4 + away]
        for layer, part in zip(cache.layers, parts, strict=True):
            assert torch.equal(layer.k.used, part.keys[:, :, near])
            assert torch.equal(layer.v.used, part.values[:, :, near])
            assert layer.away == away
            if away:
                assert torch.equal(layer.hk.used, part.keys[:, :, 4 : 4 + away])
                assert torch.equal(layer.hv.used, part.values[:, :, 4 : 4 + away])
        weight = held(cache)
        assert weight.kv == method.kv_bytes(SHAPE, 2, n, at - n)
        assert weight.host == method.host_bytes(SHAPE, 2, n, at - n) == 2 * 2 * 2 * 2 * away * 8 * 2
        assert weight.meta == 2 * 2 * 4 * len(near) * 4


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("cuts", [(0, 30, 31, 75), (0, 5, 12, 40, 75), (0, 16, 32, 75), (0, 74, 75)])
def test_a_prompt_in_chunks_gives_the_cache_of_one_pass(cuts):
    method, parts = InfLLM(4, 20, 8, 16, 2, 8), prompt(75)
    absorb, direct, chunked = absorbed(method, parts), method.build(SHAPE), method.build(SHAPE)
    whole = feed(direct, parts)
    with chunked.prefilling():
        pieces = [feed(chunked, cut(parts, *span)) for span in pairwise(cuts)]
    caches = (absorb, direct, chunked)
    for cache in caches[1:]:
        assert same(states(absorb), states(cache))
        for one, other in zip(absorb.layers, cache.layers, strict=True):
            assert same([one.vectors.used, one.received], [other.vectors.used, other.received])
    later = prompt(3, seed=5)
    outs = [feed(cache, cut(later, 0, 1)) + feed(cache, cut(later, 1, 3)) for cache in caches]
    assert same(outs[0], outs[1])
    assert same(outs[0], outs[2])
    if cuts[1] % 8 == 0:
        for index, out in enumerate(whole):
            assert torch.equal(out, torch.cat([piece[index] for piece in pieces], dim=1))


def test_a_share_of_a_prompt_that_comes_in_chunks_is_refused():
    for text in ("inf_llm:local=0.5,retrieved=64", "inf_llm:local=64,retrieved=0.5"):
        cache = make(text).build(SHAPE)
        for layer in cache.layers:
            layer.hold()
        feed(cache, prompt(9))
        with pytest.raises(KvcheckError, match=r"in chunks.*\n.*local=1024"):
            feed(cache, prompt(3))
    one = make("inf_llm:local=0.2,block=4").build(SHAPE)
    with one.prefilling():
        feed(one, prompt(100))
    assert held(one).kv == make("inf_llm:local=0.2,block=4").kv_bytes(SHAPE, 2, 100, 0)


def test_a_needle_that_left_the_window_is_found_and_blocks_not_chosen_are_never_read():
    plain = prompt(101, ONE, rows=1)[0]
    wanted = torch.randn(4, 8, generator=torch.Generator().manual_seed(7)) * 3
    plain.queries[0, :, 100] = turned(wanted, -11)
    plain.keys[0, :, 40:48] = wanted[::2].unsqueeze(1)
    plain.queries[0, 1::2, 100] = plain.queries[0, ::2, 100]
    part = rotated(plain)
    cache = absorbed(InfLLM(4, 12, 4, 8, 2, 8), cut([part], 0, 100), ONE)
    layer = cache.layers[0]
    unread = [slot for slot in range(layer.away) if not 40 <= slot + 4 < 48]
    layer.hv.tensor[:, :, unread] = float("nan")
    out = feed(cache, cut([part], 100, 101))[0]
    assert bool(out.isfinite().all())
    mean = plain.values[0, :, 40:48].float().mean(1).repeat_interleave(2, 0)
    torch.testing.assert_close(out[0, 0], mean, atol=0.2, rtol=0.1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_answers_as_the_full_cache_does_while_the_window_holds_the_text(kind):
    model, ids = model_of(kind), tokens(2, 60)
    plain = model(ids).logits
    attention.use(model)
    cache = InfLLM(4, 64, 8, 16, 2, 16).build(ModelShape.of(model.config), torch.float32)
    parts = [model(ids[:, start:stop], past_key_values=cache).logits for start, stop in ((0, 50), (50, 59), (59, 60))]
    torch.testing.assert_close(torch.cat(parts, 1), plain, atol=2e-3, rtol=2e-3)
    short = InfLLM(4, 8, 8, 16, 2, 16).build(ModelShape.of(model.config), torch.float32)
    assert not torch.allclose(model(ids, past_key_values=short).logits, plain, atol=0.1)


# -- rotation ----------------------------------------------------------------------------------------------------------


def test_rotating_is_what_transformers_does_and_can_be_undone():
    model = model_of()
    rope = ModelShape.of(model.config).rope
    part = prompt(50, dtype=torch.float32)[0]
    at = torch.arange(50)
    cos, sin = model.model.rotary_emb(part.keys, at[None])
    queries, keys = apply_rotary_pos_emb(part.queries, part.keys, cos, sin)
    for plain, theirs in ((part.queries, queries), (part.keys, keys)):
        torch.testing.assert_close(rotate(plain, at, rope), theirs, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(unrotate(theirs, at, rope), plain, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(turned(plain, at, rope).float(), theirs, atol=1e-5, rtol=1e-5)
        twice = rotate(rotate(plain, at, rope), torch.tensor(7), rope)
        torch.testing.assert_close(twice, rotate(plain, at + 7, rope), atol=1e-5, rtol=1e-5)
    assert rotate(part.keys.half(), at, rope).dtype == torch.float16


LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
TABLES = [
    ("Llama", {}),
    ("Qwen2", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
    ("Mistral", {"head_dim": 16}),
    ("Llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}}),
    ("Llama", {"rope_parameters": {**LLAMA3, "original_max_position_embeddings": 64, "rope_theta": 5e5}}),
]


@pytest.mark.parametrize(("kind", "changes"), TABLES)
def test_the_inverse_frequencies_of_a_shape_are_those_of_the_model(kind, changes):
    model = model_of(kind, **changes)
    assert ModelShape.of(model.config).rope == tuple(model.model.rotary_emb.inv_freq.tolist())


YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4, "original_max_position_embeddings": 128}
UNKNOWN = [
    transformers.LlamaConfig(rope_parameters=YARN),
    transformers.LlamaConfig(rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}),
    transformers.Phi3Config(rope_parameters={"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}),
    transformers.StableLmConfig(),
    transformers.CohereConfig(),
    transformers.GPT2Config(),
]


@pytest.mark.parametrize("config", UNKNOWN, ids=lambda config: config.model_type)
def test_models_whose_rotation_is_not_known_or_cannot_be_undone_are_refused(config):
    shape = ModelShape.of(config)
    assert shape.rope is None
    with pytest.raises(MethodUnsupported, match="keys without their rotation"):
        InfLLM().build(shape)


@pytest.mark.parametrize(
    "text",
    ["init=-1", "local=0", "block=0", "retrieved=0.0", "representatives=0", "exc=0", "block=2,representatives=3"],
)
def test_a_value_out_of_range_is_refused_with_what_to_type(text):
    with pytest.raises(SpecError, match="--kv-method=inf_llm"):
        make(f"inf_llm:{text}")
