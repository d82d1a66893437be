"""Tiny models, saved, for tests that load them as a user does."""

from __future__ import annotations

from pathlib import Path

from kvcheck.core.paths import bundle


def save_talker(folder: Path) -> Path:
    """A tiny Llama with random weights and the embedded tokenizer: room for the longest answers, which end soon."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(str(bundle("fixtures") / "mini"))
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=200_000, initializer_range=0.3,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    model.generation_config.eos_token_id = list(range(3, len(tokenizer), 7))  # a random model ends its answers soon
    model.save_pretrained(folder)
    return folder
