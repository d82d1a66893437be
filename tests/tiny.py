"""Fixtures of tests/backends and tests/runner: a tiny random model, a word tokenizer, a toy task, and who runs them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from kvcheck.backends.transformers import Session
from kvcheck.backends.transformers import session as session_module
from kvcheck.core.record import MODES, CaseId
from kvcheck.core.settings import Settings
from kvcheck.models import LoadedModel, load
from kvcheck.runner.case import Runner
from kvcheck.tasks.base import Sample, Task, TaskInfo, Turn

__all__ = [
    "case",
    "folder",
    "loaded",
    "make_runner",
    "make_session",
    "methods",
    "one_thread",
    "runner",
    "session",
    "tasks",
]
"""The fixtures, for the conftest.py of a folder that wants them."""

WORDS = [f"w{number}" for number in range(60)]
ENDS = (2, 9, 17, 23, 31)
"""Several tokens end an answer, so that a random model ends its answers at different times."""


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Small matrices are fastest on one core."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved LlamaForCausalLM: 3 layers, 4 query heads on 2 kv heads of 16, 64 tokens, 512 positions."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    path = tmp_path_factory.mktemp("models") / "tiny"
    vocabulary = {word: place for place, word in enumerate(["<s>", "<unk>", "</s>", "|", *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing("<s> $A", None, [("<s>", 0)])
    PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(path)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, initializer_range=0.2, bos_token_id=0, eos_token_id=2,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    model.generation_config.eos_token_id = list(ENDS)
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def loaded(folder: Path) -> LoadedModel:
    """The tiny model behind kvcheck's attention."""
    return load(str(folder), torch.device("cpu"), torch.float32)


def toy(seed: int, index: int, length: int, tokenizer: Any) -> Sample:
    """Random words; three questions of one to three words each, whose number depends on sample and turn."""
    draw = random.Random(f"toy {seed} {length} {index}")
    context = " ".join(draw.choices(WORDS, k=length))
    turns = tuple(
        Turn(
            question="\n" + " ".join(draw.choices(WORDS, k=1 + (index + turn) % 3)),
            references=(" ".join(draw.choices(WORDS, k=2 + (index + turn) % 3)),),
            max_new_tokens=6,
            metric="substring",
        )
        for turn in range(3)
    )
    return Sample("toy", index, context, turns, separator="| ")


TOY = Task(TaskInfo("toy", 1, "needle", MODES, True, 0.0, "random words"), toy)


@pytest.fixture
def methods() -> dict[str, Any]:
    """Methods of the test's own: name -> class; looked up before the built-in ones."""
    return {}


@pytest.fixture
def tasks(monkeypatch: pytest.MonkeyPatch, methods: dict[str, Any]) -> dict[str, Task]:
    """The tasks that the engine finds; a test may add its own."""
    known = {"toy": TOY}
    find = session_module.find_method
    monkeypatch.setattr("kvcheck.runner.case.find_task", lambda case, settings: known[case.task])
    monkeypatch.setattr(session_module, "find_method", lambda text: methods[text]() if text in methods else find(text))
    return known


@pytest.fixture
def make_session(loaded: LoadedModel, tasks: dict[str, Task]) -> Callable[..., Session]:
    """Sessions on the tiny model, with any settings."""
    return lambda **given: Session.of(loaded, Settings(**given))


@pytest.fixture
def session(make_session: Callable[..., Session]) -> Session:
    """A fresh session."""
    return make_session()


@pytest.fixture
def runner(session: Session) -> Runner:
    """What the gate calls, with that session."""
    return Runner(session, session.settings)


@pytest.fixture
def make_runner(make_session: Callable[..., Session]) -> Callable[..., Runner]:
    """Runners on the tiny model, with any settings."""
    return lambda **given: Runner(make_session(**given), Settings(**given))


def runner_of(loaded: LoadedModel, **given: Any) -> Runner:
    """A runner on any model, with any settings."""
    return Runner(Session.of(loaded, Settings(**given)), Settings(**given))


@pytest.fixture
def case() -> Callable[..., CaseId]:
    """Cases of the toy task."""

    def build(mode: str = "single", length: int = 40, n: int = 6, seed: int = 0) -> CaseId:
        return CaseId("toy", 1, mode, length, seed, n)

    return build
