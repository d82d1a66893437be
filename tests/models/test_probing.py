"""What the probe of a model feeds it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from kvcheck.models.probing import MORE, SAYS, TEXT, _text


class Words:
    """A tokenizer with one id per word that it knows; 0 for others."""

    bos = (7,)

    def __init__(self, known: int) -> None:
        words = dict.fromkeys(SAYS.split())
        self.ids = {word: 100 + at for at, word in enumerate(words) if at < known}

    def encode(self, text: str) -> list[int]:
        return [self.ids.get(word, 0) for word in text.split()]


def model(known: int) -> Any:
    table = SimpleNamespace(num_embeddings=1000)
    inner = SimpleNamespace(get_input_embeddings=lambda: table)
    return SimpleNamespace(tokenizer=Words(known), device=torch.device("cpu"), model=inner)


def test_it_feeds_a_sentence_that_begins_as_prompts_do() -> None:
    ids = _text(model(known=100))
    assert ids.shape == (1, TEXT + MORE)
    assert ids[0, :3].tolist() == [7, 100, 101]


def test_where_the_words_are_not_known_it_feeds_the_first_ids() -> None:
    assert _text(model(known=3))[0].tolist() == list(range(1, TEXT + MORE + 1))
