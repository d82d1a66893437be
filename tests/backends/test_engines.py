"""Real engines as the system under test: their specs, the reference, and a run on one that looks answers up."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import kvcheck.plugin.case  # pytester forgets what a run imported first, which would be imported twice
import kvcheck.plugin.collector
import kvcheck.plugin.params
import kvcheck.report.terminal  # noqa: F401
from kvcheck.backends.engines import properties, specs
from kvcheck.backends.engines.base import (
    CHUNK,
    COUNTS,
    FLUSHES,
    MOVES,
    NEWEST,
    POOL,
    PREFIX,
    ROOMY,
    SCORES,
    WEIGHS,
    Prompt,
    Reply,
)
from kvcheck.backends.engines.noise import apart
from kvcheck.backends.engines.session import OPEN, EngineSession, Shape
from kvcheck.core import paths
from kvcheck.core.errors import KvcheckError, MethodFailed, MethodUnsupported, SpecError
from kvcheck.core.record import Run
from kvcheck.core.settings import Settings
from kvcheck.core.spec import Spec
from kvcheck.plugin import parse
from kvcheck.store.run_file import read_run

sys.path.insert(0, str(Path(__file__).parent))
import toy_engine
from table_backend import Words
from test_table_backend import rows

MINI, WORDS = paths.bundle("fixtures") / "mini", Words()
SUITE = "kvcheck.suites.test_string_retrieval"
KV = ("--kv-tasks=kv", "--kv-lengths=512", "--kv-n=8", "--kv-modes=multi_request", "--kv-baselines=stored")


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engines `toy` and `absent` are known."""
    for name in ("ENGINE", "ABSENT"):
        monkeypatch.setitem(specs.ENGINES.origins(), getattr(toy_engine, name).name, f"toy_engine:{name}")
    toy_engine.OPENED.clear()


@pytest.fixture
def session(toy: None) -> Callable[..., EngineSession]:
    """A session on the toy with these methods, and the tokenizer of the embedded model without transformers."""

    def opened(*methods: str, **more: Any) -> EngineSession:
        settings = Settings(methods=methods, **more)
        chosen = specs.chosen(settings)
        assert chosen is not None
        return EngineSession(chosen, settings, MINI, "a print", WORDS, 5120)

    return opened


@pytest.fixture
def run(
    toy: None, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[pytest.RunResult, Run | None]]:
    """Run the string retrieval suite in a foreign repository with these options -> (result, run file)."""
    for name in ("CI", "GITHUB_STEP_SUMMARY", "PYTEST_ADDOPTS", "PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT"):
        monkeypatch.delenv(name, raising=False)
    (pytester.path / "stored").mkdir()
    (pytester.path / "table.json").write_text(json.dumps(rows()))

    def call(*options: str) -> tuple[pytest.RunResult, Run | None]:
        result = pytester.runpytest("--pyargs", SUITE, *KV, "--kv-json=run.json", *options)
        file = pytester.path / "run.json"
        return result, read_run(file) if file.exists() else None

    return call


# -- specs -------------------------------------------------------------------------------------------------------------


def test_a_spec_of_an_engine_has_its_settings_in_the_order_of_their_declaration() -> None:
    typed = "openvino: max_num_batched_tokens=64, KV_CACHE_PRECISION=u8"
    assert parse.method(typed) == "openvino:KV_CACHE_PRECISION=u8,max_num_batched_tokens=64"


def test_the_reference_has_the_kv_cache_at_full_and_everything_else_alike() -> None:
    spec = specs.checked("openvino:KV_CACHE_PRECISION=u8,enable_prefix_caching=true,max_num_batched_tokens=64")
    assert str(specs.full(spec)) == "openvino:KV_CACHE_PRECISION=f16,max_num_batched_tokens=64"


def test_what_a_spec_does_not_say_of_the_kv_cache_is_as_in_the_reference() -> None:
    spec = specs.complete(specs.checked("openvino:enable_prefix_caching=true"))
    assert str(spec) == "openvino:KV_CACHE_PRECISION=f16,enable_prefix_caching=true"


@pytest.mark.parametrize(
    ("typed", "message", "hint"),
    [
        ("openvino:KV_CACHE_PRECISON=u8", "no setting 'KV_CACHE_PRECISON'", "use_sparse_attention"),
        ("openvino:KV_CACHE_PRECISION=u3", "KV_CACHE_PRECISION=u3 is not f16", "u4"),
        ("openvino:max_num_seqs=many", "max_num_seqs=many is not an int", "give an int"),
        ("openvino:cache_eviction_config.start_size=32", "only with use_cache_eviction=true", "add use_cache"),
        ("openvino:KV_CACHE_PRECISION=u8+kivi", "nothing takes over from an engine", "leave the \\+kivi out"),
        ("openvin", "unknown method 'openvin'", "did you mean openvino"),
    ],
)
def test_what_an_engine_does_not_have_is_refused_with_what_it_has(typed: str, message: str, hint: str) -> None:
    with pytest.raises(SpecError, match=message) as caught:
        parse.method(typed)
    assert caught.match(hint)


def test_settings_are_checked_and_listed_without_importing_the_engine_or_torch() -> None:
    code = (
        "import sys; from kvcheck.plugin import parse; from kvcheck.report import catalogue;"
        "parse.method('openvino:KV_CACHE_PRECISION=u8'); list(catalogue.engines());"
        "sys.exit(bool({'openvino', 'openvino_genai', 'torch'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"methods": ("toy:bits=8", "snapkv")}, "runs in an engine, snapkv in this process"),
        ({"methods": ("toy:bits=8", "toy:bits=8,chunk=4")}, "differ in more than the KV cache"),
        ({"methods": ("toy:bits=8", "absent")}, "differ in more than the KV cache"),
        ({"methods": ("absent",)}, "absent is not installed"),
        ({"methods": ("toy",), "zoo": ("all",)}, "--kv-zoo is about kvcheck's own methods"),
    ],
)
def test_methods_that_cannot_share_a_run_are_refused(toy: None, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        specs.chosen(Settings(**settings))


def test_an_engine_that_is_not_installed_is_named_with_the_pip_line(toy: None) -> None:
    with pytest.raises(SpecError, match=r"pip install 'kvcheck\[absent\]'"):
        specs.chosen(Settings(methods=("absent:bits=8",)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rope": "yarn:factor=4"}, "--kv-rope is not for toy"),
        ({"device": "cuda"}, "run on the CPU"),
        ({"dtype": "float16"}, "does not compute in float16"),
        ({"model": "org/model"}, "opens a folder"),
    ],
)
def test_what_an_engine_cannot_be_given_is_refused(
    toy: None, monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], message: str
) -> None:
    monkeypatch.setattr("kvcheck.models.loading.located", lambda name: SimpleNamespace(local="/" not in name, path="."))
    with pytest.raises(SpecError, match=message):
        EngineSession.open(specs.Chosen(toy_engine.ENGINE, Spec("toy")), Settings(methods=("toy",), **settings))


# -- sessions ----------------------------------------------------------------------------------------------------------


def test_records_are_kept_by_engine_version_dtype_and_other_settings(session: Callable[..., EngineSession]) -> None:
    one, other = session("toy:bits=8"), session("toy:bits=4")
    assert (one.model_name, one.fingerprint) == ("mini@toy", other.fingerprint)
    changed = [session("toy:bits=8,chunk=4"), session("toy:bits=8", dtype="bfloat16")]
    assert len({one.fingerprint, *(each.fingerprint for each in changed)}) == 3


def test_fp16_is_the_engine_at_full(session: Callable[..., EngineSession]) -> None:
    session("toy:bits=8,chunk=4").replies("fp16", [Prompt([1, 2], 1)])
    assert toy_engine.OPENED == [{"bits": 16, "chunk": 4}]


def test_only_some_engines_are_open_at_a_time_and_the_reference_stays(session: Callable[..., EngineSession]) -> None:
    methods = [f"toy:bits={bits}" for bits in range(1, OPEN + 2)]
    found = session(*methods)
    for method in ("fp16", *methods):
        found.replies(method, [Prompt([1, 2], 1)])
    assert len(found.opened) == OPEN
    assert found.chosen.full in found.opened


def test_an_engine_that_raised_is_not_used_again(session: Callable[..., EngineSession]) -> None:
    found = session("toy:fails=true")
    for _ in range(2):
        with pytest.raises(MethodFailed, match="toy:fails=true failed while answering: the kernel is gone"):
            found.replies("toy:fails=true", [Prompt([1, 2], 1)])
    assert len(toy_engine.OPENED) == 2


def test_settings_that_the_engine_refuses_are_told_in_its_words(session: Callable[..., EngineSession]) -> None:
    with pytest.raises(MethodUnsupported, match="does not open mini with toy:bits=16,chunk=13: Check 'chunk != 13'"):
        session("toy:chunk=13").replies("fp16", [Prompt([1], 1)])


def test_bytes_are_told_in_whole_blocks_beside_a_full_cache_of_16_bits(session: Callable[..., EngineSession]) -> None:
    memory = session("toy:bits=8").measure_memory("toy:bits=8", 519)
    assert (memory.seen, memory.ratio, memory.end_ratio) == (512, 0.5, 0.5)
    assert memory.apart == pytest.approx(0.1)


def test_a_full_cache_follows_from_the_configuration(tmp_path: Path) -> None:
    config = {"num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 4, "hidden_size": 512}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert Shape.of(tmp_path).bytes(10) == 10 * 4 * 2 * 4 * 64 * 2
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(MethodUnsupported, match="has no 'num_attention_heads'"):
        Shape.of(tmp_path)


def test_an_engine_that_differs_from_itself_more_than_the_limit_tells_nothing(
    session: Callable[..., EngineSession],
) -> None:
    loud = session("toy:hums=true,bits=8")
    with pytest.raises(MethodUnsupported, match="it cannot be told what the KV cache loses: toy differs from itself"):
        loud.answer("toy:hums=true,bits=8", [([1, 2], 1)])
    session("toy:bits=8").answer("toy:bits=8", [([1, 2], 1)])


# -- runs --------------------------------------------------------------------------------------------------------------


def test_an_unchanged_suite_runs_on_an_engine_with_its_reference_beside_it(
    run: Callable[..., tuple[pytest.RunResult, Run | None]],
) -> None:
    result, found = run("--kv-method=toy:bits=8")
    assert result.ret == 0
    assert found is not None
    assert [one.method for one in found.cases] == ["fp16", "toy:bits=8"]
    assert {one.accuracy for one in found.cases} == {1.0}
    assert found.header.model_name == "mini@toy"
    mine = found.cases[1]
    assert mine.memory is not None
    assert (mine.memory.ratio, mine.samples[0].turns[0].nll) == (0.5, 0.2)
    assert not {"memory", "nll", "whether the method acts"} & {what for what, _ in mine.not_measured}


def test_a_kv_cache_that_loses_answers_fails(run: Callable[..., tuple[pytest.RunResult, Run | None]]) -> None:
    result, _ = run("--kv-method=toy:bits=4", "--kv-budget=drop=2")
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*fail: toy:bits=4 on mini@toy*"])


def test_a_setting_that_changes_nothing_is_said_to_have_done_nothing(
    run: Callable[..., tuple[pytest.RunResult, Run | None]],
) -> None:
    result, _ = run("--kv-method=toy:nested.hums=true")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["*NOTICE: toy:nested.hums=true holds what fp16*"])


def test_a_recorded_reference_is_not_measured_again(run: Callable[..., tuple[pytest.RunResult, Run | None]]) -> None:
    run("--kv-method=toy:bits=8", "--kv-record=new")
    result, found = run("--kv-method=toy:bits=8")
    assert result.ret == 0
    assert found is not None
    assert [one.method for one in found.cases] == ["toy:bits=8"]


def test_a_run_that_is_refused_says_why_before_anything_is_collected(
    run: Callable[..., tuple[pytest.RunResult, Run | None]],
) -> None:
    result, found = run("--kv-method=absent")
    assert (result.ret, found) == (pytest.ExitCode.USAGE_ERROR, None)
    result.stderr.fnmatch_lines(["*absent is not installed*", "*pip install 'kvcheck[[]absent[]]'*"])


def test_reference_specs_are_specs(toy: None) -> None:
    assert specs.Chosen(toy_engine.ENGINE, Spec("toy")).settings_of("fp16") == Spec("toy")
    with pytest.raises(KvcheckError, match="no setting"):
        specs.Chosen(toy_engine.ENGINE, Spec("toy")).settings_of("toy:what=1")


# -- properties of a cache's life --------------------------------------------------------------------------------------


USED = {
    "a_budget_above_the_prompt_is_full": ",keeps=64",
    "a_threshold_that_drops_nothing_is_dense": ",threshold=0.5",
    "moved_positions_answer_alike": ",keeps=64,moves=true",
}
"""The settings that a property is about."""


@pytest.fixture
def tried(session: Callable[..., EngineSession]) -> Callable[[str, str], str]:
    """What a property says of a method: "" where it holds, else the name of what it raised and why."""

    def attempt(name: str, method: str) -> str:
        bench = properties.Bench(session(method), method)
        bench._tolerance = 1e-4  # the toy's faults are in its settings, so they would excuse themselves
        try:
            properties.PROPERTIES[name](bench)
        except (properties.Broken, properties.NotTried) as error:
            return f"{type(error).__name__}: {error}"
        return ""

    return attempt


RUNS_BY_ITSELF = {
    "what_was_evicted_is_read_again", "a_salt_is_a_wall", "speculation_changes_nothing", "nothing_piles_up",
    "a_block_that_others_read_never_changes", "an_abort_leaves_the_others_alone", "blocks_are_as_counted",
    "bytes_are_as_counted",
}  # fmt: skip
"""Properties of what the toy has not: salts, counters, requests that meet, an eviction from its prefix cache."""


@pytest.mark.parametrize("name", sorted(RUNS_BY_ITSELF))
def test_what_an_engine_has_not_could_not_be_tried(tried: Callable[[str, str], str], name: str) -> None:
    assert tried(name, "toy:bits=16").startswith("NotTried: ")


@pytest.mark.parametrize("name", sorted({*properties.PROPERTIES} - RUNS_BY_ITSELF))
def test_a_correct_engine_has_every_property(tried: Callable[[str, str], str], name: str) -> None:
    assert tried(name, f"toy:bits=16{USED.get(name, '')}") == ""


@pytest.mark.parametrize("fault", toy_engine.FAULTS)
def test_every_fault_of_a_cache_in_an_engine_is_shown_by_a_property(
    tried: Callable[[str, str], str], fault: str
) -> None:
    name = toy_engine.FAULTS[fault]
    assert tried(name, f"toy:fault={fault}{USED.get(name, '')}").startswith("Broken: ")


def test_what_the_settings_make_no_use_of_is_excused(tried: Callable[[str, str], str]) -> None:
    for name in USED:
        assert tried(name, "toy:bits=16").startswith("Excused: ")


def test_a_path_that_was_not_taken_is_not_said_to_hold(
    tried: Callable[[str, str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for way, number in ((PREFIX, 1), (CHUNK, 64), (POOL, 9)):  # taken without a word, and nothing is done
        monkeypatch.setitem(toy_engine.ENGINE.ways, way, lambda number: {})
        name = {PREFIX: "a_prefix_hit_is_a_miss", CHUNK: "a_chunked_prompt_is_the_whole"}.get(
            way, "a_small_pool_changes_nothing"
        )
        assert tried(name, "toy:bits=16").startswith("NotTried: "), (way, number)
    for way in (PREFIX, CHUNK, POOL):
        monkeypatch.delitem(toy_engine.ENGINE.ways, way)
    assert tried("a_prefix_hit_is_a_miss", "toy:bits=16") == "NotTried: toy has no prefix cache"


def test_keys_that_nobody_moved_are_not_said_to_be_alike(
    tried: Callable[[str, str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for way, why in ((MOVES, "no key was moved"), (ROOMY, "nothing was evicted from 512 tokens")):
        with monkeypatch.context() as patch:
            for taken in {way, NEWEST} if way == ROOMY else {way}:
                patch.setitem(toy_engine.ENGINE.ways, taken, lambda number: {})
            roomy = "keeps=600" if way == ROOMY else "keeps=64"
            said = tried("moved_positions_answer_alike", f"toy:{roomy},moves=true")
        assert said.startswith("NotTried: "), said
        assert why in said


@pytest.mark.parametrize("name", ["openvino", "transformers_cb", "llamacpp", "server"])
def test_what_an_engine_does_not_offer_is_unsupported_with_the_reason(name: str) -> None:
    """Where its list says that it cannot, a call says why, in the same way for all."""
    info = specs.ENGINES.get(name)
    asked = {
        SCORES: ("score", [([1, 2], 1)]),
        WEIGHS: ("weigh", Prompt([1], 1)),
        COUNTS: ("counts",),
        FLUSHES: ("flush",),
    }
    served = object.__new__(info.open)  # type: ignore[call-overload]
    lacks = asked.keys() - info.can
    assert lacks, "all of them lack something today: an engine that lacks nothing leaves this table"
    for can in lacks:
        verb, *given = asked[can]
        with pytest.raises(MethodUnsupported, match=r"\w+ \w+"):  # a sentence
            getattr(served, verb)(*given)


def test_settings_that_lose_much_by_themselves_let_no_fault_show(session: Callable[..., EngineSession]) -> None:
    bench = properties.Bench(session("toy:bits=1"), "toy:bits=1")
    with pytest.raises(properties.NotTried, match=r"move log-probabilities by 1\.5 nats by themselves"):
        properties.together_is_alone(bench)


def test_another_token_is_far_where_one_of_them_was_sure() -> None:
    sure, other = Reply((1,), (-0.01,), False), Reply((2,), (-0.01,), False)
    assert apart(sure, other) == pytest.approx(0.683, abs=1e-3)
    near = [Reply((token,), (-0.7,), False) for token in (1, 2)]
    assert apart(*near) == 0.0


def test_the_suite_of_engines_tries_the_properties_and_no_conformance(
    run: Callable[..., tuple[pytest.RunResult, Run | None]], pytester: pytest.Pytester
) -> None:
    result = pytester.runpytest(
        "--pyargs", "kvcheck.suites.test_engine", "kvcheck.suites.test_conformance",
        "--kv-method=toy:fault=stale", "-m", "engine", "--kv-json=run.json",
    )  # fmt: skip
    found = {one.name: one.outcome for one in read_run(pytester.path / "run.json").properties}
    assert list(found) == sorted(properties.PROPERTIES)
    assert result.ret == 1
    assert found["a_prefix_hit_is_a_miss"] == "fails"
    assert found["flushed_is_cold"] == "holds"
    result.stdout.fnmatch_lines(['*"a prefix hit is a miss" does not hold*'])
