"""Foreign text made harmless where it leaves.

What methods, answers, prompts, specs, models and files say is data. In a log, a terminal or a summary it could also be
a command (escape sequences, GitHub's `::error::` and `##[group]`) or markup (HTML, Markdown). `plain` is for logs and
terminals, `markdown` and `code` are for Markdown, `seen` is for HTML, `json_text` for JSON, where nothing is lost.
Ordinary text of any language shows as it is.
"""

from __future__ import annotations

import re

_UNSEEN = r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
"""Controls (not tab and newline), separators of lines, marks that turn the direction of text, halves of characters."""

_LOG = re.compile(rf"{_UNSEEN}|(?m:^)(?P<before>[^\S\n]*):(?=:)|#(?=#\[)")
"""What must not be in a log; a runner takes `::` for a command behind blanks at the start of a line, `##[` anywhere."""

_MARKUP = re.compile(r"[\\`*<>&|~$\[\]@]|(?<!\w)_|_(?!\w)|:(?=//)|(?<=www)\.", re.IGNORECASE)
"""What is markup in the middle of a line of Markdown, and what makes a link or calls somebody."""


def plain(text: object) -> str:
    r"""A text for logs and terminals, its own line breaks kept: what is not to be seen is written as in Python.

    >>> print(plain("\x1b[31mred\r\n::error::über\n 漢字 a::b ##[group]"))
    \x1b[31mred\r
    \x3a:error::über
     漢字 a::b \x23#[group]
    """
    return _LOG.sub(_written, str(text))


def _written(found: re.Match[str]) -> str:
    before = found["before"] or ""
    char = found[0][len(before) :]
    return before + (f"\\x{ord(char):02x}" if char in ":#" else char.encode("unicode_escape").decode("ascii"))


def seen(text: object) -> str:
    r"""A text for a template of HTML, which escapes the markup: what is not to be seen is written as in Python.

    >>> print(seen("a\u202eb ::error::"))
    a\u202eb ::error::
    """
    return re.sub(_UNSEEN, lambda found: found[0].encode("unicode_escape").decode("ascii"), str(text))


def markdown(text: object) -> str:
    """A text within a line of Markdown, also within a table, that shows as it is.

    >>> markdown("a|b <script> streaming_llm"), markdown("[x](http://y)")
    ('a&#124;b &#60;script&#62; streaming_llm', '&#91;x&#93;(http&#58;//y)')
    """
    return _MARKUP.sub(lambda found: f"&#{ord(found[0])};", _one_line(text))


def code(text: object) -> str:
    """The same as a code span, where names are shown and nobody is called; nothing for an empty text.

    >>> code("kivi:bits=4"), code("a`b")
    ('`kivi:bits=4`', '<code>a&#96;b</code>')
    """
    line = _one_line(text)
    return (f"<code>{markdown(line)}</code>" if "`" in line or "|" in line else f"`{line}`") if line else ""


def _one_line(text: object) -> str:
    return " ".join(plain(text).split())


def json_text(text: str) -> str:
    """JSON text with what is not to be seen in the escapes of JSON: it reads back the same, and can be encoded."""
    return re.sub(_UNSEEN, lambda found: f"\\u{ord(found[0]):04x}", text)
