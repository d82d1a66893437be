"""What a test report prints, with the text of methods, models and files in it made harmless."""

from __future__ import annotations

import pytest

from kvcheck.core.escape import plain


def report(found: pytest.TestReport) -> None:
    """Rewrite a failure or a skip that holds what must not be in a log; any other stays as pytest made it."""
    text = found.longrepr
    if isinstance(text, tuple):
        path, line, reason = text
        found.longrepr = (path, line, plain(reason))
    elif text is not None and plain(text) != str(text):
        found.longrepr = plain(text)
