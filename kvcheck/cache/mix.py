"""The layout of MixAttention: which layer makes keys and values, which layer reads whose, and who sees a window."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch

from kvcheck.core.errors import SpecError

FILE = "mix.json"


@dataclass(frozen=True)
class Layout:
    """kinds: per layer the producer whose keys and values it reads, "s" behind it for a sliding window: "0s", "1", "1",
    "0s". window: W, tokens that a sliding layer sees, the newest one among them.
    """

    kinds: tuple[str, ...]
    window: int

    def __post_init__(self) -> None:
        """Raise SpecError where a layer reads a later layer, one that makes nothing, or one of the other kind."""
        for index in range(len(self.kinds)):
            producer = self.producer(index)
            if producer > index or self.producer(producer) != producer or self.slides(producer) != self.slides(index):
                raise SpecError(
                    f"layer {index} cannot read layer {producer} in the layout {' '.join(self.kinds)}",
                    "a layer reads itself or an earlier one that reads itself, of the same kind: 0s 1 1 0s",
                )
        if self.window < 1:
            raise SpecError(f"a window of {self.window} tokens", "give 1 or more")

    def producer(self, index: int) -> int:
        """The layer whose keys and values layer `index` reads."""
        return int(self.kinds[index].rstrip("s"))

    def slides(self, index: int) -> bool:
        """Whether layer `index` sees a window only."""
        return self.kinds[index].endswith("s")

    def makes(self, index: int) -> bool:
        """Whether layer `index` makes keys and values of its own."""
        return self.producer(index) == index

    def last_reader(self, index: int) -> int:
        """The last layer that reads what layer `index` reads."""
        return max(at for at in range(len(self.kinds)) if self.producer(at) == self.producer(index))

    @classmethod
    def read(cls, folder: Path) -> Layout:
        """From mix.json in a folder of weights. Raises SpecError."""
        try:
            found = json.loads((folder / FILE).read_text("utf-8"))
            return cls(tuple(str(kind) for kind in found["layers"]), int(found["window"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SpecError(
                f"no layout of MixAttention in {folder / FILE}: {error}", "give the folder of its weights"
            ) from error

    def write(self, folder: Path) -> None:
        """As mix.json."""
        text = json.dumps({"layers": list(self.kinds), "window": self.window}, indent=1)
        (folder / FILE).write_text(text + "\n", encoding="utf-8")


def visible(rows: int, columns: int, window: int | None, device: torch.device) -> torch.Tensor:
    """(q, c) bool: which of c consecutive columns each of the newest q tokens sees. No window: all earlier ones."""
    row = torch.arange(columns - rows, columns, device=device).unsqueeze(1)
    column = torch.arange(columns, device=device)
    seen = column <= row
    return seen if window is None else seen & (column > row - window)  # without a matrix of distances
