"""Another RoPE, code that comes with a model, layers on several devices, kernels: what is asked for by name."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_loading import llama, save

from kvcheck.backends.transformers import Session, kernel
from kvcheck.core.errors import MethodUnsupported, SpecError
from kvcheck.core.settings import Settings
from kvcheck.models import Loading, load, rope

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama for 64 tokens."""
    return save(tmp_path_factory.mktemp("models") / "tiny", llama())


def loaded(folder: Path, text: str) -> Any:
    return load(str(folder), CPU, torch.float32, Loading(rope=rope.canonical(text)))


# -- RoPE --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["yarn:factor=1e999", "yarn:factor=2,original=1e999", "yarn:factor=2,original=40.5"])
def test_a_number_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(SpecError, match=r"is not a (whole )?number"):
        rope.canonical(text)


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("yarn:factor=4", 256),
        ("yarn:factor=4,original=32", 128),
        ("linear:factor=2", 128),
        ("dynamic:factor=2.5", 160),
        ("llama3:factor=8,low_freq_factor=1,high_freq_factor=4", 512),
        ("default:theta=1e6", 64),
    ],
)
def test_the_context_limit_is_that_of_the_rope(folder: Path, text: str, limit: int) -> None:
    assert loaded(folder, text).max_length == limit


def test_the_model_rotates_by_the_rope_that_was_asked_for(folder: Path) -> None:
    model = loaded(folder, "linear:factor=2").model
    plain = load(str(folder), CPU, torch.float32).model
    assert torch.allclose(model.model.rotary_emb.inv_freq * 2, plain.model.rotary_emb.inv_freq)
    assert model.config.rope_parameters["rope_theta"] == plain.config.rope_parameters["rope_theta"]


def test_a_model_with_another_rope_is_another_model(folder: Path) -> None:
    plain = load(str(folder), CPU, torch.float32)
    yarn, same, more = (loaded(folder, text) for text in ("yarn:factor=4", "yarn:factor=4.0", "yarn:factor=8"))
    assert len({plain.fingerprint, yarn.fingerprint, more.fingerprint}) == 3
    assert yarn.fingerprint == same.fingerprint
    assert yarn.name == f"{folder}@yarn:factor=4"


def test_a_rope_that_a_model_is_scaled_by_already_is_taken_away(tmp_path: Path) -> None:
    scaled = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}
    path = save(tmp_path / "scaled", llama(rope_parameters=scaled))
    plain = load(str(save(tmp_path / "plain", llama())), CPU, torch.float32)
    assert torch.equal(loaded(path, "default").model.model.rotary_emb.inv_freq, plain.model.model.rotary_emb.inv_freq)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("yarm:factor=4", r"unknown RoPE(?s:.*)did you mean yarn"),
        ("longrope:factor=4", "unknown RoPE"),
        ("yarn:factor=big", "is not a number"),
        ("yarn", "Missing required keys.*factor"),
        ("linear:factor=2,beta_fast=3", "Unrecognized keys.*beta_fast"),
        ("linear:factor=0.5", "factor field must be a float.*>= 1"),
    ],
)
def test_a_rope_that_transformers_would_refuse_or_warn_of_is_refused(folder: Path, text: str, says: str) -> None:
    with pytest.raises(SpecError, match=says):
        loaded(folder, text)


def test_a_model_without_one_rope_for_all_layers_is_refused(tmp_path: Path) -> None:
    from transformers import OPTConfig, OPTForCausalLM

    small = {"vocab_size": 8, "hidden_size": 16, "ffn_dim": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = OPTConfig(max_position_embeddings=64, word_embed_proj_dim=16, **small)
    path = save(tmp_path / "opt", OPTForCausalLM(config))
    with pytest.raises(MethodUnsupported, match="has no RoPE that is the same in all layers"):
        loaded(path, "yarn:factor=4")


def test_a_dynamic_rope_depends_on_the_text_alone(folder: Path) -> None:
    model = loaded(folder, "dynamic:factor=4").model
    rotary, hidden = model.model.rotary_emb, torch.zeros(1, 1, 32)
    before, *_ = rotary(hidden, torch.arange(80)[None])
    rotary(hidden, torch.arange(200)[None])
    after, *_ = rotary(hidden, torch.arange(80)[None])
    assert torch.equal(before, after)


def test_a_shape_of_random_weights_takes_no_other_rope() -> None:
    with pytest.raises(SpecError, match="random weights"):
        load("random:tiny", CPU, torch.float32, Loading(rope="yarn:factor=4"))


# -- code that comes with a model --------------------------------------------------------------------------------------

CODE = """
from transformers import LlamaConfig, LlamaForCausalLM

class OwnConfig(LlamaConfig):
    model_type = "kvcheck_own"

class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
    came_with_the_model = True
"""


def coded(path: Path, place: str = "modeling_own") -> Path:
    """A llama as a class of its own, whose code lies beside it."""
    save(path, llama())
    config = json.loads((path / "config.json").read_text())
    classes = {"AutoConfig": f"{place}.OwnConfig", "AutoModelForCausalLM": f"{place}.OwnForCausalLM"}
    config |= {"model_type": "kvcheck_own", "architectures": ["OwnForCausalLM"], "auto_map": classes}
    (path / "config.json").write_text(json.dumps(config))
    (path / "modeling_own.py").write_text(CODE)
    return path


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies of the code are kept in the test's folder."""
    from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))


@pytest.mark.usefixtures("modules")
def test_code_that_comes_with_a_model_runs_only_when_it_was_trusted(tmp_path: Path) -> None:
    path = coded(tmp_path / "own_model")
    with pytest.raises(SpecError, match="--kv-trust-remote-code=") as caught:
        load(str(path), CPU, torch.float32)
    assert str(path) in caught.value.hint
    found = Session.open(Settings(model=str(path), trust_remote_code=str(path), device="cpu")).loaded
    assert type(found.model).came_with_the_model


@pytest.mark.usefixtures("modules")
def test_the_code_of_a_trusted_model_is_part_of_its_fingerprint(tmp_path: Path) -> None:
    path = coded(tmp_path / "own_model")
    before = load(str(path), CPU, torch.float32, Loading(trusted=True)).fingerprint
    (path / "modeling_own.py").write_text(CODE + "\n# changed\n")
    assert load(str(path), CPU, torch.float32, Loading(trusted=True)).fingerprint != before


@pytest.mark.usefixtures("modules")
def test_code_of_another_repository_is_refused_before_it_is_fetched(tmp_path: Path) -> None:
    path = coded(tmp_path / "own_model", place="other/code--modeling_own")
    with pytest.raises(SpecError, match="lies in another repository, other/code"):
        load(str(path), CPU, torch.float32, Loading(trusted=True))


# -- layers on several devices -----------------------------------------------------------------------------------------

needs_accelerate = pytest.mark.skipif(find_spec("accelerate") is None, reason="accelerate is not installed")
SPLIT = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "cpu", "model.norm": "cpu"}
SPLIT |= {"model.rotary_emb": "cpu", "lm_head": "cpu"}


@needs_accelerate
@pytest.mark.parametrize("layout", [{"": "cpu"}, SPLIT])
def test_a_model_that_was_laid_out_answers_as_one_on_a_single_device(folder: Path, layout: dict[str, str]) -> None:
    spread = load(str(folder), CPU, torch.float32, Loading(layout=layout))
    plain = load(str(folder), CPU, torch.float32)
    ids = torch.tensor([[3, 4, 3, 4, 4]])
    from kvcheck.methods import make

    logits = [make("fp16").runner(each).prefill(ids)[1] for each in (spread, plain)]
    assert torch.equal(*logits)
    assert (spread.devices, spread.fingerprint) == ((CPU,), plain.fingerprint)


def test_a_model_of_which_parts_would_lie_on_disk_is_refused() -> None:
    from kvcheck.models import loading

    model = llama()
    model.hf_device_map = {"model.layers.0": 0, "model.layers.1": "disk", "lm_head": "cpu"}
    with pytest.raises(SpecError, match=r"does not fit on the CUDA devices: model\.layers\.1, lm_head"):
        loading._refuse_offloading("m", model)


# -- kernels -----------------------------------------------------------------------------------------------------------


def allowed_kernels(folder: Path, monkeypatch: pytest.MonkeyPatch, attention: str) -> set[tuple[bool, ...]]:
    """Which kernels torch may choose from while the model's layers attend."""
    from kvcheck.cache import kernels
    from kvcheck.methods import make

    seen: set[tuple[bool, ...]] = set()
    plain = kernels.scaled_dot_product_attention

    def look(*args: Any, **kwargs: Any) -> torch.Tensor:
        cuda = torch.backends.cuda
        seen.add((cuda.math_sdp_enabled(), cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled()))
        return plain(*args, **kwargs)

    session = Session.open(Settings(model=str(folder), attention=attention, device="cpu"))
    monkeypatch.setattr(kernels, "scaled_dot_product_attention", look)
    make("fp16").runner(session.loaded).prefill(torch.tensor([[3, 4, 3]]))
    return seen


@pytest.mark.parametrize(
    ("attention", "allowed"),
    [("auto", (True, True, True)), ("math", (True, False, False)), ("flash", (False, True, False))],
)
def test_the_layers_attend_by_the_kernel_that_was_asked_for(
    folder: Path, monkeypatch: pytest.MonkeyPatch, attention: str, allowed: tuple[bool, ...]
) -> None:
    assert allowed_kernels(folder, monkeypatch, attention) == {allowed}
    assert torch.backends.cuda.mem_efficient_sdp_enabled()


@pytest.mark.parametrize("attention", ["efficient", "cudnn"])
def test_a_kernel_that_the_device_does_not_have_is_refused_with_those_that_it_has(folder: Path, attention: str) -> None:
    with pytest.raises(SpecError, match=f"--kv-attention={attention}: torch has no such kernel for a prompt") as caught:
        Session.open(Settings(model=str(folder), attention=attention, device="cpu"))
    assert caught.value.hint == "--kv-attention=auto, or math or flash"


class Asked(torch.nn.Module):
    """Says whether torch may choose cuDNN's attention within a forward."""

    def forward(self, input_ids: torch.Tensor) -> bool:
        if input_ids.shape[1] == 0:
            raise ValueError("no tokens")
        return torch.backends.cuda.cudnn_sdp_enabled()


def test_on_cuda_only_a_long_prompt_may_use_the_kernel_that_needs_a_plan_for_every_length() -> None:
    model = Asked()
    kernel.use("auto", SimpleNamespace(device=torch.device("cuda"), model=model))
    assert not model(input_ids=torch.zeros(1, 1))
    assert not model(torch.zeros(1, kernel.LONG - 1))
    assert model(torch.zeros(1, kernel.LONG))
    with pytest.raises(ValueError, match="no tokens"):
        model(torch.zeros(1, 0))
    assert torch.backends.cuda.cudnn_sdp_enabled()
