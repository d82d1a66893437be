"""Real engines under test: what `openvino:KV_CACHE_PRECISION=u8` names.

Read first: base.py, what one must offer and what it declares; then specs.py (settings and the reference, known without
importing the engine), session.py (a run on one) and openvino.py (one of them). What enters: how an engine is driven;
nothing that makes prompts or grades.
"""
