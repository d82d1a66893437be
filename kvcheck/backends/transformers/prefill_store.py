"""`--kv-prefill-cache`: what the full cache says of prompts, kept on disk from run to run.

Kept is what a forward of the full cache gave, under everything that its bits depend on: the model (its fingerprint, the
sums of its tensors and what it says of a few tokens), the token ids of all rows, dtype, device, threads, kernels, the
versions of torch and transformers, and kvcheck's own code that computes it. So a run finds the numbers that it would
compute, bit for bit, or none. What a method has a hand in is not kept, nor what a case computed whose method changed
anything that others share (isolation.py).
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from kvcheck.core import env
from kvcheck.core.errors import SpecError
from kvcheck.core.kept import GB, KEY, KeptFiles, hint
from kvcheck.core.settings import Settings
from kvcheck.models import LoadedModel

T = TypeVar("T")
Tensors = dict[str, torch.Tensor]
CODE = ("backends/transformers", "cache", "models", "methods/fp16.py")
"""Of kvcheck: what computes a prefill."""
PACKAGES = ("torch", "transformers")
MACHINE = ("cpu", "os", "threads", "gpu", "gpus", "cuda", "driver")
_ABOUT = "kvcheck"
"""Under which metadata of a file say how its tensors lie in memory, and what else is needed."""


@dataclass
class PrefillStore:
    """Prefills of one model in this environment. files: where they lie. of: a digest of model and environment.

    found, missed: how often something was there, and not.
    """

    files: KeptFiles
    of: str
    found: int = 0
    missed: int = 0
    full: bool = False

    def key(self, *what: object) -> str:
        """The key of what was computed from this, all of it plain data."""
        text = json.dumps([self.of, what], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:KEY]

    def get(self, key: str, read: Callable[[Tensors, dict[str, Any]], T]) -> T | None:
        """What `read` makes of the tensors under a key and of what was said of them; None where there are none."""
        content = self.files.read(key)
        if content is not None:
            try:
                made = read(*_unpacked(content))
            except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError, struct.error):
                self.files.remove(key)  # by who wrote it: its digest is right
            else:
                self.found += 1
                return made
        self.missed += 1
        return None

    def put(self, key: str, tensors: Tensors, about: Mapping[str, object]) -> None:
        """Keep tensors, once the case is known to be good. A disk that takes no more costs time, and no case."""
        if self.full or any(0 in tensor.stride() for tensor in tensors.values() if tensor.numel() > 1):
            return
        try:
            self.files.write(key, _packed(tensors, about))
        except OSError as error:
            self._stop(error)

    def settle(self, good: bool) -> None:
        """The case is over. good: what was put is as it would be in any other run."""
        try:
            if good:
                self.files.keep()
        except OSError as error:
            self._stop(error)
        self.files.drop()

    def _stop(self, error: OSError) -> None:
        self.full = True
        why = error.strerror or error
        warnings.warn(f"kvcheck keeps no more prefills in {self.files.folder}: {why}", RuntimeWarning, stacklevel=2)


def opened(settings: Settings, loaded: LoadedModel, said: torch.Tensor, sums: object) -> PrefillStore | None:
    """The store of a session; None where none was asked for, and for a model that is shared by several processes.

    said: what the model says of a few tokens. sums: of the bits of its tensors. Raises SpecError.
    """
    if settings.prefill_cache is None or loaded.team is not None:
        return None
    files = KeptFiles(Path(settings.prefill_cache), int(settings.prefill_cache_size * GB))
    try:
        files.open()
    except OSError as error:
        raise SpecError(f"prefills cannot be kept in {files.folder}: {error.strerror or error}", hint()) from error
    model = [loaded.fingerprint, str(loaded.model.dtype), [str(device) for device in loaded.devices], sums]
    facts = [model, digest_of(said), settings.attention, _environment(settings.device), _code()]
    return PrefillStore(files, hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest())


def digest_of(tensor: torch.Tensor) -> str:
    """A digest of the numbers of a tensor, their dtype and its shape."""
    plain = tensor.detach().cpu().contiguous()
    content = plain.view(-1).view(torch.uint8).numpy().tobytes()
    return hashlib.sha256(f"{plain.dtype} {tuple(plain.shape)} ".encode() + content).hexdigest()


def _environment(device: str) -> list[object]:
    """What the bits of a forward depend on beside the model."""
    backends = torch.backends
    switches = [
        torch.get_float32_matmul_precision(),
        torch.are_deterministic_algorithms_enabled(),
        torch.is_autocast_enabled("cpu"),
        backends.mkldnn.enabled,
        backends.cuda.matmul.allow_tf32,
        backends.cuda.matmul.allow_bf16_reduced_precision_reduction,
        backends.cuda.matmul.allow_fp16_reduced_precision_reduction,
        backends.cudnn.allow_tf32,
    ]
    named = {
        name: value for name, value in os.environ.items() if name.startswith(("MKL_", "ONEDNN_", "DNNL_", "CUBLAS"))
    }
    machine = {name: value for name, value in env.machine(device).items() if name in MACHINE}
    versions = [metadata.version(name) for name in PACKAGES]
    return [torch.__config__.show(), torch.__config__.parallel_info(), switches, named, machine, versions]


def _code() -> str:
    """A digest of kvcheck's own code that computes prefills."""
    root, total = Path(__file__).resolve().parents[2], hashlib.sha256()
    for part in (root / name for name in CODE):
        for file in sorted(part.rglob("*.py")) if part.is_dir() else [part]:
            total.update(f"{file.relative_to(root).as_posix()}\0".encode() + hashlib.sha256(file.read_bytes()).digest())
    return total.hexdigest()


# -- the file ----------------------------------------------------------------------------------------------------------


def _packed(tensors: Tensors, about: Mapping[str, object]) -> bytes:
    """A safetensors file. How each tensor lies in memory is kept, too: a kernel may add in another order otherwise."""
    lies = {name: [list(tensor.stride()), str(tensor.device)] for name, tensor in tensors.items()}
    plain: Tensors = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        whole = tensor.detach().cpu().contiguous()
        place = whole.untyped_storage().data_ptr()
        plain[name] = whole.clone() if place in seen else whole  # safetensors takes no two views of one storage
        seen.add(place)
    return save(plain, metadata={_ABOUT: json.dumps({"lies": lies, "about": dict(about)})})


def _unpacked(content: bytes) -> tuple[Tensors, dict[str, Any]]:
    """Tensors as they lay in memory, each in a storage of its own."""
    size = struct.unpack("<Q", content[:8])[0]
    said = json.loads(json.loads(content[8 : 8 + size])["__metadata__"][_ABOUT])
    tensors = {}
    for name, tensor in load(content).items():
        stride, device = said["lies"][name]
        tensors[name] = torch.empty_strided(tensor.shape, stride, dtype=tensor.dtype, device=device).copy_(tensor)
    return tensors, said["about"]


def numbered(parts: Sequence[Mapping[str, torch.Tensor | None]]) -> Tensors:
    """Tensors of several layers under one name each; those that are None are left out."""
    return {f"{at}.{name}": one for at, part in enumerate(parts) for name, one in part.items() if one is not None}
