"""Two tokenizers: that of the embedded model, and one that cuts text elsewhere."""

from __future__ import annotations

import pytest
from ruler_samples import PIECES


@pytest.fixture(params=["embedded", "pieces"])
def any_tokenizer(request, tokenizer):
    return tokenizer if request.param == "embedded" else PIECES
