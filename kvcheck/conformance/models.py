"""Small models of several architectures with random weights, sharp enough that one wrong token moves every logit.

They compute in float64: two ways of computing the same thing then differ by some 1e-15, far less than anything that a
rounding to 16 bits or a choice between two scores could turn into another result.
"""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING

import torch

from kvcheck.core import paths
from kvcheck.measure.checksum import checksums
from kvcheck.models import probing
from kvcheck.models.encoder import Encoder
from kvcheck.models.loading import ATTENTION, LoadedModel, load

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

VOCABULARY = 1024
SHARP = 0.28
"""Standard deviation of the weights: attention is neither flat nor a single token."""
OUTLIER = 60.0
"""Bias of one key channel per kv head, a slowly rotating one, as Qwen models have it."""

BASE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 8192,
    "initializer_range": SHARP,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
"""kv heads: as many as the rows that most properties draw, so that mixing the two up goes unnoticed by no shape check
and shows in the numbers. Layers: one more than the two that methods may leave as they are (Quest), or read to choose by
(CacheBlend)."""


def llama() -> PretrainedConfig:
    """Two kv heads."""
    from transformers import LlamaConfig

    return LlamaConfig(**BASE)


def qwen2() -> PretrainedConfig:
    """Biases, one of them an outlier channel of the keys; one kv head per query head."""
    from transformers import Qwen2Config

    return Qwen2Config(**{**BASE, "num_key_value_heads": 4})


def mistral() -> PretrainedConfig:
    """A sliding window in every layer, wider than any drawn text: longer ones are refused."""
    from transformers import MistralConfig

    return MistralConfig(**{**BASE, "num_key_value_heads": 1, "head_dim": 32, "sliding_window": 4096})


def gemma3() -> PretrainedConfig:
    """Layers with a sliding window around a global one, and norms of queries and keys."""
    from transformers import Gemma3TextConfig

    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    return Gemma3TextConfig(**{**BASE, "sliding_window": 4096, "layer_types": kinds})


def scaled() -> PretrainedConfig:
    """RoPE scaled as in Llama 3.1, a head_dim that is no power of two, four layers."""
    from transformers import LlamaConfig

    rope = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 4.0, "low_freq_factor": 1.0}
    rope |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 128}
    return LlamaConfig(**{**BASE, "num_hidden_layers": 4, "head_dim": 48, "rope_parameters": rope})


CONFIGS: dict[str, Callable[[], PretrainedConfig]] = {
    "llama": llama,
    "qwen2": qwen2,
    "scaled": scaled,
    "mistral": mistral,
    "gemma3": gemma3,
}
"""By name, the most telling first: failures shrink towards it."""


def eighty() -> PretrainedConfig:
    """As `scaled`, with the head_dim of some models of three billion parameters."""
    config = scaled()
    config.head_dim = 80
    return config


def wide() -> PretrainedConfig:
    """As `mistral`, with the head_dim of most models."""
    config = mistral()
    config.head_dim = 128
    return config


OTHERS: dict[str, Callable[[], PretrainedConfig]] = {
    "llama": llama,
    "qwen2": qwen2,
    "eighty": eighty,
    "wide": wide,
    "gemma3": gemma3,
}
"""For methods from elsewhere: they are written for the sizes of heads that published models have."""


def gemma2() -> PretrainedConfig:
    """Scores with a small soft cap, windows beside global layers."""
    from transformers import Gemma2Config

    more = {"sliding_window": 4096, "attn_logit_softcapping": 2.0, "query_pre_attn_scalar": 64, "num_hidden_layers": 2}
    return Gemma2Config(**{**BASE, **more, "layer_types": ["sliding_attention", "full_attention"]})


def gpt_oss() -> PretrainedConfig:
    """A learned sink per query head, windows beside global layers."""
    from transformers import GptOssConfig

    more = {"sliding_window": 4096, "num_local_experts": 2, "num_experts_per_tok": 1, "num_hidden_layers": 2}
    more |= {"max_position_embeddings": 131072}  # 32 times what its RoPE was made for, as in the released ones
    config = GptOssConfig(**{**BASE, **more, "layer_types": ["sliding_attention", "full_attention"]})
    config._experts_implementation = "eager"  # the fused kernel does not compute in float64
    return config


DENOMINATORS: dict[str, Callable[[], PretrainedConfig]] = {"gemma2": gemma2, "gpt_oss": gpt_oss}
"""Those whose attention is no plain softmax. For properties that ask for them."""


def mamba2() -> PretrainedConfig:
    """A state in every layer, and a short convolution."""
    from transformers import Mamba2Config

    shape = {"state_size": 16, "num_heads": 8, "head_dim": 16, "n_groups": 2, "chunk_size": 32, "hidden_size": 64}
    return Mamba2Config(**{**BASE, **shape, "num_hidden_layers": 2})


def bamba() -> PretrainedConfig:
    """A state of Mamba-2 before two layers with full attention."""
    from transformers import BambaConfig

    states = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_n_groups": 2, "mamba_d_state": 16, "mamba_chunk_size": 32}
    return BambaConfig(**{**BASE, **states, "num_hidden_layers": 3, "attn_layer_indices": [1, 2]})


def qwen3_next() -> PretrainedConfig:
    """A state of the gated delta rule before a layer with full attention."""
    from transformers import Qwen3NextConfig

    states = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16}
    states |= {"linear_value_head_dim": 16, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32}
    states |= {"num_experts": 2, "num_experts_per_tok": 1}
    kinds = ["linear_attention", "full_attention"]
    return Qwen3NextConfig(**{**BASE, **states, "num_hidden_layers": 2, "layer_types": kinds})


STATES: dict[str, Callable[[], PretrainedConfig]] = {"mamba2": mamba2, "bamba": bamba, "qwen3_next": qwen3_next}
"""Those that carry a state. They compute in float32, as their code does in parts whatever it is told."""


@cache
def tokenizer() -> PreTrainedTokenizerBase:
    """That of the embedded model, for methods that act on text."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(paths.bundle("fixtures") / "mini"), local_files_only=True)


MINI = "mini"
"""The embedded model, trained: for what is made for its words or its weights."""


def small(architecture: str, seed: int = 0) -> LoadedModel:
    """A model of its own of an architecture: the same weights for the same seed. KeyError for an unknown one."""
    found, frame, tensors = _frozen(architecture, seed)
    return replace(found, model=Thaw(frame, tensors).load())


_SUMS: dict[tuple[str, int], tuple[list[int], list[torch.Tensor]]] = {}
"""By architecture and seed: the sums of the tensors that copies are made from, and these."""


class Freeze(pickle.Pickler):
    """Pickles a model without its tensors, which are listed beside it: a deep copy takes three times as long."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self.places: dict[int, int] = {}
        self.tensors: list[torch.Tensor] = []

    def persistent_id(self, obj: object) -> int | None:
        """The place of a tensor in the list, None for all else."""
        if not isinstance(obj, torch.Tensor):
            return None
        if id(obj) not in self.places:
            self.places[id(obj)] = len(self.tensors)
            self.tensors.append(obj)
        return self.places[id(obj)]


class Thaw(pickle.Unpickler):
    """The model again, with tensors of its own."""

    def __init__(self, frame: bytes, tensors: list[torch.Tensor]) -> None:
        super().__init__(io.BytesIO(frame))
        self.tensors = [copy.deepcopy(each) for each in tensors]

    def persistent_load(self, pid: int) -> torch.Tensor:
        """The copy at this place."""
        return self.tensors[pid]


@cache
def _frozen(architecture: str, seed: int) -> tuple[LoadedModel, bytes, list[torch.Tensor]]:
    """A model, and what copies of it are made from."""
    found = _mini() if architecture == MINI else _random(architecture, seed)
    file = io.BytesIO()
    freeze = Freeze(file)
    freeze.dump(found.model)
    _SUMS[architecture, seed] = checksums(freeze.tensors), freeze.tensors
    return found, file.getvalue(), freeze.tensors


def restored() -> list[str]:
    """Make models anew that were written to since copies were first made of them -> their names."""
    found = [key for key, (before, kept) in _SUMS.items() if checksums(kept) != before]
    if found:
        _SUMS.clear()
        _frozen.cache_clear()
        _mini.cache_clear()
        _random.cache_clear()
    return [architecture for architecture, _ in found]


@cache
def _mini() -> LoadedModel:
    """The embedded model, in float64 too: in float32 a block can be 0.6 % of the spread from its tokens one by one."""
    return load(MINI, torch.device("cpu"), torch.float64)


@cache
def _random(architecture: str, seed: int) -> LoadedModel:
    """Random weights."""
    from transformers import AutoModelForCausalLM

    import kvcheck.cache.attention  # noqa: F401  (registers the attention function)

    config = (CONFIGS | OTHERS | DENOMINATORS | STATES)[architecture]()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, attn_implementation=ATTENTION)
        for name, weight in model.named_parameters():
            if name.endswith(("q_proj.bias", "k_proj.bias", "v_proj.bias")):
                torch.nn.init.normal_(weight, std=0.5)
            if name.endswith("k_proj.bias"):
                head_dim = config.get_text_config().head_dim
                weight.data.view(-1, head_dim)[:, head_dim // 2 - 1] = OUTLIER
    model = model.to(torch.float32 if architecture in STATES else torch.float64).eval().requires_grad_(False)
    loaded = LoadedModel(model, Encoder(tokenizer()), f"small-{architecture}", f"{architecture}-{seed}", 8192)
    if architecture not in STATES:
        return loaded
    with _quietly():  # transformers says of every kernel that is not installed that its reference code is slow
        return replace(loaded, states=probing.find(loaded))


@contextmanager
def _quietly() -> Iterator[None]:
    """Let transformers be quiet."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)
