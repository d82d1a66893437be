"""What kvcheck uses of what transformers loads: models, configurations, tokenizers. Types alone, nothing runs here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch

    class Output(Protocol):
        """What a forward gives. logits: (R, keep, V)."""

        logits: torch.Tensor

    class Features(Protocol):
        """What a tower makes of images. pooler_output: (slots, hidden) of each."""

        pooler_output: Sequence[torch.Tensor]

    class RotaryEmbedding(torch.nn.Module):
        """What turns positions into rotations. original_…: as it was before the longest text so far."""

        max_seq_len_cached: int
        original_max_seq_len: int
        inv_freq: torch.Tensor
        original_inv_freq: torch.Tensor

    class Decoder(torch.nn.Module):
        """A model without its head. layers: what is in them differs from architecture to architecture."""

        layers: Sequence[Any]

    class Model(torch.nn.Module):
        """A decoder with its head; get_image_features: of one that sees."""

        model: Decoder
        config: Config
        device: torch.device
        dtype: torch.dtype

        def __call__(self, *args: object, **given: object) -> Output: ...

        def get_decoder(self) -> Decoder: ...

        def get_input_embeddings(self) -> torch.nn.Embedding: ...

        def get_output_embeddings(self) -> torch.nn.Linear: ...

        def get_image_features(self, *, pixel_values: torch.Tensor) -> Features: ...

        def set_input_embeddings(self, value: torch.nn.Module) -> None: ...


class Config(Protocol):
    """A configuration. What only some kinds of models have is asked for by getattr."""

    model_type: str
    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    max_position_embeddings: int
    eos_token_id: int | Sequence[int] | None
    rope_parameters: dict[str, float | str] | None
    vision_config: VisionConfig
    vision_feature_select_strategy: str
    image_token_id: int

    def get_text_config(self) -> Config:
        """That of the decoder alone."""
        ...

    def to_dict(self) -> dict[str, object]: ...

    def validate_rope(self) -> None:
        """Raise, or warn by the logger, where the parameters of the RoPE do not fit."""
        ...


class VisionConfig(Protocol):
    """The configuration of a tower for images."""

    model_type: str
    image_size: int
    _attn_implementation: str
    patch_size: int


class Tokenizer(Protocol):
    """A tokenizer."""

    bos_token: str | None
    bos_token_id: int | None
    eos_token_id: int | None
    chat_template: str | None

    def __len__(self) -> int: ...

    def encode(self, text: str, *, add_special_tokens: bool, verbose: bool = True) -> list[int]: ...

    def decode(self, ids: list[int], *, skip_special_tokens: bool, clean_up_tokenization_spaces: bool) -> str: ...

    def convert_ids_to_tokens(self, ids: int) -> str | None: ...

    def apply_chat_template(
        self, messages: Sequence[dict[str, str]], *, tokenize: bool, add_generation_prompt: bool
    ) -> str: ...
