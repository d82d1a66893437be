"""Where an answer begins: behind the lead-in, behind the assistant's header, behind what a model thought first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from kvcheck.core.errors import ContextTooLong
from kvcheck.core.record import CaseId
from kvcheck.runner.chat import Chat
from kvcheck.runner.prompts import Prompter, thought
from kvcheck.runner.seam import Question
from kvcheck.tasks import TASKS
from kvcheck.tasks.base import Sample, Tokenizer, Turn

CHAT = Chat("[user] ", " [model] ", " [user] ")
TURN = Turn("\nQuestion: Who? Answer: It is", ("Ann",), 4, "exact", stop=(";",), mark=" Answer: ")


class Letters:
    """A token is a character."""

    bos: tuple[int, ...] = ()
    eos = frozenset({0})

    def encode(self, text: str) -> list[int]:
        return [ord(letter) for letter in text]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(map(chr, ids))


def prompts(chat: Chat = CHAT, think: int = 0, room: int | None = None) -> Prompter:
    return Prompter(Letters(), CaseId("toy", 1, "multi_turn", 7, 0, 1), room, replace(chat, think=think))


def said(asking: Prompter, text: str, ended: bool = True, turn: Turn = TURN) -> tuple[str, bool]:
    return asking.answer(turn, Question(0, 0, (), (), 0, answer=Letters().encode(text), ended=ended))


class TestTheLeadIn:
    def test_it_stands_at_the_end_of_a_plain_prompt(self) -> None:
        assert prompts(Chat()).asked(TURN) == TURN.question

    def test_it_stands_behind_the_header_under_a_chat_template(self) -> None:
        assert prompts().asked(TURN) == "\nQuestion: Who? [model] It is"

    def test_the_answer_has_its_blank_behind_it(self) -> None:
        assert prompts().space(TURN) == " "
        assert prompts().space(replace(TURN, mark="")) == ""

    def test_the_lead_of_a_benchmark_stays_where_it_is(self) -> None:
        turn = Turn("\nWho?", ("Ann",), 4, "exact", lead="The")
        assert prompts().asked(turn) == "\nWho? [model] The"

    def test_it_is_in_the_next_prompt_of_a_conversation_too(self) -> None:
        asking, sample = prompts(), Sample("toy", 0, "Context", (TURN, TURN))
        question = asking.following(sample, asking.first(sample, 0, 0))
        assert question is not None
        assert Letters().decode(question.ids) == " [user] Question: Who? [model] It is"

    @pytest.mark.parametrize("name", TASKS.names())
    def test_every_task_of_ours_says_where_it_begins(self, name: str, tokenizer: Tokenizer) -> None:
        for turn in TASKS.get(name).generate(0, 0, 1024, tokenizer).turns:
            question, lead = turn.apart
            assert lead
            assert turn.question == f"{question}{turn.mark}{lead}"

    def test_it_is_no_part_of_what_identifies_a_sample(self) -> None:
        one, other = (Sample("toy", 0, "Context", (turn,)) for turn in (TURN, replace(TURN, mark="")))
        assert one.digest == other.digest
        assert prompts().graded(one) == prompts().graded(other)


class TestThoughts:
    @pytest.mark.parametrize(
        ("text", "asked", "answer"),
        [
            ("<think>Ann or Bob?</think>\n\nAnn", "", "Ann"),
            ("Ann or Bob?\n</think> Ann", "[model] <think>\n", "Ann"),
            ("<thinking>Bob</thinking>Ann", "", "Ann"),
            ("Ann", "", "Ann"),
            ("<think>Ann or", "", None),
            ("Ann or", "[model] <think>\n", None),
            ("Ann", "[model] <think>\n\n</think>\n\n", "Ann"),
        ],
    )
    def test_what_stands_behind_them_is_the_answer(self, text: str, asked: str, answer: str | None) -> None:
        assert thought(text, asked) == answer

    def test_there_is_room_for_them_and_for_the_answer(self) -> None:
        assert prompts(think=100).first(Sample("toy", 0, "Context", (TURN,)), 0, 0).limit == 104
        assert prompts().first(Sample("toy", 0, "Context", (TURN,)), 0, 0).limit == 4

    def test_who_thinks_first_is_given_no_beginning_of_the_answer(self) -> None:
        assert prompts(think=100).asked(TURN) == f"{TURN.question} [model] "

    def test_they_are_cut_and_a_stop_string_in_them_is_none(self) -> None:
        assert said(prompts(think=100), "<think>Bob; no</think>Ann; 0") == ("Ann", True)

    def test_an_answer_is_no_longer_than_without_them(self) -> None:
        assert said(prompts(think=100), "<think>Bob</think>Anna-Maria") == ("Anna", False)
        assert said(prompts(think=100), "Anna-Maria") == ("Anna", False)

    def test_thoughts_without_an_end_are_no_answer_and_it_never_ended(self) -> None:
        assert said(prompts(think=100), "<think>Ann", ended=False) == ("", False)
        assert said(prompts(think=100), "<think>Ann", ended=True) == ("", False)

    def test_without_room_for_them_nothing_is_cut(self) -> None:
        assert said(prompts(), "<think>a</think>Ann") == ("<think>a</think>Ann", True)

    def test_they_take_room_in_the_model(self) -> None:
        sample = Sample("toy", 0, "Context", (TURN,))
        prompts(room=120).context(sample)
        with pytest.raises(ContextTooLong):
            prompts(room=120, think=100).context(sample)

    def test_scores_with_and_without_them_are_not_compared(self) -> None:
        sample = Sample("toy", 0, "Context", (TURN,))
        assert prompts(think=100).graded(sample) != prompts().graded(sample)
