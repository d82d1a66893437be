"""What public benchmarks ask of prompts: chat templates, gold answers, contexts of any length, ends of answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from kvcheck.core.errors import ContextTooLong, KvcheckError, NotComparable, SpecError
from kvcheck.core.record import CaseId, CaseRecord
from kvcheck.judging.pairing import pair
from kvcheck.models import LoadedModel
from kvcheck.runner.case import Runner
from kvcheck.runner.chat import Chat
from kvcheck.runner.prompts import cut
from kvcheck.tasks.base import Sample, Task

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}w1 {{ message.role[0] }} {{ message.content }} w2 {% endfor %}"
    "{% if add_generation_prompt %}w1 a {% endif %}"
)
HEAD, TAIL, AGAIN = "w1 u ", " w2 w1 a ", " w2 w1 u "


class Rows(Task):
    """A task whose samples come from a data set."""

    @property
    def facts(self) -> dict[str, str]:
        """Where from."""
        return {"data": "toy@1", "bos": "1"}


@pytest.fixture
def chatty(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> LoadedModel:
    """The tiny model with a chat template."""
    monkeypatch.setattr(loaded.tokenizer.tokenizer, "chat_template", TEMPLATE, raising=False)
    return loaded


@pytest.fixture
def ragged(tasks: dict[str, Task]) -> Task:
    """The toy task with contexts of unequal length, as the rows of a data set have them."""
    toy = tasks["toy"]

    def generate(seed: int, index: int, length: int, tokenizer: Any, turns: int = 3) -> Sample:
        sample = toy.generate(seed, index, length, tokenizer)
        return replace(
            sample, context=" ".join(sample.context.split()[: length - 3 * index]), chat=True, row=f"r{index}"
        )

    tasks["toy"] = Rows(replace(toy.info, exact=False, history="gold"), generate)
    return tasks["toy"]


def told(loaded: LoadedModel, text: str, limit: int = 6) -> str:
    """What plain greedy decoding with transformers' own cache says behind a text."""
    encoder = loaded.tokenizer
    fed, answer = [*encoder.bos, *encoder.encode(text)], []
    cache = None
    while len(answer) < limit:
        with torch.inference_mode():
            out = loaded.model(torch.tensor([fed]), past_key_values=cache, use_cache=True)
        cache, token = out.past_key_values, int(out.logits[0, -1].argmax())
        if token in encoder.eos:
            break
        answer.append(token)
        fed = [token]
    return encoder.decode(answer)


@pytest.fixture
def plain(folder: Any, chatty: LoadedModel) -> LoadedModel:
    """The same weights under transformers' own attention."""
    from transformers import AutoModelForCausalLM

    return replace(chatty, model=AutoModelForCausalLM.from_pretrained(folder, attn_implementation="sdpa").eval())


def test_a_chat_template_stands_around_every_message(chatty: LoadedModel) -> None:
    assert Chat.of(chatty.tokenizer.tokenizer) == Chat(f"<s>{HEAD}", TAIL, AGAIN, bos="<s>")


def test_a_template_that_trims_messages_takes_the_blanks_off_a_question(chatty: LoadedModel) -> None:
    from kvcheck.runner.prompts import Prompter
    from kvcheck.tasks.base import Turn

    tokenizer, asked = chatty.tokenizer.tokenizer, Turn("\nThe answer is: ", ("x",), 5, "exact")
    case = CaseId("toy", 1, "single", 40, 0, 1)
    kept = Chat.of(tokenizer)
    tokenizer.chat_template = TEMPLATE.replace("message.content", "message.content | trim")
    trims = Chat.of(tokenizer)
    assert trims == Chat(f"<s>{HEAD}", TAIL, AGAIN, trims=True, bos="<s>")
    assert trims.digest != kept.digest
    assert Prompter(chatty.tokenizer, case, None, kept).asked(asked) == f"\nThe answer is: {TAIL}"
    assert Prompter(chatty.tokenizer, case, None, trims).asked(asked) == f"\nThe answer is:{TAIL}"


def test_a_missing_chat_template_is_said_with_the_option_that_goes_without(loaded: LoadedModel) -> None:
    with pytest.raises(SpecError, match="no chat template") as error:
        Chat.of(loaded.tokenizer.tokenizer)
    assert "--kv-chat=no" in str(error.value)


def test_a_model_without_a_chat_template_gets_the_prompt_as_it_is_and_that_is_recorded(
    ragged: Task, make_runner: Callable[..., Runner], case: Callable[..., CaseId]
) -> None:
    record = make_runner().run_case(case(n=1), "fp16")
    assert dict(record.switches)["chat"] == "no"


def test_a_chat_template_that_is_asked_for_must_be_there(
    ragged: Task, make_runner: Callable[..., Runner], case: Callable[..., CaseId]
) -> None:
    with pytest.raises(SpecError, match="no chat template"):
        make_runner(chat="yes").run_case(case(n=1), "fp16")


@pytest.mark.parametrize("mode", ["single", "multi_turn", "multi_request"])
def test_chat_and_gold_answers_are_fed_as_the_whole_conversation_would_be(
    mode: str, chatty: LoadedModel, plain: LoadedModel, ragged: Task, make_runner: Callable[..., Runner],
    case: Callable[..., CaseId],
) -> None:  # fmt: skip
    record = make_runner().run_case(case(mode, n=2), "fp16")
    for sample in record.samples:
        full = ragged.generate(0, sample.index, 40, None)
        text = HEAD + full.context + " "
        for turn, asked in zip(sample.turns, full.turns, strict=False):
            text += asked.question + TAIL
            assert turn.answer == told(plain, text)
            text = text + asked.expected + AGAIN if mode == "multi_turn" else HEAD + full.context + " "


def test_own_answers_stay_in_the_conversation_when_asked_for(
    chatty: LoadedModel, plain: LoadedModel, ragged: Task, make_runner: Callable[..., Runner],
    case: Callable[..., CaseId],
) -> None:  # fmt: skip
    record = make_runner(history="own").run_case(case("multi_turn", n=1), "fp16")
    full = ragged.generate(0, 0, 40, None)
    text = HEAD + full.context + " "
    for turn, asked in zip(record.samples[0].turns, full.turns, strict=True):
        text += asked.question + TAIL
        assert turn.answer == told(plain, text)
        text += turn.answer + AGAIN


def test_gold_answers_need_no_memory_of_the_models_own(
    chatty: LoadedModel, ragged: Task, make_runner: Callable[..., Runner], case: Callable[..., CaseId]
) -> None:
    for spec in ("h2o:budget=16", "kivi:group=16,residual=16", "snapkv:budget=16,window=4"):
        record = make_runner(methods=(spec,)).run_case(case("multi_turn", n=2), spec)
        assert [len(sample.turns) for sample in record.samples] == [3, 3]


def test_long_gold_answers_count_against_the_room_of_the_model(
    chatty: LoadedModel, ragged: Task, tasks: dict[str, Task], make_runner: Callable[..., Runner],
    case: Callable[..., CaseId],
) -> None:  # fmt: skip
    def generate(seed: int, index: int, length: int, tokenizer: Any) -> Sample:
        sample = ragged.generate(seed, index, length, tokenizer)
        return replace(sample, turns=tuple(replace(turn, target="w5 " * 300) for turn in sample.turns))

    tasks["toy"] = Rows(ragged.info, generate)
    with pytest.raises(ContextTooLong, match="the model has room for 512"):
        make_runner().run_case(case("multi_turn", n=1), "fp16")
    assert make_runner(history="own").run_case(case("multi_turn", n=1), "fp16").samples


def test_what_decides_a_score_is_recorded_and_compared(
    chatty: LoadedModel, ragged: Task, make_runner: Callable[..., Runner], case: Callable[..., CaseId]
) -> None:
    record = make_runner().run_case(case("multi_turn", n=1), "fp16")
    switches = dict(record.switches)
    assert switches["data"] == "toy@1"
    assert switches["history"] == "gold"
    assert switches["decoding"] == "greedy float32"
    assert switches["chat"] == Chat(HEAD, TAIL, AGAIN).digest
    other = make_runner(chat="no").run_case(case("multi_turn", n=1), "fp16")
    with pytest.raises(NotComparable, match="chat is no there"):
        pair(record, replace(other, samples=record.samples), "fp16")


def test_our_own_tasks_record_nothing_more(runner: Runner, case: Callable[..., CaseId]) -> None:
    record: CaseRecord = runner.run_case(case(n=1), "fp16")
    assert record.switches == ()


def test_a_context_that_is_too_long_for_its_case_is_refused(
    chatty: LoadedModel, tasks: dict[str, Task], make_runner: Callable[..., Runner], case: Callable[..., CaseId]
) -> None:
    toy = tasks["toy"]
    tasks["toy"] = Task(
        replace(toy.info, exact=False), lambda seed, index, length, encoder: toy.generate(seed, index, 41, encoder)
    )
    with pytest.raises(KvcheckError, match="41 tokens instead of at most 40"):
        make_runner().run_case(case(n=1), "fp16")


@pytest.mark.parametrize(
    ("text", "stops", "left", "ended"),
    [
        ("one\ntwo", ("\n",), "one", True),
        ("\n\none\ntwo", ("\n",), "one", True),
        ("one two", ("\n",), "one two", False),
        ("one</s>two\nthree", ("\n", "</s>"), "one", True),
        ("one\ntwo", (), "one\ntwo", False),
        ("one\n", ("\n",), "one", True),
        ("\n", ("\n",), "", False),
    ],
)
def test_an_answer_ends_at_a_stop_string_that_it_does_not_begin_with(
    text: str, stops: tuple[str, ...], left: str, ended: bool
) -> None:
    assert cut(text, stops) == (left, ended)
