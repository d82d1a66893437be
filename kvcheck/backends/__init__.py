"""Engines under test.

Read first: base.py, what one must offer. `transformers/` is the one of this process. Whatever runs a model with a
method in its cache may enter; samples, prompts and grades stay in kvcheck/runner, which drives it.
"""
