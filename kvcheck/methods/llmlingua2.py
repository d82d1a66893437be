"""LLMLingua-2: shorten the prompt before it is read. arXiv 2403.12968, microsoft/LLMLingua."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

import numpy as np
import torch

from kvcheck.cache import checks
from kvcheck.cache.kv_cache import CacheLayer
from kvcheck.cache.lingua import LONGEST, SPACE, Rules, chunks
from kvcheck.cache.method import Method, MethodInfo, Stage
from kvcheck.cache.method_runner import MethodRunner
from kvcheck.cache.rows import RowRunner
from kvcheck.cache.shape import ModelShape
from kvcheck.cache.view import FedCache
from kvcheck.core.errors import MethodUnsupported, SpecError
from kvcheck.core.front import option
from kvcheck.core.paths import bundle
from kvcheck.models import EMBEDDED

if TYPE_CHECKING:
    from kvcheck.models import LoadedModel
    from kvcheck.models.encoder import Encoder


@dataclass(frozen=True)
class LLMLingua2(Method):
    """Leave out words of the context that a small token classifier takes for dispensable, and cache what is left.

    rate: share of the context's tokens that stays. model: folder or hub id of a token classifier of LLMLingua-2, which
    the package llmlingua then runs; empty: the one that ships for the embedded model, run here by the same rules.
    force: characters that are kept wherever they are a token of their own. drop_consecutive: but not twice with nothing
    kept between. digits: tokens with a digit are kept, too.

    The classifier reads the context in chunks of up to 511 of its tokens, cut behind the last "." or line break, and
    gives each token the probability to be needed; the mean over a word is what the word is worth. In each chunk the
    words stay that are worth more than percentile 100·(1 - rate) + 1, taken over tokens. So n' of n tokens are left: at
    most rate·n, at least (rate - 0.02)·n less a word per chunk and less the repeats that go, more where forced tokens
    alone are more. At least one word of a prompt stays; rate 1 keeps it as it is. What is left has the positions of a
    prompt of n' tokens.

    The question is never shown to the classifier and never shortened: the engine feeds it behind the short context,
    in every mode, whether or not it would be visible to a method that compresses the cache. A prompt that is given to
    the runner directly is shortened as a whole. A beginning-of-text token stays.

    Bytes: 2·L·B·G·(n' + decoded)·d·2; n' depends on the text, so they are declared for rate 1 only. The classifier's
    own weights (0.8 MB for the shipped one) are not counted.
    Errors: SpecError for values out of range and for a classifier that cannot be loaded; MethodUnsupported without the
    package, and without model= for any model but the embedded one.
    Differences from the official code, for the shipped classifier: tokens are left out, not text, so nothing is
    tokenized anew; the tokens over which the percentile is taken are the model's, not those of GPT-3.5; line breaks are
    seen as they are; a Chinese word is a word (there, everything up to the next space is one, and goes or stays as a
    whole). With model=, n' is what the shortened text has in the model's own tokens, not rate·n.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        summary="leaves out words of the context that a token classifier takes for dispensable",
        stage=Stage.PROMPT,
        paper="arXiv 2403.12968",
        knob="rate",
        formula="2·L·B·G·(n' + decoded)·d·2 for the n' tokens that are left of the context",
        refuses="without model=, any model but the embedded one",
        verbatim=False,
        shares_prefill=False,
        variant="forced tokens and repeats as in arXiv 2407.01527; a classifier of our own on the embedded model",
    )

    rate: float = 0.5
    model: str = ""
    force: str = "\n.!?,"
    drop_consecutive: bool = True
    digits: bool = False

    def __post_init__(self) -> None:
        """Raise SpecError for values out of range."""
        checks.share(self.name(), "rate", self.rate, 0.01, 1, 0.5)

    @property
    def rules(self) -> Rules:
        """Which words stay."""
        return Rules(self.rate, self.force, self.digits, self.drop_consecutive)

    def layer(self, shape: ModelShape, index: int) -> CacheLayer:
        """A layer of the full cache."""
        return CacheLayer(shape, index, self)

    def runner(self, loaded: LoadedModel) -> MethodRunner:
        """The model with a classifier before it."""
        return LinguaRunner(self, loaded)

    def kv_bytes(self, shape: ModelShape, batch: int, prompt: int, decoded: int) -> int | None:
        """Those of the full cache where nothing is left out; else they depend on the text."""
        return shape.dense_bytes(batch, prompt + decoded) if self.rate == 1 else None


class Compressor(Protocol):
    """Shortens a text."""

    def shorten(self, ids: list[int]) -> list[int]:
        """Tokens of the model in, tokens of the model out."""
        ...


class LinguaRunner(RowRunner):
    """Shortens every prompt by itself; rows then have lengths of their own."""

    method: LLMLingua2

    def __init__(self, method: LLMLingua2, loaded: LoadedModel) -> None:
        super().__init__(method, loaded)
        if method.model:
            self.compressor: Compressor = Package(method, loaded.tokenizer, loaded.device)
        elif loaded.name in EMBEDDED:
            self.compressor = Shipped(method.rules, loaded.device)
        else:
            raise MethodUnsupported(
                f"llmlingua2: the classifier that ships with kvcheck knows the words of the embedded model only, not "
                f"those of {loaded.name}",
                f"give one: {option('methods')}=llmlingua2:model=microsoft/llmlingua-2-xlm-roberta-large-meetingbank",
            )

    def prefill_row(self, ids: torch.Tensor) -> tuple[FedCache, torch.Tensor]:
        """The short prompt, through the full cache."""
        return super().prefill_row(self.shortened(ids))

    def shortened(self, ids: torch.Tensor) -> torch.Tensor:
        """A prompt (1, n) -> (1, n')."""
        if self.method.rate == 1:
            return ids
        whole, bos = ids[0].tolist(), list(self.loaded.tokenizer.bos)
        head = bos if whole[: len(bos)] == bos else []
        left = self.compressor.shorten(whole[len(head) :])
        return torch.tensor([head + left or whole[-1:]], device=ids.device)


class Shipped:
    """The classifier of the embedded model; its tokens are those of the model."""

    def __init__(self, rules: Rules, device: torch.device) -> None:
        from transformers import AutoModelForTokenClassification, AutoTokenizer

        folder = bundle("fixtures") / "llmlingua"
        self.rules = rules
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        with _quiet():
            self.model = AutoModelForTokenClassification.from_pretrained(folder).to(device).eval()

    def shorten(self, ids: list[int]) -> list[int]:
        """Chunk by chunk; where that leaves nothing, the word that is worth most."""
        pieces = self.tokenizer.convert_ids_to_tokens(ids)
        chances: list[float] = []
        left: list[int] = []
        for part in chunks(pieces):
            chances += self.chances(ids[part])
            left += [ids[part.start + at] for at in self.rules.kept(pieces[part], chances[part])]

        def worth(word: slice) -> float:
            return self.rules.worth(pieces[word], chances[word])

        return left or ids[max(self.rules.words(pieces), key=worth, default=slice(0))]

    @torch.inference_mode()
    def chances(self, ids: list[int]) -> list[float]:
        """The probability of each token of a chunk to be needed."""
        fed = [self.tokenizer.cls_token_id, *ids, self.tokenizer.sep_token_id][:LONGEST]
        logits = self.model(torch.tensor([fed], device=self.model.device)).logits
        return logits.softmax(-1)[0, 1 : len(ids) + 1, 1].tolist()


class Package:
    """The package llmlingua with a classifier that it can load. Text goes in and text comes out."""

    def __init__(self, method: LLMLingua2, encoder: Encoder, device: torch.device) -> None:
        try:
            from llmlingua import PromptCompressor
        except ImportError as error:
            raise MethodUnsupported(
                f"llmlingua2 with model= runs the package llmlingua, which cannot be imported: {error}",
                "pip install 'kvcheck[llmlingua]'",
            ) from error
        self.method, self.encoder = method, encoder
        try:
            with _seeds_untouched():  # it seeds every generator with 42
                self.inner = PromptCompressor(
                    method.model,
                    device_map=str(device),
                    model_config={"trust_remote_code": False},
                    use_llmlingua2=True,
                )
        except Exception as error:
            raise SpecError(
                f"llmlingua2: llmlingua cannot load model={method.model!r}: {type(error).__name__}: {error}",
                "give the folder or hub id of a token classifier; at its first use the package also downloads the "
                "tokens of GPT-3.5 (see TIKTOKEN_CACHE_DIR for a machine without a network)",
            ) from error
        self.inner.model_name = self._family(method.model)

    def _family(self, model: str) -> str:
        """What the package must find in the name of a classifier to tell where its words begin."""
        piece = self.inner.tokenizer.tokenize("of the")[-1]
        if piece in ("the", f"{SPACE}the"):
            return "bert-base-multilingual-cased" if piece == "the" else "xlm-roberta-large"
        raise MethodUnsupported(
            f"llmlingua2: the tokens of {model} are neither those of BERT nor those of XLM-RoBERTa ({piece!r})",
            "give a classifier of LLMLingua-2, such as microsoft/llmlingua-2-xlm-roberta-large-meetingbank",
        )

    def shorten(self, ids: list[int]) -> list[int]:
        """Through the text."""
        method = self.method
        found = self.inner.compress_prompt_llmlingua2(
            [self.encoder.decode(ids)],
            rate=method.rate,
            force_tokens=list(method.force),
            force_reserve_digit=method.digits,
            drop_consecutive=method.drop_consecutive,
        )
        return self.encoder.encode(found["compressed_prompt"])


@contextmanager
def _quiet() -> Iterator[None]:
    """No bar for a file that is read at once."""
    from transformers.utils import logging

    bar = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    yield
    if bar:
        logging.enable_progress_bar()


@contextmanager
def _seeds_untouched() -> Iterator[None]:
    """What is seeded inside is not, outside."""
    plain, arrays = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        yield
    random.setstate(plain)
    np.random.set_state(arrays)


METHOD = LLMLingua2
