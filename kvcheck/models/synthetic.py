"""Models with the shapes of well-known ones and random weights, made on the fly: memory and latency without a download.

`--kv-model random:llama-3.1-8b`. What such a model answers means nothing, so cases are refused (Session.work).
Sources of the shapes: the config.json of each model on the Hugging Face hub.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

from kvcheck.core.errors import KvcheckError, SpecError, did_you_mean
from kvcheck.core.front import option

if TYPE_CHECKING:
    import torch

    from kvcheck.models.pretrained import Model

PREFIX = "random:"
SEED = 0
SHAPES: dict[str, dict[str, object]] = {
    "llama-3.1-8b": {
        "model_type": "llama", "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
        "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
        "rope_parameters": {
            "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
        },
    },
    "llama-3.2-1b": {
        "model_type": "llama", "vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192,
        "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64,
        "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "tie_word_embeddings": True,
        "rope_parameters": {
            "rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
        },
    },
    "qwen2.5-7b": {
        "model_type": "qwen2", "vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944,
        "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4,
        "max_position_embeddings": 131072, "rms_norm_eps": 1e-6, "tie_word_embeddings": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
    },
    "mistral-7b-v0.3": {
        "model_type": "mistral", "vocab_size": 32768, "hidden_size": 4096, "intermediate_size": 14336,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
        "max_position_embeddings": 32768, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
        "sliding_window": None, "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
    },
    "tiny": {
        "model_type": "llama", "vocab_size": 1024, "hidden_size": 128, "intermediate_size": 256,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32,
        "max_position_embeddings": 131072, "tie_word_embeddings": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    },
}  # fmt: skip
"""By name. `tiny` is of no model: it tries the same code on a CPU."""


def is_random(name: str) -> bool:
    """Whether a model's name stands for a shape with random weights."""
    return name.startswith(PREFIX)


def shape_of(name: str) -> dict[str, object]:
    """The configuration that `random:NAME` stands for. Raises SpecError."""
    key = name.removeprefix(PREFIX)
    if key not in SHAPES:
        raise SpecError(f"unknown shape {key!r} in {name!r}", did_you_mean(key, SHAPES))
    return dict(SHAPES[key])


def refuse(name: str, what: str) -> None:
    """Raise KvcheckError for a model of random weights, whose answers to `what` mean nothing."""
    if is_random(name):
        raise KvcheckError(
            f"{name} has random weights: what it answers in {what} says nothing of a method",
            f"leave {option('tasks')} out to measure its memory and latency, or name a trained {option('model')}",
        )


def fingerprint(name: str) -> str:
    """Sixteen hex digits of shape and seed."""
    return hashlib.sha256(json.dumps([shape_of(name), SEED], sort_keys=True).encode()).hexdigest()[:16]


def build(name: str, device: torch.device, dtype: torch.dtype, attention: str) -> Model:
    """The model with random weights, made on the device in `dtype`: they never lie anywhere else. Raises SpecError."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    fields = shape_of(name)
    config = AutoConfig.for_model(fields.pop("model_type"), **fields)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), device:
        torch.manual_seed(SEED)
        return AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention)
