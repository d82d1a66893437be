"""Caches as people write them, right and at fault, each in one thing. Imported by name, as a user's module is."""

from __future__ import annotations

from typing import ClassVar

import torch
from transformers import AttentionInterface, DynamicCache, PreTrainedConfig
from transformers.cache_utils import Cache, DynamicLayer
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

# -- a true batch ------------------------------------------------------------------------------------------------------


class Right(DynamicLayer):
    """A full cache."""


class RightCache(DynamicCache):
    """A full cache, too."""


class ReorderKeysOnly(DynamicLayer):
    """Leaves the values of the beams where they were."""

    def reorder_cache(self, beam_idx):
        self.keys = self.keys.index_select(0, beam_idx)


class ReorderNothing(DynamicLayer):
    """Leaves the beams where they were."""

    def reorder_cache(self, beam_idx):
        """Nothing."""


class RepeatTiles(DynamicLayer):
    """Repeats the batch, not each of its rows."""

    def batch_repeat_interleave(self, repeats):
        self.keys, self.values = self.keys.repeat(repeats, 1, 1, 1), self.values.repeat(repeats, 1, 1, 1)


class SelectKeysTwice(DynamicLayer):
    """Writes the keys that are selected into the values."""

    def batch_select_indices(self, indices):
        self.keys = self.keys[indices, ...]
        self.values = self.keys.clone()


class ResetNothing(DynamicLayer):
    """Stays as it was."""

    def reset(self):
        """Nothing."""


class CropsFromTheFront(DynamicLayer):
    """Takes the oldest tokens off."""

    def crop(self, tokens_to_remove):
        self.keys, self.values = self.keys[:, :, -tokens_to_remove:], self.values[:, :, -tokens_to_remove:]


class LengthOfSlots(DynamicLayer):
    """Evicts, and says that the tokens that are left are its length."""

    def update(self, key_states, value_states, *args, **kwargs):
        keys, values = super().update(key_states, value_states)
        self.keys, self.values = keys[:, :, -40:].clone(), values[:, :, -40:].clone()
        return keys, values


class NarrowMasks(DynamicLayer):
    """Says that masks must be narrower than what it reads back is."""

    def get_mask_sizes(self, query_length):
        return self.get_seq_length() + query_length - (query_length == 1), 0


class ScaledByTheBatch(DynamicLayer):
    """Rounds to steps of the largest number in the whole batch: rows of a batch change each other."""

    def update(self, key_states, value_states, *args, **kwargs):
        step = value_states.abs().max() / 7
        return super().update(key_states, (value_states / step).round() * step, *args, **kwargs)


class OneRowOnly(DynamicLayer):
    """Knows no batch, and says so by an error of its own."""

    def update(self, key_states, value_states, *args, **kwargs):
        if key_states.shape[0] > 1:
            raise RuntimeError("one sequence at a time")
        return super().update(key_states, value_states, *args, **kwargs)


class WithoutVerbs(DynamicLayer):
    """Has no rows to change, and says so."""

    def reorder_cache(self, beam_idx):
        raise NotImplementedError("no beams here")

    def reset(self):
        raise NotImplementedError("make a new one")


# -- what is held, and what is read back -------------------------------------------------------------------------------


class ReadsNegative(DynamicLayer):
    """Holds what it is given, and reads the opposite back."""

    def update(self, key_states, value_states, *args, **kwargs):
        keys, values = super().update(key_states, value_states, *args, **kwargs)
        return keys, -values


class ForgetsInBlocks(DynamicLayer):
    """Reads nothing of what came before when several tokens come."""

    def update(self, key_states, value_states, *args, **kwargs):
        keys, values = super().update(key_states, value_states, *args, **kwargs)
        new = key_states.shape[2]
        if new > 1:
            values = torch.cat([values[:, :, :-new] * 0, values[:, :, -new:]], 2)
        return keys, values


class LooksAhead(DynamicLayer):
    """Reads a little of the newest token in all others."""

    def update(self, key_states, value_states, *args, **kwargs):
        keys, values = super().update(key_states, value_states, *args, **kwargs)
        return keys, values + values[:, :, -1:] / 8


class OtherHeads(DynamicLayer):
    """Holds the values of the other kv heads."""

    def update(self, key_states, value_states, *args, **kwargs):
        return super().update(key_states, value_states.flip(1), *args, **kwargs)


class RollsWhileDecoding(DynamicLayer):
    """Moves all values by a slot with every token that comes alone."""

    def update(self, key_states, value_states, *args, **kwargs):
        keys, values = super().update(key_states, value_states, *args, **kwargs)
        if key_states.shape[2] == 1 and keys.shape[2] > 1:
            self.values = values = values.roll(1, 2)
        return keys, values


class HoldsTheNewestTwice(DynamicLayer):
    """Puts the last token of a block into the slot of the first one, too."""

    def update(self, key_states, value_states, *args, **kwargs):
        keys, values = super().update(key_states, value_states, *args, **kwargs)
        if 1 < key_states.shape[2] < keys.shape[2]:
            keys[:, :, 0], values[:, :, 0] = keys[:, :, -1], values[:, :, -1]
        return keys, values


class HoardsBlocks(DynamicLayer):
    """Keeps a copy of every block."""

    def update(self, key_states, value_states, *args, **kwargs):
        if key_states.shape[2] > 1:
            self.hoard = [*getattr(self, "hoard", []), key_states.clone()]
        return super().update(key_states, value_states, *args, **kwargs)


class KeepsTheBatch(DynamicLayer):
    """Takes rows out by a view, which keeps all of the batch alive."""

    def batch_select_indices(self, indices):
        first = int(indices[0])
        self.keys, self.values = self.keys[first : first + 1], self.values[first : first + 1]


class Fades(DynamicLayer):
    """Promises little, and loses more whenever it is stored again."""

    kvcheck_info: ClassVar = {"rounding": (0.5, 0.5)}

    def update(self, key_states, value_states, *args, **kwargs):
        return super().update(key_states, value_states * 0.9, *args, **kwargs)


class OnDisk(DynamicCache):
    """Has verbs to be saved and loaded by."""

    def save(self, file):
        torch.save([(layer.keys, layer.values) for layer in self.layers], file)

    @classmethod
    def load(cls, file):
        cache = cls()
        for index, (keys, values) in enumerate(torch.load(file)):
            cache.update(keys, values, index)
        return cache


class OnDiskWithoutValues(OnDisk):
    """Saves the keys twice."""

    def save(self, file):
        torch.save([(layer.keys, layer.keys) for layer in self.layers], file)


class MoreBitsAreFurther(DynamicLayer):
    """Rounds to fewer steps the more bits it is given."""

    kvcheck_info: ClassVar = {"knob": "bits"}

    def __init__(self, bits: int = 4):
        super().__init__()
        self.step = 2.0 ** (bits - 4)

    def update(self, key_states, value_states, *args, **kwargs):
        rounded = [(states / self.step).round() * self.step for states in (key_states, value_states)]
        return super().update(*rounded, *args, **kwargs)


class MoreBitsAreNearer(MoreBitsAreFurther):
    """Rounds to more of them."""

    def __init__(self, bits: int = 4):
        super().__init__(4 - bits)


# -- nothing in `layers` -----------------------------------------------------------------------------------------------


class InADictionary(DynamicCache):
    """Keeps everything in a dictionary, and leaves `layers` empty."""

    def __init__(self, config: PreTrainedConfig | None = None):
        super().__init__()
        self.kept: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def update(self, key_states, value_states, layer_idx, *args, **kwargs):
        if layer_idx in self.kept:
            keys, values = self.kept[layer_idx]
            key_states, value_states = torch.cat([keys, key_states], 2), torch.cat([values, value_states], 2)
        self.kept[layer_idx] = key_states, value_states
        return key_states, value_states

    def get_seq_length(self, layer_idx=0):
        return self.kept[layer_idx][0].shape[2] if layer_idx in self.kept else 0


# -- models that are not served, and parameters that are filled in -----------------------------------------------------


class InGroupsOf64(DynamicLayer):
    """Serves heads of 64 and of 128."""

    def update(self, key_states, value_states, *args, **kwargs):
        if key_states.shape[-1] % 64:
            raise ValueError(f"head_dim {key_states.shape[-1]} is no multiple of 64")
        return super().update(key_states, value_states, *args, **kwargs)


class InGroupsOf100(DynamicLayer):
    """Serves no head that there is."""

    def update(self, key_states, value_states, *args, **kwargs):
        raise ValueError(f"head_dim {key_states.shape[-1]} is no multiple of 100")


class Hopeless(DynamicLayer):
    """Cannot be fed."""

    def update(self, key_states, value_states, *args, **kwargs):
        return key_states.nope


class Options:
    """A configuration of its own."""


class WithOptions(DynamicCache):
    """Its `config` is not the model's."""

    def __init__(self, config: Options | None = None):
        super().__init__()
        assert config is None or isinstance(config, Options)


GIVEN: dict[str, object] = {}


def filled(model, tokenizer, prompt_length: int, device: str, dtype: torch.dtype, config, bits: int = 4) -> Cache:
    """A full cache that notes what it was given."""
    GIVEN.update(
        model=model,
        tokenizer=tokenizer,
        prompt_length=prompt_length,
        device=device,
        dtype=dtype,
        config=config,
        bits=bits,
    )
    return DynamicCache()


CALIBRATIONS = [0]


def calibrated(model):
    """Calibrates once, and gives what makes the caches."""
    CALIBRATIONS[0] += 1
    return lambda: DynamicCache(config=model.config)


# -- attention of its own ----------------------------------------------------------------------------------------------


def nothing(module, query, key, value, *args, **kwargs):
    """Wrong on purpose: every head answers nothing."""
    return (query * 0).transpose(1, 2).contiguous(), None


AttentionInterface.register("answers_nothing", nothing)
AttentionMaskInterface.register("answers_nothing", sdpa_mask)


def unheeding(model):
    """A full cache that nothing is read of."""
    model.set_attn_implementation("answers_nothing")
    return DynamicCache(config=model.config)


class Unheeded(DynamicCache):
    """The same, said beside the class."""

    kvcheck_info: ClassVar = {"attention": "answers_nothing"}


class PressThatAttends:
    """A press that leaves the model with another attention function."""

    def __call__(self, model):
        self.model = model
        return self

    def __enter__(self):
        self.model.set_attn_implementation("answers_nothing")

    def __exit__(self, *raised):
        """Nothing is put back."""


class RowZeroForAll:
    """A press that keeps, in every row, the tokens that matter in row 0."""

    def __call__(self, model):
        self.model = model
        return self

    def __enter__(self):
        layers = self.model.model.layers
        self.hooks = [each.self_attn.register_forward_hook(self.hook, with_kwargs=True) for each in layers]

    def __exit__(self, *raised):
        for hook in self.hooks:
            hook.remove()

    def hook(self, module, args, kwargs, output):
        cache = kwargs.get("cache", kwargs.get("past_key_values"))
        layer = cache.layers[module.layer_idx]
        kept = layer.keys[0].norm(dim=-1).mean(0).topk(max(1, layer.keys.shape[2] // 2)).indices.sort().values
        layer.keys, layer.values = layer.keys[:, :, kept], layer.values[:, :, self.of_values(kept)]

    def of_values(self, kept):
        """The tokens whose values are kept."""
        return kept


class OtherValues(RowZeroForAll):
    """A press that keeps the values of other tokens than the keys."""

    def of_values(self, kept):
        return (kept + 1) % (int(kept.max()) + 1)


# -- what is said beside the code --------------------------------------------------------------------------------------


class Rounded(DynamicLayer):
    """Rounds what it is given before it is attended to."""

    @staticmethod
    def kvcheck_info(bits=4):
        """What depends on the bits."""
        return {
            "lossless": "bits=16",
            "rounding": (2.0**-bits, 2.0**-bits),
            "exempt": {"the_newest_token_is_seen": "no"},
        }

    def __init__(self, bits: int = 4):
        super().__init__()
        self.bits = bits

    def update(self, key_states, value_states, *args, **kwargs):
        if self.bits < 16:
            step = 2.0 ** (2 - self.bits)
            key_states, value_states = (key_states / step).round() * step, (value_states / step).round() * step
        return super().update(key_states, value_states, *args, **kwargs)


class SaysItsBytes(DynamicLayer):
    """Says exactly what it holds."""

    kvcheck_info: ClassVar = {
        "kv_bytes": lambda shape, batch, prompt, decoded: shape.dense_bytes(batch, prompt + decoded)
    }


class SaysHalfOfThem(DynamicLayer):
    """Says less than it holds."""

    kvcheck_info: ClassVar = {"kv_bytes": lambda shape, batch, prompt, decoded: shape.dense_bytes(batch, prompt) // 2}


class ReadsTheNewest(DynamicLayer):
    """Holds everything, and gives the newest 64 tokens to be read."""

    kvcheck_info: ClassVar = {"reads": lambda shape, prompt, decoded: min(64, prompt + decoded)}
    many = 64

    def update(self, key_states, value_states, *args, **kwargs):
        keys, values = super().update(key_states, value_states)
        first = max(0, keys.shape[2] - max(self.many, key_states.shape[2]))
        return keys[:, :, first:], values[:, :, first:]

    def get_mask_sizes(self, query_length):
        read = min(self.get_seq_length() + query_length, max(self.many, query_length))
        return read, self.get_seq_length() + query_length - read


class ReadsMoreThanItSays(ReadsTheNewest):
    """Gives twice as many."""

    many = 128


class ClaimsToFree(DynamicLayer):
    """Says that it holds less, and does not."""

    kvcheck_info: ClassVar = {"frees_memory": True}


class ClaimsToBeWhole(DynamicLayer):
    """Says that it gives up nothing, and loses the first token."""

    kvcheck_info: ClassVar = {"lossless": "always"}

    def update(self, key_states, value_states, *args, **kwargs):
        keys, values = super().update(key_states, value_states, *args, **kwargs)
        values[:, :, 0] = 0
        return keys, values


class Misspelled(DynamicLayer):
    """Says nothing that is known."""

    kvcheck_info: ClassVar = {"free_memory": True}


class HoldsTwice(DynamicLayer):
    """Keeps a second copy of everything, and says nothing of it."""

    def update(self, key_states, value_states, *args, **kwargs):
        keys, values = super().update(key_states, value_states, *args, **kwargs)
        self.again = keys.clone(), values.clone()
        return keys, values
