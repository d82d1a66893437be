"""What docs/reference/security.md calls data runs no code."""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path

import pytest

from kvcheck.core.errors import KvcheckError
from kvcheck.core.paths import bundle


class Planted:
    """Unpickled, it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_what_is_planted_would_run(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Planted(tmp_path / "ran")))
    assert (tmp_path / "ran").is_dir()


def test_pickled_weights_run_nothing_and_are_refused(tmp_path: Path) -> None:
    import torch

    from kvcheck.models import load

    folder = tmp_path / "model"
    shutil.copytree(bundle("fixtures") / "mini", folder, ignore=shutil.ignore_patterns("*.safetensors"))
    torch.save({"model.embed_tokens.weight": Planted(tmp_path / "ran")}, folder / "pytorch_model.bin")
    with pytest.raises(KvcheckError):
        load(str(folder), torch.device("cpu"), torch.float32)
    assert not (tmp_path / "ran").exists()


def test_a_run_file_imports_no_method_that_it_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from building import record, run

    from kvcheck.cli import commands
    from kvcheck.store.run_file import write_run

    (tmp_path / "planted.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'ran')!r})\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    path = tmp_path / "run.json"
    write_run(path, run(record([1.0] * 4, "fp16"), record([0.0] * 4, "planted.Cache")))
    for words, status in ((["report"], 0), (["report", "--md"], 0), (["compare", str(path)], 0)):
        assert commands.main([*words, str(path)]) == status
    assert not (tmp_path / "ran").exists()
