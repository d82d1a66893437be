"""A Llama as OpenVINO's IR, written operation by operation from the files that transformers reads: float32 throughout.

The graph has the form that continuous batching turns into paged attention: inputs `input_ids`, `attention_mask`,
`position_ids` and `beam_idx`, keys and values of each layer as a state, scaled_dot_product_attention in the middle.
Other models are exported by their maker or by optimum-intel, see docs/howto/engines.md.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from kvcheck.backends.engines import plain_llama
from kvcheck.core.paths import cache_folder

FORMAT = 1
"""Of what is written here: a folder that an earlier form was written to is not taken for one of this."""
MODEL = "openvino_model.xml"


def folder(model: Path, fingerprint: str) -> Path:
    """The folder of a model's IR: its own where one lies there, else one in kvcheck's cache that is written once.

    Raises MethodUnsupported for a model that is not a Llama.
    """
    if (model / MODEL).is_file():
        return model
    config = json.loads((model / "config.json").read_text("utf-8"))
    plain_llama.expect(
        config,
        model,
        "OpenVINO's form",
        f"export it: optimum-cli export openvino --model {model} --task text-generation-with-past "
        "--weight-format fp32 ir, and name that folder: --kv-model ir",
    )
    made = cache_folder("openvino") / f"{fingerprint}-{FORMAT}"
    if not (made / MODEL).is_file():
        made.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=made.parent) as place:
            _write(config, plain_llama.weights(model), Path(place) / "ir")
            if not made.exists():
                shutil.move(Path(place) / "ir", made)
    return made


def _write(config: Mapping[str, Any], weights: Mapping[str, np.ndarray], place: Path) -> None:
    import openvino as ov

    place.mkdir()
    ov.save_model(_Llama(config, weights).model(), place / MODEL, compress_to_fp16=False)
    ends = config.get("eos_token_id")
    about = {"bos_token_id": config.get("bos_token_id"), "eos_token_id": ends}
    (place / "generation_config.json").write_text(json.dumps(about), "utf-8")
    (place / "config.json").write_text(json.dumps({**config, "dtype": "float32"}), "utf-8")


class _Llama:
    """The graph. Shapes: B sequences of S tokens, H heads, K of keys and values, D numbers each."""

    def __init__(self, config: Mapping[str, Any], weights: Mapping[str, np.ndarray]) -> None:
        import openvino.opset6 as states
        import openvino.opset13 as ops

        self.ops, self.states = ops, states
        self.config, self.weights = config, weights
        self.heads, self.kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
        self.dim = config.get("head_dim") or config["hidden_size"] // self.heads
        self.sinks: list[Any] = []

    def _whole(self, *numbers: int) -> Any:
        return self.ops.constant(np.array(numbers, np.int64))

    def _scalar(self, number: int) -> Any:
        return self.ops.constant(np.array(number, np.int64))

    def _number(self, value: float) -> Any:
        return self.ops.constant(np.array([value], np.float32))

    def _linear(self, x: Any, name: str) -> Any:
        """x times the transposed weight."""
        return self.ops.matmul(x, self.ops.constant(self.weights[f"{name}.weight"]), False, True)

    def _norm(self, x: Any, name: str) -> Any:
        """x over the root of its mean square, times the weight."""
        ops, last = self.ops, self._whole(-1)
        square = ops.reduce_mean(ops.power(x, self._number(2.0)), last, True)
        root = ops.sqrt(ops.add(square, self._number(self.config["rms_norm_eps"])))
        return ops.multiply(ops.constant(self.weights[f"{name}.weight"]), ops.divide(x, root))

    def model(self) -> Any:
        """The whole model: ids [B, S] -> logits [B, S, vocabulary]."""
        import openvino as ov

        ops = self.ops
        ids = self._input("input_ids", [-1, -1], np.int64)
        mask = self._input("attention_mask", [-1, -1], np.int64)
        positions = self._input("position_ids", [-1, -1], np.int64)
        beams = self._input("beam_idx", [-1], np.int32)
        table = ops.constant(self.weights["model.embed_tokens.weight"])
        x = ops.gather(table, ops.convert(ids, "i32"), self._scalar(0))
        turn, visible = self._turning(positions), self._visible(ids, mask)
        batch = ops.gather(ops.shape_of(ids), self._scalar(0), self._scalar(0))
        for at in range(self.config["num_hidden_layers"]):
            layer = f"model.layers.{at}"
            seen = self._norm(x, f"{layer}.input_layernorm")
            x = ops.add(x, self._attention(seen, f"{layer}.self_attn", at, turn, visible, batch, beams))
            seen = self._norm(x, f"{layer}.post_attention_layernorm")
            gate = ops.swish(self._linear(seen, f"{layer}.mlp.gate_proj"))
            both = ops.multiply(gate, self._linear(seen, f"{layer}.mlp.up_proj"))
            x = ops.add(x, self._linear(both, f"{layer}.mlp.down_proj"))
        x = self._norm(x, "model.norm")
        logits = self._linear(x, "lm_head") if "lm_head.weight" in self.weights else ops.matmul(x, table, False, True)
        logits.output(0).get_tensor().set_names({"logits"})
        inputs = [ids, mask, positions, beams]
        return ov.Model([ops.result(logits)], self.sinks, inputs, "llama")

    def _input(self, name: str, shape: list[int], kind: type) -> Any:
        node = self.ops.parameter(shape, kind, name=name)  # by this name too it is looked for
        node.output(0).get_tensor().set_names({name})
        return node

    def _turning(self, positions: Any) -> tuple[Any, Any]:
        """Cosine and sine of the rotary position embedding, [B, 1, S, D] each."""
        ops, half = self.ops, self.dim // 2
        rope = self.config.get("rope_parameters") or self.config
        steps = 1.0 / rope.get("rope_theta", 10000.0) ** (np.arange(0, self.dim, 2, dtype=np.float32) / self.dim)
        rows = ops.convert(ops.unsqueeze(positions, self._whole(1)), "f32")  # [B, 1, S]
        column = ops.constant(steps.astype(np.float32).reshape(1, half, 1))
        angles = ops.transpose(ops.matmul(column, rows, False, False), self._whole(0, 2, 1))  # [B, S, D/2]
        angles = ops.unsqueeze(ops.concat([angles, angles], -1), self._whole(1))
        return ops.cos(angles), ops.sin(angles)

    def _turned(self, x: Any, turn: tuple[Any, Any]) -> Any:
        """x [B, H, S, D] turned by its positions."""
        ops, half = self.ops, self.dim // 2
        first = ops.slice(x, self._whole(0), self._whole(half), self._whole(1), self._whole(3))
        second = ops.slice(x, self._whole(half), self._whole(self.dim), self._whole(1), self._whole(3))
        beside = ops.concat([ops.multiply(second, self._number(-1.0)), first], -1)
        return ops.add(ops.multiply(x, turn[0]), ops.multiply(beside, turn[1]))

    def _visible(self, ids: Any, mask: Any) -> Any:
        """What each token sees: those before it and itself, where the mask is 1; [B, 1, S, T] of true and false."""
        ops, zero = self.ops, self._scalar(0)
        total = ops.gather(ops.shape_of(mask), self._scalar(1), zero)
        new = ops.gather(ops.shape_of(ids), self._scalar(1), zero)
        columns = ops.range(zero, total, self._scalar(1), "i64")
        rows = ops.add(ops.range(zero, new, self._scalar(1), "i64"), ops.subtract(total, new))
        before = ops.less_equal(ops.unsqueeze(columns, self._whole(0)), ops.unsqueeze(rows, self._whole(1)))
        real = ops.unsqueeze(ops.convert(mask, "boolean"), self._whole(1, 2))
        return ops.logical_and(ops.unsqueeze(before, self._whole(0, 1)), real)

    def _heads(self, x: Any, name: str, heads: int) -> Any:
        """A projection by heads: [B, heads, S, D]."""
        shaped = self.ops.reshape(self._linear(x, name), self._whole(0, 0, heads, self.dim), True)
        return self.ops.transpose(shaped, self._whole(0, 2, 1, 3))

    def _attention(self, x: Any, name: str, at: int, turn: Any, visible: Any, batch: Any, beams: Any) -> Any:
        ops = self.ops
        query = self._turned(self._heads(x, f"{name}.q_proj", self.heads), turn)
        key = self._turned(self._heads(x, f"{name}.k_proj", self.kv_heads), turn)
        value = self._heads(x, f"{name}.v_proj", self.kv_heads)
        key = self._kept(key, f"past_key_values.{at}.keypresent.{at}.key", batch, beams)
        value = self._kept(value, f"past_key_values.{at}.valuepresent.{at}.value", batch, beams)
        seen = ops.scaled_dot_product_attention(query, self._repeated(key), self._repeated(value), visible)
        joined = ops.reshape(
            ops.transpose(seen, self._whole(0, 2, 1, 3)), self._whole(0, 0, self.heads * self.dim), True
        )
        return self._linear(joined, f"{name}.o_proj")

    def _kept(self, new: Any, name: str, batch: Any, beams: Any) -> Any:
        """What was kept, with the new keys or values behind it: [B, K, T, D]; it is kept in its place."""
        ops = self.ops
        shape = ops.concat([ops.unsqueeze(batch, self._whole(0)), self._whole(self.kv_heads, 0, self.dim)], 0)
        empty = ops.broadcast(ops.constant(np.float32(0.0)), shape)
        before = self.states.read_value(empty, name, np.float32, [-1, self.kv_heads, -1, self.dim])
        both = ops.concat([ops.gather(before, beams, self._scalar(0)), new], -2)
        self.sinks.append(self.states.assign(both, name))
        return both

    def _repeated(self, x: Any) -> Any:
        """Each head of keys or values as often as queries share it: [B, H, T, D]."""
        ops, times = self.ops, self.heads // self.kv_heads
        if times == 1:
            return x
        shape = ops.concat(
            [
                ops.gather(ops.shape_of(x), self._whole(0, 1), self._scalar(0)),
                self._whole(times),
                ops.gather(ops.shape_of(x), self._whole(2, 3), self._scalar(0)),
            ],
            0,
        )
        wide = ops.broadcast(ops.unsqueeze(x, self._whole(2)), shape, broadcast_spec="BIDIRECTIONAL")
        return ops.reshape(wide, self._whole(0, self.heads, -1, self.dim), True)
