"""KL and bytes of methods along a long answer, as tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from kvcheck.report.table import Code, Table

if TYPE_CHECKING:
    from kvcheck.backends.transformers.along import Stretch

HEAD = """\
<!-- written by `kvcheck along --md`; do not edit -->
# Long answers: KL and bytes along thousands of tokens

Behind a prompt of natural text, the tokens that come next in the text are fed one by one, as an answer is decoded. KL
is from the full cache, which reads the same tokens, in nats per token, mean over each stretch. Bytes are keys and
values (host memory counted in) at the end of each stretch, as a share of the full cache's: of a method that compresses
the prompt alone the share grows, of one that evicts while decoding it falls.
"""


def tables(found: Mapping[str, Sequence[Stretch]], ends: Sequence[int]) -> Iterator[Table]:
    """KL, then bytes. found: by spec. ends: where stretches end."""
    starts = (1, *(end + 1 for end in ends[:-1]))
    stretches = [f"{start:,} to {end:,}" for start, end in zip(starts, ends, strict=True)]
    align = "<" + ">" * len(ends)
    rows = [(Code(spec), *(f"{one.kl:.4f}" for one in each)) for spec, each in found.items()]
    yield Table(("KL in tokens", *stretches), align, rows)
    rows = [(Code(spec), *(f"{one.bytes:.2f}" for one in each)) for spec, each in found.items()]
    yield Table(("bytes after tokens", *(f"{end:,}" for end in ends)), align, rows)


def text(found: Mapping[str, Sequence[Stretch]], ends: Sequence[int]) -> Iterator[str]:
    """Lines for a terminal."""
    for table in tables(found, ends):
        yield from table.text()
        yield ""


def markdown(found: Mapping[str, Sequence[Stretch]], ends: Sequence[int], how: str) -> Iterator[str]:
    """Lines of Markdown. how: model, prompt and command."""
    yield HEAD
    yield how
    yield ""
    for table in tables(found, ends):
        yield from table.markdown()
