"""Runs a page of the documentation word by word, in an empty folder.

    python .ci/words.py PAGE FOLDER [SECTION]

The code blocks of the page, or of one of its sections, are taken in order. Those without a language are typed into one
bash; `text` shows output, and is passed over; any other is written to the file that the text above it names last
(`my_cache.py`). A block of commands ends with status 0, unless the text between it and the next block says that the
`exit status is N`. What is not as said ends the run with 1.

One thing is replaced: `git clone https://github.com/kvcheck/kvcheck` gives this checkout, since a change that is tried
here is not there yet.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
CLONE = "git clone https://github.com/kvcheck/kvcheck"
BLOCK = re.compile(r"^( *)```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"`([\w./-]+\.\w+)`")
STATUS = re.compile(r"exit\s+status\s+is\s+(\d+)")


class Block(NamedTuple):
    """language: "" for commands. before, after: the text up to the blocks around it."""

    language: str
    text: str
    before: str
    after: str

    @property
    def script(self) -> str:
        """Bash that does what a reader does with it, and stops where the outcome is not the one that is said."""
        if self.language:
            names = FILE.findall(self.before)
            if not names:
                raise SystemExit(f"no file is named above this block:\n{self.text}")
            return f"printf %s {shlex.quote(self.text)} > {names[-1]}\n"
        said = STATUS.search(self.after)
        wanted = said.group(1) if said else "0"
        lines = self.text.replace(CLONE, f"ln -s {shlex.quote(str(ROOT))} kvcheck")
        shown = "".join(f"echo {shlex.quote('$ ' + line)}\n" for line in self.text.splitlines())
        return (
            f"failed=\n{shown}trap 'failed=${{failed:-$?}}' ERR\n{lines}last=$?\ntrap - ERR\n"
            f"status=${{failed:-$last}}\n[ $status = {wanted} ] || "
            f'{{ echo "words.py: exit status $status, and the page says {wanted}"; exit 1; }}\n'
        )


def section(page: str, title: str) -> str:
    """The part of a page under a heading of the second level."""
    parts = re.split(r"^## (.*)\n", page, flags=re.MULTILINE)
    found = dict(zip(parts[1::2], parts[2::2], strict=True))
    if title not in found:
        raise SystemExit(f"no section {title!r}; there are {', '.join(found)}")
    return found[title]


def blocks(text: str) -> list[Block]:
    """The code blocks, with the indent of a list taken away."""
    found = list(BLOCK.finditer(text))
    ends = [0, *(each.end() for each in found)]
    starts = [*(each.start() for each in found), len(text)]
    between = [text[end:start] for end, start in zip(ends, starts, strict=True)]
    every = [
        Block(each[2], re.sub(f"^{each[1]}", "", each[3], flags=re.MULTILINE), before, after)
        for each, before, after in zip(found, between, between[1:], strict=False)
    ]
    return [block for block in every if block.language != "text"]


def main(page: str, folder: str, title: str = "") -> int:
    """Run the page. 0: everything was as it says."""
    text = Path(page).read_text("utf-8")
    found = blocks(section(text, title) if title else text)
    if not any(not block.language for block in found):
        raise SystemExit(f"{page} has no commands")
    Path(folder).mkdir(parents=True)
    leave = ("CI", "GITHUB_STEP_SUMMARY", "PYTEST_ADDOPTS", "PYTHONPATH")
    environ = {name: value for name, value in os.environ.items() if name not in leave}
    script = "".join(block.script for block in found) + "echo words.py: all as the page says\n"
    script = f"trap 'kill $(jobs -p) 2>/dev/null || true' EXIT\n{script}"  # servers that a page has started
    return subprocess.run(["bash", "-uc", script], cwd=folder, env=environ, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
