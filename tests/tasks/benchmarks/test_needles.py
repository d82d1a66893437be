"""The grids of needles: over filler of our own, and over essays that a user has."""

from __future__ import annotations

import hashlib
import json
import random
import re
from dataclasses import replace

import pytest
from benchmark_help import rows

from kvcheck.core.errors import SpecError
from kvcheck.tasks import TASKS, members
from kvcheck.tasks.benchmarks import DATA_SETS, benchmark_tasks, niah, passkey, templates
from kvcheck.tasks.benchmarks.base import Job, Spot
from kvcheck.tasks.filling import grid_depth, unused
from kvcheck.tasks.metrics import score

GENERATED = [name for name in members("passkey") if not name.endswith("no_needle")]
ESSAYS = ["niah/7_digits", "niah/64_digits", "niah/sentence"]
CONTROLS = ["passkey/no_needle", "niah/no_needle"]


@pytest.fixture
def task(fixed):
    """A task by name, essays from the local rows."""
    return lambda name: TASKS.get(name) if name.startswith("passkey/") else fixed.get(name)


@pytest.mark.parametrize("depths", [10, 35])
def test_a_grid_has_every_depth_once_and_its_first_samples_are_spread(depths):
    found = [grid_depth(index, depths) for index in range(depths)]
    assert sorted(found) == pytest.approx([i / (depths - 1) for i in range(depths)])
    assert max(found[:4]) - min(found[:4]) > 0.7
    assert grid_depth(depths, depths) == found[0]


@pytest.mark.parametrize("name", GENERATED + ESSAYS)
def test_the_needle_stands_at_its_depth_and_its_answer_nowhere_else(name, task, tokenizer):
    for index in range(10):
        sample = task(name).generate(3, index, 700, tokenizer)
        turn = sample.turns[0]
        ((start, end),) = turn.evidence
        asked = float(turn.subtask.removeprefix("depth "))
        inside = sample.context[start:end].count(turn.references[0])
        assert inside == sample.context.count(turn.references[0]) == (1 if name.endswith("sentence") else 2)
        assert turn.depth == pytest.approx(asked, abs=0.25)  # the needle itself takes room
        assert score(turn.metric, turn.expected, turn.references) == 1.0


@pytest.mark.parametrize("name", CONTROLS)
def test_the_control_asks_for_a_key_that_stands_nowhere_so_copying_scores_nothing(name, task, tokenizer):
    for index in range(6):
        sample = task(name).generate(3, index, 700, tokenizer)
        turn = sample.turns[0]
        assert turn.references[0] not in sample.context
        assert score(turn.metric, sample.context, turn.references) == 0.0
        assert (turn.evidence, turn.depth, turn.subtask) == ((), None, "no needle")


def test_a_key_is_drawn_again_while_the_text_has_it():
    draws = iter(["12", "AB", "34"])
    assert unused(lambda: next(draws), "112 ab") == "34"


def test_needles_are_worded_in_several_ways_and_decoys_have_their_form(tokenizer):
    samples = [TASKS.get("passkey/7_digits").generate(0, index, 512, tokenizer) for index in range(40)]
    assert len({sample.turns[0].question for sample in samples}) == len(passkey.NEEDLES) >= 5
    for sample in samples:
        assert len(re.findall(r"\d{7}", sample.context)) == 2 + passkey.DECOYS
        subject = sample.turns[0].question.split("? ")[1]
        assert sample.context.count(f" {subject} ") == 1


def test_every_depth_meets_both_fillers(tokenizer):
    made = [TASKS.get("passkey/7_digits").generate(0, index, 600, tokenizer).context for index in range(20)]
    repeats = [text.count("The sky is blue.") > 3 for text in made]
    assert [repeats[index] is not repeats[index + 10] for index in range(10)] == [True] * 10


@pytest.mark.parametrize("name", GENERATED)
def test_a_generated_context_has_exactly_its_length_in_tokens_or_words(name, tokenizer):
    text = TASKS.get(name).generate(0, 1, 700, tokenizer).context
    assert len(text.split() if name.endswith("_words") else tokenizer.encode(text)) == 700
    assert TASKS.get(name).info.words is name.endswith("_words")


def test_words_come_back_as_they_were_encoded():
    words = passkey.Words()
    assert words.decode(words.encode("the key and  the gate")) == "the key and the gate"


def spot(depth, length, tokenizer=None):
    return Spot(depth, length, tokenizer, random.Random(0))


def job(name, text=None):
    return Job(DATA_SETS[name], DATA_SETS[name].own if text is None else text)


@pytest.mark.parametrize(
    ("depth", "expected"), [(0, " K! a b\nc d e "), (0.5, "a b K! c d e "), (1, "a b\nc d e K!  ")]
)
def test_the_passkey_stands_behind_so_many_words_as_in_longctx_bench(depth, expected):
    """Expected: make_content of eval/passkey_utils/passkey_utils.py, run at the pinned commit with the needle "K!"."""
    parts = dict(zip(niah.PARTS, ("I:\n", "<K>!", "<K>", "\nWhich? It is "), strict=True))
    given = job("niah/7_digits", json.dumps({"eval_params": parts}))
    context, (turn,) = niah.seven({"context": "a b\nc d e f g"}, given, spot(depth, 5))
    key = turn.references[0]
    assert context == "I:\n" + expected.replace("K", key)
    assert context[slice(*turn.evidence[0])] == f"{key}!"
    assert (turn.question, turn.space) == ("\nWhich? It is ", "")


def test_the_prompt_is_that_of_the_benchmarks_own_file(folder, tokenizer, monkeypatch):
    parts = dict(zip(niah.PARTS, ("Find it.\n", "Key <PASS KEY>. <PASS KEY>.", "<PASS KEY>", "\nKey? "), strict=True))
    (folder / "niah" / "20480words_10x10x3_7digits.json").write_text(json.dumps({"eval_params": parts}), "utf-8")
    task = benchmark_tasks(str(folder)).get("niah/7_digits")
    sample = task.generate(0, 1, 60, tokenizer)
    key = sample.turns[0].references[0]
    assert sample.context.startswith("Find it.\n")
    assert f" Key {key}. {key}. " in sample.context
    assert task.template.name == "local:20480words_10x10x3_7digits.json"


def test_a_template_of_another_form_is_refused(folder, tokenizer):
    (folder / "niah" / "20480words_10x10x3_7digits.json").write_text("{}", "utf-8")
    with pytest.raises(SpecError, match="lacks eval_params"):
        benchmark_tasks(str(folder)).get("niah/7_digits").generate(0, 0, 60, tokenizer)


def test_a_sentence_stands_at_the_end_of_a_sentence_and_the_context_within_its_length(fixed, tokenizer):
    for index in range(35):
        sample = fixed.get("niah/sentence").generate(0, index, 400, tokenizer)
        ((start, _),) = sample.turns[0].evidence
        assert 380 <= len(tokenizer.encode(sample.context)) <= 400
        before = sample.context[:start]
        assert before.endswith((".", "\n\n")) or grid_depth(index, 35) == 1


def test_essays_that_are_too_short_begin_again(fixed, tokenizer):
    sample = fixed.get("niah/7_digits").generate(0, 0, 2000, tokenizer)
    assert sample.context.count("On keeping a workshop small.") > 2
    needle = sample.context[slice(*sample.turns[0].evidence[0])]
    instruction = sample.context.partition("\n")[0]
    assert len(sample.context.split()) == 2000 + len(needle.split()) + len(instruction.split())


def test_a_folder_of_text_files_is_a_haystack_in_the_order_of_their_names(tmp_path, tokenizer):
    (tmp_path / "niah").mkdir()
    for name, text in (("b", "Second file.\nIts line two. "), ("a", "First file. "), ("c", "Third file. ")):
        (tmp_path / "niah" / f"{name}.txt").write_text(text, "utf-8")
    task = benchmark_tasks(str(tmp_path)).get("niah/7_digits")
    assert task.loader.text["context"] == "First file. Second file.\nIts line two. Third file. "
    digest = hashlib.sha256(b"First file. Second file.\nIts line two. Third file. ").hexdigest()
    assert task.facts["revision"] == f"sha256:{digest}"
    assert task.facts["truncation"] == "at the end, by words"
    assert next(iter(rows(task.loader.source, "niah/sentence"))) == {"context": "First file. "}


@pytest.mark.parametrize("name", ["niah/7_digits", "niah/sentence"])
def test_empty_essays_and_a_length_without_room_are_refused(name, tmp_path, fixed, tokenizer):
    (tmp_path / "empty.txt").write_text("\n", "utf-8")
    with pytest.raises(SpecError, match="essays are empty"):
        benchmark_tasks(str(tmp_path)).get(name).generate(0, 0, 100, tokenizer)
    with pytest.raises(SpecError, match="does not fit into 30 tokens"):
        fixed.get("niah/sentence").generate(0, 0, 30, tokenizer)


def test_the_pinned_configuration_is_read_from_its_repository(monkeypatch):
    text = json.dumps({"eval_params": {}})
    one = DATA_SETS["niah/64_digits"]
    one = replace(one, upstream=replace(one.upstream, sha256=hashlib.sha256(text.encode()).hexdigest()))
    urls = []
    monkeypatch.setattr(templates, "_download", lambda url: urls.append(url) or text.encode())
    assert templates.find_template(one, benchmark_tasks("hub").source).text == text
    assert urls == [
        "https://raw.githubusercontent.com/henryzhongsc/longctx_bench/72204d09514f4c26aead889de3c892845ff007ee/"
        "config/eval_config/paulgraham_passkey/20480words_10x10x3_64digits.json"
    ]
