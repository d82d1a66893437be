"""`kvcheck new-method NAME`: a method that works and its test, to go on from. One file is all that a method needs."""

from __future__ import annotations

import argparse
import importlib.util
import keyword
import re
from collections.abc import Iterator
from pathlib import Path

from kvcheck.core.errors import KvcheckError

METHOD = '''"""{title}: keeps the newest tokens of the prompt. Say here what yours does, and from which paper it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from kvcheck import CacheLayer, Lossless, Method, MethodInfo, ModelShape, SpecError


@dataclass(frozen=True)
class {title}(Method):
    """After the prompt, keep its newest `tokens` tokens in every layer and kv head; what is decoded never leaves.

    Errors: SpecError for values out of range.
    """

    info: ClassVar[MethodInfo] = MethodInfo(
        summary="keeps the newest tokens of the prompt",
        stage="compression",
        knob="tokens",
        formula="2·L·B·G·(min(p, tokens) + decoded)·d·2",
        lossless=Lossless.at("tokens=100000"),
    )

    tokens: int = 256

    def __post_init__(self) -> None:
        """Raise SpecError for values out of range."""
        if self.tokens < 1:
            raise SpecError(f"tokens={{self.tokens}} keeps nothing", "give 1 or more")

    def layer(self, shape: ModelShape, index: int) -> CacheLayer:
        """A layer that evicts once, after the prompt."""
        return {title}Layer(shape, index, self)

    def slots(self, shape: ModelShape, prompt: int, decoded: int) -> tuple[int, ...]:
        """Per layer and kv head. It is measured whether they are."""
        return (min(prompt, self.tokens) + decoded,) * shape.layers

    def protected(self, prompt: int) -> frozenset[int]:
        """Positions that every kv head must still hold."""
        return frozenset(range(max(0, prompt - self.tokens), prompt))


class {title}Layer(CacheLayer):
    """Holds the newest tokens."""

    method: {title}

    def compress(self, queries: torch.Tensor) -> None:
        """The prompt is in."""
        first = max(0, self.stored - self.method.tokens)
        self.keep(self.every_head(torch.arange(first, self.stored)))
'''

TEST = '''"""{title} keeps what it says."""

from __future__ import annotations

import pytest
import torch

from kvcheck import ModelShape, Prefilled, SpecError
from {module} import {title}

SHAPE = ModelShape(layers=2, heads=4, kv_heads=2, head_dim=8)


def test_the_newest_tokens_of_the_prompt_are_kept() -> None:
    keys, values = torch.randn(2, 1, 2, 50, 8).half()
    cache = {title}(tokens=12).build(SHAPE)
    cache.absorb([Prefilled(keys, values)] * 2)
    for layer in cache.layers:
        assert layer.positions[0, 1].tolist() == list(range(38, 50))
        assert torch.equal(layer.keys, keys[:, :, 38:])


def test_a_budget_of_nothing_is_refused() -> None:
    with pytest.raises(SpecError, match="tokens=0 keeps nothing"):
        {title}(tokens=0)
'''


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The arguments of the command."""
    new = commands.add_parser("new-method", help="write a method that works and its test, to go on from")
    new.add_argument("name", metavar="NAME", help="in lower case, such as my_method")
    new.set_defaults(run=_new)


def _new(given: argparse.Namespace) -> int:
    for line in write(given.name, Path.cwd()):
        print(line)
    return 0


def write(name: str, folder: Path) -> Iterator[str]:
    """Write both files: among the methods where `folder` is kvcheck's own checkout, else right there.

    Yields what to say. Raises KvcheckError for a name that will not do, and where there is such a file already.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        raise KvcheckError(f"{name!r} is no name for a module", "kvcheck new-method my_method")
    folder, title = folder.resolve(), "".join(part.capitalize() for part in name.split("_"))
    methods = Path(__file__).resolve().parents[1] / "methods"
    ours = methods == folder / "kvcheck" / "methods"
    module, spec = (f"kvcheck.methods.{name}", name) if ours else (name, f"{name}.{title}")
    file = (methods if ours else folder) / f"{name}.py"
    test = folder / "tests" / "methods" / f"test_method_{name}.py" if ours else folder / f"test_{name}.py"
    for path in (file, test):
        if path.exists():
            raise KvcheckError(f"{path.name} is there already", "choose another name: kvcheck new-method my_method")
    if importlib.util.find_spec(module) is not None:
        raise KvcheckError(f"a module {module} can be imported already", "kvcheck new-method my_method")
    method = METHOD.format(title=title) + (f"\n\nMETHOD = {title}\n" if ours else "")
    for path, text in ((file, method), (test, TEST.format(title=title, module=module))):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    yield f"wrote {file.relative_to(folder)} and {test.relative_to(folder)}; next:"
    yield f"  pytest {test.relative_to(folder)}"
    yield f"  python -m pytest --pyargs kvcheck.suites --kv-method={spec} --kv-profile=quick"
    if ours:
        yield f"  pytest --kv-method={spec} --kv-record=new"
        yield "  kvcheck methods --pages docs/methods"
