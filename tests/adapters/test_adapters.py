"""What people have already is recognised, run, copied and weighed."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch
import transformers

from kvcheck.cache.method_runner import MethodRunner
from kvcheck.cache.shape import Prefilled
from kvcheck.core.errors import MethodUnsupported, SpecError
from kvcheck.measure.audit import audit
from kvcheck.measure.memory import held
from kvcheck.methods import METHODS, make
from kvcheck.methods.fp16 import Fp16

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "adapters.md"
TOKEN = (
    4 * 2 * 4 * 64 * 2
)  # bytes of a token of the embedded model in 16 bits: 4 layers, keys and values, 4 heads of 64
OTHER = """
from contextlib import contextmanager

NUMBER = 3

class Nothing: pass

def no_cache(model): return 5

@contextmanager
def untouched(model, extra: int = 1):
    yield
"""


@pytest.fixture
def examples(tmp_path, monkeypatch):
    """The examples of the how-to, importable as `my_things`."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    (tmp_path / "my_things.py").write_text("\n".join([*blocks, OTHER]))
    monkeypatch.syspath_prepend(tmp_path)
    yield "my_things"
    sys.modules.pop("my_things", None)


def dense(mini, ids):
    """What the full cache holds of prompts, per layer."""
    cache = Fp16().build(MethodRunner(Fp16(), mini).shape)
    with torch.inference_mode(), cache.recording() as layers:
        logits = mini.model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1]
    return layers, cache, logits


def run(mini, text, ids):
    """(runner, cache, logits) of a method behind prompts."""
    runner = make(text).runner(mini)
    with torch.inference_mode():
        return runner, *runner.prefill(ids)


@pytest.mark.parametrize("text", ["transformers.dynamic", "transformers.static:room=32", "my_things.Counting"])
def test_a_full_cache_of_another_make_equals_kvchecks(text, mini, ids, examples):
    _, full, logits = dense(mini, ids)
    runner, cache, mine = run(mini, text, ids)
    torch.testing.assert_close(mine, logits, atol=2e-2, rtol=0)
    more = ids[:, :5]
    with torch.inference_mode():
        theirs = mini.model(more, past_key_values=full, use_cache=True).logits
        torch.testing.assert_close(runner.feed(cache, more, 5), theirs, atol=2e-2, rtol=0)
    assert mini.model.config._attn_implementation == "kvcheck"


def test_bytes_are_those_of_the_storages_that_live(mini, ids):
    assert held(run(mini, "transformers.dynamic", ids)[1]).kv == 2 * 160 * TOKEN
    static = held(run(mini, "transformers.static:room=40", ids)[1]).kv
    assert 2 * 200 * TOKEN <= static < 2 * 200 * TOKEN + 256  # newer ones keep their length in a tensor


def test_a_sliding_window_frees_the_prompt_with_the_next_token(mini, ids):
    runner, cache, _ = run(mini, "transformers.sliding_window:window=32", ids)
    assert held(cache).kv >= 2 * 160 * TOKEN  # views
    with torch.inference_mode():
        runner.feed(cache, ids[:, :1])
        runner.feed(cache, ids[:, :1])
    assert held(cache).kv < 2 * 40 * TOKEN


def test_the_press_of_the_how_to_keeps_the_newest_tokens_at_their_positions(mini, ids, examples):
    runner, cache, _ = run(mini, "my_things.KeepNewest:tokens=64", ids)
    assert held(cache).kv == 2 * 64 * TOKEN
    assert [row.seen for row in cache.rows] == [160, 160]
    _, full, _ = dense(mini, ids)
    with torch.inference_mode():
        runner.feed(cache, ids[:, :4])
        mini.model(ids[:, :4], past_key_values=full, use_cache=True)
    first = torch.cat([row.cache.layers[0].keys for row in cache.rows])  # they depend on token and position alone
    torch.testing.assert_close(first, full.layers[0].keys[:, :, -68:], atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize(
    "text",
    [
        "my_things.Rounded:bits=3",
        "my_things.Coarse:bits=3",
        "my_things.rounded_cache:bits=3",
        "my_things.calibrated_cache:steps=3",
    ],
)
def test_a_layer_class_and_a_function_give_the_same_cache(text, mini, ids, examples):
    _, cache, _ = run(mini, text, ids)
    assert held(cache).kv == 2 * 160 * TOKEN
    keys = cache.rows[1].cache.layers[2].keys.float() * 8
    assert torch.equal(keys, keys.round())


def test_a_function_may_give_a_context_manager(mini, ids, examples):
    _, cache, logits = run(mini, "my_things.untouched:extra=2", ids)
    torch.testing.assert_close(logits, dense(mini, ids)[2], atol=2e-2, rtol=0)
    assert held(cache).kv == 2 * 160 * TOKEN


@pytest.mark.parametrize("text", ["transformers.dynamic", "transformers.static", "my_things.KeepNewest"])
def test_a_fork_leaves_its_origin_alone(text, mini, ids, examples):
    runner, cache, _ = run(mini, text, ids)
    fork = cache.select([1, 1])
    with torch.inference_mode():
        runner.feed(fork, ids[:, :7])
        one = runner.feed(cache, ids[:, :3])
        again = runner.feed(run(mini, text, ids)[1], ids[:, :3])
    assert torch.equal(one, again)


def test_the_audit_says_what_it_can(mini, ids, examples):
    layers, _, _ = dense(mini, ids)
    _, cache, _ = run(mini, "my_things.KeepNewest:tokens=64", ids)
    proof = audit(cache, layers, make("my_things.KeepNewest:tokens=64"))
    assert (proof.problems, proof.kept, proof.seen, proof.layers, proof.touched) == ((), 64, 160, 4, 4)
    cache.rows[0].cache.layers[1].keys[0, 0, 0, 0] = float("nan")
    problems = audit(cache, layers, make("my_things.KeepNewest")).problems
    assert len(problems) == 1
    assert "NaN" in problems[0]
    cache.rows[0].cache.layers.pop()
    assert any("3 layers" in one for one in audit(cache, layers, make("my_things.KeepNewest")).problems)


def test_a_cache_that_claims_less_and_holds_all_is_found(mini):
    ids = torch.randint(20, 1000, (1, 300))
    layers, _, _ = dense(mini, ids)
    _, cache, _ = run(mini, "transformers.dynamic", ids)
    from kvcheck.core.spec import Spec
    from kvcheck.methods.adapters.foreign import ForeignCache, info

    claims = ForeignCache(Spec("x.Y"), info=info(frees_memory=True))
    assert any("did nothing" in one for one in audit(cache, layers, claims).problems)
    assert isinstance(layers[0], Prefilled)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("my_things.NUMBER", "3 .int. cannot be called"),
        ("my_things.Nothing", "is not a method: the class is no Method, no cache"),
        ("my_things.Rounded:bit=3", "did you mean bits"),
        ("my_things.KeepNewest:tokens=many", "'many' is not|tokens=many is not an int"),
        ("my_things.rounded_cache:model=1", "cannot be given"),
        ("transformers.cache_utils.CacheLayerMixin", "abstract"),
        ("transformers.StaticCache", "needs max_cache_len"),
        ("transformers.static:room=0", "room"),
        ("transformers.quanta", "has no 'quanta'"),
        ("snapkv+my_things.KeepNewest", "cannot be combined"),
    ],
)
def test_what_cannot_serve_is_refused_with_what_it_is(text, reason, examples):
    with pytest.raises(SpecError, match=reason):
        make(text)


def test_a_function_that_gives_neither_is_refused(mini, examples):
    with pytest.raises(SpecError, match="gives a int: 5"):
        make("my_things.no_cache").runner(mini)


def test_offloading_needs_an_accelerator(mini):
    with pytest.raises(MethodUnsupported, match="the model is on the CPU"):
        make("transformers.offloaded").runner(mini)


def test_fp8_is_there_or_the_version_is_named(mini, ids):
    if hasattr(transformers.cache_utils, "Fp8QuantizedLayer"):
        _, cache, _ = run(mini, "transformers.fp8", ids)
        assert held(cache).kv < 2 * 160 * TOKEN
    else:
        with pytest.raises(SpecError, match=f"transformers {transformers.__version__} has no fp8 cache"):
            make("transformers.fp8")


@pytest.mark.parametrize(("name", "package"), [("quanto", "optimum-quanto"), ("hqq", "hqq")])
def test_a_missing_package_is_named(name, package, monkeypatch):
    monkeypatch.setattr(transformers.utils, "is_optimum_quanto_available", lambda: False)
    monkeypatch.setattr(transformers.utils, "is_hqq_available", lambda: False)
    with pytest.raises(SpecError, match=f"pip install {package}"):
        make(f"transformers.{name}")


@pytest.mark.parametrize("name", ["quanto", "hqq"])
def test_quantized_caches_hold_less_and_fork(name, mini, ids):
    if not {"quanto": transformers.utils.is_optimum_quanto_available, "hqq": transformers.utils.is_hqq_available}[
        name
    ]():
        pytest.skip(f"{name} is not installed: pip install 'kvcheck[caches]'")
    runner, cache, logits = run(mini, f"transformers.{name}:nbits=4", ids)
    assert held(cache).kv < 0.35 * 2 * 160 * TOKEN
    torch.testing.assert_close(logits, dense(mini, ids)[2], atol=2e-2, rtol=0)  # the prompt attends unquantized
    with torch.inference_mode():
        ahead = runner.feed(cache.select([0, 1]), ids[:, :3])
        assert torch.equal(ahead, runner.feed(cache, ids[:, :3]))


def test_an_entry_point_may_lead_to_any_of_these(examples, monkeypatch, mini, ids):
    monkeypatch.setattr(METHODS, "_origins", {**METHODS.origins(), "newest": "my_things:KeepNewest"})
    method = make("newest:tokens=32")
    assert str(method.spec) == "newest:tokens=32"
    with torch.inference_mode():
        assert held(method.runner(mini).prefill(ids)[0]).kv == 2 * 32 * TOKEN
