"""The project's English: openings and phrases that no docstring, comment, message or page uses."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

from support.places import ROOT

OPENINGS = re.compile(r"\s*(What|Which|How|Where|Nothing|There is one|Be that|Those|Such)\b")
PHRASES = re.compile(
    r"\b(goes on|go on|went on|going on|(is|are|be) told|(is|are) said|for ever|(its|the|their) like|becomes? of|"
    r"comes? to (its|an) end|so many)\b"
)
CODE = sorted(file for folder in ("src", "tests", "experiments") for file in (ROOT / folder).rglob("*.py"))
PROSE = sorted(
    file
    for pattern in ("*.md", "docs/**/*.md", "experiments/**/*.md", "conf/**/*.yaml", "src/**/*.html", "src/**/*.js")
    for file in ROOT.glob(pattern)
)


def docstrings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and text of every docstring."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node, clean=False)
            if text is not None:
                yield node.body[0].lineno, text


def texts(source: str) -> Iterator[tuple[int, str]]:
    """Line and text of every comment and string, docstrings and messages among them."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in (tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", -1)):
            yield token.start[0], token.string


def named(file: Path) -> str:
    return str(file.relative_to(ROOT))


def test_docstrings_open_with_a_verb_or_a_noun() -> None:
    wrong = [
        f"{named(file)}:{line}: {text.strip().splitlines()[0]}"
        for file in CODE
        for line, text in docstrings(ast.parse(file.read_text()))
        if OPENINGS.match(text)
    ]
    assert not wrong, "\n".join(wrong)


def test_comments_and_messages_avoid_these_phrases() -> None:
    wrong = [
        f"{named(file)}:{line}: {match[0]!r}"
        for file in CODE
        if file != Path(__file__)
        for line, text in texts(file.read_text())
        for match in PHRASES.finditer(text)
    ]
    assert not wrong, "\n".join(wrong)


def test_pages_avoid_these_phrases() -> None:
    wrong = [
        f"{named(file)}:{number}: {match[0]!r}"
        for file in PROSE
        for number, line in enumerate(file.read_text().splitlines(), 1)
        for match in PHRASES.finditer(line)
    ]
    assert not wrong, "\n".join(wrong)


def test_the_phrases_are_found() -> None:
    assert OPENINGS.match("What a run is.")
    assert not OPENINGS.match("Whether a run is finished.")
    assert PHRASES.search("the same command goes on")
    assert not PHRASES.search("an algorithm of the kind")
