"""Keys and values of one layer as a safetensors file, whole or not at all; one that does not fit is refused."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from kvcheck.core.errors import KvcheckError

FORMAT = "kvcheck-kv-1"


def write(path: Path, keys: torch.Tensor, values: torch.Tensor, about: dict[str, str]) -> None:
    """Write keys and values (B, G, n, d), and what they are of. A temporary file is renamed: never half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    os.close(handle)
    try:
        tensors = {"keys": keys.contiguous().cpu(), "values": values.contiguous().cpu()}
        save_file(tensors, temporary, {"format": FORMAT, **about})
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def read(path: Path, about: dict[str, str], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Read them back, bit for bit. Raises KvcheckError for a file that is missing, damaged, or of something else."""
    try:
        with safe_open(path, framework="pt") as file:
            found = file.metadata() or {}
            for name, wanted in {"format": FORMAT, **about}.items():
                if found.get(name) != wanted:
                    raise KvcheckError(
                        f"{path} is of another cache: {name} is {found.get(name)} there and {wanted} here",
                        "delete it; it is written anew",
                    )
            return file.get_tensor("keys").to(device), file.get_tensor("values").to(device)
    except (OSError, SafetensorError) as error:
        raise KvcheckError(f"{path} cannot be loaded: {error}", "delete it; it is written anew") from error
