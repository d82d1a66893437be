"""From a sample to token ids, and from those of an answer to its text."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache

from kvcheck.core.errors import ContextTooLong, KvcheckError
from kvcheck.core.front import option
from kvcheck.core.record import CaseId, prompt_digest
from kvcheck.core.settings import Settings
from kvcheck.runner.chat import Chat
from kvcheck.runner.seam import Encoder, Question
from kvcheck.tasks.base import Sample, Task, Turn

PLAIN = Chat()
DRIFT_TOKENS = 64
"""Drift is measured on at most this many tokens of the reference answer."""


def cut(text: str, stops: tuple[str, ...]) -> tuple[str, bool]:
    """(the text up to the first stop string, whether there is one); one that it begins with does not end it."""
    for stop in stops:
        while text.startswith(stop):
            text = text[len(stop) :]
    end = min((at for stop in stops if (at := text.find(stop)) >= 0), default=len(text))
    return text[:end], end < len(text)


@cache
def _cutting(rule: Callable[..., object]) -> str:
    """Digest of the code of a rule by which answers are cut."""
    from kvcheck.tasks.metrics.digest import of_code

    return of_code(rule)


THOUGHTS = ("think", "thinking", "thought", "reasoning")
"""Tags that models think in."""
_CLOSED = re.compile(rf"</(?:{'|'.join(THOUGHTS)})>\s*")
_OPENED = re.compile(rf"<(?:{'|'.join(THOUGHTS)})>")


def thought(text: str, asked: str) -> str | None:
    """What a thinking model answers: what stands behind the closing tag. asked: what it was shown.

    None where it began to think, or was made to, and never came to an end; all of a text without any thoughts.
    """
    if closed := _CLOSED.search(text):
        return text[closed.end() :]
    begun = _OPENED.match(text.lstrip()) or (_OPENED.search(asked[-40:]) and not _CLOSED.search(asked[-40:]))
    return None if begun else text


class Prompter:
    """Token ids of the samples of one case.

    chat: what stands around the texts of samples that go into the model's chat template. gold: in a conversation the
    right answer stands in the place of the model's. exact: contexts must have `case.length` tokens (TaskInfo.exact).
    words: the length counts words (TaskInfo.words). ranked: see TaskInfo.ranked; False until it is set.
    openings: how often the token that opens a prompt stands there; some benchmarks' code has it twice. Under a chat
    template the first is the template's to write.

    Context and question are what their text gives where it is encoded at once, cut at the last token that the context
    has by itself: one that reaches over the seam, such as ".\\n", is the question's.
    """

    def __init__(
        self, encoder: Encoder, case: CaseId, max_length: int | None, chat: Chat = PLAIN, gold: bool = False,
        exact: bool = True, openings: int = 1, words: bool = False,
    ) -> None:  # fmt: skip
        self.encoder, self.case, self.max_length = encoder, case, max_length
        self.chat, self.gold, self.exact, self.words = chat, gold, exact, words
        self.think, self.ranked = chat.think, False
        self.opening = encoder.bos * (openings - bool(chat.tail))
        self._seams: dict[str, tuple[list[int], list[tuple[int, ...]]]] = {}

    def context(self, sample: Sample) -> list[int]:
        """The opening, the chat template's head and the context.

        Raises KvcheckError where the context has not `case.length` tokens, ContextTooLong where the model has no room
        for it.
        """
        ids = self.encoder.encode(sample.context)
        wrong = len(ids) != self.case.length if self.exact else len(ids) > self.case.length
        if wrong and not self.words:
            raise KvcheckError(
                f"{self.case}: the context of sample {sample.index} has {len(ids)} tokens "
                f"instead of {'' if self.exact else 'at most '}{self.case.length}",
                "a task's generator fills its context to exactly the requested length with the tokenizer it is given",
            )
        fed, _ = self._seam(sample)
        self._check_fits(sample, len(fed))
        return [*self.opening, *fed]

    def _seam(self, sample: Sample) -> tuple[list[int], list[tuple[int, ...]]]:
        """(ids of head and context, those of each question behind them), together those of the whole text.

        The same in all modes: the context ends where the whole texts of all questions still agree with it.
        """
        if sample.digest not in self._seams:
            text = self.chat.head + sample.context
            context = self.encoder.encode(text)
            wholes = [self.encoder.encode(text + self.asked(turn)) for turn in sample.turns]
            shared = min(_agree(context, whole) for whole in wholes)
            self._seams[sample.digest] = context[:shared], [tuple(whole[shared:]) for whole in wholes]
        return self._seams[sample.digest]

    def _behind(self, before: str, text: str) -> tuple[int, ...]:
        """Ids of a text that goes on behind another one, whose own ids stay: it is not the beginning of a text.

        Where a token would reach over the seam, those behind a letter (if the tokenizer knows it).
        """
        encode = self.encoder.encode
        for anchor in (before, "a") if self.encoder.decode(encode("a")).strip() == "a" else (before,):
            ids, whole = encode(anchor), encode(anchor + text)
            if _agree(ids, whole) == len(ids):
                return tuple(whole[len(ids) :])
        return tuple(encode(text))

    def asked(self, turn: Turn) -> str:
        """The text of a question, up to where its answer begins, or the thoughts before it."""
        question, lead = self._messages(turn)
        return self.chat.message(question) + self.chat.tail + lead

    def _messages(self, turn: Turn) -> tuple[str, str]:
        """(the end of the user's message, the beginning of the model's). Who thinks first begins by itself."""
        return turn.apart if self.chat.tail and not self.think else (turn.question, turn.lead)

    def first(self, sample: Sample, row: int, turn: int) -> Question:
        """The question `turn` asked right after the context."""
        asked = sample.turns[turn]
        ids, reference = self._seam(sample)[1][turn], self.reference(asked)
        others = self._others(sample, turn, reference) if self.ranked else ()
        return Question(row, turn, ids, reference, self._limit(asked), others=others)

    def _others(self, sample: Sample, turn: int, reference: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
        """The references of the sample's other questions as they would follow this one, each once."""
        asked, targets = sample.turns[turn], [one for at, one in enumerate(sample.turns) if at != turn]
        found = (self._following_answer(asked, _expected(one)) for one in targets)
        return tuple(dict.fromkeys(ids for ids in found if ids and ids != reference))

    def following(self, sample: Sample, question: Question) -> Question | None:
        """The next turn of a conversation, None after the last one."""
        turn = question.turn + 1
        if turn >= len(sample.turns):
            return None
        before, asked = sample.turns[turn - 1], sample.turns[turn]
        text = self.asked(asked)
        if self.chat.again:  # it opens a message of its own
            text = text.lstrip("\n")
        text, answer = self._joint(sample) + text, self.space(before) + _expected(before)
        if self.gold:
            ids = self._behind(self.asked(before), answer + text)
            return question.instead(turn, ids, self.reference(asked), self._limit(asked))
        return question.next(turn, self._behind(answer, text), self.reference(asked), self._limit(asked))

    def reference(self, turn: Turn) -> tuple[int, ...]:
        """Tokens of the expected answer as they follow the question, at most DRIFT_TOKENS; no end token."""
        return self._following_answer(turn, _expected(turn))

    def _following_answer(self, turn: Turn, answer: str) -> tuple[int, ...]:
        """Tokens of an answer as they follow the question, at most DRIFT_TOKENS; () for none."""
        return self._behind(self.asked(turn), self.space(turn) + answer)[:DRIFT_TOKENS] if answer else ()

    def fed(self, sample: Sample) -> str:
        """Digest of the ids that a sample becomes: context, questions and references; not the model's own answers."""
        context, questions = self._seam(sample)
        parts: list[Sequence[int]] = [self.opening, context]
        for at, turn in enumerate(self._turns(sample)):
            if at and self.case.mode == "multi_turn":
                question = self.following(sample, Question(0, at - 1, (), (), 0, ended=True))
                parts.append(question.ids if question is not None else ())
            else:
                parts.append(questions[at])
            parts.append(self.reference(turn))
        return prompt_digest(*(",".join(map(str, ids)) for ids in parts))

    def graded(self, sample: Sample) -> str:
        """Digest of what makes scores of the answers: the metrics with their code, and how an answer is cut."""
        from kvcheck.tasks.metrics.digest import of_metric

        parts = [_cutting(cut)]
        for turn in self._turns(sample):
            code = of_metric(turn.metric) if turn.max_new_tokens else ""
            rule = (turn.metric, code, turn.options, turn.stop, turn.lead, turn.space)
            parts.append(repr((*rule, turn.max_new_tokens)))
        if self.think:
            parts += [str(self.think), _cutting(thought)]
        return prompt_digest(*parts)

    @property
    def inputs(self) -> tuple[tuple[str, str], ...]:
        """What decides the ids: how prompts begin, and what the encoder says of itself."""
        own = "what the chat template writes" if self.chat.tail else "no token of the tokenizer's own"
        beginning = f"token {', '.join(map(str, self.opening))}" if self.opening else own
        facts = {str(name): str(value) for name, value in getattr(self.encoder, "facts", {}).items()}
        return tuple(sorted({**facts, "beginning": beginning}.items()))

    def answer(self, turn: Turn, question: Question) -> tuple[str, bool]:
        """(text, ended) of an answer: without the space that stands between question and answer, up to a stop string.

        Without what a model thought first, where it may; "" where its thoughts had no end.
        ended: an end token or a stop string closed it; else the limit of new tokens cut it.
        """
        said, ended = (
            self._said(turn, question) if self.think else (self.encoder.decode(question.answer), question.ended)
        )
        text, stopped = cut(said.removeprefix(self.space(turn)), turn.stop)
        return text, stopped or ended

    def _said(self, turn: Turn, question: Question) -> tuple[str, bool]:
        """(text, ended) of what stands behind the thoughts, of as many tokens as an answer may have."""
        text = thought(self.encoder.decode(question.answer), self.asked(turn))
        ids = self.encoder.encode(text or "")
        if len(ids) > turn.max_new_tokens:
            return self.encoder.decode(ids[: turn.max_new_tokens]), False
        return text or "", question.ended and text is not None

    def space(self, turn: Turn) -> str:
        """What stands before an answer: nothing where it begins an assistant's message."""
        return "" if self.chat.tail and not self._messages(turn)[1] else turn.space

    def _joint(self, sample: Sample) -> str:
        """What stands between an answer and the next question."""
        return self.chat.again or sample.separator

    def _check_fits(self, sample: Sample, length: int) -> None:
        """Raise ContextTooLong where `length` tokens of context, questions and longest answers exceed the limit."""
        if self.max_length is None:
            return
        used = self._turns(sample)
        spent = [len(self.encoder.encode(self.asked(turn))) + self._answer_tokens(turn) for turn in used]
        asked = sum(spent) + len(self.encoder.encode(self._joint(sample))) * len(used)
        asked = asked if self.case.mode == "multi_turn" else max(spent)
        need = len(self.opening) + length + asked
        if need > self.max_length:
            most = max(self.max_length - need + self.case.length, 1)
            raise ContextTooLong(
                f"{self.case}: context, questions and answers take {need} tokens, "
                f"the model has room for {self.max_length}",
                f"{option('lengths')} {most} at most, or a {option('model')} with a longer context",
            )

    def _answer_tokens(self, turn: Turn) -> int:
        """Tokens that an answer may take: the model's, or the gold one that stands in its place."""
        gold = len(self.encoder.encode(self.space(turn) + turn.expected)) if self.gold else 0
        return max(self._limit(turn), gold)

    def _limit(self, turn: Turn) -> int:
        """Tokens that may be generated: none where nothing is asked."""
        return turn.max_new_tokens + self.think if turn.max_new_tokens else 0

    def _turns(self, sample: Sample) -> tuple[Turn, ...]:
        """The turns that the mode asks: `single` asks the first question only."""
        return sample.turns[:1] if self.case.mode == "single" else sample.turns


def _expected(turn: Turn) -> str:
    """The answer that earns the full score, "" where none is known."""
    return turn.expected if turn.target or turn.references else ""


def _agree(ids: list[int], other: list[int]) -> int:
    """How many ids two lists begin with in common."""
    most = min(len(ids), len(other))
    return most if ids[:most] == other[:most] else next(at for at in range(most) if ids[at] != other[at])


def prompter(
    task: Task, case: CaseId, sample: Sample, encoder: Encoder, max_length: int | None, settings: Settings
) -> Prompter:
    """The prompter of a case, as the settings want it. sample: any of the case; all are alike in what is asked here.

    Raises SpecError where a chat template is asked for and the tokenizer has none.
    """
    tokenizer = getattr(encoder, "tokenizer", None)
    has = bool(getattr(tokenizer, "chat_template", None))
    wanted = settings.chat == "yes" or (settings.chat == "task" and sample.chat and has)  # a base model has none
    chat = replace(Chat.of(tokenizer) if wanted else PLAIN, think=settings.think)
    history = task.info.history if settings.history == "task" else settings.history
    gold = history == "gold" and case.mode == "multi_turn"
    openings = int(task.facts.get("bos", "1"))
    made = Prompter(encoder, case, max_length, chat, gold, task.info.exact, openings, task.info.words)
    made.ranked = task.info.ranked and case.mode == "multi_request"
    return made


def conversation(sample: Sample, asking: Prompter) -> list[tuple[str, str]]:
    """(what it is, text) of all that the model is shown of a sample, decoded from the tokens that are fed.

    Raises what Prompter.context raises. Without gold answers, the model's own come between the turns.
    """
    tokens = getattr(asking.encoder, "tokenizer", None)

    def text(ids: Sequence[int]) -> str:
        if tokens is None:
            return asking.encoder.decode(ids)
        return str(tokens.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))

    ids = asking.context(sample)
    parts = [(f"context, {len(ids)} tokens", text(ids))]
    question = asking.first(sample, 0, 0)
    for at, turn in enumerate(sample.turns if asking.case.mode != "single" else sample.turns[:1]):
        if at:
            after = (
                asking.following(sample, question) if asking.case.mode == "multi_turn" else asking.first(sample, 0, at)
            )
            question = question if after is None else after
        parts.append((f"turn {at + 1}, {len(question.ids)} tokens", text(question.ids)))
        expected = f"graded by {turn.metric} against {list(turn.references)}, at most {turn.max_new_tokens} tokens"
        if not turn.max_new_tokens:
            expected = f"{len(question.reference)} tokens of which the likelihood is measured; nothing is generated"
        parts.append((f"answer {at + 1}, {expected}", text(question.reference)))
    return parts
