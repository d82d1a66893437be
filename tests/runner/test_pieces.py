"""What is fed in pieces is what the tokenizer gives for the whole text, with the beginning that it gives by itself."""

from __future__ import annotations

import json
import shutil
import string
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from kvcheck.core.paths import bundle
from kvcheck.core.record import CaseId
from kvcheck.core.settings import MODES, Settings
from kvcheck.models.encoder import OPENS, Encoder
from kvcheck.models.loading import encoder_of
from kvcheck.runner.case import find_task
from kvcheck.runner.prompts import Prompter, prompter
from kvcheck.tasks.base import Sample

FIRST = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
    "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}},
}
"""A BOS before every text."""
BARE = (
    "{% for m in messages %}[{{ m.role }}] {{ m.content }} [end]{% endfor %}"
    "{% if add_generation_prompt %}[a] {% endif %}"
)
NAMED, WRITTEN = "{{ bos_token }}" + BARE, "<s>" + BARE
LENGTH = 2048

Change = Callable[[dict[str, Any], dict[str, Any]], None]


def adds(words: dict[str, Any], config: dict[str, Any]) -> None:
    words["post_processor"] = FIRST


def names_only(words: dict[str, Any], config: dict[str, Any]) -> None:
    """GPT-2, Pythia, OLMo, Phi-3, Granite."""


def none(words: dict[str, Any], config: dict[str, Any]) -> None:
    """Qwen."""
    config.pop("bos_token")


def blank_first(words: dict[str, Any], config: dict[str, Any]) -> None:
    """Llama 2, Mistral v0.1: a blank before every text, and so before every piece of one."""
    adds(words, config)
    words["normalizer"]["normalizers"].insert(0, {"type": "Prepend", "prepend": "▁"})


def merges(words: dict[str, Any], config: dict[str, Any]) -> None:
    """BPE by bytes with tokens over the seams, as ".\\n" of Llama 3 and Qwen: of what ends a context and line breaks,
    of the last letter of a question and the blank behind it."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    pairs = [(last, "Ċ") for last in f"{string.ascii_letters}{string.digits}.;"] + [
        ("s", "Ġ"),
        ("=", "Ġ"),
        ("=", "1"),
        ("Ċ", "Q"),
    ]
    known = ["<s>", "</s>", "<unk>", *sorted(pre_tokenizers.ByteLevel.alphabet()), *(a + b for a, b in pairs)]
    bpe = Tokenizer(models.BPE({token: at for at, token in enumerate(known)}, pairs))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    words.clear()
    words.update(json.loads(bpe.to_str()))
    words["decoder"] = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}


KINDS: dict[str, Change] = {one.__name__: one for one in (adds, names_only, none, blank_first, merges)}


def tokenizer_of(folder: Path, change: Change, template: str = "") -> Path:
    """The embedded model's folder without its weights, with another tokenizer."""
    shutil.copytree(bundle("fixtures") / "mini", folder, ignore=shutil.ignore_patterns("*.safetensors"))
    words, config = (json.loads((folder / name).read_text()) for name in ("tokenizer.json", "tokenizer_config.json"))
    del config[OPENS]
    change(words, config)
    if template:
        config["chat_template"] = template
    (folder / "tokenizer.json").write_text(json.dumps(words))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def asked(encoder: Encoder, mode: str, chat: str = "no", history: str = "task") -> tuple[Prompter, Sample]:
    case = CaseId("kv", 1, mode, LENGTH, 0, 1)
    settings = Settings(chat=chat, history=history)
    task = find_task(case, settings)
    sample = task.generate(0, 0, LENGTH, encoder)
    return prompter(task, case, sample, encoder, None, settings), sample


@pytest.mark.parametrize("kind", KINDS)
def test_context_and_question_are_the_ids_of_the_whole_text(tmp_path: Path, kind: str) -> None:
    encoder, _ = encoder_of(str(tokenizer_of(tmp_path / "own", KINDS[kind])))
    asking, sample = asked(encoder, "multi_request")
    context = asking.context(sample)
    for at, turn in enumerate(sample.turns):
        fed = [*context, *asking.first(sample, 0, at).ids]
        assert fed == encoder.tokenizer(sample.context + turn.question).input_ids
    assert len(asking.first(sample, 0, 0).ids) < 100


def test_the_tokens_over_a_seam_are_there_to_be_met(tmp_path: Path) -> None:
    encoder, _ = encoder_of(str(tokenizer_of(tmp_path / "own", merges)))
    asking, sample = asked(encoder, "single")
    question = sample.turns[0].question
    assert encoder.encode(sample.context + question) != encoder.encode(sample.context) + encoder.encode(question)
    assert len(asking.context(sample)) < LENGTH


@pytest.mark.parametrize("kind", KINDS)
def test_a_conversation_with_gold_answers_and_the_reference_are_the_ids_of_the_whole_text(
    tmp_path: Path, kind: str
) -> None:
    encoder, _ = encoder_of(str(tokenizer_of(tmp_path / "own", KINDS[kind])))
    asking, sample = asked(encoder, "multi_turn", history="gold")
    question = asking.first(sample, 0, 0)
    fed, text = [*asking.context(sample), *question.ids], sample.context + sample.turns[0].question
    for before, turn in pairwise(sample.turns):
        answered = text + before.space + before.expected
        assert encoder.decode([*fed, *question.reference]) == encoder.decode(encoder.tokenizer(answered).input_ids)
        text = answered + turn.question
        following = asking.following(sample, question)
        assert following is not None
        question = following
        fed += question.ids
        if kind != "merges":  # what reaches over the seam to an answer is not known when the question is asked
            assert fed == encoder.tokenizer(text).input_ids
        assert encoder.tokenizer.decode(fed) == encoder.tokenizer.decode(encoder.tokenizer(text).input_ids)


@pytest.mark.parametrize("kind", KINDS)
def test_what_goes_on_behind_an_answer_of_the_model_does_not_begin_a_text(tmp_path: Path, kind: str) -> None:
    encoder, _ = encoder_of(str(tokenizer_of(tmp_path / "own", KINDS[kind])))
    asking, sample = asked(encoder, "multi_turn")
    question = asking.first(sample, 0, 0)
    question.answer, question.ended = encoder.encode("nothing of the kind"), True
    following = asking.following(sample, question)
    assert following is not None
    assert encoder.tokenizer.decode([*question.answer, *following.ids]).endswith(f"kind{sample.turns[1].question}")


@pytest.mark.parametrize("template", [BARE, NAMED, WRITTEN], ids=["without BOS", "with BOS", "BOS written out"])
@pytest.mark.parametrize("kind", KINDS)
def test_under_a_chat_template_prompts_are_what_the_template_gives(tmp_path: Path, kind: str, template: str) -> None:
    if template == NAMED and kind == "none":
        template = BARE
    encoder, _ = encoder_of(str(tokenizer_of(tmp_path / "own", KINDS[kind], template)))
    asking, sample = asked(encoder, "multi_request", chat="yes")
    for at, turn in enumerate(sample.turns):
        question, lead = turn.apart
        assert lead.endswith("=")
        message = [{"role": "user", "content": sample.context + question}]
        text = encoder.tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
        own = encoder.tokenizer(text + lead, add_special_tokens=False).input_ids
        assert [*asking.context(sample), *asking.first(sample, 0, at).ids] == own


@pytest.mark.parametrize("kind", ["names_only", "merges"])
def test_contexts_are_the_same_in_every_mode(tmp_path: Path, kind: str) -> None:
    encoder, _ = encoder_of(str(tokenizer_of(tmp_path / "own", KINDS[kind])))
    fed = [asking.context(sample) for asking, sample in (asked(encoder, mode) for mode in MODES)]
    assert fed[0] == fed[1] == fed[2]


def test_the_embedded_models_open_every_prompt_as_they_were_trained() -> None:
    for name in ("mini", "mini_window", "mini_hybrid"):
        assert encoder_of(name)[0].bos == (0,)
