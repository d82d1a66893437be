"""A Llama in numpy over a paged KV cache: the embedded model, or a tiny one with random weights and its vocabulary."""

from __future__ import annotations

import json

import numpy as np

from kvcheck.backends.engines import plain_llama
from kvcheck.core import paths

BLOCK = 16
"""Tokens of a block."""
TINY = {
    "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 16, "rms_norm_eps": 1e-6, "vocab_size": 1169,
}  # fmt: skip


class Pool:
    """Blocks of keys and values: float32, or int8 with a scale for each token and head."""

    def __init__(self, config, blocks, bits):
        self.blocks, self.bits = blocks, bits
        shape = (config["num_hidden_layers"], 2, blocks, BLOCK, config["num_key_value_heads"])
        self.rows = np.zeros((*shape, config["head_dim"]), np.float32 if bits == 32 else np.int8)
        self.scales = np.ones(shape, np.float32)

    def write(self, layer, table, start, both):
        """both: [2, tokens, heads, dim], from slot `start` of a request's table on."""
        slots = np.arange(start, start + both.shape[1])
        blocks, places = np.asarray(table)[slots // BLOCK], slots % BLOCK
        if self.bits == 32:
            self.rows[layer][:, blocks, places] = both
            return
        scales = np.abs(both).max(-1) / 127 + 1e-9
        self.rows[layer][:, blocks, places] = np.rint(both / scales[..., None])
        self.scales[layer][:, blocks, places] = scales

    def read(self, layer, table, count, foreign=0):
        """[2, count, heads, dim]. foreign: as many blocks are read with the scales of the next one."""
        table = np.asarray(table)[: -(-count // BLOCK)]
        found = self.rows[layer][:, table].reshape(2, -1, *self.rows.shape[4:])[:, :count]
        if self.bits == 32:
            return found
        owners = np.array([(one + 1) % self.blocks if at < foreign else one for at, one in enumerate(table)])
        scales = self.scales[layer][:, owners].reshape(2, -1, self.scales.shape[4])[:, :count]
        return found * scales[..., None]


class Model:
    """Tokens in, log-probabilities of the whole vocabulary out."""

    def __init__(self, config, weights):
        self.config, self.weights = config, weights
        self.dim, self.heads = config["head_dim"], config["num_key_value_heads"]
        self.group = config["num_attention_heads"] // self.heads
        base = config.get("rope_parameters", {}).get("rope_theta", 10_000.0)
        self.turns = base ** -(np.arange(0, self.dim, 2) / self.dim)

    @classmethod
    def mini(cls):
        """The embedded model."""
        folder = paths.bundle("fixtures") / "mini"
        return cls(json.loads((folder / "config.json").read_text()), plain_llama.weights(folder))

    @classmethod
    def tiny(cls, seed):
        """Random weights that look far back, and are sure of what they say."""
        rng, config = np.random.default_rng(seed), TINY
        hidden, inner, dim = config["hidden_size"], config["intermediate_size"], config["head_dim"]
        heads, keys = config["num_attention_heads"] * dim, config["num_key_value_heads"] * dim
        shapes = {
            "self_attn.q_proj": (heads, hidden), "self_attn.k_proj": (keys, hidden), "self_attn.v_proj": (keys, hidden),
            "self_attn.o_proj": (hidden, heads), "mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner),
        }  # fmt: skip
        weights = {"model.embed_tokens.weight": rng.normal(size=(config["vocab_size"], hidden)) * 0.7}
        weights["model.norm.weight"] = np.ones(hidden)
        for layer in range(config["num_hidden_layers"]):
            for name, shape in shapes.items():
                weights[f"model.layers.{layer}.{name}.weight"] = rng.normal(size=shape) * 1.5 / shape[1] ** 0.5
            for name in ("input_layernorm", "post_attention_layernorm"):
                weights[f"model.layers.{layer}.{name}.weight"] = np.ones(hidden)
        return cls(config, {name: value.astype(np.float32) for name, value in weights.items()})

    def forward(self, pool, ids, start, table, shift=0, first=0, foreign=0):
        """[tokens, vocabulary]. ids go to the slots of the table from `start` on. shift: of their positions. first:
        slots before it are not seen."""
        table_weights, count = self.weights["model.embed_tokens.weight"], start + len(ids)
        x = table_weights[np.asarray(ids)]
        angles = (np.arange(start, count) + shift)[:, None, None] * self.turns
        cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
        hidden = np.arange(count) > np.arange(start, count)[:, None]
        hidden |= (np.arange(count) < first) & (np.arange(start, count)[:, None] >= first)
        for layer in range(self.config["num_hidden_layers"]):
            x = x + self._attended(pool, layer, x, (start, table, cos, sin, hidden, foreign))
            y = self._normed(x, f"layers.{layer}.post_attention_layernorm")
            gate = self._times(y, layer, "mlp.gate_proj")
            x = x + self._times(
                gate / (1 + np.exp(-gate)) * self._times(y, layer, "mlp.up_proj"), layer, "mlp.down_proj"
            )
        scores = self._normed(x, "norm") @ table_weights.T
        scores = scores - scores.max(-1, keepdims=True)
        return scores - np.log(np.exp(scores).sum(-1, keepdims=True))

    def _attended(self, pool, layer, x, where):
        start, table, cos, sin, hidden, foreign = where
        y, count = self._normed(x, f"layers.{layer}.input_layernorm"), start + len(x)
        query, key, value = (
            self._times(y, layer, f"self_attn.{name}_proj").reshape(len(x), -1, self.dim) for name in "qkv"
        )
        query, key = _turned(query, cos, sin), _turned(key, cos, sin)
        pool.write(layer, table, start, np.stack([key, value]))
        keys, values = pool.read(layer, table, count, foreign).transpose(0, 2, 1, 3)
        query = query.reshape(len(x), self.heads, self.group, self.dim).transpose(1, 2, 0, 3)
        scores = query @ keys[:, None].transpose(0, 1, 3, 2) / self.dim**0.5
        scores[..., hidden] = -np.inf
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        found = (weights @ values[:, None]).transpose(2, 0, 1, 3).reshape(len(x), -1)
        return self._times(found, layer, "self_attn.o_proj")

    def _times(self, x, layer, name):
        return x @ self.weights[f"model.layers.{layer}.{name}.weight"].T

    def _normed(self, x, name):
        scale = np.sqrt((x * x).mean(-1, keepdims=True) + self.config["rms_norm_eps"])
        return x / scale * self.weights[f"model.{name}.weight"]


def _turned(x, cos, sin):
    one, other = np.split(x, 2, -1)
    return np.concatenate([one * cos - other * sin, other * cos + one * sin], -1)
