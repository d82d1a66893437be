"""GGUF files: unpacked once to a folder that save_pretrained writes, dequantized, and read like any other from then on.

The folder lies in kvcheck's cache. It is named by the file's hash and by the transformers that unpacked it, and is
there whole or not at all.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

from kvcheck.core.errors import SpecError
from kvcheck.core.files import one_writer
from kvcheck.core.paths import cache_folder
from kvcheck.models.fingerprint import ORIGIN
from kvcheck.models.names import Source, sha256

WAIT = 1800.0
"""Seconds that a process waits for another one that unpacks."""


def unpacked(source: Source) -> Source:
    """The same model with a folder as its path, unpacked unless it was before: some 10 s and 4 bytes a weight.

    Weights are float32, as the file's blocks give them: its scales times its codes. Raises SpecError where the folder
    cannot be written.
    """
    if source.gguf is None:
        return source
    folder = _folder(source.gguf)
    if not folder.is_dir():
        with one_writer(str(folder.parent), WAIT):
            if not folder.is_dir():
                _unpack(source.gguf, folder)
    return replace(source, path=str(folder), gguf=None)


def _folder(file: Path) -> Path:
    """Where a file is unpacked to."""
    from transformers import __version__

    return cache_folder("models") / f"{file.stem}-{sha256(file)[:16]}-transformers-{__version__}"


def _unpack(file: Path, folder: Path) -> None:
    """Write the folder beside its place, and put it there when it is whole."""
    import torch
    import transformers

    at = {"gguf_file": file.name, "local_files_only": True}
    options: dict[str, object] = {"dtype": torch.float32, **at}
    if hasattr(transformers, "GgufConfig"):  # of before, every file was dequantized
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    beside = tempfile.mkdtemp(dir=folder.parent, prefix=".unpacking-")
    try:
        transformers.AutoTokenizer.from_pretrained(str(file.parent), **at).save_pretrained(beside)
        model = transformers.AutoModelForCausalLM.from_pretrained(str(file.parent), **options)
        model.save_pretrained(beside)
        Path(beside, ORIGIN).write_text(sha256(file), encoding="ascii")
        os.replace(beside, folder)
    except OSError as error:
        if error.errno is None:  # transformers' own word for what it cannot read
            raise
        raise SpecError(
            f"{file.name} cannot be unpacked to {folder.parent}: {error.strerror}",
            "KVCHECK_CACHE=FOLDER names another place",
        ) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
