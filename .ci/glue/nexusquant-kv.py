from nexusquant.integrations.quantized_cache import E8QuantizedCache


def cache(model, key_bits: int = 3, value_bits: int = 2):
    return E8QuantizedCache.from_model(model, key_bits=key_bits, value_bits=value_bits)
