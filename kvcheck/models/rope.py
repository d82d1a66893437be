"""Another RoPE than the model's own: `--kv-rope=yarn:factor=4`. Put into the configuration before the model is loaded.

It is part of what the model is: its fingerprint covers it, and its name says it ("Qwen/Qwen2.5-7B@yarn:factor=4"), so
that its records never meet those of the model as it is.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from kvcheck.core.errors import MethodUnsupported, SpecError, did_you_mean
from kvcheck.core.front import option
from kvcheck.core.spec import Spec

if TYPE_CHECKING:
    import torch

    from kvcheck.models.pretrained import Config, RotaryEmbedding

KINDS = ("default", "dynamic", "linear", "llama3", "yarn")
"""Those of transformers that numbers describe; longrope has a list of factors per channel."""
SHORT = {"theta": "rope_theta", "original": "original_max_position_embeddings"}
WHOLE = ("original_max_position_embeddings",)
KEYS = (
    "factor", "theta", "original", "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate",
    "low_freq_factor", "high_freq_factor", "partial_rotary_factor",
)  # fmt: skip
"""What some kind takes; which one takes what, transformers knows."""
_LOGGER = "transformers.modeling_rope_utils"
_THETA = "{'rope_theta'}"
"""The end of a warning of transformers 5.2, which does not recognize the theta of a dynamic RoPE."""


def parse(text: str) -> tuple[str, dict[str, float]]:
    """(kind, parameters by the names of transformers). Raises SpecError."""
    spec = Spec.parse(text)
    if spec.name not in KINDS or spec.then is not None:
        raise SpecError(f"unknown RoPE {text!r}", f"{did_you_mean(spec.name, KINDS)}; such as yarn:factor=4")
    found: dict[str, float] = {}
    for key, value in spec.params:
        if key not in KEYS and key not in SHORT.values():
            raise SpecError(f"RoPE {text!r}: unknown key {key!r}", did_you_mean(key, KEYS))
        if not isinstance(value, (int, float)) or not math.isfinite(value):
            raise SpecError(f"RoPE {text!r}: {key}={value!r} is not a number", "such as yarn:factor=4")
        name = SHORT.get(key, key)
        if name in WHOLE and value != int(value):
            raise SpecError(f"RoPE {text!r}: {key}={value!r} is not a whole number", "such as original=4096")
        found[name] = value if isinstance(value, bool) else int(value) if name in WHOLE else float(value)
    return spec.name, found


def canonical(text: str) -> str:
    """The same RoPE in the same words. Raises SpecError.

    >>> canonical("yarn:original=4096,factor=4.0")
    'yarn:factor=4,original=4096'
    """
    kind, found = parse(text)
    long = {name: short for short, name in SHORT.items()}
    words = sorted(f"{long.get(name, name)}={_number(value)}" for name, value in found.items())
    return kind + ":" * bool(words) + ",".join(words)


def _number(value: float | bool) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return str(int(value)) if value == int(value) else repr(value)


def override(name: str, config: Config, text: str) -> int:
    """Put the RoPE into a transformers config, in place -> the longest text that it is made for, in tokens.

    That is the original length times the factor, which is 1 for default; for llama3 no less than what the config says.
    Raises MethodUnsupported for a model without one RoPE for all layers, SpecError for what
    transformers' validation refuses or warns of.
    """
    kind, found = parse(text)
    config = config.get_text_config()
    own = getattr(config, "rope_parameters", None)
    if not own or "rope_theta" not in own:
        raise MethodUnsupported(
            f"model {name!r} ({config.model_type}) has no RoPE that is the same in all layers",
            f"leave {option('rope')} out",
        )
    before = int(config.max_position_embeddings)
    original = int(found.get(WHOLE[0]) or own.get(WHOLE[0]) or before)
    kept = {key: own[key] for key in ("rope_theta", "partial_rotary_factor") if key in own}
    if kind in ("yarn", "llama3"):
        kept[WHOLE[0]] = original
    config.rope_parameters = {**kept, **found, "rope_type": kind}
    limit = int(original * found.get("factor", 1))
    if kind == "llama3":
        limit = max(before, limit)
    config.max_position_embeddings = original if kind == "dynamic" else limit  # dynamic: from there frequencies grow
    with _strict(text):
        config.validate_rope()
    return limit


@contextmanager
def _strict(text: str) -> Iterator[None]:
    """Turn what transformers raises and warns of into SpecError."""
    said: list[str] = []
    handler, logger = logging.Handler(), logging.getLogger(_LOGGER)
    handler.addFilter(lambda record: not record.getMessage().endswith(_THETA))
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    level, passes = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING)
    logger.propagate = False
    try:
        yield
    except (KeyError, ValueError, TypeError) as error:
        said.append(str(error.args[0] if error.args else error))
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = passes
    if said:
        raise SpecError(
            f"RoPE {text!r}: {'; '.join(said)}", "such as yarn:factor=4, linear:factor=2 or default:theta=1e6"
        )


def steady(model: torch.nn.Module) -> None:
    """Let a dynamic RoPE depend on the text alone: transformers keeps the frequencies of the longest text so far."""
    from kvcheck.models.rotary import rotaries

    def reset(module: RotaryEmbedding, *_: object) -> None:
        module.max_seq_len_cached = module.original_max_seq_len
        module.inv_freq = module.original_inv_freq.to(module.inv_freq.device)

    for each in rotaries(model):
        if getattr(each, "rope_type", None) == "dynamic":
            each.register_forward_pre_hook(reset)
