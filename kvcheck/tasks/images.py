"""Images as plain data: made by a generator, shown by a model that can see. No torch, no image files."""

from __future__ import annotations

from dataclasses import dataclass

from kvcheck.core.record import prompt_digest

Colour = tuple[int, int, int]
"""Red, green and blue, 0 to 255 each."""

MARK = "\u2460kvcheck-image\u2460"
"""Stands in a context where an image is shown. An encoder puts the slots of one image in its place."""

WHITE: Colour = (255, 255, 255)
BLACK: Colour = (0, 0, 0)
SIDE = 32
GROUP = 8
FONT = (
    "111101101101111", "010110010010111", "111001111100111", "111001111001111", "101101111001001",
    "111100111001111", "111100111101111", "111001001010010", "111101111101111", "111101111001111",
)  # fmt: skip
"""The ten digits, three cells wide and five high, row by row."""


@dataclass(frozen=True)
class Image:
    """A square picture. cells: rows of colours from the top left; a model enlarges them to the pixels that it takes."""

    cells: tuple[tuple[Colour, ...], ...]

    @property
    def digest(self) -> str:
        """Identifies what is seen."""
        return prompt_digest(*(str(row) for row in self.cells))


def plate(number: str, field: Colour) -> Image:
    """A number of eight digits, black on white along the top of a plain field.

    Every two digits have a block of GROUP x GROUP cells of their own, so that a tower with patches of an eighth of the
    side, or of any whole part of that, never sees halves of two digits as one.
    """
    cells = [[WHITE if row < GROUP else field for _ in range(SIDE)] for row in range(SIDE)]
    for at, digit in enumerate(number):
        left = at // 2 * GROUP + at % 2 * 4
        for place, ink in enumerate(FONT[int(digit)]):
            if ink == "1":
                cells[1 + place // 3][left + place % 3] = BLACK
    return Image(tuple(tuple(row) for row in cells))
