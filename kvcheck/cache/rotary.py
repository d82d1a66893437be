"""Rotary position embedding in transformers' half-split layout: channel c turns with channel c + d/2.

A rotation is undone by the rotation to the negative position: R_a R_b = R_(a+b).
"""

from __future__ import annotations

from functools import lru_cache

import torch


def rotate(states: torch.Tensor, positions: torch.Tensor, rope: tuple[float, ...]) -> torch.Tensor:
    """Turn states (..., n, d) from position 0 to `positions`, computed in float32, in the dtype of states.

    positions: integers that broadcast against (..., n). rope: the d/2 inverse frequencies (ModelShape.rope).
    """
    angles = positions.unsqueeze(-1).float() * _frequencies(rope, states.device)
    cos, sin = angles.cos(), angles.sin()
    low, high = states.float().chunk(2, dim=-1)
    return torch.cat([low * cos - high * sin, high * cos + low * sin], dim=-1).to(states.dtype)


@lru_cache(maxsize=16)
def _frequencies(rope: tuple[float, ...], device: torch.device) -> torch.Tensor:
    """On the device, once: every copy from the host is waited for."""
    with torch.inference_mode(False):
        return torch.tensor(rope, dtype=torch.float32, device=device)


def unrotate(states: torch.Tensor, positions: torch.Tensor, rope: tuple[float, ...]) -> torch.Tensor:
    """Turn states (..., n, d) at `positions` back to position 0."""
    return rotate(states, -positions, rope)
