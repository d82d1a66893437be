"""The example in the docstring of kvcheck/cache/method.py works as it stands there."""

from __future__ import annotations

import textwrap

import pytest
from toys import SHAPE, absorbed, prompt

from kvcheck.cache import method as written
from kvcheck.core.errors import SpecError
from kvcheck.measure.audit import audit
from kvcheck.methods import make

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
    (tmp_path / "my_cache.py").write_text(IMPORTS + textwrap.dedent(example))
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


def test_what_is_no_method_is_refused(module):
    with pytest.raises(SpecError, match="NotAMethod is not a method"):
        make(f"{module}.NotAMethod")


def test_an_unknown_parameter_or_name_is_refused_with_the_nearest(module):
    with pytest.raises(SpecError, match="did you mean budget"):
        make("snapkv:budgte=0.5")
    with pytest.raises(SpecError, match="did you mean snapkv"):
        make("snapvk")
