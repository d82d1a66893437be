from turboquant import TurboQuantDynamicCache


class Compressed(TurboQuantDynamicCache):
    def __init__(self, config, bit_width: int = 4):
        super().__init__(bit_width=bit_width)
        self.last, self.compressed = config.get_text_config().num_hidden_layers - 1, False

    def update(self, key_states, value_states, layer_idx, *args, **kwargs):
        states = super().update(key_states, value_states, layer_idx, *args, **kwargs)
        if layer_idx == self.last and not self.compressed:
            self.compress_all()
            self.compressed = True
        return states

    def reset(self):
        super().reset()
        self.compressed = False
