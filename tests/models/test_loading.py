"""Models by name, folder and hub id; what a model is; where it runs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kvcheck.core.errors import MethodUnsupported, SpecError
from kvcheck.models import Encoder, LoadedModel, devices, load, loading, names, pick_device, pick_dtype
from kvcheck.models.fingerprint import fingerprint

CPU = torch.device("cpu")


def save(path: Path, model: Any) -> Path:
    """A model with a word tokenizer beside it."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1, "<unk>": 2, "one": 3, "two": 4}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing("<s> $A", None, [("<s>", 0)])
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(path)
    model.save_pretrained(path)
    return path


def llama(**changed: Any) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(**{"vocab_size": 8, "max_position_embeddings": 64, **shape, **changed}))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("models") / "tiny", llama())


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def test_a_folder_gives_a_model_that_attends_through_kvcheck(folder: Path) -> None:
    loaded = load(str(folder), CPU, torch.float32)
    assert isinstance(loaded, LoadedModel)
    assert loaded.model.config._attn_implementation == "kvcheck"
    assert not loaded.model.training
    assert (loaded.max_length, loaded.device, loaded.name) == (64, CPU, str(folder))


def test_weights_stored_in_16_bits_compute_in_float32_on_the_cpu(tmp_path: Path) -> None:
    path = save(tmp_path / "half", llama().to(torch.bfloat16))
    loaded = load(str(path), CPU, pick_dtype("auto", CPU))
    assert loaded.model.dtype == torch.float32


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("mino", "unknown model 'mino'(?s:.*)did you mean mini"),
        ("./nowhere", "there is no folder"),
        ("/nowhere/at/all", "there is no folder"),
        ("EMPTY", "it has no config.json"),
    ],
)
def test_a_name_that_leads_nowhere_is_refused(tmp_path: Path, name: str, says: str) -> None:
    with pytest.raises(SpecError, match=says):
        load(str(tmp_path) if name == "EMPTY" else name, CPU, torch.float32)


@pytest.mark.parametrize(
    ("kind", "says", "hint"),
    [
        ("LocalEntryNotFoundError", "'owner/model': the Hugging Face hub cannot be reached", "--kv-model PATH"),
        (
            "GatedRepoError",
            "'owner/model' is gated",
            "accept its terms at https://huggingface.co/owner/model, then: hf",
        ),
        ("RepositoryNotFoundError", "'owner/model' is no folder here, and was not found on the", "is the name right?"),
        ("BadRequestError", "'owner/model' cannot be loaded from the Hugging Face hub", "hf auth login"),
    ],
)
def test_what_the_hub_refuses_is_said_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch, kind: str, says: str, hint: str
) -> None:
    """transformers wraps what the client of the hub raises; a tokenizer alone meets the same."""
    from huggingface_hub import errors
    from transformers import AutoConfig

    def refuse(*args: Any, **kwargs: Any) -> None:
        cause = getattr(errors, kind)
        raise OSError("You cannot have owner/model.\nLook at the page") from cause.__new__(cause, "401")

    monkeypatch.setattr(AutoConfig, "from_pretrained", refuse)
    for ask in (lambda: load("owner/model", CPU, torch.float32), lambda: loading.encoder_of("owner/model")):
        with pytest.raises(SpecError, match=says) as caught:
            ask()
        assert hint in caught.value.hint


def test_a_hub_that_goes_away_after_the_weights_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def gone(*args: Any, **kwargs: Any) -> None:
        raise huggingface_hub.errors.LocalEntryNotFoundError("no connection")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", gone)
    with pytest.raises(SpecError, match="the Hugging Face hub cannot be reached: no connection"):
        loading.hub.snapshot("owner/model", False, fetched=True)


@pytest.mark.parametrize(
    ("files", "wanted"), [(["model.safetensors"], ["*.safetensors"]), ([], ["*.safetensors", "*.bin"])]
)
def test_weights_of_the_old_kind_are_fetched_for_the_fingerprint_where_there_are_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: list[str], wanted: list[str]
) -> None:
    import huggingface_hub

    asked: list[str] = []

    def download(hub_id: str, allow_patterns: list[str], **how: Any) -> str:
        asked.append(allow_patterns[-1])
        return str(tmp_path)

    for name in files:
        (tmp_path / name).touch()
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert loading.hub.snapshot("owner/model", False, fetched=True) == tmp_path
    assert asked == wanted


def test_weights_that_the_files_lack_are_not_made_up(copied: Path) -> None:
    _edit(copied / "config.json", lambda config: config.update(num_hidden_layers=3))
    with pytest.raises(SpecError, match=r"lacks 9 of the weights that its config.json asks for: model\.layers\.2\."):
        load(str(copied), CPU, torch.float32)


def test_weights_of_another_shape_are_refused(copied: Path) -> None:
    _edit(copied / "config.json", lambda config: config.update(intermediate_size=48))
    with pytest.raises(SpecError, match=r"its weights have other shapes than its config\.json says"):
        load(str(copied), CPU, torch.float32)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda config: config.pop("model_type"), "no config.json that names an architecture(?s:.*)adapters merged"),
        (lambda config: config.update(model_type="llamba"), "not recognize this arch(?s:.*)--kv-trust-remote-code="),
        (
            lambda config: config.update(quantization_config={"quant_method": "awq", "bits": 4}),
            "cannot be loaded: (?s:.*)install what it names",
        ),
    ],
)
def test_what_transformers_cannot_load_is_said_with_what_to_do(
    copied: Path, change: Callable[[dict[str, Any]], Any], says: str
) -> None:
    _edit(copied / "config.json", change)
    with pytest.raises(SpecError, match=says):
        load(str(copied), CPU, torch.float32)


def test_a_folder_without_a_tokenizer_says_how_to_put_one_there(copied: Path) -> None:
    for path in copied.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(SpecError, match="has no tokenizer that transformers can read") as caught:
        load(str(copied), CPU, torch.float32)
    assert "save_pretrained(FOLDER)" in caught.value.hint


def test_a_tokenizer_of_another_model_is_noticed_before_anything_is_fed(tmp_path: Path) -> None:
    encoder = load(str(save(tmp_path / "small", llama(vocab_size=4))), CPU, torch.float32).tokenizer
    assert encoder.encode("one") == [3]
    with pytest.raises(SpecError, match="the tokenizer gives token 4, the model knows 4 tokens"):
        encoder.encode("one two")


def test_the_tokenizer_of_what_is_no_decoder_is_refused_as_the_model_is(copied: Path) -> None:
    _edit(copied / "config.json", lambda config: config.update(is_encoder_decoder=True))
    with pytest.raises(MethodUnsupported, match="encoder-decoder"):
        loading.encoder_of(str(copied))


def test_damaged_weights_are_refused(copied: Path) -> None:
    (copied / "model.safetensors").write_bytes(b"\x10\0\0\0")
    with pytest.raises(SpecError, match=r"cannot be loaded(?s:.*)undamaged"):
        load(str(copied), CPU, torch.float32)


def test_an_embedded_model_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(names.paths, "bundle", lambda name: tmp_path)
    with pytest.raises(SpecError, match="lacks the embedded model mini"):
        load("mini", CPU, torch.float32)


def test_models_that_are_no_decoders_or_attend_in_their_own_way_are_refused(tmp_path: Path) -> None:
    from transformers import (
        BloomConfig,
        BloomForCausalLM,
        GPTJConfig,
        GPTJForCausalLM,
        T5Config,
        T5ForConditionalGeneration,
    )

    bloom = BloomForCausalLM(BloomConfig(vocab_size=8, hidden_size=16, n_layer=1, n_head=2))
    gptj = GPTJForCausalLM(GPTJConfig(vocab_size=8, n_embd=16, n_layer=1, n_head=2, n_positions=64, rotary_dim=4))
    gptj_too = not getattr(gptj, "_supports_attention_backend", False)  # from transformers 5.24 on it does
    for model in (bloom, gptj)[: 1 + gptj_too]:
        with pytest.raises(MethodUnsupported, match="does not use the attention interface"):
            load(str(save(tmp_path / type(model).__name__, model)), CPU, torch.float32)
    t5 = T5ForConditionalGeneration(
        T5Config(vocab_size=8, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0)
    )
    with pytest.raises(MethodUnsupported, match="encoder-decoder"):
        load(str(save(tmp_path / "t5", t5)), CPU, torch.float32)


# -- fingerprints ------------------------------------------------------------------------------------------------------


def test_the_fingerprint_does_not_depend_on_folder_or_sharding(folder: Path, copied: Path, tmp_path: Path) -> None:
    assert fingerprint(folder) == fingerprint(copied)
    split = save(tmp_path / "split", llama())
    llama().save_pretrained(split, max_shard_size="4KB")
    (split / "model.safetensors").unlink(missing_ok=True)
    assert len(list(split.glob("*.safetensors"))) > 1
    assert fingerprint(split) == fingerprint(folder)


def test_a_second_copy_of_the_weights_does_not_count(folder: Path, copied: Path) -> None:
    shutil.copy(copied / "model.safetensors", copied / "consolidated.safetensors")
    assert fingerprint(copied) == fingerprint(folder)


def _edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def _weight(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    ("file", "change", "same"),
    [
        ("model.safetensors", _weight, False),
        ("config.json", lambda path: _edit(path, lambda config: config.update(rms_norm_eps=1e-3)), False),
        ("tokenizer.json", lambda path: _edit(path, lambda words: words["model"]["vocab"].update(three=5)), False),
        ("config.json", lambda path: _edit(path, lambda config: config.update(transformers_version="9")), True),
        ("tokenizer_config.json", lambda path: _edit(path, lambda words: words.update(bos_token="<unk>")), False),
        ("tokenizer_config.json", lambda path: _edit(path, lambda words: words.update(backend="other")), True),
        ("generation_config.json", lambda path: _edit(path, lambda ends: ends.update(eos_token_id=[1, 4])), False),
    ],
)
def test_the_fingerprint_changes_with_everything_that_matters(
    folder: Path, copied: Path, file: str, change: Callable[[Path], None], same: bool
) -> None:
    change(copied / file)
    assert (fingerprint(copied) == fingerprint(folder)) == same


def test_large_weights_are_sampled_in_every_tensor(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kvcheck.models import fingerprint as module

    monkeypatch.setattr(module, "WHOLE", 1)
    monkeypatch.setattr(module, "EXTRACT", 64)
    before = fingerprint(copied)
    _weight(copied / "model.safetensors")
    assert fingerprint(copied) != before


# -- tokens, devices, dtypes -------------------------------------------------------------------------------------------


def test_the_encoder_adds_nothing_and_knows_where_answers_end(folder: Path) -> None:
    encoder = load(str(folder), CPU, torch.float32).tokenizer
    assert isinstance(encoder, Encoder)
    assert encoder.encode("one two one") == [3, 4, 3]
    assert (encoder.bos, encoder.eos) == ((0,), frozenset({1, 2}))
    assert encoder.decode([3, 4, 1]).split() == ["one", "two"]
    encoder.encode("one").append(9)
    assert encoder.encode("one") == [3]


def test_the_encoder_remembers_a_limited_number_of_tokens(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kvcheck.models import encoder as module

    monkeypatch.setattr(module, "REMEMBERED", 12)
    encoder = load(str(folder), CPU, torch.float32).tokenizer
    for count in (1, 8, 9, 2, 30, 1):
        assert len(encoder.encode("one " * count)) == count
        assert sum(len(ids) + 1 for ids in encoder._memo.values()) <= max(12, count + 1)


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == pick_device("cpu") == CPU
    with pytest.raises(SpecError, match="torch sees 0 CUDA devices"):
        pick_device("cuda")
    with pytest.raises(SpecError, match="unknown device 'gpu'"):
        pick_device("gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device("auto") == torch.device("cuda", 0)
    monkeypatch.setenv("PYTEST_XDIST_WORKER", "gw3")
    assert pick_device("auto") == pick_device("cuda") == torch.device("cuda", 1)
    assert pick_device("cuda:0") == torch.device("cuda", 0)
    assert pick_device("cpu") == CPU


def test_dtypes() -> None:
    cuda = torch.device("cuda", 0)
    assert pick_dtype("auto", CPU) == pick_dtype("float32", CPU) == torch.float32
    assert (pick_dtype("auto", cuda), pick_dtype("float16", cuda)) == (torch.bfloat16, torch.float16)
    assert pick_dtype("bfloat16", CPU) == torch.bfloat16
    with pytest.raises(SpecError, match="is for CUDA"):
        pick_dtype("float16", CPU)
    with pytest.raises(SpecError, match="unknown dtype 'int3'"):
        pick_dtype("int3", cuda)


def test_workers_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Never more threads than torch takes by itself: 6 here, of 8 cores."""
    asked: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 6)
    monkeypatch.delenv("PYTEST_XDIST_WORKER_COUNT", raising=False)
    monkeypatch.setattr(devices.threads.os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    monkeypatch.setattr(devices.threads, "quota", lambda: 100.0)
    devices.share_threads()
    monkeypatch.setenv("PYTEST_XDIST_WORKER_COUNT", "3")
    devices.share_threads()
    assert asked == [2]
