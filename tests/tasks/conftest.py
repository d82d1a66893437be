"""The embedded tokenizer, read with `tokenizers` alone: the generators need no torch."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer

from kvcheck.core.paths import bundle


class Words:
    """Token ids of the embedded model, without special tokens."""

    def __init__(self) -> None:
        self.inner = Tokenizer.from_file(str(bundle("fixtures") / "mini" / "tokenizer.json"))

    def encode(self, text: str) -> list[int]:
        return self.inner.encode(text, add_special_tokens=False).ids


@pytest.fixture(scope="session")
def tokenizer() -> Words:
    return Words()
