"""Turn what goes wrong inside a method into MethodFailed, with the method and the case named."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from kvcheck.core.errors import KvcheckError, MethodFailed

NAN = re.compile(r"layer (\d+):.*NaN")
TRACED = "the traceback above names the line"


@dataclass(frozen=True)
class Guard:
    """Who is running where: the method's spec and the case (or "latency at 2048 tokens")."""

    method: str
    where: str

    @contextmanager
    def __call__(self, doing: str) -> Iterator[None]:
        """Run code of the method; an exception that is not ours becomes MethodFailed, chained to its cause."""
        try:
            yield
        except KvcheckError:
            raise
        except torch.OutOfMemoryError as error:
            raise MethodFailed(
                f"{self.method} ran out of device memory while {doing} in {self.where}: {error}",
                "shorter lengths and smaller batches take less; where the free memory is in pieces, "
                "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True",
            ) from error
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".rstrip(": ")
            raise MethodFailed(f"{self.method} raised while {doing} in {self.where}: {reason}", TRACED) from error

    def pick(self, logits: torch.Tensor) -> list[int]:
        """The most likely token of each row of logits (R, V). Raises MethodFailed for NaN and infinities."""
        tokens = logits.argmax(-1)
        best = logits.gather(-1, tokens[:, None])[:, 0]
        if not bool(torch.isfinite(best).all()):
            raise MethodFailed(
                f"{self.method} made the logits NaN or infinite in {self.where}",
                "an empty cache, an overflow in 16 bits, or a division by zero are the usual causes",
            )
        return tokens.tolist()

    def fail(self, problems: Sequence[str]) -> None:
        """Raise MethodFailed with the list where there are problems."""
        if problems:
            listed = "".join(f"\n  - {problem}" for problem in problems)
            layers = sorted({int(found[1]) for one in problems if (found := NAN.search(one))})
            what = f"holds NaN in {_ranges(layers)}" if layers else "broke its own claims"
            raise MethodFailed(f"{self.method} {what} in {self.where}:{listed}")


def _ranges(layers: Sequence[int]) -> str:
    """Layers in ascending order as text.

    >>> _ranges([0, 1, 2, 5])
    'layers 0-2, 5'
    """
    runs = [[one, one] for one in layers[:1]]
    for one in layers[1:]:
        runs[-1:] = [[runs[-1][0], one]] if one == runs[-1][1] + 1 else [runs[-1], [one, one]]
    listed = ", ".join(f"{first}-{last}" if last > first else f"{first}" for first, last in runs)
    return f"layer{'s' * (len(layers) > 1)} {listed}"
