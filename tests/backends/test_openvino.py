"""OpenVINO GenAI for real, on the embedded model: pip install 'kvcheck[openvino]'."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from needed import NEED, needed

from kvcheck.backends.engines import bench, properties, specs
from kvcheck.backends.engines.base import Prompt, Reply
from kvcheck.backends.engines.openvino import claims, precisions
from kvcheck.backends.engines.openvino_ir import MODEL, folder
from kvcheck.backends.engines.session import EngineSession
from kvcheck.core import paths
from kvcheck.core.errors import MethodFailed, MethodUnsupported
from kvcheck.core.settings import Settings

XATTENTION = "openvino:use_sparse_attention=true,sparse_attention_config.mode=XATTENTION"
EVICTION = (
    "openvino:use_cache_eviction=true,cache_eviction_config.recent_size=64,cache_eviction_config.max_cache_size=192"
)
ROTATION = (
    "openvino:use_cache_eviction=true,cache_eviction_config.max_cache_size=448,"
    "cache_eviction_config.apply_rotation=true"
)
N = 6
"""Tokens of an answer."""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache folder of kvcheck of its own. Skipped where the engine is not installed."""
    needed("openvino_genai", "pip install 'kvcheck[openvino]'")
    place = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KVCHECK_CACHE", str(place))
        yield place


@pytest.fixture(scope="module")
def session(cache: Path) -> Callable[[str], EngineSession]:
    """A session on OpenVINO with a method."""

    def opened(method: str) -> EngineSession:
        settings = Settings(methods=(method,))
        chosen = specs.chosen(settings)
        assert chosen is not None
        return EngineSession.open(chosen, settings)

    return opened


def expected(texts: list[list[int]]) -> list[Reply]:
    """Greedy answers of transformers in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(paths.bundle("fixtures") / "mini", dtype=torch.float32).eval()
    found = []
    for ids in texts:
        fed, tokens, log_probs, past = torch.tensor([ids]), [], [], None
        for _ in range(N):
            with torch.inference_mode():
                out = model(fed, past_key_values=past, use_cache=True)
            scores, past = torch.log_softmax(out.logits[0, -1], -1), out.past_key_values
            tokens.append(int(scores.argmax()))
            log_probs.append(float(scores.max()))
            fed = torch.tensor([tokens[-1:]])
        found.append(Reply(tuple(tokens), tuple(log_probs), False))
    return found


def test_where_ci_needs_an_engine_its_tests_fail_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(pytest.skip.Exception, match="no_such_engine is not installed: pip install it"):
        needed("no_such_engine", "pip install it")
    monkeypatch.setenv(NEED, "json,no_such_engine")
    with pytest.raises(ModuleNotFoundError, match="no_such_engine"):
        needed("no_such_engine", "pip install it")


def test_what_settings_claim_to_hold_is_known_without_the_engine() -> None:
    assert precisions({"VALUE_CACHE_PRECISION": "u8"}) == ("f16", "u8")
    assert [claims({"KV_CACHE_PRECISION": kind}) for kind in ("f16", "u4", "f32")] == ["", "frees", "exceeds"]


def test_in_float32_it_answers_as_transformers(session: Callable[[str], EngineSession]) -> None:
    method = "openvino:KV_CACHE_PRECISION=f32"
    mine = session(method)
    texts = [mine.texts(length, 1)[0] for length in (100, 300, 512)]
    for ids, theirs in zip(texts, expected(texts), strict=True):
        (found,) = mine.replies(method, [Prompt(ids, N)])
        assert found.tokens == theirs.tokens
        assert found.log_probs == pytest.approx(theirs.log_probs, abs=2e-5)
        scored = mine.log_probs(method, [(ids, list(theirs.tokens))])[0]
        assert scored == pytest.approx(theirs.log_probs, abs=2e-5)


def test_the_model_is_written_once_under_its_fingerprint(session: Callable[[str], EngineSession], cache: Path) -> None:
    mine = session("openvino")
    mine.replies("fp16", [Prompt([0, 5, 6], 1)])
    written = (cache / "openvino").glob(f"{mine.model_print}-*/{MODEL}")
    before = [file.stat().st_mtime_ns for file in written]
    assert len(before) == 1
    assert (folder(mine.folder, mine.model_print) / MODEL).stat().st_mtime_ns == before[0]


def test_8_bits_hold_59_percent_and_4_bits_are_not_counted(session: Callable[[str], EngineSession]) -> None:
    eight = session("openvino:KV_CACHE_PRECISION=u8").measure_memory("openvino:KV_CACHE_PRECISION=u8", 256)
    assert (eight.ratio, eight.end_ratio) == (0.59375, 0.59375)
    assert eight.apart is not None
    assert 1e-3 < eight.apart < 0.5
    with pytest.raises(MethodUnsupported, match="counts u4 as a byte"):
        session("openvino:KV_CACHE_PRECISION=u4").measure_memory("openvino:KV_CACHE_PRECISION=u4", 256)


def test_eviction_holds_less_after_the_prompt(session: Callable[[str], EngineSession]) -> None:
    memory = session(EVICTION).measure_memory(EVICTION, 512)
    assert memory.ratio == 1.0
    assert memory.end_kv_bytes == 4096 * 224


def test_sparse_attention_beyond_the_first_chunk_is_another_model(session: Callable[[str], EngineSession]) -> None:
    mine = session(XATTENTION)
    (ids,) = mine.texts(512, 1)
    (sparse,), (full,) = (mine.replies(method, [Prompt(ids, N)]) for method in (XATTENTION, "fp16"))
    assert sparse.chunks == full.chunks == 2
    assert abs(sparse.log_probs[0] - full.log_probs[0]) > 1


@pytest.mark.parametrize(("kind", "mebibytes"), [("u8", 512.0), ("u4", 256.0)])
def test_bytes_of_8_bits_are_as_counted_and_4_bits_map_half_of_it(
    session: Callable[[str], EngineSession], kind: str, mebibytes: float
) -> None:
    method, wanted = f"openvino:KV_CACHE_PRECISION={kind}", pytest.approx([mebibytes, 512.0], rel=0.08)
    for _ in range(3):  # this process gives memory of other tests back meanwhile
        try:
            said = properties.bytes_are_as_counted(bench.Bench(session(method), method))
        except bench.Broken as error:
            said = f"broken: {error}"
        found = re.search(r"([\d.]+) MiB are mapped for ([\d.]+) MiB that it counts", said)
        assert found is not None
        sizes = [float(one) for one in found.groups()]
        if sizes == wanted:
            break
    assert sizes == wanted
    assert said.startswith("broken: ") == (kind == "u4")


def test_keys_that_are_moved_are_read_elsewhere(session: Callable[[str], EngineSession]) -> None:
    """It rotates by a RoPE base of 10,000: docs/reference/engines.md."""
    mine = bench.Bench(session(ROTATION), ROTATION)
    with pytest.raises(bench.Broken, match=r"moved keys: [123] of 3 answers differ"):
        properties.moved_positions_answer_alike(mine)


def test_a_table_of_rotations_that_is_too_small_ends_the_request_in_its_words(
    session: Callable[[str], EngineSession],
) -> None:
    method = f"{EVICTION},cache_eviction_config.apply_rotation=true"
    mine = session(method)
    with pytest.raises(MethodFailed, match="rotation delta larger than LUT size"):
        mine.replies(method, [Prompt(mine.texts(1024, 1)[0], N)])


def test_a_prompt_that_the_pool_has_no_room_for_is_an_error(session: Callable[[str], EngineSession]) -> None:
    method = "openvino:num_kv_blocks=4"
    with pytest.raises(MethodFailed, match="did not serve a prompt of 200 tokens"):
        session(method).replies(method, [Prompt([0] + [5] * 199, 2)])


def test_settings_that_do_not_go_together_are_told_in_its_words(session: Callable[[str], EngineSession]) -> None:
    method = "openvino:KEY_CACHE_PRECISION=u8"
    with pytest.raises(MethodUnsupported, match="key_cache_type u8 with value_cache_type f16 is not support"):
        session(method).replies(method, [Prompt([0, 5], 1)])


def test_another_model_is_refused_with_the_command_that_exports_it(cache: Path) -> None:
    with pytest.raises(MethodUnsupported, match="optimum-cli export openvino"):
        folder(paths.bundle("fixtures") / "mini_window", "0" * 16)
