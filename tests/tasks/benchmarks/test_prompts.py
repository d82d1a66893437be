"""Prompts: split into context, question and lead, and joined again the template's text, character for character."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import replace

import pytest
from benchmark_help import prompt, rows

from kvcheck.core.errors import SpecError
from kvcheck.tasks.benchmarks import DATA_SETS, benchmark_tasks, templates
from kvcheck.tasks.benchmarks.longbench_v2 import slots

LONG = 10**6
BY_TEMPLATE = sorted(name for name, one in DATA_SETS.items() if one.upstream and not one.depths and one.together == 1)


def history(row):
    """The sessions of LongMemEval, those of our rows from the last to the first."""
    parts = []
    for at, (date, turns) in enumerate(list(zip(row["haystack_dates"], row["haystack_sessions"], strict=True))[::-1]):
        said = json.dumps([{"role": turn["role"], "content": turn["content"]} for turn in turns])
        parts.append(f"\n### Session {at + 1}:\nSession Date: {date}\nSession Content:\n\n{said}\n")
    return "".join(parts)


def fields(name, row):
    """Values of the slots, worked out apart from the code under test."""
    turn = row["multi_turns"][0] if "multi_turns" in row else row
    question = turn.get("input", row.get("question"))
    context = history(row) if "haystack_sessions" in row else row["context"] if "context" in row else row["input"]
    found = {"date": row.get("question_date"), "context": context, "input": question, "question": question}
    for letter, text in zip("ABCD", turn.get("options") or (), strict=False):
        found[f"OPTION_{letter}"] = text
    if name.startswith("longbench_v2"):
        found |= {f"choice_{letter}": row[f"choice_{letter}"].strip() for letter in "ABCD"}
    if name == "infinitebench/code_run":
        call = re.findall(r"func_\d+\(-?\d+\)", question)[0]
        found |= {"func_call": call, "func": call.split("(")[0]}
    if name == "infinitebench/math_find":
        goal = re.findall(r"The .+ of", question)
        found["prefix"] = f"What is {goal[0].lower()[:-3]} in the following list?"
    return found


@pytest.mark.parametrize("name", sorted(set(BY_TEMPLATE) - {"scbench/mf"}))
def test_joined_again_the_parts_are_the_filled_template(name, fixed, tokenizer):
    task = fixed.get(name)
    for index, row in enumerate(rows(task.loader.source, name)):
        text = task.template.text
        whole = slots(text) if name.startswith("longbench_v2") else text
        sample = task.generate(0, index, LONG, tokenizer)
        assert prompt(sample) == whole.format(**fields(name, row))
        head = whole.split("{context}")[0]
        asked = fields(name, row)
        assert sample.context == head.format(**asked) + str(asked["context"])


def test_the_question_of_math_find_does_not_stand_before_the_shared_numbers(fixed, tokenizer):
    sample = fixed.get("scbench/mf").generate(0, 0, LONG, tokenizer)
    row = next(iter(rows(fixed.source, "scbench/mf")))
    assert sample.context == str(row["context"])
    assert sample.turns[1].question == f"\n\nWhat is the second largest number?\n\n{row['multi_turns'][1]['input']}"


def test_later_turns_are_asked_like_the_first_one(fixed, tokenizer):
    row = next(iter(rows(fixed.source, "scbench/choice_eng")))
    task = fixed.get("scbench/choice_eng")
    for asked, turn in zip(task.generate(0, 0, LONG, tokenizer).turns, row["multi_turns"], strict=True):
        tail = task.template.text.split("{context}")[1]
        letters = {f"OPTION_{letter}": text for letter, text in zip("ABCD", turn["options"], strict=True)}
        assert asked.question == tail.format(question=turn["input"], **letters)


def test_braces_in_a_text_are_left_alone(fixed, tokenizer):
    assert "{1, 2}" in fixed.get("longbench_v2/all").generate(0, 0, LONG, tokenizer).context
    assert '{"' in fixed.get("scbench/kv").generate(0, 0, LONG, tokenizer).context


def test_the_template_of_a_local_folder_is_used_and_named(folder, tokenizer):
    other = "READ {context}\nASK {input}\nSAY"
    (folder / "longbench" / "config").mkdir()
    (folder / "longbench" / "config" / "dataset2prompt.json").write_text(json.dumps({"qasper": other}), "utf-8")
    task = benchmark_tasks(str(folder)).get("longbench/qasper")
    assert task.template == templates.Template("local:config/dataset2prompt.json", other)
    assert task.facts["template_sha256"] == hashlib.sha256(other.encode()).hexdigest()
    assert prompt(task.generate(0, 0, LONG, tokenizer)).startswith("READ The harbour")


PYTHON = """
raise SystemExit("this file must not be executed")
other = dict(a=1)
multiturn_templates = {"scbench_kv": "K {context} K {input}", "scbench_mf": "{prefix}+{context}+{input}"}
yarn_mistral_templates = {"passkey": "P {context} P {input}"}
"""


@pytest.mark.parametrize(
    ("name", "path", "start"),
    [("scbench/kv", "scbench/eval_utils.py", "K JSON"), ("infinitebench/passkey", "src/prompt.py", "P The sea")],
)
def test_the_dictionaries_of_a_python_file_are_read_and_not_executed(name, path, start, folder, tokenizer):
    (folder / path).parent.mkdir(exist_ok=True)
    (folder / path).write_text(PYTHON, "utf-8")
    task = benchmark_tasks(str(folder)).get(name)
    assert task.template.name == f"local:{DATA_SETS[name].upstream.local}"
    assert prompt(task.generate(0, 0, LONG, tokenizer)).startswith(start)


def test_the_pinned_file_is_named_by_its_commit_wherever_it_lies(folder, monkeypatch):
    text = json.dumps({"qasper": "{context} {input}"})
    upstream = replace(DATA_SETS["longbench/qasper"].upstream, sha256=hashlib.sha256(text.encode()).hexdigest())
    one = replace(DATA_SETS["longbench/qasper"], upstream=upstream)
    (folder / "config").mkdir()
    (folder / "config" / "dataset2prompt.json").write_text(text, "utf-8")
    local = templates.find_template(one, benchmark_tasks(str(folder)).source)
    monkeypatch.setattr(templates, "_download", lambda url: text.encode())
    remote = templates.find_template(one, benchmark_tasks("hub").source)
    assert local == remote
    assert local.name == "THUDM/LongBench@2e00731f8d0b:LongBench/config/dataset2prompt.json"
    monkeypatch.undo()
    assert templates.cache_folder("templates")


def test_a_downloaded_template_is_kept(monkeypatch):
    text = json.dumps({"qasper": "{context} {input}"})
    upstream = replace(DATA_SETS["longbench/qasper"].upstream, sha256=hashlib.sha256(text.encode()).hexdigest())
    one, source = replace(DATA_SETS["longbench/qasper"], upstream=upstream), benchmark_tasks("hub").source
    urls = []
    monkeypatch.setattr(templates, "_download", lambda url: urls.append(url) or text.encode())
    assert templates.find_template(one, source) == templates.find_template(one, source)
    assert len(urls) == 1
    assert upstream.commit in urls[0]


def test_without_the_upstream_file_our_own_words_are_used_with_a_warning():
    with pytest.warns(UserWarning, match="not the benchmark's"):
        found = templates.find_template(DATA_SETS["scbench/kv"], benchmark_tasks("hub").source)
    assert found.name == "kvcheck/v1"


def test_a_file_that_is_not_the_pinned_one_is_refused(monkeypatch):
    monkeypatch.setattr(templates, "_download", lambda url: b"something else")
    with pytest.raises(SpecError, match="not the file that was pinned"):
        templates.find_template(DATA_SETS["scbench/kv"], benchmark_tasks("hub").source)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1", "assigns no dictionary to multiturn_templates"),
        ("multiturn_templates = {'a': f(1)}", "not made of literals"),
        ("multiturn_templates = (", "no Python file"),
        ("multiturn_templates = {'scbench_kw': '{context}'}", "did you mean scbench_kw"),
        ("multiturn_templates = {'scbench_kv': 'no slot'}", "0 slots"),
        ("multiturn_templates = {'scbench_kv': '{context} {inputs}'}", "'inputs'"),
    ],
)
def test_a_template_file_of_another_form_is_refused(text, message, folder, tokenizer):
    (folder / "scbench" / "eval_utils.py").write_text(text, "utf-8")
    with pytest.raises(SpecError, match=message):
        benchmark_tasks(str(folder)).get("scbench/kv").generate(0, 0, LONG, tokenizer)
