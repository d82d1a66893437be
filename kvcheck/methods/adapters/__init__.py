"""What people have already, as a method: kvpress presses, transformers' caches, a class or function of their own.

    kvpress.SnapKVPress:compression_ratio=0.5       a press, or anything with `with thing(model):`
    transformers.quanto:nbits=4                     a cache of transformers, by name (NAMED)
    my_package.my_module.MyCache:window=64          a Cache or cache layer class
    my_package.my_module.make_cache:window=64       a function (model) -> Cache

A foreign method runs row by row and prefills by itself. kvcheck measures the bytes that its cache really holds and the
answers that it gives; it cannot look at positions, which only kvcheck's own layers know. No torch is imported here
until something is adapted.
"""

from __future__ import annotations

NAMED = {
    "transformers.dynamic": "transformers' DynamicCache, the full cache: what generate() uses",
    "transformers.fp8": "QuantizedCache in 8-bit floats, one scale per layer (needs a transformers that has it)",
    "transformers.hqq": "QuantizedCache by hqq (pip install hqq)",
    "transformers.offloaded": "DynamicCache whose layers wait in CPU memory (needs an accelerator)",
    "transformers.quanto": "QuantizedCache by optimum-quanto (pip install optimum-quanto)",
    "transformers.sliding_window": "DynamicSlidingWindowLayers: each layer holds the newest `window` tokens",
    "transformers.static": "StaticCache, with room for all tokens from the start",
}
"""Names with what they stand for; `hf` has the classes."""
