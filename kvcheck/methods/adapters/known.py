"""The caches of transformers that have a name of their own."""

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
