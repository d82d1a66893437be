"""Servers under test, by a stub that speaks their dialects (stub_server.py) around an engine of its own."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from stub_engine import FAULTS
from stub_model import Model
from stub_server import OWNERS, Stub
from table_backend import Words

from kvcheck.backends.engines import bench, lives, properties, specs
from kvcheck.backends.engines.base import FLUSHES, SCORES, Opening, Prompt
from kvcheck.backends.engines.dialects import DIALECTS
from kvcheck.backends.engines.noise import Noise
from kvcheck.backends.engines.server import Server
from kvcheck.backends.engines.session import EngineSession
from kvcheck.core import paths
from kvcheck.core.errors import KvcheckError, MethodFailed, MethodUnsupported, SpecError
from kvcheck.core.settings import Settings
from kvcheck.store.run_file import read_run

MINI, WORDS = paths.bundle("fixtures") / "mini", Words()
IDS = [0, *WORDS.encode("The grey cat asked for 17 keys, and nobody had seen them. " * 8)][:128]
TOLD = ("vllm", "sglang", "llamacpp", "tensorrt_llm")
"""Kinds that tell log-probabilities and what came from a cache."""
CAUGHT = {
    "stale_block": "what_was_evicted_is_read_again",
    "salt_ignored": "a_salt_is_a_wall",
    "partial_published": "a_prefix_hit_is_a_miss",
    "full_hit": "a_prefix_hit_is_a_miss",
    "hit_position": "a_prefix_hit_is_a_miss",
    "truncated_hash": "a_prefix_hit_is_a_miss",
    "answer_tail": "a_later_turn_is_as_recomputed",
    "shared_write": "a_block_that_others_read_never_changes",
    "neighbour_row": "together_is_alone",
    "clear_spills": "a_prefix_hit_is_a_miss",
    "cancelled_published": "what_was_cancelled_leaves_nothing",
    "cancelled_leak": "what_was_cancelled_leaves_nothing",
    "double_free": "what_was_cancelled_leaves_nothing",
    "counter_survives": "nothing_piles_up",
    "preempted_answer": "a_small_pool_changes_nothing",
    "chunk_mask": "a_chunked_prompt_is_the_whole",
    "chunk_pages": "a_chunked_prompt_is_the_whole",
    "draft_unchecked": "speculation_changes_nothing",
    "rejected_kept": "speculation_changes_nothing",
    "foreign_scale": "a_prefix_hit_is_a_miss",
    "flush_keeps": "flushed_is_cold",
    "pool_off_by_two": "blocks_are_as_counted",
}
"""The property that must show a fault; others may show it, too."""


@pytest.fixture(scope="module")
def model() -> Model:
    """A tiny one with random weights."""
    return Model.tiny(0)


@pytest.fixture
def stub(model: Model) -> Iterator[Callable[..., Stub]]:
    """Start servers around an engine with these settings."""
    started: list[Stub] = []

    def start(kind: str = "vllm", trouble: str = "", **settings: Any) -> Stub:
        started.append(Stub(settings.pop("model", model), kind, trouble, **settings))
        return started[-1]

    yield start
    for one in started:
        one.close()


def opened(stub: Stub, **more: Any) -> Server:
    """A way to a stub, as a session opens it."""
    settings = {"url": stub.url, "timeout": 5.0, **more}
    return Server(Opening(MINI, "a print", "float32", settings))


def session_of(stub: Stub, reference: Stub | None = None, **more: str) -> EngineSession:
    """A session on a stub that is known to make no noise."""
    keys = {"url": f'"{stub.url}"', "timeout": "5", "wait": "0.2", **more}
    keys |= {} if reference is None else {"reference": f'"{reference.url}"'}
    method = str(specs.checked("server:" + ",".join(f"{name}={value}" for name, value in keys.items())))
    settings = Settings(methods=(method,), dtype="float32")
    chosen = specs.chosen(settings)
    assert chosen is not None
    return EngineSession(chosen.met(MINI), settings, MINI, "a print", WORDS, 5120, _noise=Noise(0.0, 0, 12))


# -- dialects ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", OWNERS)
def test_every_dialect_is_recognised_and_answers_what_the_engine_says(stub: Callable[..., Stub], kind: str) -> None:
    server = opened(stub(kind))
    assert server.dialect.name == kind
    (once,), (twice,) = (server.answer([Prompt(IDS, 6)]) for _ in range(2))
    assert len(once.tokens) == 6
    assert once.tokens == twice.tokens
    assert 0 < once.first < once.seconds


@pytest.mark.parametrize("kind", TOLD)
def test_what_came_from_the_cache_is_told_and_left_out_where_it_can_be(stub: Callable[..., Stub], kind: str) -> None:
    one = stub(kind)
    server = opened(one)
    cold, hit = (server.answer([Prompt(IDS, 4)])[0] for _ in range(2))
    assert (cold.cached, hit.cached) == (0, len(IDS) - 1)
    assert hit.log_probs == pytest.approx(cold.log_probs, abs=1e-5)
    anew = opened(one, reuse=False)
    if kind == "tensorrt_llm":
        with pytest.raises(MethodUnsupported, match="read 127 tokens from its prefix cache, which nothing tells"):
            anew.answer([Prompt(IDS, 4)])
    else:
        assert anew.answer([Prompt(IDS, 4)])[0].cached == 0


@pytest.mark.parametrize("kind", ["vllm", "sglang"])
def test_a_text_that_is_scored_has_the_log_probabilities_of_its_answer(stub: Callable[..., Stub], kind: str) -> None:
    server = opened(stub(kind))
    (reply,) = server.answer([Prompt(IDS, 6)])
    (scored,) = server.score([([*IDS, *reply.tokens], len(IDS))])
    assert scored == pytest.approx(reply.log_probs, abs=1e-5)


@pytest.mark.parametrize("kind", ["vllm", "sglang"])
def test_salts_keep_tenants_apart_and_a_flush_empties_the_cache(stub: Callable[..., Stub], kind: str) -> None:
    server = opened(stub(kind))
    found = [server.answer([Prompt(IDS, 1, salt=salt)])[0].cached for salt in ("", "", "other")]
    server.flush()
    found += [server.answer([Prompt(IDS, 1)])[0].cached]
    assert found == [0, len(IDS) - 1, 0, 0]


@pytest.mark.parametrize("kind", OWNERS)
def test_a_dropped_connection_ends_the_request_in_the_prompt_and_in_the_answer(
    stub: Callable[..., Stub], kind: str
) -> None:
    one = stub(kind, chunk=16, pause=0.01)
    server = opened(one)
    server.answer([Prompt(IDS, 1)])
    assert any(server.cancel(Prompt(IDS[:at:-1], 400), 0) for at in range(5))
    assert server.cancel(Prompt(IDS[::-1], 400), 3)
    for _ in range(100):
        if not one.engine.running:
            break
        bench.time.sleep(0.02)
    assert not one.engine.running


def test_the_end_token_is_part_of_the_answer_and_ends_it(stub: Callable[..., Stub]) -> None:
    one = stub()
    (reply,) = opened(one).answer([Prompt(IDS, 6)])
    (ended,) = opened(one).answer([Prompt(IDS, 6, frozenset({reply.tokens[2]}))])
    assert ended.ended
    assert ended.tokens == reply.tokens[:3]


def test_a_dialect_says_what_its_servers_can() -> None:
    can = {kind: (bool(one.salt), bool(one.flush), bool(one.scored)) for kind, one in DIALECTS.items()}
    assert can["vllm"] == can["sglang"] == (True, True, True)
    assert can["tensorrt_llm"] == can["transformers"] == (False, False, False)


def test_what_a_server_is_and_can_is_asked_of_itself(stub: Callable[..., Stub]) -> None:
    found = session_of(stub("llamacpp", longest=3000)).info
    assert (found.version, found.longest) == ("llamacpp b1", 3000)
    assert not {FLUSHES, SCORES} & found.can


# -- references --------------------------------------------------------------------------------------------------------


def test_the_reference_is_the_other_server_and_reads_every_prompt_anew(stub: Callable[..., Stub]) -> None:
    mine, theirs = stub(), stub()
    session = session_of(mine, theirs)
    session.replies("fp16", [Prompt(IDS, 2)])
    session.replies("fp16", [Prompt(IDS, 2)])
    asked = [body["cache_salt"] for path, body in theirs.requests if path == "/v1/completions"]
    assert len(set(asked)) == 2
    assert not [path for path, _ in mine.requests if path == "/v1/completions"]


def test_records_are_kept_by_kind_and_version_not_by_address(stub: Callable[..., Stub]) -> None:
    one, other, third = session_of(stub()), session_of(stub()), session_of(stub("sglang"))
    assert one.fingerprint == other.fingerprint != third.fingerprint


def test_without_a_reference_no_loss_is_judged_and_the_properties_are_tried(stub: Callable[..., Stub]) -> None:
    session = session_of(stub())
    with pytest.raises(MethodUnsupported, match=r"it cannot be told what the KV cache loses: .* no reference=URL"):
        session.answer("fp16", [(IDS, 2)])
    (method,) = session.settings.methods
    assert properties.PROPERTIES["flushed_is_cold"](bench.Bench(session, method)) == ""


def test_a_reference_of_another_kind_or_version_is_refused(stub: Callable[..., Stub]) -> None:
    session = session_of(stub(), stub("sglang"))
    with pytest.raises(SpecError, match=r"is vllm 1\.2\.3 with mini, its reference .* is sglang"):
        session.replies(session.settings.methods[0], [Prompt(IDS, 2)])


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("server:urll=1", "no setting 'urll'"),
        ("server:kind=tgi", "kind=tgi is not vllm"),
        ("server:timeout=0", "timeout=0 is no time to wait"),
    ],
)
def test_a_spec_that_says_nothing_of_a_server_is_refused(typed: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        specs.checked(typed)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("127.0.0.1:8000", "is no URL"),
        ("http://me:secret@127.0.0.1:1/v1", "a URL holds no key"),
        ("http://127.0.0.1:9/v1", "nobody answers at http://127.0.0.1:9/v1"),
    ],
)
def test_a_server_that_is_not_there_is_said_before_anything_is_asked(url: str, message: str) -> None:
    chosen = specs.chosen(Settings(methods=(f'server:url="{url}",wait=0.1',)))
    assert chosen is not None
    with pytest.raises(SpecError, match=message) as caught:
        chosen.met(MINI)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("trouble", "more", "message"),
    [
        ("loading", {}, r"is not ready after 0\.2 s: /health says 503"),
        ("tokenizer", {}, "has another tokenizer than mini: 'The grey cat"),
        ("", {"kind": "sglang"}, r"is vllm, not sglang"),
        ("", {"model": "maxi"}, "has no model 'maxi'"),
    ],
)
def test_a_server_that_is_another_one_than_named_is_refused(
    stub: Callable[..., Stub], trouble: str, more: dict[str, str], message: str
) -> None:
    with pytest.raises(SpecError, match=message):
        session_of(stub(trouble=trouble), **more)


@pytest.mark.parametrize(
    ("trouble", "message"),
    [
        ("dies", "is gone|ended in the middle of an answer"),
        ("mute", "gave 0 log-probabilities for 4 tokens"),
        ("cuts", "cuts prompts: 64 of 128 tokens were read"),
        ("bos", "read 129 tokens of a prompt of 128: it puts a BOS of its own in front"),
        ("busy", r"has no time, after 4 tries: 429 .*too many requests"),
        ("broken", "says 500: .*illegal memory access"),
        ("garbage", "ended in the middle of an answer, after 0 tokens"),
        ("locked", r"lets nobody in without a key \(401\)"),
        ("slow", r"has said nothing for 0\.5 s"),
        ("halts", "ended in the middle of an answer, after 1 tokens"),
    ],
)
def test_what_goes_wrong_with_a_server_is_told(stub: Callable[..., Stub], trouble: str, message: str) -> None:
    server = opened(stub(trouble=trouble), timeout=0.5)
    with pytest.raises(KvcheckError, match=message):
        server.answer([Prompt(IDS, 4)])


def test_a_server_that_is_busy_is_asked_again(stub: Callable[..., Stub]) -> None:
    one = stub(trouble="busy once")
    assert len(opened(one).answer([Prompt(IDS, 4)])[0].tokens) == 4
    assert len(one.requests) == 2


def test_a_key_comes_from_the_environment_and_is_in_no_message(
    stub: Callable[..., Stub], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = stub(trouble="locked", key="sesame")
    monkeypatch.setenv("KVCHECK_API_KEY", "sesame")
    assert opened(one).answer([Prompt(IDS, 1)])
    monkeypatch.setenv("KVCHECK_API_KEY", "simsalabim")
    with pytest.raises(SpecError, match="export KVCHECK_API_KEY") as caught:
        opened(one).answer([Prompt(IDS, 1)])
    assert "simsalabim" not in str(caught.value)


def test_a_prompt_beyond_the_servers_context_is_told_in_its_words(stub: Callable[..., Stub]) -> None:
    with pytest.raises(MethodFailed, match=r"says 400: .*maximum context length is 100 tokens"):
        opened(stub(longest=100)).answer([Prompt(IDS, 4)])


def test_where_a_server_dies_in_the_middle_the_run_is_kept_and_goes_on(
    stub: Callable[..., Stub], pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("CI", "GITHUB_STEP_SUMMARY", "PYTEST_ADDOPTS", "PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT"):
        monkeypatch.delenv(name, raising=False)
    mine, theirs = stub(blocks=2048, chunk=1024), stub(blocks=2048, chunk=1024)
    (pytester.path / "stored").mkdir()
    command = (
        "--pyargs", "kvcheck.suites.test_string_retrieval", "--kv-tasks=kv", "--kv-lengths=512", "--kv-n=4",
        "--kv-modes=multi_request,multi_turn", "--kv-baselines=stored", f"--kv-model={MINI}", "--kv-dtype=float32",
        f'--kv-method=server:url="{mine.url}",reference="{theirs.url}",wait=5', "--kv-json=run.json",
    )  # fmt: skip
    mine.left = 40  # more than one case takes, and less than two
    died = pytester.runpytest(*command)
    assert died.ret == 1
    died.stdout.fnmatch_lines(["*is gone (*", "*--kv-resume*"])
    kept = {(str(one.case), one.method) for one in read_run(pytester.path / "run.json").cases}
    assert len({method for _, method in kept}) == 2  # the first case of both is there
    assert len(kept) == 3
    again = stub(blocks=2048, chunk=1024, port=int(mine.url.rsplit(":")[-1].removesuffix("/v1")))
    went_on = pytester.runpytest_subprocess(*command, "--kv-resume=run.json")
    assert "is gone" not in went_on.stdout.str()
    found = {(str(one.case), one.method) for one in read_run(pytester.path / "run.json").cases}
    assert kept < found
    assert len(found) == 4
    asked = [path for path, _ in again.requests if path == "/v1/completions"]
    assert 0 < len(asked) <= 32  # answers and references of the case that was not finished, and of no other


# -- the life of a cache -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reference(model: Model) -> Iterator[Stub]:
    """The same model, whole prompts, a large pool, no drafts and no prefix cache."""
    one = Stub(model, chunk=4096, prefix=False, blocks=2048)
    yield one
    one.close()


def tried(name: str, stub: Stub, reference: Stub) -> str:
    """What a property says of a stub: "holds …", else what was raised and why."""
    session = session_of(stub, reference)
    try:
        return f"holds {properties.PROPERTIES[name](bench.Bench(session, session.settings.methods[0]))}"
    except (bench.Said, KvcheckError) as error:
        return f"{type(error).__name__}: {error}"
    finally:
        for served in session.opened.values():
            served.close()


USUAL = {"blocks": 160, "chunk": 128, "drafts": 3}


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Enough requests for a stub."""
    monkeypatch.setattr(lives, "REQUESTS", 96)
    monkeypatch.setattr(bench, "PATIENCE", 0.5)


TIMED = ("what_was_cancelled_leaves_nothing", "an_abort_leaves_the_others_alone", "nothing_piles_up")
"""Properties that have to cancel a request while it is read: whether that comes in time depends on the machine."""

STARTED = ("bytes_are_as_counted",)
"""Properties that start the engine with pools of two sizes, which no server lets a client do."""


@pytest.mark.parametrize(
    "fault", [pytest.param(one, marks=[pytest.mark.nightly] * (CAUGHT[one] == TIMED[0])) for one in FAULTS]
)
def test_every_fault_of_an_engine_is_shown(few: None, stub: Callable[..., Stub], reference: Stub, fault: str) -> None:
    more = {"foreign_scale": {"bits": 8}, "cancelled_published": {"pause": 0.02}}.get(fault, {})
    assert tried(CAUGHT[fault], stub(fault=fault, **USUAL, **more), reference).startswith(
        ("Broken: ", "MethodFailed: ")
    )


def holding(seed: int, without: tuple[str, ...] = ()) -> list[str]:
    """What the properties say of a correct engine, where it is not that they hold."""
    model = Model.tiny(seed)
    stubs = Stub(model, **USUAL), Stub(model, chunk=4096, prefix=False, blocks=2048)
    try:
        found = {name: tried(name, *stubs) for name in properties.PROPERTIES if name not in without}
    finally:
        for one in stubs:
            one.close()
    return [f"{name} {said}" for name, said in found.items() if not said.startswith(("holds", "Excused"))]


def test_a_correct_engine_has_every_property_that_needs_no_timing(few: None) -> None:
    assert holding(1, without=(*TIMED, *STARTED)) == []


def test_a_property_that_starts_the_engine_anew_says_that_a_server_has_no_pool_to_set(
    stub: Callable[..., Stub], reference: Stub
) -> None:
    assert tried(STARTED[0], stub(**USUAL), reference) == "NotTried: server has no pool"


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(1, 21))
def test_no_correct_engine_is_accused(few: None, seed: int) -> None:
    assert holding(seed, without=STARTED) == []
