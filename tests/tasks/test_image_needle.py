"""The tasks with images, checked without a model: every plate shows what is asked for, where the text says so."""

from __future__ import annotations

import re
import sys
from functools import cache

import pytest

from kvcheck.core.errors import SpecError
from kvcheck.tasks import TASKS, find, members
from kvcheck.tasks.base import Sample, Turn
from kvcheck.tasks.images import BLACK, FONT, GROUP, MARK, SIDE, WHITE, Image, plate
from kvcheck.tasks.metrics import score

NAMES = ("image_needle/text", "image_needle/image")
SLOTS = 16
SEES = re.compile(rf" The code of (\w+) is {MARK}\.")


class Seeing:
    """A tokenizer that puts SLOTS tokens in the place of an image."""

    def __init__(self, inner) -> None:
        self.inner = inner

    def encode(self, text: str) -> list[int]:
        texts = text.split(MARK)
        ids = self.inner.encode(texts[0])
        for each in texts[1:]:
            ids += [-1] * SLOTS + self.inner.encode(each)
        return ids


@pytest.fixture(scope="module")
def seeing(tokenizer) -> Seeing:
    return Seeing(tokenizer)


@cache
def sample(name: str, index: int, seeing: Seeing, length: int = 512) -> Sample:
    return find(name).generate(7, index, length, seeing)


def read(image: Image) -> str:
    """The eight digits of a plate, by the font."""
    number = ""
    for at in range(8):
        left = at // 2 * GROUP + at % 2 * 4
        inks = (image.cells[1 + place // 3][left + place % 3] for place in range(15))
        number += str(FONT.index("".join("1" if colour == BLACK else "0" for colour in inks)))
    return number


def named(made: Sample) -> dict[str, str]:
    """What each plate shows, by the name in the sentence that it stands in."""
    return dict(zip(SEES.findall(made.context), map(read, made.images), strict=True))


def owner(turn: Turn) -> str:
    return turn.question.removesuffix(" is").rpartition(" ")[2]


@pytest.mark.parametrize("length", [512, 1024])
@pytest.mark.parametrize("name", NAMES)
def test_slots_of_images_count_as_tokens_of_the_context(seeing, name, length):
    for index in range(4):
        assert len(seeing.encode(sample(name, index, seeing, length).context)) == length


@pytest.mark.parametrize("name", NAMES)
def test_half_of_the_tokens_are_slots(seeing, name):
    ids = seeing.encode(sample(name, 0, seeing).context)
    assert ids.count(-1) == 256


@pytest.mark.parametrize("name", NAMES)
def test_there_is_an_image_for_every_mark(seeing, name):
    made = sample(name, 0, seeing)
    assert made.context.count(MARK) == len(made.images) == 16


@pytest.mark.parametrize("index", range(6))
def test_an_image_needle_is_on_the_plate_that_is_asked_for(seeing, index):
    made = sample("image_needle/image", index, seeing)
    shown = named(made)
    assert [turn.references[0] for turn in made.turns] == [shown[owner(turn)] for turn in made.turns]


@pytest.mark.parametrize("index", range(6))
def test_an_image_needle_was_never_text(seeing, index):
    made = sample("image_needle/image", index, seeing)
    assert not any(turn.references[0] in made.context for turn in made.turns)


@pytest.mark.parametrize("index", range(6))
def test_a_text_needle_is_written_out_among_plates(seeing, index):
    made = sample("image_needle/text", index, seeing)
    for turn in made.turns:
        start, end = turn.evidence[0]
        assert made.context[start:end] == f" The code of {owner(turn)} is {turn.references[0]}."
    assert not {turn.references[0] for turn in made.turns} & set(named(made).values())


@pytest.mark.parametrize("name", NAMES)
def test_every_owner_has_one_code(seeing, name):
    owners = re.findall(r" The code of (\w+) is", sample(name, 0, seeing).context)
    assert len(owners) == len(set(owners)) == 20


@pytest.mark.parametrize("name", NAMES)
def test_the_needles_lie_all_over_the_context(seeing, name):
    depths = [turn.depth for index in range(12) for turn in sample(name, index, seeing).turns]
    assert min(depths) < 0.15
    assert max(depths) > 0.85


@pytest.mark.parametrize("name", NAMES)
def test_the_expected_answer_earns_everything_and_another_plate_nothing(seeing, name):
    made = sample(name, 0, seeing)
    for turn, other in zip(made.turns, [*made.turns[1:], made.turns[0]], strict=True):
        assert score(turn.metric, turn.expected, turn.references, turn.options) == 1
        assert score(turn.metric, other.expected, turn.references, turn.options) == 0


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_gives_the_same_images(seeing, name):
    assert find(name).generate(7, 1, 512, seeing) == sample(name, 1, seeing)


def test_the_digest_tells_what_images_show(seeing):
    made = sample("image_needle/image", 0, seeing)
    other = Sample(made.task, 0, made.context, made.turns, images=(*made.images[1:], made.images[0]))
    assert other.digest != made.digest


def test_a_context_without_room_for_two_images_is_refused(seeing):
    with pytest.raises(SpecError, match="has no room for 2") as caught:
        find("image_needle/text").generate(0, 0, 60, seeing)
    assert caught.value.hint == "--kv-lengths 64 at least"


def test_they_are_asked_for_by_name_and_part_of_no_profile():
    assert members("image_needle") == list(NAMES)
    assert not {name for name in TASKS.names() if "image" in name}


def test_a_plate_is_black_on_white_over_a_plain_field():
    image = plate("09090909", (1, 2, 3))
    assert {colour for row in image.cells[:GROUP] for colour in row} == {BLACK, WHITE}
    assert {colour for row in image.cells[GROUP:] for colour in row} == {(1, 2, 3)}
    assert [len(row) for row in image.cells] == [SIDE] * SIDE


def test_where_an_image_takes_few_tokens_the_sentences_fit_all_the_same(tokenizer, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "SLOTS", 4)
    few = Seeing(tokenizer)
    for index in range(2):
        made = find("image_needle/image").generate(7, index, 512, few)
        assert len(made.images) > 16
        assert len(few.encode(made.context)) <= 512
