"""Caches without layers, attention of a user's own, what is filled in, and what is said beside the code."""

from __future__ import annotations

import sys

import other_caches
import pytest
import torch
from transformers import PreTrainedTokenizerBase

from kvcheck.backends.transformers import Session
from kvcheck.cache.method import Lossless
from kvcheck.conformance.runner import check, examine, served
from kvcheck.conformance.subject import Violation
from kvcheck.core.errors import MethodsUnfed, MethodUnsupported, SpecError
from kvcheck.core.record import EXCUSED
from kvcheck.core.settings import Settings
from kvcheck.measure.audit import audit
from kvcheck.measure.memory import held, tensors
from kvcheck.methods import make
from kvcheck.methods.adapters.foreign import smoke
from kvcheck.methods.fp16 import Fp16
from kvcheck.models import load


def fed(mini, text, ids, more=4):
    """(cache, logits of a follow-up block) of a method."""
    runner, follow = make(text).runner(mini), torch.arange(30, 30 + more).expand(2, -1)
    with torch.inference_mode():
        cache, _ = runner.prefill(ids)
        return cache, runner.feed(cache, follow, more)


# -- nothing in `layers` -----------------------------------------------------------------------------------------------


def test_a_cache_that_keeps_nothing_in_layers_answers_a_follow_up_as_the_full_cache(mini, ids):
    _, wanted = fed(mini, "transformers.dynamic", ids)
    cache, mine = fed(mini, "other_caches.InADictionary", ids)
    torch.testing.assert_close(mine, wanted, atol=1e-4, rtol=0)
    assert [row.length for row in cache.rows] == [164, 164]
    assert held(cache).kv == held(fed(mini, "transformers.dynamic", ids)[0]).kv


def test_the_audit_counts_the_layers_of_a_cache_that_keeps_nothing_in_them(mini, ids):
    full = Fp16().runner(mini)
    cache = full.build()
    with torch.inference_mode(), cache.recording() as layers:
        full.feed(cache, ids)
    mine, _ = fed(mini, "other_caches.InADictionary", ids, 1)
    proof = audit(mine, layers, make("other_caches.InADictionary"))
    assert (proof.problems, proof.layers, proof.touched, proof.kept) == ((), 4, 4, 161)


# -- attention of its own ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["unheeding", "Unheeded", "PressThatAttends"])
def test_attention_of_its_own_is_run_and_the_model_is_as_before(name, mini, ids):
    cache, mine = fed(mini, f"other_caches.{name}", ids)
    assert {row.attention for row in cache.rows} == {"answers_nothing"}
    assert mini.model.config._attn_implementation == "kvcheck"
    _, other = fed(mini, f"other_caches.{name}", ids.flip(1))
    torch.testing.assert_close(mine, other)  # nothing is read of what came before


def test_attention_of_its_own_is_held_against_the_method():
    with pytest.raises(Violation):
        check("the_newest_token_is_seen", "other_caches.unheeding", prompt=20, block=3)


def test_attention_that_nobody_registered_is_refused_by_name(mini, tmp_path, monkeypatch):
    (tmp_path / "unknown_attention.py").write_text(
        "from transformers import DynamicCache\n"
        "def cache(model):\n    model.set_attn_implementation('no_such_attention')\n    return DynamicCache()\n"
        "class Said(DynamicCache):\n    kvcheck_info = {'attention': 'no_such_attention'}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("cache", "Said"):
        with pytest.raises(MethodUnsupported, match="no_such_attention"):
            make(f"unknown_attention.{name}").runner(mini)
    assert mini.model.config._attn_implementation == "kvcheck"


# -- what is not served, and what is filled in -------------------------------------------------------------------------


def test_an_error_of_its_own_on_one_architecture_means_that_it_is_not_served():
    assert served("other_caches.InGroupsOf64") == ("llama", "qwen2", "wide", "gemma3")
    assert served("other_caches.Right") == ("llama", "qwen2", "eighty", "wide", "gemma3")


def test_a_method_that_cannot_be_fed_says_why_and_where(mini):
    assert smoke(make("other_caches.Right"), mini) == ""
    assert "AttributeError: 'Tensor' object has no attribute 'nope' (other_caches.py" in smoke(
        make("other_caches.Hopeless"), mini
    )


def test_all_that_cannot_be_fed_are_refused_in_one_error(mini):
    methods = ("other_caches.Right", "other_caches.Hopeless", "fp16", "other_caches.InGroupsOf100")
    session = Session.of(mini, Settings(methods=methods))
    with pytest.raises(MethodsUnfed) as refused:
        session.expect_fed()
    assert "Hopeless cannot be fed 8 tokens of the model: AttributeError" in refused.value.message
    assert "InGroupsOf100 cannot be fed 8 tokens of the model: ValueError: head_dim 64" in refused.value.message
    assert "Right" not in refused.value.message


def test_bfloat16_is_kept_as_it_is_on_the_cpu(ids):
    model = load("mini", torch.device("cpu"), torch.bfloat16)
    for name in ("transformers.dynamic", "other_caches.InADictionary"):
        cache, logits = fed(model, name, ids[:, :40])
        assert bool(logits.isfinite().all())
        assert {each.dtype for each in tensors(cache) if each.is_floating_point()} == {torch.bfloat16}


def test_a_config_of_another_type_is_not_the_models(mini, ids):
    fed(mini, "other_caches.WithOptions", ids)


def test_parameters_are_filled_in_by_name_and_annotation(mini, ids):
    make("other_caches.filled:bits=2").runner(mini).prefill(ids[:1])
    given = other_caches.GIVEN
    assert given["model"] is mini.model
    assert given["config"] is mini.model.config
    assert isinstance(given["tokenizer"], PreTrainedTokenizerBase)
    assert (given["prompt_length"], given["device"], given["dtype"], given["bits"]) == (160, "cpu", torch.float16, 2)


def test_what_is_filled_in_cannot_be_given_by_hand_but_for_device_and_dtype():
    with pytest.raises(SpecError, match="prompt_length cannot be given: it is of the prompt"):
        make("other_caches.filled:prompt_length=3")
    make('other_caches.filled:device="cpu"')


def test_a_calibration_is_called_once(mini, ids):
    other_caches.CALIBRATIONS[0] = 0
    runner = make("other_caches.calibrated").runner(mini)
    runner.prefill(ids)
    assert other_caches.CALIBRATIONS == [1]


# -- what is said beside the code --------------------------------------------------------------------------------------


def test_what_is_said_depends_on_the_parameters():
    two, four = make("other_caches.Rounded:bits=2"), make("other_caches.Rounded")
    assert (two.rounding(), four.rounding()) == ((0.25, 0.25), (0.0625, 0.0625))
    assert two.info.lossless == Lossless.at("bits=16")
    assert str(two.lossless()) == "other_caches.Rounded:bits=16"


def test_lossless_parameters_are_tried_and_an_exemption_is_heeded():
    check("everything_held_is_the_full_cache", "other_caches.Rounded:bits=3", prompt=30)
    found = examine("the_newest_token_is_seen", "other_caches.Rounded", 1)
    assert (found.outcome, found.reason) == (EXCUSED, "no")


@pytest.mark.parametrize(
    ("name", "cache"),
    [
        ("memory_is_freed_in_every_row_of_every_sample", "ClaimsToFree"),
        ("everything_held_is_the_full_cache", "ClaimsToBeWhole"),
    ],
)
def test_what_is_said_is_what_the_method_is_held_to(name, cache):
    with pytest.raises(Violation):
        check(name, f"other_caches.{cache}", prompt=30)


def test_bytes_that_are_declared_are_compared_with_those_that_are_held(mini, ids):
    full = Fp16().runner(mini)
    cache = full.build()
    with torch.inference_mode(), cache.recording() as layers:
        full.feed(cache, ids)
    for name, problems in (("SaysItsBytes", 0), ("SaysHalfOfThem", 1)):
        method = make(f"other_caches.{name}")
        with torch.inference_mode():
            mine, _ = method.runner(mini).prefill(ids)
        assert len(audit(mine, layers, method).problems) == problems


def test_what_cannot_be_said_is_refused():
    with pytest.raises(SpecError, match=r"kvcheck_info has no 'free_memory'\n.*did you mean frees_memory"):
        make("other_caches.Misspelled")


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("3", "is a int"),
        ("{'rounding': 0.1}", "rounding=0.1 is not two numbers"),
        ("{'frees_memory': 'yes'}", "is not true or false"),
        ("lambda bits=4: 1 / 0", "ZeroDivisionError"),
    ],
)
def test_what_is_said_wrongly_is_refused_with_what_is_right(said, reason, tmp_path, monkeypatch):
    (tmp_path / "says_wrongly.py").write_text(
        f"from transformers import DynamicCache\nclass It(DynamicCache):\n    kvcheck_info = {said}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "says_wrongly", raising=False)
    with pytest.raises(SpecError, match=reason):
        make("says_wrongly.It")
