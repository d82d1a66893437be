"""Tiny models with random weights, one of every architecture: saved with the embedded tokenizer beside them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from kvcheck.core import paths

WINDOW, HIDDEN, INNER, STATE, KERNEL = 16, 32, 64, 8, 4
BASE: dict[str, Any] = {
    "vocab_size": 1169, "hidden_size": HIDDEN, "num_hidden_layers": 2, "bos_token_id": 0, "eos_token_id": 2,
    "pad_token_id": 0, "initializer_range": 0.2,
}  # fmt: skip
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
ATTENTION = BASE | HEADS | {"intermediate_size": 48, "max_position_embeddings": 1024}
EXPERTS = {"num_experts": 2, "num_experts_per_tok": 1}
FULL, SLIDING, LINEAR = "full_attention", "sliding_attention", "linear_attention"


@dataclass(frozen=True)
class Architecture:
    """A tiny config. full: layers with full attention. beside: bytes after n tokens in float32 of all the others."""

    kind: str
    config: dict[str, Any]
    full: int = 2
    beside: Callable[[int], int] = lambda tokens: 0
    settings: str = "Config"

    def model(self) -> Any:
        """Random weights; skips the test where this transformers has no such class."""
        if not hasattr(transformers, f"{self.kind}ForCausalLM"):
            pytest.skip(f"transformers {transformers.__version__} has no {self.kind}ForCausalLM")
        torch.manual_seed(0)
        return getattr(transformers, f"{self.kind}ForCausalLM")(
            getattr(transformers, f"{self.kind}{self.settings}")(**self.config)
        ).eval()

    def save(self, folder: Path) -> Path:
        """The model with the embedded tokenizer."""
        self.model().save_pretrained(folder)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(paths.bundle("fixtures") / "mini" / name, folder / name)
        return folder


def _mamba(layers: int) -> Callable[[int], int]:
    return lambda tokens: layers * INNER * (KERNEL * 4 + STATE * 4)


def _mamba2(layers: int) -> Callable[[int], int]:
    return lambda tokens: layers * ((INNER + 2 * 2 * STATE) * KERNEL * 4 + INNER * STATE * 4)


def _windows(layers: int, kv_heads: int = 2) -> Callable[[int], int]:
    return lambda tokens: 2 * layers * kv_heads * min(tokens, WINDOW - 1) * 8 * 2


PURE = {
    "llama": Architecture("Llama", ATTENTION),
    "qwen2": Architecture("Qwen2", ATTENTION),
    "qwen3": Architecture("Qwen3", ATTENTION),
    "mistral": Architecture("Mistral", ATTENTION | {"sliding_window": None}),
    "phi3": Architecture("Phi3", ATTENTION),
    "glm4": Architecture("Glm4", ATTENTION),
}
"""Full attention in every layer."""

WINDOWED = {
    "mistral_sliding": Architecture("Mistral", ATTENTION | {"sliding_window": WINDOW}, 0, _windows(2)),
    "gemma3": Architecture(
        "Gemma3",
        ATTENTION | {"num_hidden_layers": 3, "sliding_window": WINDOW, "layer_types": [SLIDING, FULL, SLIDING]},
        1, _windows(2), "TextConfig",
    ),
    "gemma2": Architecture(
        "Gemma2",
        ATTENTION | {"num_hidden_layers": 4, "sliding_window": WINDOW, "layer_types": [SLIDING, FULL] * 2}
        | {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 30.0, "query_pre_attn_scalar": 8},
        2, _windows(2),
    ),
    "gpt_oss": Architecture(
        "GptOss",
        ATTENTION | {"num_hidden_layers": 4, "sliding_window": WINDOW, "layer_types": [SLIDING, FULL] * 2}
        | {"num_local_experts": 2, "num_experts_per_tok": 1},
        2, _windows(2),
    ),
    "llama4": Architecture(
        "Llama4",
        ATTENTION | {"num_hidden_layers": 4, "attention_chunk_size": WINDOW, "no_rope_layers": [1, 0, 1, 0]}
        | {"intermediate_size_mlp": 48, "num_local_experts": 2, "interleave_moe_layer_step": 2, "floor_scale": 4},
        2, lambda tokens: 2 * 2 * 2 * (tokens % WINDOW) * 8 * 2, "TextConfig",
    ),
}  # fmt: skip
"""Windows, but in Mistral beside global layers: in Gemma 2 with soft caps, in gpt-oss with sinks; in Llama 4 chunks."""

RECURRENT = {
    "mamba": Architecture("Mamba", BASE | {"state_size": STATE}, 0, _mamba(2)),
    "mamba2": Architecture(
        "Mamba2", BASE | {"state_size": STATE, "num_heads": 8, "head_dim": 8, "n_groups": 2, "chunk_size": 16},
        0, _mamba2(2),
    ),
    "falcon_mamba": Architecture("FalconMamba", BASE | {"state_size": STATE}, 0, _mamba(2)),
    "rwkv": Architecture(
        "Rwkv", BASE | {"attention_hidden_size": HIDDEN, "intermediate_size": 48, "context_length": 1024},
        0, lambda tokens: 2 * HIDDEN * (2 * 4 + 3 * 4),
    ),
    "recurrent_gemma": Architecture(
        "RecurrentGemma",
        ATTENTION | {"num_hidden_layers": 3, "num_key_value_heads": 1, "lru_width": HIDDEN}
        | {"attention_window_size": WINDOW},
        0, lambda tokens: 2 * (HIDDEN * 3 * 4 + HIDDEN * 4) + _windows(1, 1)(tokens),
    ),
}  # fmt: skip
"""A state of fixed size, in RecurrentGemma beside a window."""

HYBRID = {
    "jamba": Architecture(
        "Jamba",
        ATTENTION | EXPERTS | {"num_hidden_layers": 4, "attn_layer_period": 2, "attn_layer_offset": 1}
        | {"mamba_d_state": STATE, "mamba_dt_rank": 4},
        2, _mamba(2),
    ),
    "bamba": Architecture(
        "Bamba",
        ATTENTION | {"num_hidden_layers": 4, "attn_layer_indices": [1, 3], "mamba_n_heads": 8, "mamba_d_head": 8}
        | {"mamba_n_groups": 2, "mamba_d_state": STATE, "mamba_chunk_size": 16},
        2, _mamba2(2),
    ),
    "qwen3_next": Architecture(
        "Qwen3Next",
        ATTENTION | EXPERTS | {"num_hidden_layers": 4, "layer_types": [LINEAR, FULL] * 2}
        | {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8}
        | {"linear_value_head_dim": 8, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16},
        2, lambda tokens: 2 * ((2 * 2 * 8 + 4 * 8) * KERNEL * 4 + 4 * 8 * 8 * 4),
    ),
}  # fmt: skip
"""Layers with full attention beside layers with a state."""


@dataclass(frozen=True)
class Seeing(Architecture):
    """A tower and a projector before a Llama of this config: LLaVA, with four slots an image."""

    def model(self) -> Any:
        """Random weights, the tower's too."""
        torch.manual_seed(0)
        seen = transformers.CLIPVisionConfig(
            hidden_size=HIDDEN, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, image_size=16,
            patch_size=8, initializer_factor=4.0,
        )  # fmt: skip
        text = transformers.LlamaConfig(**self.config | {"vocab_size": IMAGE + 1})
        config = transformers.LlavaConfig(
            vision_config=seen, text_config=text, image_token_index=IMAGE, image_seq_length=4
        )
        return transformers.LlavaForConditionalGeneration(config).eval()

    def save(self, folder: Path) -> Path:
        """The model, the embedded tokenizer with a token for images, and the scale of the colours."""
        self.model().save_pretrained(folder)
        tokenizer = transformers.AutoTokenizer.from_pretrained(paths.bundle("fixtures") / "mini")
        tokenizer.add_tokens(["<image>"], special_tokens=True)
        tokenizer.save_pretrained(folder)
        scale = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]}
        (folder / "preprocessor_config.json").write_text(json.dumps(scale))
        return folder


@dataclass(frozen=True)
class InternVL(Seeing):
    """The same before a Qwen2, as InternVL has it: each of four slots joins four patches, between two more tokens."""

    def model(self) -> Any:
        """Random weights, the tower's too."""
        torch.manual_seed(0)
        seen = transformers.InternVLVisionConfig(
            hidden_size=HIDDEN, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, image_size=16,
            patch_size=4, initializer_range=0.2,
        )  # fmt: skip
        text = transformers.Qwen2Config(**self.config | {"vocab_size": IMAGE + 3})
        config = transformers.InternVLConfig(
            vision_config=seen, text_config=text, image_token_id=IMAGE, image_seq_length=4, tie_word_embeddings=False
        )
        return transformers.InternVLForConditionalGeneration(config).eval()

    def save(self, folder: Path) -> Path:
        """Also with the tokens around an image, by the names that its tokenizers have them under."""
        super().save(folder)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        tokenizer.add_tokens(["<img>", "</img>"], special_tokens=True)
        tokenizer.save_pretrained(folder)
        settings = folder / "tokenizer_config.json"
        named = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<image>"}
        told = json.loads(settings.read_text()) | named | {"extra_special_tokens": named}
        settings.write_text(json.dumps(told))
        return folder


IMAGE = BASE["vocab_size"]
SEEING = {"llava": Seeing("Llava", ATTENTION), "internvl": InternVL("InternVL", ATTENTION)}
"""Eyes before full attention."""

LATENT_RANK, ROTATED = 16, 8
MLA = ATTENTION | {
    "num_key_value_heads": 4, "kv_lora_rank": LATENT_RANK, "q_lora_rank": None, "qk_rope_head_dim": ROTATED,
    "qk_nope_head_dim": 16, "v_head_dim": 12, "moe_intermediate_size": 16, "n_routed_experts": 4, "n_shared_experts": 1,
    "num_experts_per_tok": 2, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1,
}  # fmt: skip
del MLA["head_dim"]


def _latents(tokens: int) -> int:
    return 2 * tokens * (LATENT_RANK + ROTATED) * 2


LATENT = {
    "deepseek_v2": Architecture("DeepseekV2", MLA, 0, _latents),
    "deepseek_v3": Architecture("DeepseekV3", MLA | {"q_lora_rank": 24}, 0, _latents),
}
"""Latents in place of keys and values, in every layer; keys wider than values."""

ALL = PURE | LATENT | WINDOWED | RECURRENT | HYBRID | SEEING
