"""The kit that a method is built from: its base class, layers, growable buffers, attention, quantization, ragged heads.

Read `method.py` first (Method, MethodInfo), then `layer.py` (CacheLayer), then `view.py`: what is looked at in a cache,
whatever kind it is.
What one method alone needs is in its file.
"""
