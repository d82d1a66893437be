"""LLMLingua-2: which words stay, that only the context is shortened, and a cache that is that of the short prompt."""

from __future__ import annotations

import random
import sys
from dataclasses import replace
from itertools import pairwise
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from tiny import runner_of

from kvcheck.cache.lingua import LONGEST, Rules, chunks
from kvcheck.cache.method_runner import MethodRunner
from kvcheck.core import paths
from kvcheck.core.errors import MethodUnsupported, SpecError
from kvcheck.core.record import CaseId
from kvcheck.measure.audit import audit
from kvcheck.measure.memory import held
from kvcheck.methods import make
from kvcheck.methods.fp16 import Fp16
from kvcheck.methods.llmlingua2 import LLMLingua2, Shipped
from kvcheck.models import LoadedModel, load
from kvcheck.tasks import TASKS

FOLDER = paths.bundle("fixtures") / "llmlingua"
PIECES = ("▁The", "北京", "。", "▁otter", "47", "▁is", "▁=", "83", ".", ";", "\n", "▁", "?", "(", "a", "▁blue", "12")
FORCE = "\n.!?,"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return load("mini", CPU, torch.float32)


@pytest.fixture(scope="module")
def runner(loaded):
    return LLMLingua2().runner(loaded)


def text(length: int, seed: int) -> tuple[list[str], list[float]]:
    """Random tokens, each with a probability to be needed."""
    draw = random.Random(seed)
    return draw.choices(PIECES, k=length), [draw.random() for _ in range(length)]


def rules(rate: float = 0.5, force: str = "", digits: bool = False, drop: bool = False) -> Rules:
    return Rules(rate, force, digits, drop)


def context(loaded, task: str = "needle_multi", length: int = 600, index: int = 0) -> torch.Tensor:
    """Token ids (1, n) of the context of a task, behind a beginning-of-text token."""
    sample = TASKS.get(task).generate(0, index, length, loaded.tokenizer)
    return torch.tensor([[*loaded.tokenizer.bos, *loaded.tokenizer.encode(sample.context)]])


def subsequence(short: list, whole: list) -> bool:
    rest = iter(whole)
    return all(any(one == other for other in rest) for one in short)


# -- which words stay --------------------------------------------------------------------------------------------------


def percentile(values: list[float], percent: int) -> float:
    """With linear interpolation between the two nearest ranks."""
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def by_the_sheet(pieces, probabilities, rate, force, digits):
    """Indices that stay, from the fact sheet's five steps, without drop_consecutive."""
    groups: list[list[int]] = []
    for at, piece in enumerate(pieces):
        new = ord(piece[0]) > 127 or piece in "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~" or piece in force
        if new or not groups:
            groups.append([at])
        else:
            groups[-1].append(at)
    worth = []
    for group in groups:
        values = [probabilities[at] for at in group]
        if pieces[group[0]].strip("▁") and pieces[group[0]].strip("▁") in force:
            values[0] = 1.0
        values = [
            1.0 if digits and any(c.isdigit() for c in pieces[at]) else v for at, v in zip(group, values, strict=True)
        ]
        worth.append(sum(values) / len(values))
    each = [value for group, value in zip(groups, worth, strict=True) for _ in group]
    threshold = percentile(each, int(100 * (1 - rate) + 1))
    stay = [p > threshold or p == threshold == 1 for p in worth]
    return [at for group, stays in zip(groups, stay, strict=True) if stays for at in group]


@pytest.mark.parametrize("rate", [0.9, 0.5, 1 / 3, 0.125, 0.01])
@pytest.mark.parametrize(("force", "digits"), [("", False), (FORCE, False), ("\n?", True)])
def test_the_words_that_stay_are_those_of_the_sheet(rate, force, digits):
    for seed in range(40):
        pieces, probabilities = text(1 + seed * 7, seed)
        wanted = by_the_sheet(pieces, probabilities, rate, force, digits)
        assert rules(rate, force, digits).kept(pieces, probabilities) == wanted


@pytest.mark.parametrize("rate", [0.9, 0.5, 0.25])
def test_the_rate_is_kept_but_for_a_hundredth_and_a_word(rate):
    for seed in range(30):
        pieces, probabilities = text(200, seed)
        longest = max(span.stop - span.start for span in rules().words(pieces))
        count = len(rules(rate).kept(pieces, probabilities))
        assert (rate - 0.02) * 200 - longest <= count <= rate * 200


def test_what_stays_at_a_lower_rate_stays_at_a_higher_one():
    for seed in range(20):
        pieces, probabilities = text(150, seed)
        kept = [set(rules(rate, FORCE).kept(pieces, probabilities)) for rate in (0.1, 0.3, 0.5, 0.8, 0.95)]
        assert all(less <= more for less, more in pairwise(kept))


def test_forced_tokens_always_stay_even_where_they_are_more_than_the_rate():
    for rate in (0.5, 0.05):
        for seed in range(10):
            pieces, probabilities = text(120, seed)
            kept = rules(rate, ".?;\n").kept(pieces, probabilities)
            alone = [span for span in rules(rate, ".?;\n").words(pieces) if span.stop - span.start == 1]
            assert {span.start for span in alone if pieces[span.start] in (".", "?", ";", "\n")} <= set(kept)


def test_a_forced_token_goes_where_it_repeats_itself_with_nothing_worth_keeping_between():
    pieces = ["▁a", "▁e", ".", "▁b", ".", "▁c", ".", "▁d", "▁f", ".", "."]
    probabilities = [0.9, 0.85, 0.5, 0.1, 0.5, 0.2, 0.5, 0.8, 0.75, 0.5, 0.5]
    assert rules(0.8, ".", drop=True).kept(pieces, probabilities) == [0, 1, 2, 3, 5, 7, 8, 9]
    assert rules(0.8, ".").kept(pieces, probabilities) == [0, 1, 2, 4, 6, 7, 9, 10]
    assert rules(0.4, ".", drop=True).kept(["."] * 8, [0.5] * 8) == [0]


def test_chunks_cover_the_text_and_end_behind_the_last_end_of_a_sentence():
    pieces = ["▁x"] * 1700
    for at in (100, 400, 509, 700, 1100):
        pieces[at] = "."
    found = chunks(pieces)
    assert [part.stop for part in found] == [510, 701, 1101, 1612, 1700]
    assert [part.start for part in found] == [0, 510, 701, 1101, 1612]
    assert all(part.stop - part.start <= LONGEST - 1 for part in found)
    assert chunks([]) == []
    assert chunks(["."]) == [slice(0, 1)]


# -- the shipped classifier --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["needle", "kv", "qa_zh", "code_function", "few_shot"])
@pytest.mark.parametrize("rate", [0.5, 0.25])
def test_the_short_prompt_is_an_ordered_part_of_the_prompt_at_the_rate(loaded, task, rate):
    runner = LLMLingua2(rate=rate, force="", drop_consecutive=False).runner(loaded)
    ids = context(loaded, task)
    short = runner.shortened(ids)
    assert subsequence(short[0].tolist(), ids[0].tolist())
    assert short[0, 0] == ids[0, 0], "the beginning of text stays"
    assert 0.8 * rate - 0.02 <= (short.shape[1] - 1) / 600 <= rate
    assert torch.equal(short, runner.shortened(ids))


def test_rate_1_leaves_the_prompt_as_it_is(loaded):
    ids = context(loaded)
    runner = make("llmlingua2:rate=1").runner(loaded)
    assert torch.equal(runner.shortened(ids), ids)
    cache, logits = runner.prefill(ids)
    full, wanted = MethodRunner(Fp16(), loaded).prefill(ids)
    assert torch.equal(logits, wanted)
    assert held(cache).kv == held(full).kv == runner.method.kv_bytes(runner.shape, 1, 601, 0)


def test_something_of_every_prompt_stays(runner):
    for length in (1, 2, 3):
        short = runner.shortened(torch.tensor([[0, 300, 301][:length]]))
        assert 1 <= short.shape[1] <= length
    assert runner.shortened(torch.tensor([[300]])).tolist() == [[300]]
    assert Shipped(rules(), CPU).shorten([]) == []


def test_filler_goes_before_what_questions_are_asked_about(loaded, runner):
    encoder = loaded.tokenizer
    for task in ("needle", "needle_multi", "qa_single"):
        sample = TASKS.get(task).generate(5, 1, 700, encoder)
        short = encoder.decode(runner.shortened(torch.tensor([encoder.encode(sample.context)]))[0].tolist())
        assert all(turn.references[0] in short for turn in sample.turns), task


# -- the cache of the short prompt -------------------------------------------------------------------------------------


@torch.inference_mode()
def test_the_cache_is_that_of_the_short_prompt_at_its_own_positions(loaded, runner):
    ids, later = context(loaded), torch.tensor([[400, 401, 402]])
    short = runner.shortened(ids)
    cache, logits = runner.prefill(ids)
    plain = MethodRunner(Fp16(), loaded)
    full, wanted = plain.prefill(short)
    assert torch.equal(logits, wanted)
    assert cache.rows[0].get_seq_length() == short.shape[1] < 0.6 * ids.shape[1]
    assert held(cache).kv == plain.shape.dense_bytes(1, short.shape[1])
    assert torch.equal(runner.feed(cache, later, 3), plain.feed(full, later, 3))
    assert held(cache).kv == plain.shape.dense_bytes(1, short.shape[1] + 3)


@torch.inference_mode()
def test_rows_are_shortened_and_forked_by_themselves(loaded, runner):
    ids, later = torch.cat([context(loaded, index=at) for at in (0, 1)]), torch.tensor([[400, 401], [402, 403]])
    cache, logits = runner.prefill(ids)
    lengths = [row.get_seq_length() for row in cache.rows]
    fork = cache.select([1, 0, 1])
    outs = runner.feed(fork, later[[1, 0, 1]], 2)
    assert [row.get_seq_length() for row in cache.rows] == lengths, "the origin is left alone"
    for row in range(2):
        alone, lone = runner.prefill(ids[row : row + 1])
        assert torch.equal(logits[row : row + 1], lone)
        assert torch.equal(runner.feed(alone, later[row : row + 1], 2)[0], outs[1 - row])
    assert torch.equal(outs[0], outs[2])


def test_the_audit_of_a_short_prompt_finds_no_fault(loaded, runner):
    ids = context(loaded)
    full = Fp16().build(runner.shape)
    with full.recording() as taken:
        MethodRunner(Fp16(), loaded).feed(full, ids)
    assert audit(runner.prefill(ids)[0], taken, runner.method).problems == ()
    lazy = LLMLingua2(rate=0.5).runner(loaded)
    lazy.shortened = lambda ids: ids
    problems = audit(lazy.prefill(ids)[0], taken, lazy.method).problems
    assert any("did nothing" in problem for problem in problems)


@pytest.mark.parametrize("mode", ["single", "multi_turn", "multi_request"])
def test_no_question_is_ever_shown_to_the_classifier(loaded, mode, monkeypatch):
    seen: list[list[int]] = []
    shorten = Shipped.shorten
    monkeypatch.setattr(Shipped, "shorten", lambda self, ids: seen.append(ids) or shorten(self, ids))
    runner = runner_of(loaded, methods=("llmlingua2",))
    case = CaseId("needle_multi", 1, mode, 512, seed=3, n=2)
    record = runner.run_case(case, "llmlingua2")
    samples = [TASKS.get("needle_multi").generate(3, index, 512, loaded.tokenizer) for index in range(2)]
    assert [loaded.tokenizer.encode(sample.context) for sample in samples] == seen[:2]
    questions = [loaded.tokenizer.encode(turn.question) for sample in samples for turn in sample.turns]
    texts = [" ".join(map(str, ids)) for ids in seen]  # those of kvcheck's own probes, too
    assert not any(" ".join(map(str, question)) in text for question in questions for text in texts)
    assert record.query_aware == (mode != "multi_request"), "as in the fp16 record that it is compared with"
    assert record.accuracy >= 0.75
    assert record.memory.ratio < 0.56


def test_the_answer_is_that_of_the_full_cache_on_the_short_context_and_the_question(loaded, runner):
    sample = TASKS.get("needle").generate(3, 0, 512, loaded.tokenizer)
    encoder = loaded.tokenizer
    short = runner.shortened(torch.tensor([[*encoder.bos, *encoder.encode(sample.context)]]))
    question = torch.tensor([encoder.encode(sample.turns[0].question)])
    plain = MethodRunner(Fp16(), loaded)
    cache, logits = plain.prefill(torch.cat([short, question], dim=1))
    answer = []
    while (token := int(logits[0].argmax())) not in encoder.eos and len(answer) < 20:
        answer.append(token)
        logits = plain.feed(cache, torch.tensor([[token]]))[:, -1]
    record = runner_of(loaded).run_case(CaseId("needle", 1, "single", 512, seed=3, n=1), "llmlingua2")
    assert record.samples[0].turns[0].answer == encoder.decode(answer).removeprefix(" ")


# -- refusals and the package ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0, 1.5, -1])
def test_a_rate_out_of_range_is_refused(rate):
    with pytest.raises(SpecError, match=r"is not a number from 0\.01 to 1"):
        make(f"llmlingua2:rate={rate}")


def test_another_model_is_refused_without_a_classifier_for_it(loaded):
    with pytest.raises(MethodUnsupported, match="knows the words of the embedded model only, not those of some/model"):
        LLMLingua2().runner(replace(loaded, name="some/model"))


def test_a_missing_package_is_named_with_what_to_type(loaded, monkeypatch):
    monkeypatch.setitem(sys.modules, "llmlingua", None)
    with pytest.raises(MethodUnsupported, match=r"pip install 'kvcheck\[llmlingua\]'"):
        make("llmlingua2:model=some/classifier").runner(loaded)


def stub(monkeypatch, piece: str = "▁the", fails: Exception | None = None) -> list:
    """A package llmlingua that keeps every second word, and what it was called with."""
    calls: list = []

    class PromptCompressor:
        def __init__(self, *args, **options):
            calls.append((args, options))
            random.seed(42)
            np.random.seed(42)
            torch.manual_seed(42)
            self.tokenizer = SimpleNamespace(tokenize=lambda text: ["▁of", piece])
            if fails is not None:
                raise fails

        def compress_prompt_llmlingua2(self, context, **options):
            calls.append((context, options))
            return {"compressed_prompt": "".join(f" {word}" for word in context[0].split()[::2])}

    module = ModuleType("llmlingua")
    module.PromptCompressor = PromptCompressor
    monkeypatch.setitem(sys.modules, "llmlingua", module)
    return calls


def test_the_package_gets_the_text_and_its_options_and_gives_a_text(loaded, monkeypatch):
    calls = stub(monkeypatch)
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    runner = make("llmlingua2:model=some/classifier,rate=0.25,force='?',digits=true").runner(loaded)
    drawn = random.random(), np.random.rand(), torch.rand(1)
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    assert drawn == (random.random(), np.random.rand(), torch.rand(1)), "its seeds stay inside"
    ids = torch.tensor([[*loaded.tokenizer.bos, *loaded.tokenizer.encode("The code of otter47 is")]])
    short = runner.shortened(ids)[0].tolist()
    assert loaded.tokenizer.decode(short) == " The of is"
    assert short[0] == ids[0, 0]
    (made, options), (context, asked) = calls
    assert (made, context) == (("some/classifier",), ["The code of otter47 is"])
    assert options["use_llmlingua2"] is True
    assert options["model_config"] == {"trust_remote_code": False}
    wanted = {"rate": 0.25, "force_tokens": ["?"], "force_reserve_digit": True, "drop_consecutive": True}
    assert asked == wanted


def test_a_classifier_that_the_package_cannot_use_is_refused(loaded, monkeypatch):
    stub(monkeypatch, piece="Ġthe")
    with pytest.raises(MethodUnsupported, match="neither those of BERT nor those of XLM-RoBERTa"):
        make("llmlingua2:model=some/classifier").runner(loaded)
    stub(monkeypatch, fails=OSError("no such file"))
    with pytest.raises(SpecError, match=r"cannot load model='some/classifier': OSError: no such file"):
        make("llmlingua2:model=some/classifier").runner(loaded)


@pytest.mark.parametrize("options", ["", "rate=0.25", "rate=0.3,drop_consecutive=false", "digits=true,force=''"])
def test_the_package_keeps_the_same_words_with_the_shipped_classifier(loaded, monkeypatch, options):
    pytest.importorskip("llmlingua")
    tiktoken = pytest.importorskip("tiktoken")
    encoder = loaded.tokenizer

    def encode(word: str) -> list[int]:
        return encoder.encode(word.replace("▁", " "))  # the model's tokens in place of those of GPT-3.5

    monkeypatch.setattr(tiktoken, "encoding_for_model", lambda name: SimpleNamespace(encode=encode))
    own = make(f"llmlingua2:{options}".rstrip(":")).runner(loaded)
    theirs = replace(own.method, model=str(FOLDER)).runner(loaded)
    # One line each, as it replaces line breaks; each chunk begins with a space, as it cannot do without one.
    for task, length in (("needle_multi", 900), ("needle", 40), ("qa_single", 700), ("kv", 300), ("few_shot", 500)):
        ids = torch.tensor([encoder.encode(TASKS.get(task).generate(2, 1, 900, encoder).context)])[:, 1 : 1 + length]
        mine, others = (encoder.decode(each.shortened(ids)[0].tolist()) for each in (own, theirs))
        assert mine == others, task
