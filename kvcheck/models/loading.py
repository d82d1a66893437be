"""Load a model by its name, its folder or its hub id, with kvcheck's attention in every layer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from kvcheck.cache import forward
from kvcheck.cache.full import FULL
from kvcheck.core.errors import KvcheckError, MethodUnsupported, SpecError
from kvcheck.core.front import option
from kvcheck.models import gguf, hub, names, parallel, rope, synthetic, vision
from kvcheck.models.encoder import Encoder
from kvcheck.models.fingerprint import fingerprint
from kvcheck.models.names import Source
from kvcheck.models.parallel import Team

if TYPE_CHECKING:
    from kvcheck.cache.shape import ModelShape
    from kvcheck.cache.states import States
    from kvcheck.models.pretrained import Config, Model, Tokenizer
    from kvcheck.models.vision import Vision

ATTENTION = "kvcheck"
_INTERFACE = "kvcheck needs a decoder-only model with a cache whose layers use transformers' AttentionInterface"
WORDS = ("tokenizer*", "vocab*", "merges.txt", "*.model", "*.tiktoken")
"""Of these files a tokenizer has one at least."""


@dataclass(frozen=True)
class Loading:
    """How a model is loaded where that is not as usual.

    rope: a RoPE in place of the model's own (kvcheck.models.rope), "" for its own. trusted: code that comes with the
    model may run. layout: which device each part goes to, as accelerate's device_map; None for one device. team: the
    processes that share it, None for one process.
    """

    rope: str = ""
    trusted: bool = False
    layout: str | dict[str, str] | None = None
    team: Team | None = None


USUAL = Loading()


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to run.

    name: what the user typed ("mini", a folder, a hub id), and "@" with the RoPE where it was given another one.
    fingerprint: sixteen hex digits over configuration, weights and tokenizer. max_length: tokens that prompt and answer
    may have together; None where the model sets no limit. states: how it carries what is no full KV cache; None where
    it carries nothing else. vision: how it sees images; None where it reads text only. team: the processes of which
    each holds a part of it; None where this one holds all.
    """

    model: Model
    tokenizer: Encoder
    name: str
    fingerprint: str
    max_length: int | None
    states: States | None = None
    vision: Vision | None = None
    team: Team | None = None

    @property
    def device(self) -> torch.device:
        """Where the model takes token ids and gives logits."""
        return next(self.model.parameters()).device

    @property
    def devices(self) -> tuple[torch.device, ...]:
        """All devices that it computes on in this process, that one first."""
        return tuple(dict.fromkeys(parameter.device for parameter in self.model.parameters()))

    @property
    def shape(self) -> ModelShape:
        """What a cache in this process must know of it. Raises MethodUnsupported for attention that is not plain."""
        from kvcheck.cache.shape import ModelShape

        if self.states is None or self.states.windows:
            whole = ModelShape.of(self.model.config)
            return whole if self.team is None else whole.part(self.team.size)
        return self.states.shape


def load(name: str, device: torch.device, dtype: torch.dtype, how: Loading = USUAL) -> LoadedModel:
    """Load model and tokenizer.

    name: an embedded model ("mini"), one in a package ("smollm2"), a folder, a GGUF file, a hub id ("owner/model"), or
    "random:SHAPE" (kvcheck.models.synthetic).
    dtype: what the model computes in. Raises SpecError for a name that leads nowhere or files that cannot be read,
    MethodUnsupported for an architecture that has no KV cache or does not use transformers' attention interface, or
    that cannot be shared out over the processes.
    """
    if synthetic.is_random(name):
        _expect_usual(name, how)
        return _synthetic(name, device, dtype)
    source = located(name)
    from kvcheck.models import probing

    model, encoder, limit = _read(source, dtype, how)
    if how.team is None and how.layout is None:
        model = model.to(device)
    model = model.eval().requires_grad_(False)
    if how.layout is not None:
        _refuse_offloading(name, model)
    shown = f"{name}@{how.rope}" if how.rope else name
    loaded = LoadedModel(model, encoder, shown, "", limit, team=how.team)
    if how.team is not None:
        how.team.device = loaded.device
        how.team.watch(model)
    states = probing.find(loaded)
    if states is None:
        _check_interface(name, model, loaded.shape)
    files = Path(source.path) if source.local else hub.snapshot(name, how.trusted, fetched=encoder.slots is None)
    known = fingerprint(files, rope=how.rope, code=how.trusted)
    return replace(loaded, fingerprint=known, states=states, vision=vision.eyes(name, model, encoder.slots, files))


def _read(source: Source, dtype: torch.dtype, how: Loading) -> tuple[Model, Encoder, int | None]:
    """(model, encoder, longest sequence), with the weights where `how` says, else on the CPU. Raises as `load`.

    What can be refused is refused before the weights are read.
    """
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    import kvcheck.cache.attention  # noqa: F401  (registers the attention function)

    with _reading(source):
        config, limit = _config(source, how)
        options: dict[str, object] = {"dtype": dtype, "attn_implementation": ATTENTION, **_files(source, how)}
        if how.rope:
            options["config"] = config
        if how.team is not None:
            parallel.refuse(source.name, config, how.team.size)
            options |= parallel.sharding(how.team.size)
        elif how.layout is not None:
            options["device_map"] = how.layout
        tokenizer = _tokenizer(source, how)
        slots = vision.Slots.of(source.name, config, tokenizer)
        loader = AutoModelForImageTextToText if vision.sees(config) else AutoModelForCausalLM
        model, told = loader.from_pretrained(source.path, output_loading_info=True, **options)
        _refuse_missing(source.name, sorted(told["missing_keys"]))
        rope.steady(model)
        words = model.get_input_embeddings().weight.shape[0]
        return model, Encoder(tokenizer, _end_tokens(model), slots, words), limit


def encoder_of(name: str, how: Loading = USUAL) -> tuple[Encoder, int | None]:
    """(encoder, longest sequence) of a model, without its weights. Raises SpecError and MethodUnsupported as `load`."""
    random = synthetic.is_random(name)
    if random:
        _expect_usual(name, how)
    source = located(name)
    with _reading(source):
        config, limit = _config(source, how)
        tokenizer = _tokenizer(source, how)
        return Encoder(tokenizer, slots=vision.Slots.of(name, config, tokenizer)), None if random else limit


def located(name: str) -> Source:
    """Where a model lies, as a folder or a hub id. Raises SpecError."""
    source = names.find(name)
    with _reading(source):
        return gguf.unpacked(source)


@contextmanager
def _reading(source: Source) -> Iterator[None]:
    """Let transformers be quiet, and say of what it raises what can be done about it. Raises as `load`."""
    from transformers.utils import logging

    quiet, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    if source.local:
        logging.disable_progress_bar()
    try:
        yield
    except KvcheckError:
        raise
    except Exception as error:
        if isinstance(error, KeyError) and error.args == (ATTENTION,):  # it looks attention up in a table of its own
            why = f"model {source.name!r} does not use the attention interface"
            raise MethodUnsupported(why, _INTERFACE) from error
        raise hub.unreadable(source.name, source.local, error) from error
    finally:
        logging.set_verbosity(quiet)
        if bar:
            logging.enable_progress_bar()


def _files(source: Source, how: Loading) -> dict[str, bool]:
    """What from_pretrained is told of where files come from."""
    return {"local_files_only": source.local, "trust_remote_code": how.trusted}


def _config(source: Source, how: Loading) -> tuple[Config, int | None]:
    """(configuration with the RoPE that `how` says, longest sequence). Refuses what cannot be served."""
    from transformers import AutoConfig

    if how.trusted:
        _refuse_foreign_code(source)
    config = AutoConfig.from_pretrained(source.path, **_files(source, how))
    if getattr(config, "is_encoder_decoder", False):
        raise MethodUnsupported(
            f"model {source.name!r} ({config.model_type}) is an encoder-decoder",
            "kvcheck tests decoder-only models, which keep the whole prompt in one KV cache",
        )
    vision.refuse(source.name, config)
    if how.rope:
        return config, rope.override(source.name, config, how.rope)
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    return config, None if limit is None else int(limit)


def _synthetic(name: str, device: torch.device, dtype: torch.dtype) -> LoadedModel:
    """A model with random weights, and the tokenizer of the embedded one. Raises SpecError.

    It has no limit of context: nothing that it was trained on would be left, and 131,072 tokens and what is decoded
    behind them are measured on a shape made for 131,072.
    """
    import kvcheck.cache.attention  # noqa: F401  (registers the attention function)

    try:
        model = synthetic.build(name, device, dtype, ATTENTION)
    except torch.OutOfMemoryError as error:
        raise SpecError(
            f"{name} does not fit on {device}: {error}", f"{option('model')} random:llama-3.2-1b is smaller"
        ) from error
    tokenizer = _tokenizer(names.find(name), USUAL)
    model = model.eval().requires_grad_(False)
    loaded = LoadedModel(model, Encoder(tokenizer), name, synthetic.fingerprint(name), None)
    _check_interface(name, model, loaded.shape)
    return loaded


def _tokenizer(source: Source, how: Loading) -> Tokenizer:
    """The tokenizer that lies with a model.

    AutoTokenizer has a class of its own for some architectures, such as qwen2, and replaces the rules by which a
    tokenizer.json splits text. What says of itself that its tokenizer.json is all there is, is loaded as that.
    Raises SpecError for a folder without one.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast
    from transformers.models.auto.tokenization_auto import get_tokenizer_config

    if source.local and not any(path for words in WORDS for path in Path(source.path).glob(words)):
        raise hub.wordless(source.path)  # transformers 5.2 makes up one that knows no word
    named = get_tokenizer_config(source.path, local_files_only=source.local).get("tokenizer_class")
    kind = PreTrainedTokenizerFast if named == "TokenizersBackend" else AutoTokenizer
    return kind.from_pretrained(source.path, **_files(source, how))


def _expect_usual(name: str, how: Loading) -> None:
    """Refuse what is asked of a trained model alone. Raises SpecError."""
    if how != USUAL:
        raise SpecError(f"{name} has random weights, on one device and with its own RoPE", "name a trained model")


def _refuse_missing(name: str, missing: list[str]) -> None:
    """Refuse a model of which transformers made up weights that its files lack. Raises SpecError."""
    if missing:
        raise SpecError(
            f"model {name!r} lacks {len(missing)} of the weights that its config.json asks for: "
            f"{', '.join(missing[:2])}{', …' * (len(missing) > 2)}",
            "is config.json the one that came with the weights, and is every file of weights there?",
        )


def _refuse_foreign_code(source: Source) -> None:
    """Refuse code of another repository than the one that was trusted, before it is fetched. Raises SpecError."""
    from transformers import PretrainedConfig
    from transformers.models.auto.tokenization_auto import get_tokenizer_config

    config, _ = PretrainedConfig.get_config_dict(source.path, local_files_only=source.local)
    places = [*(config.get("auto_map") or {}).values()]
    tokenizer = get_tokenizer_config(source.path, local_files_only=source.local).get("auto_map") or {}
    for found in tokenizer.values() if isinstance(tokenizer, dict) else [tokenizer]:
        places += found if isinstance(found, (list, tuple)) else [found]
    for place in places:
        owner, apart, _ = str(place).partition("--")
        if apart and owner != source.name:
            raise SpecError(
                f"the code of model {source.name!r} lies in another repository, {owner}, which was not named",
                f"download both and set auto_map in its config.json, or use {owner} itself",
            )


def _refuse_offloading(name: str, model: Model) -> None:
    """Refuse a model of which parts lie in host memory or on disk, to be moved in every forward. Raises SpecError."""
    places = getattr(model, "hf_device_map", {})
    kinds = {str(place) for place in places.values()}
    outside = [part for part, place in places.items() if str(place) in ("cpu", "disk")]
    if outside and kinds != {"cpu"}:
        raise SpecError(
            f"model {name!r} does not fit on the CUDA devices: {', '.join(outside[:3])}… would lie in host memory",
            "more or larger devices, or torchrun over several machines",
        )


def _check_interface(name: str, model: Model, shape: ModelShape) -> None:
    """Refuse a model whose layers do not call kvcheck's attention with a cache. Raises MethodUnsupported.

    Declarations are not trusted: two tokens go through the model with a full cache, and every layer must see both.
    """
    kind, hint = type(model).__name__, _INTERFACE
    if not getattr(model, "_supports_attention_backend", False):
        raise MethodUnsupported(f"model {name!r}: {kind} does not use the attention interface", hint)
    cache = FULL.build(shape)
    tokens = torch.zeros(1, 2, dtype=torch.long, device=model.device)
    try:
        with torch.inference_mode():
            forward.feed(model, tokens, cache, logits_to_keep=1)
    except Exception as error:
        raise MethodUnsupported(f"model {name!r}: {kind} does not run on a kvcheck cache: {error}", hint) from error
    missed = [index for index, layer in enumerate(cache.layers) if layer.get_seq_length() != 2]
    if missed:
        raise MethodUnsupported(f"model {name!r}: layers {missed} of {kind} do not use the KV cache", hint)


def _end_tokens(model: Model) -> tuple[int, ...]:
    """End-of-sequence ids that the model's generation config names."""
    ends = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    if ends is None:
        ends = model.config.eos_token_id
    return () if ends is None else (ends,) if isinstance(ends, int) else tuple(ends)
