"""A plain Llama as llama.cpp's GGUF, written once from the files that transformers reads.

It holds no tokenizer: token ids are fed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from kvcheck.backends.engines import plain_llama
from kvcheck.core.paths import cache_folder

FORMAT = 1
"""Of what is written here: a file that an earlier form was written to is not taken for one of this."""
_BLOCK = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"} | {
    f"self_attn.{name}_proj": f"attn_{theirs}" for name, theirs in zip("qkvo", ("q", "k", "v", "output"), strict=True)
} | {f"mlp.{name}_proj": f"ffn_{name}" for name in ("gate", "up", "down")}  # fmt: skip
_OUTSIDE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def file(model: Path, fingerprint: str, dtype: str) -> Path:
    """The GGUF file of a model in kvcheck's cache, written unless it was before. dtype: of its matrices.

    Raises MethodUnsupported for a model that is not a plain Llama.
    """
    config = json.loads((model / "config.json").read_text("utf-8"))
    plain_llama.expect(
        config,
        model,
        "GGUF",
        f"convert it with llama.cpp: python convert_hf_to_gguf.py {model} --outfile model.gguf, and name that file: "
        "--kv-model model.gguf",
    )
    made = cache_folder("llamacpp") / f"{fingerprint}-{dtype}-{FORMAT}.gguf"
    if not made.is_file():
        made.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=made.parent) as place:
            _write(config, plain_llama.weights(model), Path(place) / made.name, np.dtype(dtype))
            os.replace(Path(place) / made.name, made)
    return made


def _write(config: Mapping[str, Any], weights: Mapping[str, np.ndarray], place: Path, dtype: np.dtype) -> None:
    from gguf import GGUFWriter

    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    dim = config.get("head_dim") or config["hidden_size"] // heads
    rope = config.get("rope_parameters") or config
    writer = GGUFWriter(place, "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(dim)
    writer.add_value_length(dim)
    writer.add_rope_dimension_count(dim)
    writer.add_rope_freq_base(float(rope.get("rope_theta", 10000.0)))
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("none")
    turned = {"q_proj": heads, "k_proj": kv_heads}
    for name, tensor in weights.items():
        owner = name.removesuffix(".weight")
        held = _pairs(tensor, next((count for end, count in turned.items() if owner.endswith(end)), 0))
        writer.add_tensor(f"{_named(owner)}.weight", held.astype(dtype if tensor.ndim > 1 else np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _named(owner: str) -> str:
    """A module of transformers' Llama by llama.cpp's name."""
    if owner in _OUTSIDE:
        return _OUTSIDE[owner]
    _, _, layer, inside = owner.split(".", 3)
    return f"blk.{layer}.{_BLOCK[inside]}"


def _pairs(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a projection for a RoPE that turns neighbours where transformers turns halves; 0 heads: as they are."""
    if not heads:
        return weight
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)
