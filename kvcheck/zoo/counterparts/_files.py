"""A round trip through a file, as a cache takes it that is saved by one process and loaded by another."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file


def through(
    tensors: Mapping[str, torch.Tensor], about: Mapping[str, str]
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Write tensors and text to a file and read them back: bit for bit, on the devices that they came from."""
    with tempfile.TemporaryDirectory(prefix="kvcheck-zoo-") as folder:
        path = Path(folder) / "cache.safetensors"
        save_file({name: tensor.contiguous().cpu() for name, tensor in tensors.items()}, path, dict(about))
        with safe_open(path, framework="pt") as file:
            found = {name: file.get_tensor(name).to(tensor.device) for name, tensor in tensors.items()}
            return found, dict(file.metadata() or {})
