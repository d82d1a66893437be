"""Drives any backend through a case, without torch: samples, prompts, modes, grading, records.

Read first: case.py (the loop over blocks of contexts), then modes.py (which question is asked of which cache),
prompts.py (from texts to token ids and back), whole_prompts.py (backends that take whole prompts only), seam.py (what
is handed over). What enters: what is the same for every engine. What an engine does by itself is in kvcheck/backends.
"""
