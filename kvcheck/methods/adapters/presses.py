"""A press-like context manager: `with press(model):` around the prompt, and around decoding where it asks for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch
from transformers import AttentionInterface, DynamicCache, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface

from kvcheck.cache import attention, kernels
from kvcheck.cache.kernels import Softmax
from kvcheck.cache.method_runner import MethodRunner
from kvcheck.cache.rows import Batch, Row, RowRunner
from kvcheck.core.errors import MethodUnsupported
from kvcheck.methods.adapters import kvpress
from kvcheck.methods.adapters.foreign import (
    Foreign,
    at_rest,
    attending,
    chosen,
    copied,
    fed,
    set_up,
    sixteen_bits,
    unsupported,
)

if TYPE_CHECKING:
    from kvcheck.models import LoadedModel

CAUSAL, WEIGHING = "kvcheck_press", "kvcheck_press_weights"
HALF = torch.finfo(torch.float16)


class Press(Protocol):
    """What compresses a cache while it is entered with the model: a press of kvpress, or what is like one."""

    def __call__(self, model: PreTrainedModel) -> AbstractContextManager[object]:
        """The press on the model."""


@dataclass(frozen=True)
class ForeignPress(Foreign):
    """What is entered with the model around the forward of a prompt, and compresses its DynamicCache.

    press(model) gives a context manager. Its attribute `decoding`, where it is true, asks for it around every later
    forward too.
    """

    press: Press = field(default=lambda model: nullcontext(), compare=False)

    def runner(self, loaded: LoadedModel) -> MethodRunner:
        """Sets the press up on the model. Raises MethodUnsupported with the press's own reason."""
        kvpress.check(self.given, self.press)
        if loaded.shape.chunk is not None:
            raise MethodUnsupported(
                f"{self.given}: attention under a press is causal over all tokens; the model attends in chunks of "
                f"{loaded.shape.chunk}",
                "methods of kvcheck's own act on its layers with full attention",
            )
        try:
            set_up(loaded.model, lambda: getattr(self.press, "post_init_from_model", lambda model: None)(loaded.model))
        except Exception as error:
            raise unsupported(self.given, error) from error
        return PressRunner(self, loaded)


class PressRunner(RowRunner):
    """Runs a press as kvpress's pipeline does: hooks while the prompt is fed, true positions afterwards.

    Unlike the pipeline, attention builds its causal mask per layer, from the columns which that layer really has;
    transformers builds one for all layers, which cannot serve layers that keep different numbers of tokens. Between
    forwards keys and values rest in 16 bits; a press sees them in the dtype in which the model computes.
    """

    method: ForeignPress

    def __init__(self, method: ForeignPress, loaded: LoadedModel) -> None:
        super().__init__(method, loaded)
        self.attention = WEIGHING if kvpress.needs_weights(method.press) else CAUSAL
        register(self.attention)

    def prefill_row(self, ids: torch.Tensor, kind: type[Row] = Row) -> tuple[Row, torch.Tensor]:
        """The prompt (1, n) with the press on the model, outside of inference mode: some presses take gradients."""
        row = kind(DynamicCache(), self.model, copied(self.method.press, self.model), self.attention)
        with torch.inference_mode(False), torch.no_grad(), self._acting(row, kvpress.at_prompt(row.press)):
            logits = fed(row, ids.clone(), 1)[:, -1]
        if kvpress.rotates(row.press):
            row.position = int(row.cache.get_seq_length())
        return row, logits

    def together(self) -> PressedTogether:
        """The same with several rows in one cache."""
        return PressedTogether(self)

    def feed_row(self, row: Row, ids: torch.Tensor, keep: int) -> torch.Tensor:
        """Feed (1, q); with the press on the model if it acts while decoding."""
        if kvpress.decodes(row.press):
            with self._acting(row, True):
                return fed(row, ids, keep)
        with attending(self.model, row.attention), hiding(row), sixteen_bits(row.cache):
            return fed(row, ids, keep)

    @contextmanager
    def _acting(self, row: Row, enter: bool) -> Iterator[None]:
        """The press on the model. It keeps its state, which some presses reset when they are left.

        Where it leaves the model with another attention function than it found, the row goes on with that one.
        """
        convert(row.cache, self.model.dtype)
        with attending(self.model, row.attention), hiding(row):
            state: list[tuple[object, dict[str, object]]] = []
            with ExitStack() as stack:
                if enter:
                    stack.enter_context(row.press(self.model))
                yield
                if kvpress.decodes(row.press):
                    state = [(part, dict(vars(part))) for part in kvpress.parts(row.press)]
            for part, kept in state:
                vars(part).update(kept)
            row.attention = chosen(self.model)
        convert(row.cache, at_rest(self.model.dtype))


class PressedTogether(MethodRunner):
    """A press on several rows of one length at once, in one cache."""

    def __init__(self, owner: PressRunner) -> None:
        super().__init__(owner.method, owner.loaded)
        self.owner = owner

    def prefill(self, ids: torch.Tensor) -> tuple[Row, torch.Tensor]:
        """As MethodRunner.prefill."""
        return self.owner.prefill_row(ids, PressedBatch)

    def feed(self, cache: Row, ids: torch.Tensor, keep: int = 1) -> torch.Tensor:
        """As MethodRunner.feed."""
        return self.owner.feed_row(cache, ids, keep)


class PressedBatch(Batch):
    """Rows that a press has compressed together. Its cache can change them; what a press keeps beside it cannot."""

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep these rows, in place."""
        self._expect_no_state()
        super().batch_select_indices(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row, in place."""
        self._expect_no_state()
        super().batch_repeat_interleave(repeats)

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Beam search: replace the rows in place."""
        self._expect_no_state()
        super().reorder_cache(beam_idx)

    def reset(self) -> None:
        """Refused: a press has no word for it."""
        raise MethodUnsupported("a press does not say how it is reset", "make a new one")

    def _expect_no_state(self) -> None:
        if self.masks or kvpress.decodes(self.press):
            raise MethodUnsupported(
                "what the press masks or keeps while decoding is by row, and it has no word to change rows",
                "its rows are run one by one",
            )


@contextmanager
def hiding(row: Row) -> Iterator[None]:
    """Show the model what a press has masked in this row, and take back what it masks meanwhile.

    Modules go by their names: a press of kvpress adds modules when it is first entered, which moves their numbers.
    """
    modules = {name: module for name, module in row.model.named_modules() if hasattr(module, "layer_idx")}
    for name, module in modules.items():
        module.masked_key_indices = row.masks.get(name)
    try:
        yield
    finally:
        found = {name: module.masked_key_indices for name, module in modules.items()}
        row.masks = {name: masked for name, masked in found.items() if masked is not None}
        for module in modules.values():
            module.masked_key_indices = None


def convert(cache: DynamicCache, dtype: torch.dtype) -> None:
    """Hold keys and values in another dtype. A view stays a view, so that what it keeps alive still counts."""
    for layer in cache.layers:
        for name in ("keys", "values"):
            held = getattr(layer, name, None)
            if isinstance(held, torch.Tensor) and held.dtype != dtype and held.is_floating_point():
                whole = torch.empty(0, dtype=held.dtype, device=held.device).set_(held.untyped_storage())
                limits = {"min": HALF.min, "max": HALF.max} if dtype == torch.float16 else {"min": None, "max": None}
                fitting = whole.clamp(**limits) if dtype == torch.float16 else whole  # fake keys are larger
                setattr(layer, name, fitting.to(dtype).as_strided(held.shape, held.stride(), held.storage_offset()))


def register(name: str) -> None:
    """Make an attention function known to transformers, with the patch of kvpress that hides masked keys."""
    function = kvpress.patched(weighing if name == WEIGHING else causal)
    AttentionInterface.register(name, function)
    AttentionMaskInterface.register(name, attention.no_mask)


def causal(
    module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *args: object, **kwargs: Any
) -> tuple[torch.Tensor, None]:
    """Attention (B, H, q, d) over K columns, the newest of which are the q new ones: row r sees K - q + r + 1."""
    attention.refuse(kwargs, getattr(module, "layer_idx", 0), key.shape[2])
    if not (softmax := Softmax.of(kwargs)).plain:
        out = kernels.attend_block(query, key, value, kwargs.get("scaling"), softmax)
        return out.transpose(1, 2).contiguous(), None
    mask = None if query.shape[2] in (1, key.shape[2]) else _mask(query, key)
    out = torch.nn.functional.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        is_causal=mask is None and query.shape[2] > 1,
        scale=kwargs.get("scaling"),
        enable_gqa=True,
    )
    return out.transpose(1, 2).contiguous(), None


def weighing(
    module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *args: object, **kwargs: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same, and the weights (B, H, q, K), for presses that look at them."""
    attention.refuse(kwargs, getattr(module, "layer_idx", 0), key.shape[2])
    group = query.shape[1] // key.shape[1]
    keys, values = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
    scaling = kwargs.get("scaling") or query.shape[-1] ** -0.5
    softmax = Softmax.of(kwargs)
    scores = softmax.capped(query @ keys.transpose(2, 3) * scaling).masked_fill(~_mask(query, key), float("-inf"))
    weights = softmax.weights(scores.float()).to(query.dtype)
    return (weights @ values).transpose(1, 2).contiguous(), weights


def _mask(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """(q, K) bool."""
    rows, columns = query.shape[2], key.shape[2]
    return torch.ones(rows, columns, dtype=torch.bool, device=query.device).tril(columns - rows)
