"""kvcheck beside kvpress's own pipeline: the same token ids, one process, in turns -> how many times as fast.

    pip install 'transformers==5.2.0' -e '.[kvpress]'
    OMP_NUM_THREADS=1 python .ci/beside_kvpress.py [--lengths 512,1024] [--sweep 512] [--warm 512] [--rounds 3]

Both sides answer the same questions about the same contexts of a task, each question from a copy of the compressed
context. kvcheck does more in that time: it runs fp16 beside the method for nll and KL, and audits the cache. Loading
the models and making the samples is not timed. Times are processor seconds of this process, so what else runs on the
machine counts less. Every round starts with no prefill kept, but for the rows that say so. A sweep runs one method
after the other: kvcheck shares what the full cache computed, the pipeline cannot.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from statistics import median
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import torch

from kvcheck.backends.transformers.contexts import Contexts
from kvcheck.backends.transformers.meter import Meter
from kvcheck.backends.transformers.prefill import Prefiller
from kvcheck.backends.transformers.profile import DRIFT, Clock, Spent
from kvcheck.backends.transformers.session import Session
from kvcheck.core.record import CaseId
from kvcheck.core.settings import Settings
from kvcheck.models import LoadedModel, load
from kvcheck.runner.case import Runner, find_task
from kvcheck.runner.prompts import Prompter, prompter
from kvcheck.runner.seam import Question
from kvcheck.tasks import TASKS
from kvcheck.tasks.metrics import score

if TYPE_CHECKING:
    from kvcheck.tasks.base import Sample

CLOCK = time.process_time
SINGLE = "snapkv"


def presses() -> dict[str, Callable[[], Any]]:
    """Eight methods of kvcheck with what makes the press of the same idea.

    Without pyramidkv: the pipeline's mask, one for all layers, does not fit layers that keep different numbers.
    """
    import kvpress

    half, window = {"compression_ratio": 0.5}, {"window_size": 32}
    return {
        "snapkv": lambda: kvpress.SnapKVPress(**half, **window),
        "streaming_llm": lambda: kvpress.StreamingLLMPress(**half),
        "tova": lambda: kvpress.TOVAPress(**half),
        "snapkv:budget=0.25": lambda: kvpress.SnapKVPress(compression_ratio=0.75, **window),
        "think": lambda: kvpress.ThinKPress(key_channel_compression_ratio=0.4),
        "expected_attention": lambda: kvpress.ExpectedAttentionPress(**half),
        "chunkkv": lambda: kvpress.ChunkKVPress(kvpress.SnapKVPress(**half, **window), chunk_length=10),
        "adakv": lambda: kvpress.AdaKVPress(kvpress.SnapKVPress(**half, **window)),
    }


Answers = list[tuple[str, float]]
"""Texts with their scores, by method, context and question."""


@dataclass
class Asked:
    """Contexts of a case with their questions, as token ids. several: all questions of each."""

    case: CaseId
    settings: Settings
    prompter: Prompter
    samples: list[Sample]

    @classmethod
    def of(
        cls, loaded: LoadedModel, task: str, length: int, contexts: int, several: bool, kept: str | None = None
    ) -> Asked:
        """Samples of a task; the question is not in the prompt that is compressed, as in the pipeline.

        kept: the folder of prefills that are there from the run before, None for none.
        """
        mode = "multi_request" if several else "single"
        settings = Settings(tasks=(task,), query_aware="no", prefill_cache=kept)
        case = CaseId(task, TASKS.get(task).info.version, mode, length, 0, contexts)
        found = find_task(case, settings)
        samples = [found.generate(case.seed, index, length, loaded.tokenizer) for index in range(contexts)]
        asking = prompter(found, case, samples[0], loaded.tokenizer, loaded.max_length, settings)
        return cls(case, settings, asking, samples)

    def questions(self, sample: Sample) -> list[Question]:
        """Those that are asked about a context."""
        turns = range(len(sample.turns) if self.case.mode == "multi_request" else 1)
        return [self.prompter.first(sample, 0, turn) for turn in turns]

    def graded(self, sample: Sample, question: Question) -> tuple[str, float]:
        """An answer as text, with its score."""
        turn = sample.turns[question.turn]
        text = self.prompter.answer(turn, question)[0]
        return text, score(turn.metric, text, turn.references, turn.options)


class Engine:
    """kvcheck's side: what it measures of a case, with nothing kept from a run before."""

    def __init__(self, loaded: LoadedModel) -> None:
        self.loaded = loaded
        self.parts = Clock()

    def run(self, asked: Asked, methods: list[str]) -> Answers:
        """Measure the methods one after the other."""
        settings = replace(asked.settings, methods=tuple(methods))
        runner = Runner(Session.of(self.loaded, settings), settings)
        for index, sample in enumerate(asked.samples):
            runner.samples[asked.case.task, asked.case.version, asked.case.seed, asked.case.length, index] = sample
        timed = (
            ("model", self.loaded.model, "forward"),
            (DRIFT, Contexts, "drift"),
            (DRIFT, Prefiller, "tails"),
            ("audit", Meter, "watch"),
            ("search for hidden memory", Meter, "look_elsewhere"),
        )
        with ExitStack() as stack:
            for name, owner, attribute in timed:
                stack.enter_context(patch.object(owner, attribute, self.parts.wrap(name, getattr(owner, attribute))))
            records = [runner.run_case(asked.case, method) for method in methods]
        turns = [turn for record in records for sample in record.samples for turn in sample.turns]
        return [(turn.answer, turn.score) for turn in turns]


class Pipeline:
    """kvpress's side: KVPressTextGenerationPipeline from token ids on, with a model of its own."""

    def __init__(self, loaded: LoadedModel) -> None:
        from kvpress.pipeline import KVPressTextGenerationPipeline

        self.loaded, self.eos = loaded, sorted(loaded.tokenizer.eos)
        loaded.model.set_attn_implementation("sdpa")
        loaded.model.generation_config.eos_token_id = self.eos
        self.pipeline = object.__new__(KVPressTextGenerationPipeline)  # the texts are encoded already
        self.pipeline.model, self.pipeline.tokenizer = loaded.model, self
        self.said: list[list[int]] = []

    def decode(self, ids: torch.Tensor, **kwargs: object) -> str:
        """Called by the pipeline for every answer: it is kept as ids."""
        self.said.append(ids.flatten().tolist())
        return ""

    def run(self, asked: Asked, makes: list[Callable[[], Any]]) -> Answers:
        """Answer with the presses one after the other."""
        found: Answers = []
        for make in makes:
            for sample in asked.samples:
                questions = asked.questions(sample)
                self._answer(asked.prompter.context(sample), questions, make())
                found += [asked.graded(sample, question) for question in questions]
        return found

    def _answer(self, context: list[int], questions: list[Question], press: Any) -> None:
        self.said = []
        given = {"context_ids": torch.tensor([context]), "questions_ids": [torch.tensor([q.ids]) for q in questions]}
        with self.pipeline.get_inference_context()():
            self.pipeline._forward(given, max_new_tokens=questions[0].limit, press=press)
        for question, ids in zip(questions, self.said, strict=True):
            ended = next((at for at, one in enumerate(ids) if one in self.eos), None)
            question.answer, question.ended = ids[:ended], ended is not None


@dataclass
class Row:
    """Seconds of both sides by round, and their accuracies. parts: of kvcheck's; the drift with its forwards."""

    what: str
    questions: int
    mine: list[float] = field(default_factory=list)
    theirs: list[float] = field(default_factory=list)
    accuracies: tuple[float, float] = (0.0, 0.0)
    parts: Spent = field(default_factory=dict)

    @property
    def line(self) -> str:
        """Of the table: medians, and the ratio of each round."""
        ratios = [other / one for one, other in zip(self.mine, self.theirs, strict=True)]
        total = sum(self.mine)
        parts = ", ".join(
            f"{name} {seconds / total:.0%}" for (name, drifts), seconds in self.parts.items() if not drifts
        )
        times = f"{median(self.mine):.2f} | {median(self.theirs):.2f}"
        span = f"{median(ratios):.2f} | {min(ratios):.2f} to {max(ratios):.2f}"
        accuracies = " / ".join(f"{each:.2f}" for each in self.accuracies)
        return f"| {self.what} | {self.questions} | {times} | {span} | {accuracies} | {parts} |"


HEAD = """| what | questions | kvcheck s | kvpress s | times as fast | rounds | accuracy | of kvcheck's seconds |
|---|---:|---:|---:|---:|---:|---:|---|"""


def compared(what: str, asked: Asked, methods: list[str], engine: Engine, pipeline: Pipeline, rounds: int) -> Row:
    """Both sides in turns; the first round warms up and does not count."""
    makes = [presses()[name] for name in methods]
    row = Row(what, sum(len(asked.questions(sample)) for sample in asked.samples))
    for at in range(rounds + 1):
        spent, accuracy = {}, {}
        sides = {"mine": lambda: engine.run(asked, methods), "theirs": lambda: pipeline.run(asked, makes)}
        for name in sorted(sides, reverse=bool(at % 2)):
            start = CLOCK()
            answers = sides[name]()
            spent[name] = CLOCK() - start
            accuracy[name] = sum(score for _, score in answers) / len(answers)
        if not at:
            engine.parts.take()
            continue
        row.mine.append(spent["mine"])
        row.theirs.append(spent["theirs"])
        row.accuracies = accuracy["mine"], accuracy["theirs"]
    row.parts = engine.parts.take()
    return row


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", default="512,1024,2048", help="tokens of the contexts, for one method")
    parser.add_argument("--sweep", default="512,1024", help="the same for all eight")
    parser.add_argument(
        "--warm", default="512,1024", help="the same with the prefills of the round before kept on disk"
    )
    parser.add_argument("--task", default="kv")
    parser.add_argument("--contexts", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    mine, theirs = (load("mini", torch.device("cpu"), torch.float32) for _ in range(2))
    engine, pipeline = Engine(mine), Pipeline(theirs)
    print(HEAD, flush=True)
    methods = list(presses())
    lengths, sweep, warm = (
        [int(one) for one in text.split(",") if one] for text in (given.lengths, given.sweep, given.warm)
    )
    asked = [
        (f"{SINGLE}, {length}", [SINGLE], length, several, None) for several in (False, True) for length in lengths
    ]
    asked += [(f"eight methods, {length}", methods, length, True, None) for length in sweep]
    with tempfile.TemporaryDirectory() as folder:
        asked += [(f"eight methods, {length}, prefills kept", methods, length, True, folder) for length in warm]
        for what, which, length, several, kept in asked:
            case = Asked.of(mine, given.task, length, given.contexts, several, kept)
            print(compared(what, case, which, engine, pipeline, given.rounds).line, flush=True)


if __name__ == "__main__":
    main()
