"""save_load, offload, cacheblend and cake: what is loaded is what was stored, at its true place."""

from __future__ import annotations

import pytest
import torch
from toys import SHAPE, absorbed, cut, feed, model_of, prompt, tokens

from kvcheck.cache import attention
from kvcheck.cache.disk import read, write
from kvcheck.cache.shape import ModelShape
from kvcheck.core.errors import KvcheckError, MethodUnsupported, SpecError
from kvcheck.measure.audit import audit
from kvcheck.measure.memory import held
from kvcheck.methods import make
from kvcheck.methods.cake import Split
from kvcheck.models import LoadedModel

CPU = torch.device("cpu")


def loaded(**changes: object) -> LoadedModel:
    return LoadedModel(attention.use(model_of(**changes)), None, "toy", "f00d", 2048)


def prefilled(text: str, ids: torch.Tensor, model: LoadedModel | None = None):
    return make(text).runner(model or loaded()).prefill(ids)


def caches_equal(one, other, tolerance: float = 0.0) -> None:
    for mine, theirs in zip(one.layers, other.layers, strict=True):
        assert mine.seen == theirs.seen
        for name in ("keys", "values"):
            torch.testing.assert_close(getattr(mine, name), getattr(theirs, name), atol=tolerance, rtol=tolerance)


# -- save_load ---------------------------------------------------------------------------------------------------------


def test_what_comes_back_from_disk_is_bit_equal_and_the_files_are_gone(tmp_path, monkeypatch) -> None:
    parts = prompt(40)
    caches_equal(absorbed(make("save_load"), parts), absorbed(make("fp16"), parts))


def test_a_named_folder_keeps_one_file_per_layer(tmp_path) -> None:
    parts = prompt(40)
    caches_equal(absorbed(make(f"save_load:folder={tmp_path}"), parts), absorbed(make("fp16"), parts))
    assert len(list(tmp_path.glob("prompt-*-layer-*.safetensors"))) == SHAPE.layers
    assert not list(tmp_path.glob("*.tmp"))


def test_a_truncated_file_is_refused_by_name(tmp_path) -> None:
    path = tmp_path / "layer.safetensors"
    write(path, torch.ones(1, 2, 3, 4), torch.ones(1, 2, 3, 4), {"layer": "0"})
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(KvcheckError, match=r"layer\.safetensors cannot be loaded"):
        read(path, {"layer": "0"}, CPU)


def test_a_file_of_another_layer_is_refused(tmp_path) -> None:
    path = tmp_path / "layer.safetensors"
    write(path, torch.ones(1, 2, 3, 4), torch.ones(1, 2, 3, 4), {"layer": "0"})
    with pytest.raises(KvcheckError, match="of another cache: layer is 0 there and 1 here"):
        read(path, {"layer": "1"}, CPU)


# -- offload -----------------------------------------------------------------------------------------------------------


def test_an_offloaded_cache_answers_as_the_full_cache_and_holds_nothing_on_the_device() -> None:
    parts = prompt(45)
    mine, full = (absorbed(make(text), cut(parts, 0, 40)) for text in ("offload", "fp16"))
    assert held(mine).kv == 0
    assert held(mine).host == make("offload").host_bytes(SHAPE, 2, 40, 0) == held(full).kv
    for at in range(40, 45):
        step = cut(parts, at, at + 1)
        for one, other in zip(feed(mine, step), feed(full, step), strict=True):
            assert torch.equal(one, other)
    assert held(mine).host == make("offload").host_bytes(SHAPE, 2, 40, 5)


def test_host_bytes_other_than_declared_are_noticed() -> None:
    parts = prompt(40)
    cache = absorbed(make("offload"), parts)
    cache.layers[0].k.append(cache.layers[0].keys[:, :, :1])
    assert any("in host memory" in problem for problem in audit(cache, parts, make("offload")).problems)


# -- cacheblend --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["cacheblend:chunk=8,recompute=1.0", "cacheblend:chunk=256,recompute=0.0"])
def test_recomputing_everything_or_one_chunk_is_the_full_prefill(text: str) -> None:
    ids, model = tokens(2, 40), loaded()
    (mine, first), (full, wanted) = prefilled(f"{text},fresh=4", ids, model), prefilled("fp16", ids, model)
    torch.testing.assert_close(first, wanted, atol=5e-3, rtol=5e-3)
    caches_equal(mine, full, 5e-3)


def test_a_model_of_two_layers_is_exact_whatever_is_recomputed() -> None:
    ids, model = tokens(2, 40), loaded(num_hidden_layers=2)
    (mine, first), (full, wanted) = (
        prefilled(text, ids, model) for text in ("cacheblend:chunk=8,recompute=0.0", "fp16")
    )
    assert torch.equal(first, wanted)
    caches_equal(mine, full)


def test_chunks_are_put_at_their_true_positions() -> None:
    ids, model = tokens(2, 40), loaded()
    together = make("cacheblend:chunk=8").runner(model).together(ids)
    full, _ = prefilled("fp16", ids, model)
    for mine, name in zip(together[0], ("keys", "values"), strict=True):  # the first layer depends on token ids only
        torch.testing.assert_close(mine, getattr(full.layers[0], name), atol=5e-3, rtol=5e-3)
    assert float((together[1][0] - full.layers[1].keys).abs().max()) > 0.1


def blended_by_hand(ids: torch.Tensor, model: LoadedModel, chunk: int, count: int, fresh: int):
    """Keys of layer 2, by full forwards of transformers' own modules with the chosen rows overwritten."""
    old = make(f"cacheblend:chunk={chunk}").runner(model).together(ids)
    full, _ = prefilled("fp16", ids, model)
    reused = ids.shape[1] - fresh
    change = sum(
        (new.float() - was.float()).square().sum(dim=(1, 3))
        for new, was in zip((full.layers[1].keys, full.layers[1].values), old[1], strict=True)
    )
    wanted = old[2][0].clone()
    for row in range(len(ids)):
        for at in [*change[row, :reused].topk(count).indices.tolist(), *range(reused, ids.shape[1])]:
            wanted[row, :, at] = full.layers[2].keys[row, :, at]
    return wanted


def test_the_tokens_that_deviate_most_and_the_fresh_ones_replace_what_was_reused() -> None:
    ids, model = tokens(2, 40), loaded()
    cache, _ = prefilled("cacheblend:chunk=8,recompute=0.25,fresh=4", ids, model)
    torch.testing.assert_close(cache.layers[2].keys, blended_by_hand(ids, model, 8, 9, 4), atol=5e-3, rtol=5e-3)
    assert [layer.seen for layer in cache.layers] == [40, 40, 40]


def test_more_recomputation_comes_closer_to_the_full_prefill() -> None:
    ids, model = tokens(4, 60), loaded()
    _, wanted = prefilled("fp16", ids, model)
    shares = (0.0, 0.5, 1.0)
    found = [prefilled(f"cacheblend:chunk=10,recompute={share},fresh=2", ids, model)[1] for share in shares]
    errors = [float((one - wanted).abs().mean()) for one in found]
    assert errors[0] > errors[1] > errors[2]


def test_a_blended_cache_goes_on_as_any_other() -> None:
    ids, model = tokens(2, 40), loaded()
    runner = make("cacheblend:chunk=8,recompute=1.0,fresh=4").runner(model)
    cache, _ = runner.prefill(ids)
    later = tokens(2, 5, seed=3)
    full, _ = prefilled("fp16", ids, model)
    wanted = make("fp16").runner(model).feed(full, later, 5)
    torch.testing.assert_close(runner.feed(cache.select([0, 1]), later, 5), wanted, atol=1e-2, rtol=1e-2)


def test_a_model_whose_keys_cannot_be_rotated_is_refused() -> None:
    with pytest.raises(MethodUnsupported, match="how this model rotates them is not known"):
        make("cacheblend").build(ModelShape(layers=2, heads=4, kv_heads=2, head_dim=8))


# -- cake --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("computed", ["race", "0.0", "0.3", "0.5", "1.0"])
def test_wherever_the_workers_meet_every_bit_is_that_of_the_chunked_prefill(computed: str) -> None:
    ids, model = tokens(2, 45), loaded()
    runner = make("fp16").runner(model)
    full = runner.build()
    with full.prefilling():
        for chunk in ids[:, :40].split(8, dim=1):
            runner.feed(full, chunk)
        wanted = runner.feed(full, ids[:, 40:])[:, -1]
    cake = make(f"cake:chunk=8,computed={computed}").runner(model)
    cache, first = cake.prefill(ids)
    assert torch.equal(first, wanted)
    caches_equal(cache, full)
    assert cake.split.computed + cake.split.loaded == 5
    if computed != "race":
        assert cake.split.computed == round(float(computed) * 5)


def test_chunks_are_handed_out_once_from_both_ends() -> None:
    split = Split(5, 0, 5)
    assert [split.from_front(), split.from_back(), split.from_back(), split.from_front()] == [0, 4, 3, 1]
    assert [split.from_front(), split.from_back(), split.from_front()] == [2, None, None]


def test_a_prompt_shorter_than_a_chunk_is_computed() -> None:
    ids, model = tokens(2, 7), loaded()
    assert torch.equal(prefilled("cake:chunk=8", ids, model)[1], prefilled("fp16", ids, model)[1])


@pytest.mark.parametrize(
    "text", ["cake:computed=none", "cake:chunk=0", "cake:computed=2.0", "cacheblend:recompute=2.0"]
)
def test_values_out_of_range_are_refused(text: str) -> None:
    with pytest.raises(SpecError):
        make(text)
