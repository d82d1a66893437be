"""The first function of a source text, found by tree-sitter as RepoQA finds it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from importlib import import_module
from typing import TYPE_CHECKING

from kvcheck.core.errors import SpecError, did_you_mean

if TYPE_CHECKING:
    from tree_sitter import Node, Parser

LANGUAGES = {
    "python": "function_definition",
    "java": "method_declaration",
    "typescript": "function_declaration",
    "rust": "function_item",
    "cpp": "function_definition",
    "go": "function_declaration",
}
"""What tree-sitter's grammar of a language calls a function. The languages of RepoQA."""


def first_function(source: str, language: str) -> str | None:
    """The text of the first function by where it begins, without decorators; None where there is none.

    Text that does not parse is searched too, as far as tree-sitter makes sense of it. Raises SpecError for a language
    that RepoQA does not have, or whose grammar is not installed.
    """
    text = source.encode("utf-8")
    for node in _walk(_parser(language).parse(text).root_node):
        if _is_function(node, language):
            return text[node.start_byte : node.end_byte].decode("utf-8")
    return None


def _walk(node: Node) -> Iterator[Node]:
    """The nodes of a tree, each before what is inside it."""
    todo = [node]
    while todo:
        node = todo.pop()
        yield node
        todo.extend(reversed(node.children))


def _is_function(node: Node, language: str) -> bool:
    """Whether the node is a function with a name; in C++ a free one, whose declarator is a plain identifier."""
    if node.type != LANGUAGES[language]:
        return False
    if language != "cpp":
        return node.child_by_field_name("name") is not None
    declarator = node.child_by_field_name("declarator")
    if declarator is None or declarator.type != "function_declarator":
        return False
    name = declarator.child_by_field_name("declarator")
    return name is not None and name.type == "identifier"


@lru_cache
def _parser(language: str) -> Parser:
    if language not in LANGUAGES:
        raise SpecError(f"repoqa: unknown language {language!r}", did_you_mean(language, LANGUAGES))
    try:
        from tree_sitter import Language, Parser

        grammar = import_module(f"tree_sitter_{language}")
    except ImportError as error:
        raise SpecError(
            f"repoqa grades {language} by its grammar: {error}", "pip install 'kvcheck[benchmarks]'"
        ) from error
    return Parser(Language(getattr(grammar, "language_typescript" if language == "typescript" else "language")()))
