"""What a model is, in sixteen hex digits: configuration, weights, tokenizer, preprocessor, and what ends an answer.

A baseline belongs to one fingerprint. It is taken from the files, so it does not depend on the device, on the dtype
of the run, on the folder, or on how the weights are split into files. Of a GGUF file it is that file alone.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

WHOLE = 256 * 1024**2
"""Weights up to this many bytes are hashed in full; of larger ones, three extracts of every tensor."""
EXTRACT = 16 * 1024

ORIGIN = "gguf.sha256"
"""In a folder that was unpacked from a GGUF file (kvcheck.models.gguf): the file's hash."""
_VOLATILE = {"_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache", "_attn_implementation"}
_ENDS = {"tokenizer_config.json": ("bos_token", "eos_token"), "generation_config.json": ("eos_token_id",)}
"""What opens a prompt and ends an answer."""
IMAGES = ("preprocessor_config.json", "processor_config.json")
"""How images become pixels; text models have neither."""
_TOKENIZER = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt", "vocab.txt")


def fingerprint(folder: Path, *, rope: str = "", code: bool = False) -> str:
    """Sixteen hex digits of the model in `folder` (config.json, weights, tokenizer files).

    rope: what stands in place of the configuration's own, as kvcheck.models.rope writes it. code: the Python files
    beside it are run, and count.
    """
    digest = hashlib.sha256()
    if (folder / ORIGIN).is_file():  # whichever transformers unpacked it
        digest.update(_files(folder, [ORIGIN]))
    else:
        digest.update(_config(folder / "config.json"))
        digest.update(_weights(folder))
        digest.update(_files(folder, _TOKENIZER))
        digest.update(_ends(folder))
        digest.update(_files(folder, IMAGES))
    if rope:
        digest.update(f"rope {rope}".encode())
    if code:
        digest.update(_files(folder, sorted(path.name for path in folder.glob("*.py"))))
    return digest.hexdigest()[:16]


def _config(path: Path) -> bytes:
    """The configuration without the fields that change nothing."""
    config: dict[str, object] = json.loads(path.read_text(encoding="utf-8"))
    kept = {key: value for key, value in config.items() if key not in _VOLATILE}
    return json.dumps(kept, sort_keys=True, ensure_ascii=False).encode()


def _files(folder: Path, names: Iterable[str]) -> bytes:
    """Name and digest of each that is there."""
    found = (folder / name for name in names)
    return b"".join(path.name.encode() + hashlib.sha256(path.read_bytes()).digest() for path in found if path.is_file())


def _ends(folder: Path) -> bytes:
    """The tokens that open prompts and end answers, as the files name them."""
    found: dict[str, object] = {}
    for file, names in _ENDS.items():
        if (folder / file).is_file():
            content = json.loads((folder / file).read_text(encoding="utf-8"))
            found |= {name: content[name] for name in names if content.get(name) is not None}
    return json.dumps(found, sort_keys=True, ensure_ascii=False).encode()


def _weights(folder: Path) -> bytes:
    """Digest over the tensors of all safetensors files in the order of their names; over other files as they are.

    Some hub models have a second copy of their weights, "consolidated", which transformers does not read.
    """
    files = [path for path in sorted(folder.glob("*.safetensors")) if not path.name.startswith("consolidated")]
    if not files:
        files = sorted([*folder.glob("*.bin"), *folder.glob("*.pt")])
        return hashlib.sha256(b"".join(_range(path, 0, path.stat().st_size, WHOLE) for path in files)).digest()
    whole = sum(path.stat().st_size for path in files) <= WHOLE
    digest = hashlib.sha256()
    for _, described, path, start, size in sorted(_tensors(files), key=lambda entry: entry[0]):
        digest.update(described.encode())
        digest.update(_range(path, start, size, WHOLE if whole else 3 * EXTRACT))
    return digest.digest()


def _tensors(files: list[Path]) -> Iterator[tuple[str, str, Path, int, int]]:
    """(name, what the header says, file, offset and size of the data) of every tensor."""
    for path in files:
        with path.open("rb") as handle:
            size = struct.unpack("<Q", handle.read(8))[0]
            header = json.loads(handle.read(size))
        for name, meta in header.items():
            if name != "__metadata__":
                low, high = meta["data_offsets"]
                yield name, f"{name} {meta['dtype']} {meta['shape']}\n", path, 8 + size + low, high - low


def _range(path: Path, start: int, size: int, most: int) -> bytes:
    """Digest of `size` bytes from `start`; of the first, middle and last extract where there are more than `most`."""
    digest = hashlib.sha256(str(size).encode())
    spans = [(start, size)] if size <= most else [(start + place, EXTRACT) for place in (0, size // 2, size - EXTRACT)]
    with path.open("rb") as handle:
        for offset, count in spans:
            handle.seek(offset)
            digest.update(handle.read(count))
    return digest.digest()
