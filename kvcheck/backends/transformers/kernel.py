"""`--kv-attention`: which kernel of torch's scaled_dot_product_attention reads the cache, in every layer and method.

The attention of a method is its own; what can be chosen is the kernel that it runs on. With `auto` torch chooses one
for each call; on CUDA, cuDNN's is among them for long prompts alone.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from kvcheck.cache import kernels
from kvcheck.core.errors import SpecError
from kvcheck.core.front import option
from kvcheck.core.settings import KERNELS
from kvcheck.models import LoadedModel

ROWS = {"a prompt": (16, 16), "a follow-up behind a prompt": (4, 16), "a decoded token": (1, 16)}
"""(new tokens, all tokens) of what a kernel must serve."""
LONG = 1024
"""New tokens from which on cuDNN's kernel may be chosen on CUDA. It makes a plan for every shape that it meets, 2 ms of
the CPU on an H200: with a cache that grows, every layer of every decoded token would wait for one."""
QUICK = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""The kernels that need no plan."""


def use(name: str, loaded: LoadedModel) -> None:
    """Let every forward of the model use this kernel; "auto" leaves the choice to torch, but for QUICK.

    Raises SpecError for one that this device, dtype or model cannot have.
    """
    if name == "auto":
        if loaded.device.type == "cuda":
            _around(loaded.model, lambda ids: nullcontext() if ids.shape[-1] >= LONG else sdpa_kernel(QUICK))
        return
    if loaded.shape.latent or not getattr(loaded.model, "_supports_sdpa", True):
        raise SpecError(
            f"{option('attention')}={name}: torch has no such kernel for {type(loaded.model).__name__}, whose "
            "attention has soft caps, sinks or latents",
            f"{option('attention')}=auto",
        )
    for what, sizes in ROWS.items():
        problem = _refusal(name, loaded, *sizes)
        if problem:
            served = [each for each in KERNELS if not any(_refusal(each, loaded, *one) for one in ROWS.values())]
            raise SpecError(
                f"{option('attention')}={name}: torch has no such kernel for {what} of {loaded.name} on "
                f"{loaded.device} in {str(loaded.model.dtype).removeprefix('torch.')}",
                f"{option('attention')}=auto, or {' or '.join(served)}",
            )
    _around(loaded.model, lambda _: _only(name))


def _around(model: torch.nn.Module, context: Callable[[torch.Tensor], AbstractContextManager[None]]) -> None:
    """Run every forward of a model within the context for its token ids (R, q)."""
    entered: list[AbstractContextManager[None]] = []

    def enter(_: object, args: tuple[torch.Tensor, ...], given: dict[str, torch.Tensor]) -> None:
        entered.append(context(given["input_ids"] if "input_ids" in given else args[0]))
        entered[-1].__enter__()

    def leave(*_: object) -> None:
        if entered:  # a hook before `enter` may have raised
            entered.pop().__exit__(None, None, None)

    model.register_forward_pre_hook(enter, with_kwargs=True)
    model.register_forward_hook(leave, always_call=True)


def _only(name: str) -> AbstractContextManager[None]:
    """A context in which torch has this kernel alone."""
    return sdpa_kernel(getattr(SDPBackend, KERNELS[name]))


def _refusal(name: str, loaded: LoadedModel, rows: int, columns: int) -> str:
    """Why a kernel does not run as a layer of the model calls it, "" where it does."""
    shape = loaded.shape
    like = torch.zeros(0, device=loaded.device, dtype=loaded.model.dtype)
    query = like.new_zeros(1, shape.heads, rows, shape.head_dim)
    keys, values = (like.new_zeros(1, shape.kv_heads, columns, shape.head_dim) for _ in "kv")
    try:
        with torch.inference_mode(), _only(name):
            kernels.attend_block(query, keys, values, None)
    except RuntimeError as error:
        return str(error)
    return ""
