"""What others import: names from `kvcheck`, each only when it is asked for."""

from __future__ import annotations

import subprocess
import sys

import pytest

import kvcheck


@pytest.mark.parametrize("name", kvcheck.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(kvcheck, name) is not None


def test_importing_kvcheck_imports_no_torch() -> None:
    code = "import sys, kvcheck; dir(kvcheck); kvcheck.judge, kvcheck.SpecError; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'KVLayers'"):
        _ = kvcheck.KVLayers


def test_a_method_written_for_the_old_paths_still_loads_and_is_told_the_new_one() -> None:
    with pytest.warns(DeprecationWarning, match="is imported from `kvcheck` now: CacheLayer"):
        from kvcheck.methods.cache import KVLayer
    assert KVLayer is kvcheck.CacheLayer
