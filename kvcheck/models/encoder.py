"""The few things that the engine and the task generators ask of a tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from kvcheck.core import env
from kvcheck.core.errors import MethodUnsupported, SpecError
from kvcheck.core.front import option
from kvcheck.tasks.images import MARK

if TYPE_CHECKING:
    from kvcheck.models.pretrained import Tokenizer
    from kvcheck.models.vision import Slots

REMEMBERED = 2_000_000
"""Tokens, some 30 MB."""
OPENS = "opens_with_bos"
"""Key of tokenizer_config.json: the model was trained with a BOS before every prompt, which its tokenizer.json, a part
of its fingerprint, does not add. Of the embedded models."""


class Encoder:
    """A Hugging Face tokenizer that adds nothing to a text: no special tokens, no truncation, no warnings.

    bos: ids that open every prompt: what the tokenizer itself puts before a text, nothing where it merely names a BOS.
    eos: ids that end an answer.
    slots: what an image is in a text, None where the model reads text only. vocabulary: ids that the model knows, None
    where that is not looked at.
    Encoded texts are remembered (the same texts come back for every mode and method), up to REMEMBERED tokens in all.
    """

    def __init__(
        self, tokenizer: Tokenizer, eos: Sequence[int] = (), slots: Slots | None = None, vocabulary: int | None = None
    ) -> None:
        self.tokenizer, self.slots, self.vocabulary = tokenizer, slots, vocabulary
        end = tokenizer.eos_token_id
        self.bos: tuple[int, ...] = _opening(tokenizer)
        self.eos: frozenset[int] = frozenset(int(token) for token in (*eos, end) if token is not None)
        self._memo: dict[str, list[int]] = {}
        self._held = 0

    def encode(self, text: str) -> list[int]:
        """Token ids of the text, without special tokens.

        Raises MethodUnsupported for images where there is no eye, SpecError for ids that the model does not know.
        """
        ids = self._memo.get(text)
        if ids is None:
            written = self._written(text) if MARK in text else text
            ids = [int(token) for token in self.tokenizer.encode(written, add_special_tokens=False, verbose=False)]
            self._expect_known(ids)
            self._held += len(ids) + 1
            if self._held > REMEMBERED:
                self._memo.clear()
                self._held = len(ids) + 1
            self._memo[text] = ids
        return list(ids)

    def _expect_known(self, ids: list[int]) -> None:
        """An id too many would end the process on a GPU, where nobody could say why."""
        if self.vocabulary is not None and ids and max(ids) >= self.vocabulary:
            raise SpecError(
                f"the tokenizer gives token {max(ids)}, the model knows {self.vocabulary} tokens, from 0 on",
                "is the tokenizer the one that came with the model?",
            )

    def _written(self, text: str) -> str:
        """The text with slots in the place of images."""
        if self.slots is None:
            raise MethodUnsupported(
                "the task shows images, and the model reads text only",
                f"{option('model')} with a LLaVA or an InternVL, or other {option('tasks')}",
            )
        return self.slots.written(text)

    @cached_property
    def facts(self) -> dict[str, str]:
        """What decides the ids of a text beside the files of the model."""
        versions = {name: found for name, found in env.packages().items() if name in ("tokenizers", "transformers")}
        return {"tokenizer": type(self.tokenizer).__name__, **versions}

    def decode(self, ids: Sequence[int]) -> str:
        """The text of an answer, without special tokens, its blanks as they are."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)


def _opening(tokenizer: Tokenizer) -> tuple[int, ...]:
    """The ids that stand before those of a text where the tokenizer adds its special tokens."""
    bare, full = ([int(token) for token in tokenizer.encode("x", add_special_tokens=add)] for add in (False, True))
    if tokenizer.bos_token_id is not None and getattr(tokenizer, "init_kwargs", {}).get(OPENS):
        return (int(tokenizer.bos_token_id),)
    starts = (at for at in range(len(full) - len(bare) + 1) if full[at : at + len(bare)] == bare)
    return tuple(full[: next(starts, int(full[:1] == [tokenizer.bos_token_id]))])
