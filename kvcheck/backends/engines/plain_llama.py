"""The files of a plain Llama, as transformers reads them, for engines that want another form of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kvcheck.core.errors import MethodUnsupported

SERVED = {
    "hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "sliding_window": None,
    "quantization_config": None,
}  # fmt: skip
"""What the configuration must say, or not say, to be written here."""


def expect(config: Mapping[str, Any], model: Path, form: str, otherwise: str) -> None:
    """Raise MethodUnsupported for a model that is no plain Llama. form: what it would be written in. otherwise: what to
    do about it."""
    wrong = [f"{name}={config[name]!r}" for name, value in SERVED.items() if config.get(name, value) != value]
    kind = config.get("model_type")
    rope = config.get("rope_parameters") or {}
    wrong += [f"rope_type={rope.get('rope_type')!r}"] if rope.get("rope_type", "default") != "default" else []
    wrong += [f"rope_scaling={config['rope_scaling']!r}"] if config.get("rope_scaling") else []
    if kind != "llama" or wrong:
        what = f"a model of type {kind}" if kind != "llama" else f"a Llama with {', '.join(wrong)}"
        raise MethodUnsupported(f"{model} is {what}: kvcheck writes {form} of plain Llamas only", otherwise)


def weights(model: Path) -> dict[str, np.ndarray]:
    """All tensors of the safetensors files, as float32. Raises MethodUnsupported for another type."""
    found: dict[str, np.ndarray] = {}
    for file in sorted(model.glob("*.safetensors")):
        raw = file.read_bytes()
        start = 8 + int.from_bytes(raw[:8], "little")
        for name, about in json.loads(raw[8:start]).items():
            if name == "__metadata__":
                continue
            low, high = about["data_offsets"]
            found[name] = _float32(raw[start + low : start + high], about["dtype"], name).reshape(about["shape"])
    if not found:
        raise MethodUnsupported(f"{model} has no safetensors files", "save it with save_pretrained")
    return found


def _float32(data: bytes, dtype: str, name: str) -> np.ndarray:
    if dtype == "BF16":  # the upper half of a float32
        return (np.frombuffer(data, np.uint16).astype(np.uint32) << 16).view(np.float32)
    kinds = {"F32": np.float32, "F16": np.float16}
    if dtype not in kinds:
        raise MethodUnsupported(f"{name} is of type {dtype}, which is not read here", "save it as bfloat16 or float32")
    return np.frombuffer(data, kinds[dtype]).astype(np.float32)
