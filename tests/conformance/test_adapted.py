"""No property accuses a correct method that is adapted: transformers' caches, layers and presses of a user, kvpress."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from kvcheck.conformance import NAMES
from kvcheck.conformance.runner import check, examine
from kvcheck.conformance.subject import NotServed, Violation
from kvcheck.core.record import EXCUSED, FAILS, HOLDS, UNSERVED

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "adapters.md"
OTHERS = '''
import torch

class Newest(DynamicLayer):
    """Keeps the newest tokens, whatever it is fed, and counts all of them."""

    def __init__(self, tokens: int = 100):
        super().__init__()
        self.tokens, self.seen = tokens, 0

    def update(self, key_states, value_states, *args, **kwargs):
        keys, values = super().update(key_states, value_states, *args, **kwargs)
        self.seen += key_states.shape[2]
        self.keys, self.values = keys[:, :, -self.tokens :].clone(), values[:, :, -self.tokens :].clone()
        return keys, values

    def get_seq_length(self):
        return self.seen

    def get_mask_sizes(self, query_length):
        kept = min(self.seen, self.tokens)
        return kept + query_length, self.seen - kept

    def reset(self):
        super().reset()
        self.seen = 0

    def crop(self, tokens):
        if self.seen > self.tokens:
            raise NotImplementedError("what was evicted is gone")
        super().crop(tokens)
        self.seen += tokens


class Turned(DynamicLayer):
    """Keeps all, and a rotation of keys and one of values in 32 bits."""

    def lazy_initialization(self, key_states, value_states):
        super().lazy_initialization(key_states, value_states)
        self.rotations = [torch.eye(key_states.shape[3]) for _ in range(2)]


class RoomAhead(DynamicLayer):
    """Keeps all, and room for as many tokens again, from the first one on."""

    def lazy_initialization(self, key_states, value_states):
        super().lazy_initialization(key_states, value_states)
        self.room = key_states.new_zeros(*key_states.shape[:2], 800, key_states.shape[3])


class RoundsBlocks(DynamicLayer):
    """Rounds what comes in together, and keeps single tokens as they are."""

    def update(self, key_states, value_states, *args, **kwargs):
        if key_states.shape[2] > 1:
            key_states, value_states = key_states.round(), value_states.round()
        return super().update(key_states, value_states, *args, **kwargs)


class CropsTooFew(DynamicLayer):
    """Leaves a token of what is taken back."""

    def crop(self, tokens):
        super().crop(tokens + 1)


class HiddenBlock(DynamicLayer):
    """Loses the first token of a block."""

    def update(self, key_states, value_states, *args, **kwargs):
        if key_states.shape[2] > 1 and self.get_seq_length():
            value_states[:, :, 0] = 0
        return super().update(key_states, value_states, *args, **kwargs)


@dataclass
class Idle:
    """A press that frees nothing."""

    @contextmanager
    def __call__(self, model):
        yield
'''
SNAP = "kvpress.SnapKVPress:compression_ratio=0.5"
DECODING = "kvpress.DecodingPress:base_press=kvpress.KnormPress,compression_interval=8,target_size=128"
MASKING = f'kvpress.AdaKVPress:press="{SNAP}"'
CHANCY = (
    "a_block_is_its_tokens_one_by_one",
    "the_length_of_a_cache_is_the_tokens_seen",
    "a_slot_holds_the_token_of_its_position",
    "slots_stay_true_while_decoding",
    "memory_is_freed_in_every_row_of_every_sample",
    "memory_stays_bounded_while_decoding",
    "keys_and_values_of_zero_give_finite_numbers",
    "configurations_and_weights_are_left_alone",
    "what_is_taken_back_was_never_there",
)
"""The properties that ask a cache what an adapted one cannot tell."""


@pytest.fixture(autouse=True)
def mine(tmp_path, monkeypatch):
    """The examples of the how-to and others, importable as `my_adapted`."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    (tmp_path / "my_adapted.py").write_text("\n".join([*blocks, OTHERS]))
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("my_adapted", None)


@pytest.fixture
def pressed(monkeypatch):
    """kvpress, or a skipped test; its downloads fail at once."""
    pytest.importorskip("kvpress", reason="kvpress is not installed: pip install 'kvcheck[kvpress]'")
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def outcomes(spec, names, trials):
    """What the properties say, by name; none may fail."""
    found = {name: examine(name, spec, trials) for name in names}
    assert [one for one in found.values() if one.outcome == FAILS] == []
    assert {one.outcome for one in found.values()} <= {HOLDS, EXCUSED, UNSERVED}
    return {name: one.outcome for name, one in found.items()}


def test_nearly_all_properties_are_tried_on_a_full_cache_of_a_users_own_and_hold():
    found = outcomes("my_adapted.Counting", NAMES, 1)
    assert sum(outcome == HOLDS for outcome in found.values()) >= 47


def test_what_a_layer_promises_of_itself_is_what_it_is_held_to():
    promised = ("everything_held_is_the_full_cache", "what_is_read_back_is_as_near_as_promised")
    found = outcomes("my_adapted.Coarse:bits=4", (*promised, "the_size_of_numbers_does_not_matter"), 2)
    assert found == {**dict.fromkeys(promised, HOLDS), "the_size_of_numbers_does_not_matter": EXCUSED}


@pytest.mark.parametrize(
    ("spec", "held"),
    [
        ("transformers.static", "a_block_is_its_tokens_one_by_one"),
        ("transformers.sliding_window:window=64", "the_newest_token_is_seen"),
        ("my_adapted.Rounded:bits=3", "what_is_taken_back_was_never_there"),
        ("my_adapted.KeepNewest:tokens=64", "what_is_taken_back_was_never_there"),
        ("my_adapted.Newest", "a_token_is_fed_at_its_position"),
    ],
)
def test_caches_and_layers_of_others_are_not_accused(spec, held):
    assert outcomes(spec, dict.fromkeys((*CHANCY, held)), 2)[held] == HOLDS


@pytest.mark.parametrize("spec", [SNAP, DECODING, MASKING])
def test_presses_of_kvpress_are_not_accused(spec, pressed):
    names = (*CHANCY, "the_newest_token_is_seen", "a_row_of_a_batch_is_as_alone", "the_same_call_gives_the_same")
    found = outcomes(spec, names, 4)
    assert {found[name] for name in names[-3:]} == {HOLDS}


def test_rotations_of_a_cache_are_not_taken_for_tokens_that_it_holds_twice():
    for name in ("bytes_are_as_declared", "bytes_stay_as_declared_in_long_decoding"):
        check(name, "my_adapted.Turned", prompt=20)
        with pytest.raises(Violation, match="it does not say why"):
            check(name, "my_adapted.RoomAhead", prompt=20)


@pytest.mark.parametrize(
    "name", ["a_prompt_and_what_follows_are_one_text", "verified_drafts_are_the_tokens_of_generate"]
)
def test_whether_a_cache_keeps_all_is_seen_on_the_blocks_that_a_property_feeds(name):
    with pytest.raises(NotServed, match="does not keep all that it is fed"):
        check(name, "my_adapted.RoundsBlocks", prompt=1, block=1, steps=1)
    check(name, "my_adapted.Counting", prompt=1, block=1, steps=1)


def test_a_press_that_halves_a_cache_frees_memory(pressed):
    assert examine("memory_is_freed_in_every_row_of_every_sample", SNAP, 4).outcome == HOLDS


def test_a_prompt_that_a_press_refuses_is_not_served(pressed):
    with pytest.raises(NotServed, match="refuses the prompt: Query length 8"):
        check("the_newest_token_is_seen", SNAP, prompt=8)


def test_a_masking_press_answers_the_first_prompt_on_a_model_as_the_second(pressed):
    check("the_same_call_gives_the_same", MASKING, prompt=100, block=2)


def test_what_evicts_while_it_is_fed_is_not_asked_for_blocks_nor_to_take_tokens_back():
    for name in ("a_block_is_its_tokens_one_by_one", "what_is_taken_back_was_never_there"):
        check(name, "my_adapted.Newest", prompt=20, block=3)
        with pytest.raises(NotServed, match="more with what it is fed"):
            check(name, "my_adapted.Newest", prompt=120, block=3)


@pytest.mark.parametrize(
    ("name", "spec"),
    [
        ("what_is_taken_back_was_never_there", "my_adapted.CropsTooFew"),
        ("a_block_is_its_tokens_one_by_one", "my_adapted.HiddenBlock"),
    ],
)
def test_an_adapted_method_that_is_at_fault_is_accused(name, spec):
    with pytest.raises(Violation):
        check(name, spec, prompt=20, block=3)


def test_an_adapted_press_that_claims_to_free_memory_and_does_not_is_accused(monkeypatch):
    import kvcheck.methods.adapters.foreign as foreign
    from kvcheck.methods.adapters import kvpress

    monkeypatch.setattr(kvpress, "info", lambda spec, press: foreign.info(frees_memory=True))
    with pytest.raises(Violation, match="the full cache takes"):
        check("memory_is_freed_in_every_row_of_every_sample", "my_adapted.Idle")
