"""The example in the docstring of kvcheck/cache/method.py works as it stands there."""

from __future__ import annotations

import textwrap

import pytest
from toys import SHAPE, absorbed, prompt

from kvcheck.cache import method as written
from kvcheck.conformance.runner import examine
from kvcheck.core.errors import SpecError
from kvcheck.core.record import HOLDS
from kvcheck.measure.audit import audit
from kvcheck.methods import make

OWN_STORAGE = """
class Halves(Method):
    info: ClassVar[MethodInfo] = MethodInfo(summary="keeps pieces", stage="compression", frees_memory=False)

    def layer(self, shape: ModelShape, index: int) -> CacheLayer:
        return PiecesLayer(shape, index, self)


class PiecesLayer(CacheLayer):
    def reset(self) -> None:
        super().reset()
        self.pieces = [[], []]

    def write(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        for mine, new in zip(self.pieces, (keys, values)):
            mine.append(new.clone())

    def read(self, rows: slice, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values = (torch.cat(each, dim=2)[rows].to(dtype) for each in self.pieces)
        return keys, values

    @property
    def stored(self) -> int:
        return sum(each.shape[2] for each in self.pieces[0])
"""
IMPORTS = """\
from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from kvcheck import CacheLayer, Method, MethodInfo, ModelShape


class NotAMethod: ...


"""


@pytest.fixture
def module(tmp_path, monkeypatch) -> str:
    example = written.__doc__.partition("one file:\n")[2].rpartition("No torch is imported")[0]
    (tmp_path / "my_cache.py").write_text(IMPORTS + textwrap.dedent(example) + OWN_STORAGE)
    monkeypatch.syspath_prepend(tmp_path)
    return "my_cache"


def test_a_method_at_an_import_path_is_built_used_and_audited(module):
    method = make(f"{module}.Newest:tokens=12")
    assert str(method.spec) == "my_cache.Newest:tokens=12"
    parts = prompt(50)
    cache = absorbed(method, parts)
    assert cache.layers[1].positions[1, 1].tolist() == list(range(38, 50))
    assert method.kv_bytes(SHAPE, 2, 50, 0) is None
    assert audit(cache, parts, method).problems == ()


@pytest.mark.parametrize("name", ["an_absorbed_prompt_is_the_prompt", "a_prompt_in_two_chunks_is_the_prompt"])
def test_storage_of_ones_own_takes_a_prompt_that_is_handed_over_as_one_that_is_fed(module, name):
    found = examine(name, f"{module}.Halves", 2)
    assert found.outcome == HOLDS, found


def test_rows_are_known_without_keys_and_values_in_their_usual_place(module):
    cache = absorbed(make(f"{module}.Halves"), prompt(50))
    assert cache.layers[0].positions.shape == (2, 2, 50)
    assert cache.select([0]).layers[0].positions.shape == (1, 2, 50)


def test_what_is_no_method_is_refused(module):
    with pytest.raises(SpecError, match="NotAMethod is not a method"):
        make(f"{module}.NotAMethod")


def test_an_unknown_parameter_or_name_is_refused_with_the_nearest(module):
    with pytest.raises(SpecError, match="did you mean budget"):
        make("snapkv:budgte=0.5")
    with pytest.raises(SpecError, match="did you mean snapkv"):
        make("snapvk")
