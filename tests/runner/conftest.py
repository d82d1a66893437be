"""The tiny model, and the embedded tokenizer."""

import pytest
from tiny import *  # noqa: F403  (its fixtures, which are listed there)

from kvcheck.models.encoder import Encoder
from kvcheck.models.loading import encoder_of


@pytest.fixture(scope="session")
def tokenizer() -> Encoder:
    return encoder_of("mini")[0]
