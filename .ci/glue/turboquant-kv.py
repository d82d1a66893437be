from transformers import Cache
from turboquant.core import TurboQuantProd
from turboquant.hf_cache import TurboQuantCacheLayer


class Layer(TurboQuantCacheLayer):
    def get_max_length(self):
        return -1

    def get_mask_sizes(self, query_length):
        return self.get_seq_length() + query_length, 0


def cache(model, bits: float = 4.0):
    config = model.config.get_text_config()
    quantizer = TurboQuantProd(bits=bits, head_dim=config.head_dim, device=str(model.device), seed=0)
    return lambda: Cache(layers=[Layer(quantizer) for _ in range(config.num_hidden_layers)])
