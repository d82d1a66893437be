"""Engines under test: `base.py` says what one must offer; `transformers/` is the one of this process."""
