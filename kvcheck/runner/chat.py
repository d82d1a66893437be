"""What a model's chat template puts around a text."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING

from kvcheck.core.errors import SpecError
from kvcheck.core.front import option

if TYPE_CHECKING:
    from kvcheck.models.pretrained import Tokenizer

USER, ANSWER, NEXT = "\u2460kvcheck-user\u2460", "\u2460kvcheck-answer\u2460", "\u2460kvcheck-next\u2460"


@dataclass(frozen=True)
class Chat:
    """The text before the first user message, behind a user message (up to where the answer begins), and between an
    answer and the next user message. A BOS is in `head` where the template writes one, and nothing else adds it.
    trims: the template takes white space off the ends of a message, as those of Llama 3 and Gemma do. bos: its text.
    think: tokens that the model has before its answer, which are no part of it, with a template or without.
    """

    head: str = ""
    tail: str = ""
    again: str = ""
    trims: bool = False
    bos: str = ""
    think: int = 0

    @property
    def digest(self) -> str:
        """Identifies the template in a record, "" where nothing is put around a text.

        Not by its BOS, nor by thoughts: how prompts begin, and what is thought, is recorded beside it.
        """
        parts = (self.head.removeprefix(self.bos), self.tail, self.again, *(["trims"] * self.trims))
        return sha256("\x1f".join(parts).encode()).hexdigest()[:12] if self.tail else ""

    def message(self, text: str) -> str:
        """The end of a user message as the template shows it."""
        return text.rstrip() if self.trims else text

    @classmethod
    def of(cls, tokenizer: Tokenizer | None) -> Chat:
        """The template of a Hugging Face tokenizer. Raises SpecError where it has none, or one that changes a text."""
        name = getattr(tokenizer, "name_or_path", "") or "this model"
        if tokenizer is None or not getattr(tokenizer, "chat_template", None):
            raise SpecError(
                f"the tokenizer of {name} has no chat template", f"{option('chat')}=no feeds the prompts as they are"
            )
        first = [{"role": "user", "content": USER}]
        second = [*first, {"role": "assistant", "content": ANSWER}, {"role": "user", "content": NEXT}]
        spaced = [{"role": "user", "content": f"{USER} \n"}]
        once, twice, trimmed = (
            str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
            for messages in (first, second, spaced)
        )
        if once.count(USER) != 1 or any(twice.count(mark) != 1 for mark in (USER, ANSWER, NEXT)):
            raise SpecError(
                f"the chat template of {name} does not show every message once",
                f"{option('chat')}=no feeds the prompts as they are",
            )
        head, tail = once.split(USER)
        again = twice.split(ANSWER)[1].split(NEXT)[0]
        return cls(head, tail, again, trimmed == once, tokenizer.bos_token or "")
