"""What a model's name leads to, known without torch: an embedded one, random weights, a folder or a hub id."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from kvcheck.core import paths
from kvcheck.core.errors import SpecError, did_you_mean
from kvcheck.core.front import option
from kvcheck.models import synthetic

EMBEDDED = ("mini", "mini_window", "mini_hybrid")
"""The models that ship with kvcheck, each a folder of fixtures/."""
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Source:
    """Where the files of a model are. name: what the user typed. path: what from_pretrained is given. local: it lies
    on this machine."""

    name: str
    path: str
    local: bool


def find(name: str) -> Source:
    """Where a model is, as far as its name says it; of random weights, the one whose tokenizer it has.

    Raises SpecError for what is no embedded model, no shape, no folder with a model and no hub id.
    """
    folder, where = Path(os.path.expanduser(name)), option("model")
    if synthetic.is_random(name):
        synthetic.shape_of(name)
    if name in EMBEDDED or synthetic.is_random(name):
        folder = paths.bundle("fixtures") / (name if name in EMBEDDED else EMBEDDED[0])
        if not (folder / "config.json").is_file():
            raise SpecError(f"this installation lacks the embedded model {name} ({folder})", "install kvcheck again")
        return Source(name, str(folder), True)
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
        f"{did_you_mean(name, EMBEDDED)}; a folder or a hub id such as Qwen/Qwen2.5-0.5B-Instruct will do too",
    )
