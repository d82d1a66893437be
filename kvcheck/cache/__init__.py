"""The kit that a method is built from: its base class, layers, growable buffers, attention, quantization, ragged heads.

Read `base.py` first (Method, MethodInfo, ModelShape), then `layer.py` (CacheLayer).
What one method alone needs is in its file.
"""
