"""MixAttention: the cache's layout is that of the training, consumers hold nothing, windows lose what lies outside."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from toys import SHAPE, cut, feed, model_of, prompt, tokens, weights

from kvcheck.cache import attention
from kvcheck.core.errors import MethodUnsupported, SpecError
from kvcheck.fixtures.training.mix import LAYOUT, Mixed
from kvcheck.measure.memory import held
from kvcheck.methods import make
from kvcheck.methods.mixattention import Layout, MixAttention
from kvcheck.models import LoadedModel

LAYERS = ("0s", "1", "1", "0s")
WINDOW = 9


@pytest.fixture
def model():
    return model_of(num_hidden_layers=4)


@pytest.fixture
def folder(tmp_path, model):
    """Weights of a model of four layers, with a layout."""
    Layout(LAYERS, WINDOW).write(tmp_path)
    state = {name: value.clone() for name, value in model.state_dict().items() if name != "lm_head.weight"}
    save_file(state, tmp_path / "model.safetensors")
    return tmp_path


def runner(folder, model):
    return make(f"mixattention:weights={folder}").runner(LoadedModel(attention.use(model), None, "toy", "f00d", 2048))


def trained(model, ids, layout):
    """Logits (B, n, V) through the attention of the training."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register("mix-test", Mixed(layout))
    AttentionMaskInterface.register("mix-test", lambda *args, **kwargs: None)
    model.set_attn_implementation("mix-test")
    return model(ids).logits


def test_prompt_follow_up_and_decoding_give_the_logits_of_the_training(folder, model) -> None:
    ids = tokens(2, 40)
    wanted = trained(model, ids, Layout(LAYERS, WINDOW))
    mine = runner(folder, model)
    cache, first = mine.prefill(ids[:, :25])
    found = [first[:, None], mine.feed(cache, ids[:, 25:32], 7)]
    found += [mine.feed(cache, ids[:, at : at + 1]) for at in range(32, 40)]
    torch.testing.assert_close(torch.cat(found, 1), wanted[:, 24:], atol=2e-2, rtol=2e-2)


def test_no_sharing_and_no_window_is_the_model_itself(folder, model) -> None:
    Layout(("0", "1", "2", "3"), WINDOW).write(folder)
    ids = tokens(2, 40)
    mine = runner(folder, model)
    cache = make("fp16").build(mine.shape)
    torch.testing.assert_close(
        mine.prefill(ids)[1], model(ids, past_key_values=cache).logits[:, -1], atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("n", [1, WINDOW - 1, WINDOW, WINDOW + 1, 40])
def test_only_layers_that_make_keys_and_values_hold_any(folder, model, n) -> None:
    mine = runner(folder, model)
    cache, _ = mine.prefill(tokens(2, n))
    token = mine.shape.token_bytes(2)
    assert held(cache).kv == (n + min(n, WINDOW)) * token == mine.method.kv_bytes(mine.shape, 2, n, 0)
    for decoded in range(1, 4):
        mine.feed(cache, tokens(2, 1))
        assert held(cache).kv == mine.method.kv_bytes(mine.shape, 2, n, decoded)


def test_a_fork_reads_its_own_copies_and_leaves_the_origin_alone(folder, model) -> None:
    mine = runner(folder, model)
    cache, _ = mine.prefill(tokens(2, 30))
    fork = cache.select([1, 0])
    before = held(cache).kv
    mine.feed(fork, tokens(2, 3))
    assert held(cache).kv == before
    assert fork.layers[3].producer is fork.layers[0]
    assert cache.layers[3].producer is cache.layers[0]


def test_a_sliding_layer_forgets_what_is_older_than_its_window(tmp_path) -> None:
    Layout(("0s", "0s"), WINDOW).write(tmp_path)
    parts = prompt(40)
    cache = MixAttention(weights=str(tmp_path)).build(SHAPE)
    out = feed(cache, cut(parts, 0, 40))[0]
    row, column = torch.arange(40).unsqueeze(1), torch.arange(40)
    share = weights(parts[0].queries, parts[0].keys, 0) * (row - column < WINDOW)
    share = share / share.sum(-1, keepdim=True)
    heads = [share[:, head] @ parts[0].values[:, head // 2].double() for head in range(SHAPE.heads)]
    torch.testing.assert_close(out, torch.stack(heads, 2).float(), atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("layers", [("1", "1"), ("0s", "0"), ("0", "0", "1")])
def test_a_layout_that_reads_what_is_not_there_is_refused(layers) -> None:
    with pytest.raises(SpecError, match="cannot read layer"):
        Layout(layers, WINDOW)


def test_the_shipped_weights_are_for_the_embedded_model_only(model) -> None:
    with pytest.raises(MethodUnsupported, match="no weights trained for it are known for toy"):
        make("mixattention").runner(LoadedModel(attention.use(model), None, "toy", "f00d", None))


def test_weights_of_another_model_are_refused(folder) -> None:
    with pytest.raises(MethodUnsupported, match="of 4 layers, the model has 3"):
        runner(folder, model_of())


def test_a_folder_without_weights_is_refused(tmp_path) -> None:
    with pytest.raises(SpecError, match="no layout of MixAttention"):
        make(f"mixattention:weights={tmp_path}").build(SHAPE)


def test_the_shipped_layout_is_that_of_the_training() -> None:
    assert make("mixattention").layout == LAYOUT
