"""Every architecture through the engine: it equals plain transformers, counts what it carries, and mixes nothing up."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from architectures import ALL, HYBRID, PURE, RECURRENT, SEEING, WINDOWED, Architecture
from nights import daily
from packaging.version import Version
from tiny import runner_of
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, LlamaConfig, __version__

from kvcheck.backends.transformers import kernel
from kvcheck.backends.transformers.meter import weigh
from kvcheck.cache import window
from kvcheck.cache.kernels import Softmax
from kvcheck.cache.layer import CacheLayer
from kvcheck.cache.method_runner import MethodRunner
from kvcheck.cache.rows import RowCache, RowRunner
from kvcheck.cache.shape import ModelShape
from kvcheck.core import paths
from kvcheck.core.errors import ContextTooLong, MethodUnsupported, SpecError
from kvcheck.core.record import MODES, CaseId, CaseRecord
from kvcheck.core.spec import Spec
from kvcheck.measure.memory import held
from kvcheck.methods import make
from kvcheck.methods.adapters import presses
from kvcheck.methods.fp16 import Fp16
from kvcheck.models import LoadedModel, load, probing
from kvcheck.runner.case import Runner
from kvcheck.tasks.base import Sample, Task, TaskInfo, Turn

CPU = torch.device("cpu")
WORDS = ["onion", "ladder", "kitchen", "salmon", "easel", "mountain", "indigo", "needle", "cobra"]
"""One token each, with the space before it."""
GLOBAL = ["gemma3", "gemma2", "gpt_oss", "llama4"]
"""Layers with full attention beside windows or chunks."""
KINDS = ["llama", "deepseek_v3", "gemma3", "llama4", "mamba2", "bamba", "llava"]
"""One of each kind: full attention, latents, windows, chunks, a state, both, eyes. Of the others, the logits are
compared with those of plain transformers every day, and the rest is tried nightly."""
SNAPKV = "snapkv:budget=24,window=8"
OLD = Version(__version__) < Version("5.20")
REFUSED = [*HYBRID, "recurrent_gemma"] if OLD else []
"""Hybrid models had cache classes of their own, which know no layers; RecurrentGemma did not go on from its state."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A saved model of every architecture, made when it is asked for."""
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = ALL[name].save(tmp_path_factory.mktemp("architectures") / name)
        return made[name]

    return folder


@pytest.fixture(scope="module")
def models(folders: Callable[[str], Path]) -> Callable[[str], LoadedModel]:
    """The same, loaded by kvcheck."""
    made: dict[str, LoadedModel] = {}

    def model(name: str) -> LoadedModel:
        if name in REFUSED:
            pytest.skip(f"kvcheck refuses the {ALL[name].kind} of transformers {__version__}, which is tested below")
        if name not in made:
            made[name] = load(str(folders(name)), CPU, torch.float32)
        return made[name]

    return model


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys and values are stored as they come, in float32."""

    def keep(layer: CacheLayer, arriving: torch.dtype) -> torch.dtype:
        layer.store_dtype = arriving
        return arriving

    monkeypatch.setattr(CacheLayer, "_rounding", keep)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small matrices are fastest on one core."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.inference_mode():
        yield
    torch.set_num_threads(before)


def fresh(runner: MethodRunner) -> Any:
    """An empty cache, to be fed."""
    return RowCache([runner.build()]) if isinstance(runner, RowRunner) else runner.build()


def plain(folder: Path) -> Any:
    """The model with transformers' own attention."""
    sees = json.loads((folder / "config.json").read_text())["model_type"] in SEEING
    loader = AutoModelForImageTextToText if sees else AutoModelForCausalLM
    return loader.from_pretrained(folder, dtype=torch.float32).eval()


def tokens(length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, 1169, (1, length), generator=torch.Generator().manual_seed(seed))


def toy(seed: int, index: int, length: int, tokenizer: Any, turns: int = 3) -> Sample:
    """Words, and questions of two words."""
    draw = random.Random(f"{seed} {length} {index}")
    words = [f" {word}" for word in draw.choices(WORDS, k=length)]
    asked = [f" {draw.choice(WORDS)} {draw.choice(WORDS)}" for _ in range(turns)]
    questions = tuple(Turn(each, ("onion",), 4, "substring") for each in asked)
    return Sample("toy", index, "".join(words), questions, separator="")


@pytest.fixture
def run(models: Callable[[str], LoadedModel], monkeypatch: pytest.MonkeyPatch) -> Callable[..., CaseRecord]:
    """One case of the toy task."""
    task = Task(TaskInfo("toy", 1, "needle", MODES, True, 0.0, "words"), toy)
    monkeypatch.setattr("kvcheck.runner.case.find_task", lambda case, settings: task)
    runners: dict[str, Runner] = {}

    def case(name: str, spec: str, mode: str = "single", length: int = 48, n: int = 1) -> CaseRecord:
        if name not in runners:
            runners[name] = runner_of(models(name))
        return runners[name].run_case(CaseId("toy", 1, mode, length, 0, n), spec)

    return case


def greedy(model: Any, ids: list[int], limit: int, ends: frozenset[int]) -> list[int]:
    """An answer, every token of it from the whole text so far, with no cache at all."""
    answer: list[int] = []
    while len(answer) < limit:
        token = int(model(torch.tensor([ids + answer]), use_cache=False).logits[0, -1].argmax())
        if token in ends:
            break
        answer.append(token)
    return answer


def expected(model: Any, loaded: LoadedModel, mode: str, index: int) -> list[str]:
    """The answers to one sample, by plain transformers."""
    encoder = loaded.tokenizer
    sample = toy(0, index, 48, encoder)
    context = [*encoder.bos, *encoder.encode(sample.context)]
    history, answers = list(context), []
    for number, turn in enumerate(sample.turns[:1] if mode == "single" else sample.turns):
        if mode == "multi_request":
            history = list(context)
        said = sample.separator if number and mode == "multi_turn" else ""
        history += encoder.encode(said + turn.question)
        answer = greedy(model, history, turn.max_new_tokens, encoder.eos)
        history += answer
        answers.append(encoder.decode(answer).removeprefix(turn.space))
    return answers


# -- the same as transformers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_fp16_gives_the_logits_of_plain_transformers(
    folders: Callable[[str], Path], models: Callable[[str], LoadedModel], exact: None, name: str
) -> None:
    loaded, ids = models(name), tokens(60)
    wanted = plain(folders(name))(ids, use_cache=False).logits
    runner = Fp16().runner(loaded)
    cache = fresh(runner)
    parts = [runner.feed(cache, ids[:, :40], 40), runner.feed(cache, ids[:, 40:52], 12)]
    parts += [runner.feed(cache, ids[:, at : at + 1]) for at in range(52, 60)]
    for part, start in (("prompt", 0), ("follow-up", 40), ("decoding", 52)):
        worst = float((torch.cat(parts, dim=1) - wanted)[:, start:].abs().max())
        assert worst < 1e-4, part


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", daily(ALL, *KINDS))
def test_fp16_answers_as_plain_transformers_does(
    folders: Callable[[str], Path],
    models: Callable[[str], LoadedModel],
    run: Callable[..., CaseRecord],
    exact: None,
    name: str,
    mode: str,
) -> None:
    record = run(name, "fp16", mode)
    told = [turn.answer for turn in record.samples[0].turns]
    assert told == expected(plain(folders(name)), models(name), mode, 0)
    assert any(told), "nothing was answered"


@pytest.mark.parametrize("name", WINDOWED | RECURRENT | HYBRID)
def test_a_follow_up_is_fed_at_once_only_where_the_class_goes_on_from_its_state(
    models: Callable[[str], LoadedModel], exact: None, name: str
) -> None:
    loaded, ids = models(name), tokens(40, seed=3)
    assert loaded.states is not None
    runner = Fp16().runner(replace(loaded, states=replace(loaded.states, blocks=True)))
    cache = fresh(runner)
    runner.feed(cache, ids[:, :25])
    wanted = runner.feed(fresh(runner), ids, 15)
    try:
        goes_on = bool((runner.feed(cache, ids[:, 25:], 15) - wanted).abs().max() < 1e-3)
    except IndexError:  # Mamba of transformers 5.2
        goes_on = False
    assert loaded.states.blocks == goes_on


# -- nothing is shared that should not be ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", daily(ALL, *KINDS))
def test_samples_that_take_turns_do_not_disturb_each_other(models: Callable[[str], LoadedModel], name: str) -> None:
    runner = Fp16().runner(models(name))
    texts = [tokens(30, seed) for seed in (1, 2)]
    alone = []
    for text in texts:
        cache, _ = runner.prefill(text[:, :20])
        alone.append([runner.feed(cache, text[:, at : at + 5]) for at in (20, 25)])
    caches = [runner.prefill(text[:, :20])[0] for text in texts]
    for part, at in enumerate((20, 25)):
        for own, cache, text in zip(alone, caches, texts, strict=True):
            assert torch.equal(runner.feed(cache, text[:, at : at + 5]), own[part])


@pytest.mark.parametrize("name", daily(ALL, *KINDS))
def test_a_fork_goes_its_own_way(models: Callable[[str], LoadedModel], name: str) -> None:
    runner = Fp16().runner(models(name))
    text, other = tokens(26, 1), tokens(6, 2)
    cache, _ = runner.prefill(text[:, :20])
    forks = [cache.select([0]), cache.select([0, 0])]
    wanted = runner.feed(cache, text[:, 20:])
    runner.feed(forks[0], other)
    both = runner.feed(forks[1], torch.cat([text[:, 20:], other]))
    torch.testing.assert_close(both[:1], wanted, atol=1e-4, rtol=0)
    assert not torch.equal(both[1:], wanted)


@pytest.mark.parametrize("name", ["mamba", "recurrent_gemma", "gemma3", "jamba"])
def test_a_sample_is_answered_the_same_in_any_company(run: Callable[..., CaseRecord], name: str) -> None:
    alone = run(name, "fp16", "multi_turn", n=1).samples
    assert run(name, "fp16", "multi_turn", n=2).samples[:1] == alone


def test_a_model_is_left_without_a_trace(models: Callable[[str], LoadedModel]) -> None:
    loaded = models("recurrent_gemma")
    assert loaded.states is not None
    assert loaded.states.places
    Fp16().runner(loaded).prefill(tokens(9))
    left = [getattr(loaded.model.get_submodule(place.module), place.attribute) for place in loaded.states.places]
    assert left == [place.fresh for place in loaded.states.places]


class Summing(torch.nn.Module):
    """A model that writes into a buffer of its own: the sum of what it has read, halved with every token."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(50, 8)
        self.register_buffer("total", torch.zeros(1, 8))
        self.config = LlamaConfig(num_hidden_layers=1)

    def get_input_embeddings(self) -> torch.nn.Embedding:
        return self.embedding

    def forward(self, input_ids: torch.Tensor, use_cache: bool = True) -> Any:
        total = self.total if use_cache else torch.zeros(1, 8)
        sums = [total.mul_(0.5).add_(each).clone() for each in self.embedding(input_ids[0])]
        return SimpleNamespace(logits=torch.stack(sums, dim=1))


def test_what_a_module_writes_in_place_is_found_and_kept_apart() -> None:
    model = Summing().requires_grad_(False)
    silent: Any = SimpleNamespace(bos=(), encode=lambda text: [])
    loaded = LoadedModel(model, silent, "summing", "", None)
    states = probing.find(loaded)
    assert states is not None
    assert [(place.module, place.attribute) for place in states.places] == [("", "total")]
    assert states.blocks
    runner = Fp16().runner(replace(loaded, states=states))
    cache, _ = runner.prefill(torch.tensor([[1, 2, 3]]))
    fork = cache.select([0])
    assert held(cache).kv == held(fork).kv == 8 * 4
    wanted = runner.feed(cache, torch.tensor([[4]]))
    runner.feed(cache, torch.tensor([[5]]))
    assert torch.equal(runner.feed(fork, torch.tensor([[4]])), wanted)
    assert not model.total.any(), "the model keeps nothing"


# -- bytes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_everything_that_is_carried_is_counted(models: Callable[[str], LoadedModel], name: str) -> None:
    architecture: Architecture = ALL[name]
    runner = Fp16().runner(models(name))
    for length in (20, 60):
        found = held(runner.prefill(tokens(length))[0]).kv
        assert found == architecture.full * 2 * length * 2 * 8 * 2 + architecture.beside(length) > 0
    if name in RECURRENT or name == "mistral_sliding":
        assert architecture.beside(20) == architecture.beside(60), "what is carried must not grow"


@pytest.mark.parametrize("name", daily(ALL, *KINDS))
def test_the_record_says_what_was_held(run: Callable[..., CaseRecord], name: str) -> None:
    memory = run(name, "fp16").memory
    assert memory is not None
    assert memory.kv_bytes == memory.dense_bytes > 0
    assert 0 < memory.touched == memory.layers


@pytest.mark.parametrize("name", daily(ALL, *KINDS))
def test_what_a_context_takes_is_weighed_like_what_a_case_takes(
    models: Callable[[str], LoadedModel], name: str
) -> None:
    memory = weigh(Fp16().runner(models(name)), tokens(40))
    assert memory.ratio == 1.0
    assert 0 < memory.touched <= memory.layers


# -- methods -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "name", daily([*PURE, *SEEING, *GLOBAL, *HYBRID], "llama", "llava", "gemma3", "llama4", "bamba")
)
def test_a_method_acts_on_the_layers_with_full_attention(run: Callable[..., CaseRecord], name: str, mode: str) -> None:
    memory = run(name, SNAPKV, mode).memory
    assert memory is not None
    assert (memory.kept, memory.touched) == (24, ALL[name].full)
    assert memory.kv_bytes == ALL[name].full * 2 * 24 * 2 * 8 * 2 + ALL[name].beside(memory.seen)


LATENTS = ["streaming_llm:window=12,sink=2", "kivi:group=8,residual=8", "flexgen:group=8", "fp8", "fp8:scale=token"]
LATENTS += ["a_shape", "tri_shape", "minference", "offload", "save_load", "transformers.dynamic"]


@pytest.mark.parametrize("mode", daily(MODES, "multi_request"))
@pytest.mark.parametrize("spec", LATENTS)
def test_methods_that_act_on_what_is_stored_serve_latents(run: Callable[..., CaseRecord], spec: str, mode: str) -> None:
    memory = run("deepseek_v3", spec, mode).memory
    assert memory is not None
    assert memory.touched == 2


@pytest.mark.parametrize("spec", ["streaming_llm:window=100000", "kivi:group=8,residual=102400", "a_shape:n_local=1.0"])
def test_a_method_that_loses_nothing_answers_as_the_full_cache_of_latents(
    models: Callable[[str], LoadedModel], exact: None, spec: str
) -> None:
    ids, found = tokens(40), []
    for each in ("fp16", spec):
        runner = make(each).runner(models("deepseek_v2"))
        cache, first = runner.prefill(ids[:, :30])
        block, step = runner.feed(cache, ids[:, 30:36], 6), runner.feed(cache, ids[:, 36:37])
        found.append(torch.cat([first[:, None], block, step], dim=1))
    torch.testing.assert_close(found[1], found[0], atol=1e-4, rtol=0)


def test_what_evicts_latents_holds_fewer(models: Callable[[str], LoadedModel]) -> None:
    runner = make("streaming_llm:window=12,sink=2").runner(models("deepseek_v3"))
    cache, _ = runner.prefill(tokens(40))
    assert held(cache).kv == 2 * 14 * (16 + 8) * 2
    assert held(cache).kv == runner.method.kv_bytes(runner.shape, 1, 40, 0)


@pytest.mark.parametrize("spec", ["kivi:group=8,residual=8", "flexgen:group=8", "fp8", "fp8:scale=token"])
def test_quantized_latents_take_the_bytes_that_are_declared(models: Callable[[str], LoadedModel], spec: str) -> None:
    runner = make(spec).runner(models("deepseek_v3"))
    cache, _ = runner.prefill(tokens(42))
    runner.feed(cache, tokens(3))
    assert held(cache).kv == runner.method.kv_bytes(runner.shape, 1, 42, 3) > 0


@pytest.mark.parametrize("spec", [SNAPKV, "h2o", "think", "quest", "kvmerger", "snapkv+kivi:group=8"])
def test_methods_that_need_keys_are_refused_where_latents_are_cached(run: Callable[..., CaseRecord], spec: str) -> None:
    with pytest.raises(MethodUnsupported, match="acts on keys and values; the model caches a latent"):
        run("deepseek_v2", spec)
    with pytest.raises(MethodUnsupported, match="caches a latent"):
        make(spec).build(ModelShape(2, 4, 1, 16, value_dim=8, latent=True))


def test_a_cache_that_was_built_for_latents_refuses_keys_of_all_heads() -> None:
    layer = CacheLayer(ModelShape(2, 4, 1, 16, value_dim=8, latent=True), 0, None)
    with pytest.raises(MethodUnsupported, match="has MLA and caches 4 x 24 numbers as keys of a token"):
        layer.update(torch.zeros(1, 4, 3, 24), torch.zeros(1, 4, 3, 12))


NATIVE = ["streaming_llm:window=12,sink=2", "h2o:budget=24", "tova:budget=24", "kivi:group=8,residual=8", "fp8"]
NATIVE += ["flexgen:group=8", "quest:page=4", "think", "a_shape", "offload", "snapkv:budget=24,window=8+kivi:group=8"]


@pytest.mark.parametrize("spec", NATIVE)
@pytest.mark.parametrize("name", daily(["glm4", "phi3", *GLOBAL, *HYBRID], "gemma3", "bamba"))
def test_native_methods_run(run: Callable[..., CaseRecord], name: str, spec: str) -> None:
    memory = run(name, spec).memory
    assert memory is not None
    assert memory.touched == ALL[name].full


@pytest.mark.parametrize("spec", [SNAPKV, "kivi:group=8", "quest", "llmlingua2", "transformers.dynamic"])
@pytest.mark.parametrize("name", daily(RECURRENT, "mamba2", "rwkv"))
def test_a_method_without_anything_to_act_on_is_refused(run: Callable[..., CaseRecord], name: str, spec: str) -> None:
    with pytest.raises(MethodUnsupported, match=r"keys and values of all tokens; \w+ForCausalLM has no layer"):
        run(name, spec)


@pytest.mark.parametrize("spec", ["duo_attention", "cacheblend", "transformers.dynamic"])
def test_a_method_that_feeds_the_model_itself_is_refused(run: Callable[..., CaseRecord], spec: str) -> None:
    with pytest.raises(MethodUnsupported, match=r"feeds the model in its own way(?s:.*)JambaForCausalLM"):
        run("jamba", spec)


@pytest.mark.parametrize(
    ("name", "spec"),
    [
        ("mistral_sliding", "snapkv:budget=6,window=2"),
        ("gemma3", "cake:chunk=4"),
        ("gemma3", "transformers.dynamic"),
        ("gemma2", "duo_attention:heads=10/10/10/10"),
        ("llama4", "duo_attention:heads=10/10/10/10"),
    ],
)
def test_what_needs_full_attention_gets_it_while_windows_see_all_of_the_text(
    run: Callable[..., CaseRecord], name: str, spec: str
) -> None:
    memory = run(name, spec, "multi_request", length=9).memory
    assert memory is not None
    assert memory.touched == ALL[name].config["num_hidden_layers"]
    with pytest.raises(MethodUnsupported, match=r"(sliding window|chunks) of 16 tokens; the text has 49"):
        run(name, spec, "multi_request", length=48)


@pytest.mark.parametrize("name", ["gemma3", "gemma2", "gpt_oss", "llama"])
@pytest.mark.parametrize("kind", ["cache", presses.CAUSAL, presses.WEIGHING])
def test_a_foreign_cache_and_a_press_give_the_logits_of_plain_transformers(
    folders: Callable[[str], Path], models: Callable[[str], LoadedModel], name: str, kind: str
) -> None:
    ids = tokens(14, seed=4)
    wanted = plain(folders(name))(ids, use_cache=False).logits
    method = make("transformers.dynamic") if kind == "cache" else presses.ForeignPress(Spec("no_press"))
    runner = method.runner(models(name))
    if isinstance(runner, presses.PressRunner):
        runner.attention = kind
        presses.register(kind)
    cache, first = runner.prefill(ids[:, :9])
    found = torch.cat(
        [first[:, None], runner.feed(cache, ids[:, 9:12], 3), runner.feed(cache, ids[:, 12:13], 1)], dim=1
    )
    assert float((found - wanted[:, 8:13]).abs().max()) < 0.01 * float(wanted.std()), "16 bits are no more apart"


@pytest.mark.parametrize(("name", "part"), [("gemma2", "softcap"), ("gpt_oss", "s_aux")])
def test_caps_and_sinks_of_the_tiny_models_can_be_seen(
    folders: Callable[[str], Path],
    models: Callable[[str], LoadedModel],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    part: str,
) -> None:
    ids = tokens(30)
    wanted = Fp16().runner(models(name)).prefill(ids)[1]
    read = Softmax.of
    monkeypatch.setattr(Softmax, "of", lambda given: read({**given, part: None}))
    assert float((Fp16().runner(models(name)).prefill(ids)[1] - wanted).abs().max()) > 0.1


def test_a_method_that_needs_several_layers_counts_those_that_it_acts_on(run: Callable[..., CaseRecord]) -> None:
    with pytest.raises(MethodUnsupported, match="pyramidkv needs a model of at least 2 layers; this one has 1"):
        run("gemma3", "pyramidkv")


@pytest.mark.parametrize("name", ["gemma3", "llama4"])
def test_a_long_prompt_sees_its_windows_block_by_block(
    folders: Callable[[str], Path],
    models: Callable[[str], LoadedModel],
    exact: None,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    monkeypatch.setattr(window, "BLOCK", 7)
    ids = tokens(60)
    wanted = plain(folders(name))(ids, use_cache=False).logits[:, -1]
    torch.testing.assert_close(Fp16().runner(models(name)).prefill(ids)[1], wanted, atol=1e-4, rtol=0)


def test_a_press_is_refused_where_a_model_attends_in_chunks(models: Callable[[str], LoadedModel]) -> None:
    with pytest.raises(MethodUnsupported, match="the model attends in chunks of 16"):
        presses.ForeignPress(Spec("no_press")).runner(models("llama4"))


@pytest.mark.parametrize("mode", daily(MODES, "multi_request"))
@pytest.mark.parametrize("name", daily(ALL, *KINDS))
def test_a_real_task_runs(models: Callable[[str], LoadedModel], name: str, mode: str) -> None:
    record = runner_of(models(name)).run_case(CaseId("kv", 1, mode, 192, 0, 1), "fp16")
    assert record.samples[0].turns[0].nll is not None


@pytest.mark.parametrize("name", daily(["gemma3", "bamba", "mamba2"], "bamba"))
def test_a_checkpoint_is_run_by_one_command_in_all_modes(
    name: str,
    folders: Callable[[str], Path],
    models: Callable[[str], LoadedModel],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    models(name)  # skips what this transformers cannot run
    for variable in ("CI", "PYTEST_ADDOPTS", "PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT"):
        monkeypatch.delenv(variable, raising=False)
    asked = ["--kv-tasks=needle,kv", "--kv-modes=single,multi_turn,multi_request", "--kv-lengths=512", "--kv-n=1"]
    suites = ["--pyargs", "kvcheck.suites.test_needle", "kvcheck.suites.test_string_retrieval"]
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", *suites, *asked]
    command += [f"--kv-model={folders(name)}", "--kv-method=fp16", "--kv-record=new"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "5 passed" in done.stdout
    assert "recorded 5 cases of fp16" in done.stdout


def test_a_tokenizer_splits_text_as_its_file_says_whatever_the_model_is(models: Callable[[str], LoadedModel]) -> None:
    text = " onion 1234 北京"
    assert models("qwen2").tokenizer.encode(text) == models("llama").tokenizer.encode(text)


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_a_recurrent_model_has_no_limit(run: Callable[..., CaseRecord], models: Callable[[str], LoadedModel]) -> None:
    assert models("mamba").max_length is None
    assert run("mamba", "fp16", length=1100).memory is not None


@pytest.mark.parametrize("name", ["llama", "gemma3", "rwkv"])
def test_a_text_beyond_the_limit_is_refused(run: Callable[..., CaseRecord], name: str) -> None:
    with pytest.raises(ContextTooLong, match="the model has room for 1024"):
        run(name, "fp16", length=1030)


@pytest.mark.skipif(not OLD, reason="this transformers has its states in its common cache")
@pytest.mark.parametrize("name", [*HYBRID, "recurrent_gemma"])
def test_what_an_old_transformers_cannot_do_is_refused(folders: Callable[[str], Path], name: str) -> None:
    says = r"ForCausalLM does not (use the attention interface|run on a kvcheck cache|go on from what it carries)"
    with pytest.raises(MethodUnsupported, match=says):
        load(str(folders(name)), CPU, torch.float32)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model_type": "nonesuch"}, "nonesuch"),
        ({"model_type": "nonesuch", "auto_map": {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.M"}}, ""),
    ],
)
def test_an_unknown_architecture_is_refused(
    folders: Callable[[str], Path], tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    copied = Path(shutil.copytree(folders("llama"), tmp_path / "copy"))
    config = json.loads((copied / "config.json").read_text()) | changes
    (copied / "config.json").write_text(json.dumps(config))
    with pytest.raises(SpecError, match=f"cannot be loaded: .*{says}") as caught:
        load(str(copied), CPU, torch.float32)
    assert "code that comes with it runs by --kv-trust-remote-code=" in caught.value.hint


def test_a_class_that_carries_nothing_is_refused(tmp_path: Path) -> None:
    from transformers import OpenAIGPTConfig, OpenAIGPTLMHeadModel

    torch.manual_seed(0)
    config = OpenAIGPTConfig(vocab_size=1169, n_embd=32, n_layer=2, n_head=2, n_positions=64, initializer_range=0.2)
    folder = Path(shutil.copytree(paths.bundle("fixtures") / "mini", tmp_path / "gpt"))
    OpenAIGPTLMHeadModel(config).save_pretrained(folder)
    with pytest.raises(MethodUnsupported, match="OpenAIGPTLMHeadModel carries nothing from token to token"):
        load(str(folder), CPU, torch.float32)


@pytest.mark.parametrize("name", ["gemma2", "gpt_oss", "deepseek_v3"])
def test_a_kernel_that_a_model_cannot_have_is_refused(models: Callable[[str], LoadedModel], name: str) -> None:
    with pytest.raises(SpecError, match="attention has soft caps, sinks or latents"):
        kernel.use("math", models(name))
