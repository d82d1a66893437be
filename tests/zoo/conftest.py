"""The models of the zoo's tests."""

from __future__ import annotations

import pytest
from routes import mini, toy


@pytest.fixture(scope="module")
def model():
    return toy()


@pytest.fixture(scope="module")
def embedded():
    return mini()
