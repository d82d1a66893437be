"""Load a model by its name, its folder or its hub id, with kvcheck's attention in every layer."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from kvcheck import paths
from kvcheck.errors import KvcheckError, MethodUnsupported, SpecError, did_you_mean
from kvcheck.models import EMBEDDED, synthetic, vision
from kvcheck.models.encoder import Encoder
from kvcheck.models.fingerprint import fingerprint

if TYPE_CHECKING:
    from kvcheck.methods._states import States
    from kvcheck.methods.base import ModelShape
    from kvcheck.models.vision import Vision

ATTENTION = "kvcheck"
_INTERFACE = "kvcheck needs a decoder-only model with past_key_values whose layers use transformers' AttentionInterface"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to run.

    name: what the user typed ("mini", a folder, a hub id). fingerprint: sixteen hex digits over configuration, weights
    and tokenizer. max_length: tokens that prompt and answer may have together; None where the model sets no limit.
    states: how it carries what is no full KV cache; None where it carries nothing else. vision: how it sees images,
    None where it reads text only.
    """

    model: Any
    tokenizer: Encoder
    name: str
    fingerprint: str
    max_length: int | None
    states: States | None = None
    vision: Vision | None = None

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return next(self.model.parameters()).device

    @property
    def shape(self) -> ModelShape:
        """What a cache must know of it. Raises MethodUnsupported for attention that is not plain."""
        from kvcheck.methods.base import ModelShape

        if self.states is None or self.states.windows:
            return ModelShape.of(self.model.config)
        return self.states.shape


def load(name: str, device: torch.device, dtype: torch.dtype) -> LoadedModel:
    """Load model and tokenizer.

    name: an embedded model ("mini"), a folder, a hub id ("owner/model"), or "random:SHAPE" (kvcheck.models.synthetic).
    dtype: what the model computes in. Raises SpecError for a name that leads nowhere or files that cannot be read,
    MethodUnsupported for an architecture that has no KV cache or does not use transformers' attention interface.
    """
    if synthetic.is_random(name):
        return _synthetic(name, device, dtype)
    folder, local = _find(name)
    from transformers import AutoConfig
    from transformers.utils import logging

    import kvcheck.methods.attention  # noqa: F401  (registers the attention function)
    from kvcheck.models import probing

    quiet, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    if local:
        logging.disable_progress_bar()
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=local)
        _refuse_architecture(name, config)
        tokenizer = _tokenizer(folder, local)
        slots = vision.Slots.of(name, config, tokenizer)
        options = {"dtype": dtype, "attn_implementation": ATTENTION, "local_files_only": local}
        model = vision.loader(config).from_pretrained(folder, **options)
    except KvcheckError:
        raise
    except Exception as error:
        if isinstance(error, KeyError) and error.args == (ATTENTION,):  # it looks attention up in a table of its own
            raise MethodUnsupported(f"model {name!r} does not use the attention interface", _INTERFACE) from error
        raise _unreadable(name, local, error) from error
    finally:
        logging.set_verbosity(quiet)
        if bar:
            logging.enable_progress_bar()
    model = model.to(device).eval().requires_grad_(False)
    loaded = LoadedModel(model, Encoder(tokenizer, _end_tokens(model), slots), name, "", _limit(model))
    states = probing.find(loaded)
    if states is None:
        _check_interface(name, model)
    files = Path(folder) if local else _snapshot(folder, fetched=slots is None)
    return replace(loaded, fingerprint=fingerprint(files), states=states, vision=vision.eyes(name, model, slots, files))


def encoder_of(name: str) -> Encoder:
    """The tokenizer of a model, without its weights. Raises SpecError and MethodUnsupported as `load` does."""
    folder, local = _find("mini" if synthetic.is_random(name) else name)
    from transformers import AutoConfig

    try:
        config, tokenizer = AutoConfig.from_pretrained(folder, local_files_only=local), _tokenizer(folder, local)
        return Encoder(tokenizer, slots=vision.Slots.of(name, config, tokenizer))
    except KvcheckError:
        raise
    except Exception as error:
        raise _unreadable(name, local, error) from error


def _synthetic(name: str, device: torch.device, dtype: torch.dtype) -> LoadedModel:
    """A model with random weights, and the tokenizer of the embedded one. Raises SpecError.

    It has no limit of context: nothing that it was trained on would be left, and 131,072 tokens and what is decoded
    behind them are measured on a shape made for 131,072.
    """
    import kvcheck.methods.attention  # noqa: F401  (registers the attention function)

    try:
        model = synthetic.build(name, device, dtype, ATTENTION)
    except torch.OutOfMemoryError as error:
        raise SpecError(
            f"{name} does not fit on {device}: {error}", "--kv-model random:llama-3.2-1b is smaller"
        ) from error
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(paths.bundle("fixtures") / "mini"), local_files_only=True)
    model = model.eval().requires_grad_(False)
    _check_interface(name, model)
    return LoadedModel(model, Encoder(tokenizer), name, synthetic.fingerprint(name), None)


def _find(name: str) -> tuple[str, bool]:
    """(what from_pretrained is given, whether it lies on this machine)."""
    if name in EMBEDDED:
        folder = paths.bundle("fixtures") / name
        if not (folder / "config.json").is_file():
            raise SpecError(f"this installation lacks the embedded model {name} ({folder})", "install kvcheck again")
        return str(folder), True
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise SpecError(f"no model in {path}: it has no config.json", "give the folder that save_pretrained wrote")
        return str(path), True
    if path.is_absolute() or name.startswith((".", "~")):
        raise SpecError(f"no such folder: {path}", "--kv-model takes an embedded model, a folder or a hub id")
    if _HUB_ID.fullmatch(name):
        return name, False
    raise SpecError(
        f"unknown model {name!r}",
        f"{did_you_mean(name, EMBEDDED)}; a folder or a hub id such as Qwen/Qwen2.5-0.5B-Instruct will do too",
    )


def _tokenizer(folder: str, local: bool) -> Any:
    """The tokenizer of a folder or hub id.

    AutoTokenizer has a class of its own for some architectures, such as qwen2, and replaces the rules by which a
    tokenizer.json splits text. What says of itself that its tokenizer.json is all there is, is loaded as that.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast
    from transformers.models.auto.tokenization_auto import get_tokenizer_config

    named = get_tokenizer_config(folder, local_files_only=local).get("tokenizer_class")
    kind = PreTrainedTokenizerFast if named == "TokenizersBackend" else AutoTokenizer
    return kind.from_pretrained(folder, local_files_only=local)


def _unreadable(name: str, local: bool, error: Exception) -> SpecError:
    """The error for files that transformers could not load."""
    reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    if "does not recognize this architecture" in str(error) or "trust_remote_code" in str(error):
        hint = "a newer transformers may know it; kvcheck runs no code that comes with a model"
        return SpecError(f"model {name!r} cannot be loaded: {reason}", hint)
    if local:
        return SpecError(f"model {name!r} cannot be loaded: {reason}", "is the folder complete and undamaged?")
    return SpecError(
        f"model {name!r} cannot be loaded from the Hugging Face hub: {reason}",
        "is the id right, is there a network (HF_HUB_OFFLINE=0), does the model need a token (hf auth login)?",
    )


def _snapshot(hub_id: str, fetched: bool) -> Path:
    """The folder of a hub model in the local cache. fetched: from_pretrained has had all of its files."""
    from huggingface_hub import snapshot_download

    patterns = ["config.json", "*.safetensors", "tokenizer*", "vocab*", "merges.txt", "*processor_config.json"]
    try:
        return Path(snapshot_download(hub_id, allow_patterns=patterns, local_files_only=fetched))
    except Exception:  # an incomplete snapshot counts as missing there: from_pretrained fetches only what it needs
        return Path(snapshot_download(hub_id, allow_patterns=patterns))


def _refuse_architecture(name: str, config: Any) -> None:
    """Refuse what is no decoder before its weights are read. Raises MethodUnsupported."""
    if getattr(config, "is_encoder_decoder", False):
        raise MethodUnsupported(
            f"model {name!r} ({config.model_type}) is an encoder-decoder",
            "kvcheck tests decoder-only models, which keep the whole prompt in one KV cache",
        )
    vision.refuse(name, config)


def _check_interface(name: str, model: Any) -> None:
    """Refuse a model whose layers do not call kvcheck's attention with a cache. Raises MethodUnsupported.

    Declarations are not trusted: two tokens go through the model with a full cache, and every layer must see both.
    """
    from kvcheck.methods.base import ModelShape
    from kvcheck.methods.fp16 import METHOD

    kind, hint = type(model).__name__, _INTERFACE
    if not getattr(model, "_supports_attention_backend", False):
        raise MethodUnsupported(f"model {name!r}: {kind} does not use the attention interface", hint)
    shape = ModelShape.of(model.config)
    cache = METHOD().build(shape)
    tokens = torch.zeros(1, 2, dtype=torch.long, device=model.device)
    try:
        with torch.inference_mode():
            model(tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
    except Exception as error:
        raise MethodUnsupported(f"model {name!r}: {kind} does not run on a kvcheck cache: {error}", hint) from error
    missed = [index for index, layer in enumerate(cache.layers) if layer.get_seq_length() != 2]
    if missed:
        raise MethodUnsupported(f"model {name!r}: layers {missed} of {kind} do not use the KV cache", hint)


def _end_tokens(model: Any) -> tuple[int, ...]:
    """End-of-sequence ids that the model's generation config names."""
    ends = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    if ends is None:
        ends = model.config.eos_token_id
    return () if ends is None else (ends,) if isinstance(ends, int) else tuple(ends)


def _limit(model: Any) -> int | None:
    """Longest sequence that the model was made for, in tokens."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return None if limit is None else int(limit)


def pick_device(wanted: str) -> torch.device:
    """The device that `--kv-device` names: auto, cpu, cuda, cuda:1. A pytest-xdist worker takes the one of its number.

    Raises SpecError for another word or a device that is not there.
    """
    count = torch.cuda.device_count() if wanted != "cpu" and torch.cuda.is_available() else 0
    if wanted == "cpu" or (wanted == "auto" and not count):
        return torch.device("cpu")
    if not re.fullmatch(r"auto|cuda(:\d+)?", wanted):
        raise SpecError(f"unknown device {wanted!r}", did_you_mean(wanted, ["auto", "cpu", "cuda", "cuda:0"]))
    index = int(wanted[5:]) if ":" in wanted else _worker() % max(count, 1)
    if index >= count:
        raise SpecError(f"device {wanted!r} is not there: torch sees {count} CUDA devices", "--kv-device cpu")
    return torch.device("cuda", index)


def pick_dtype(wanted: str, device: torch.device) -> torch.dtype:
    """What the model computes in. On the CPU always float32 (portable; K/V are rounded to 16 bits in the cache).

    On CUDA `--kv-dtype`: auto and bfloat16 (bf16), float16 (fp16). Raises SpecError.
    """
    known = {"auto": torch.bfloat16, "bfloat16": torch.bfloat16, "bf16": torch.bfloat16}
    known |= {"float16": torch.float16, "fp16": torch.float16}
    if device.type == "cpu":
        if wanted in ("auto", "float32"):
            return torch.float32
        raise SpecError(
            f"dtype {wanted!r} is for CUDA",
            "on the CPU the model computes in float32 and keys and values are stored in 16 bits: --kv-dtype auto",
        )
    if wanted not in known:
        raise SpecError(f"unknown dtype {wanted!r}", did_you_mean(wanted, known))
    return known[wanted]


def share_threads() -> None:
    """Under pytest-xdist, give each worker its part of the cores."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if workers > 1:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        torch.set_num_threads(max(1, cores // workers))


def _worker() -> int:
    """Number of this worker of pytest-xdist, 0 without it."""
    return int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw") or 0)
