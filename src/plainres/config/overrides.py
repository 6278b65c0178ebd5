"""Overrides as they are typed: texts that look like numbers, and words that Hydra's grammar rejects."""

import shlex
import unicodedata
from collections.abc import Sequence
from dataclasses import fields
from functools import cache

from hydra.conf import HydraConf
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override
from hydra.errors import HydraException

from plainres.errors import InputError, first_line

# values that are texts, whatever they look like; Hydra would read 1e3 as 1000.0 and 2024_01_15 as 20240115
TEXTS = ("study", "runs", "logger.project", "logger.entity", "data.path", "data.cache")
NULLABLE = ("logger.entity", "data.path")
UNQUOTED = frozenset("_/-\\+.$%*@?|:,=()[]{}'\" \t")  # characters besides ASCII letters and digits
FOLDERS = ("run", "sweep", "output_subdir")  # options of Hydra, `hydra.*`, for the folders of its own output
IN_NAMES = frozenset("_/-.$@:+~")
CLOSING = {"[": "]", "(": ")", "{": "}"}
TYPOGRAPHIC = "\u201c\u201d\u201e\u201f\u2018\u2019\u201a\u201b\u00ab\u00bb"  # quotes
DASHES = "\u2010\u2011\u2012\u2013\u2014\u2015\u2212"


def parse(word: str) -> Override:
    """Parse an override.

    Raises:
        InputError: the word is not in Hydra's grammar. The message names the character and says how to quote it.
    """
    try:
        return _parser().parse_override(word)
    except Exception as error:  # of Hydra, or of the library that parses for it
        raise InputError(f"{word}: {_problem(word, error)}") from error


def as_typed(word: str) -> str:
    """Quote the values of an override that are texts but look like a number, true, false or null."""
    name, _, value = word.partition("=")
    key = name.lstrip("+")
    if key not in TEXTS:
        return word
    parts = [part.strip() for part in value.split(",")]
    quoted = []
    for part in parts:
        try:
            parsed = _parser().parse_override(f"{key}={part}").value()
        except Exception:  # a quoted comma, a bracket or a function: Hydra reads the whole word
            return word
        changed = isinstance(parsed, int | float) or (parsed is None and key not in NULLABLE)  # int includes bool
        quoted.append(f"'{part}'" if changed else part)
    return word if quoted == parts else f"{name}={','.join(quoted)}"


def check_word(word: str, previous: str, following: str) -> None:
    """Check that a word of the command line is an override.

    Args:
        word: the word.
        previous: the word before it, "" if there is none.
        following: the word after it, "" if there is none.

    Raises:
        InputError: it is not.
    """
    if "=" in word or word.startswith("~"):
        return
    if word[:1] and word[0] in DASHES:
        flag = word.lstrip(DASHES)
        hyphens = "-" if len(flag) == 1 else "--"
        raise InputError(f"{word!r} begins with an {_name(word[0])}, not with a hyphen; write {hyphens}{flag}")
    if "=" in previous and (previous.endswith((",", "=")) or word.startswith(",")):
        raise InputError(f"{previous!r} and {word!r} are separate words; write {previous}{word} without spaces")
    if following.startswith("="):
        raise InputError(f"{word!r} and {following!r} are separate words; write {word}=VALUE without spaces")
    raise InputError(
        f"{word!r} is not an override; write group=option or path.to.key=value, "
        "as in experiment=digits or model.depth=56"
    )


@cache
def _parser() -> OverridesParser:
    return OverridesParser.create()


def _problem(word: str, error: Exception) -> str:
    """Say what is wrong with a word that the grammar rejects, and how to write it."""
    name, _, value = word.partition("=")
    if name != name.strip():
        return f"there must be no space around the name; write {shlex.quote(f'{name.strip()}={value}')}"
    if odd := next((each for each in name if not _is_plain(each, IN_NAMES)), ""):
        return f"the name of no option contains {_shown(odd)}"
    bare = _outside_quotes(value)
    if odd := next((each for each in bare if not _is_plain(each, UNQUOTED)), ""):
        return _about_character(odd, name, value)
    if left := _unclosed(bare):
        return f"{left} has no partner; add it, or quote the value, as in {_quoted(name, value)}"
    if bare.rstrip().endswith(","):
        return f"it ends with a comma; write {name}={value.rstrip(', ')}"
    reason = f" ({first_line(error)})" if isinstance(error, HydraException) else ""
    return f"the value cannot be read{reason}; quote it, as in {_quoted(name, value)}"


def _about_character(odd: str, name: str, value: str) -> str:
    """Say how to write a value with a character that the grammar rejects."""
    quoted = _quoted(name, value)
    if odd in TYPOGRAPHIC:
        straight = value.translate(dict.fromkeys(map(ord, TYPOGRAPHIC)))
        return f"{odd} is a typographic quote; write straight ones, as in {_quoted(name, straight)}"
    if odd in DASHES:
        hyphenated = value.translate(dict.fromkeys(map(ord, DASHES), "-"))
        return f"{odd} is an {_name(odd)}, not a hyphen; write {name}={hyphenated}, or quote it, as in {quoted}"
    if not odd.isprintable() or odd.isspace():
        return f"it contains a {_name(odd)}; type a space instead, or quote the value, as in {quoted}"
    if value.startswith("~/"):
        return f"~ is not expanded here; write {name}=$HOME{value[1:]}"
    return f"{odd} must be quoted, as in {quoted}"


def _is_plain(character: str, others: frozenset[str]) -> bool:
    return (character.isascii() and character.isalnum()) or character in others


def _quoted(name: str, value: str) -> str:
    """Return an override with a quoted value, as it is typed in a shell."""
    quote = "'" if '"' in value and "'" not in value else '"'
    escaped = value.replace(quote, f"\\{quote}")
    return shlex.quote(f"{name}={quote}{escaped}{quote}")


def _outside_quotes(value: str) -> str:
    """Return the part of a value that is outside straight quotes."""
    bare, closing = "", ""
    for character in value:
        if closing:
            closing = "" if character == closing else closing
        elif character in "'\"":
            closing = character
        else:
            bare += character
    return bare


def _unclosed(bare: str) -> str:
    """Return the first bracket without its partner, "" if there is none."""
    opened: list[str] = []
    for character in bare:
        if character in CLOSING:
            opened.append(character)
        elif character in CLOSING.values() and not (opened and CLOSING[opened.pop()] == character):
            return character
    return opened[-1] if opened else ""


def _shown(character: str) -> str:
    return character if character.isprintable() and not character.isspace() else f"a {_name(character)}"


def _name(character: str) -> str:
    """Return the Unicode name and number of a character, such as en dash (U+2013)."""
    return f"{unicodedata.name(character, 'control character').lower()} (U+{ord(character):04X})"


def check_hydra(override: Override) -> None:
    """Check that an override is none of the options of Hydra that are ignored: added ones, and those of its folders.

    Raises:
        InputError: it is.
    """
    added = override.is_add() or override.is_force_add()
    root, _, rest = override.key_or_group.partition(".")
    if root == "hydra" and rest.partition(".")[0] in FOLDERS:
        raise InputError(f"{override.key_or_group} has no effect; runs are kept in runs=FOLDER, by study and name")
    names = [*(each.name for each in fields(HydraConf)), "env"]
    if added and root == "hydra" and rest.partition(".")[0] not in names:
        raise InputError(f"there is no option {override.key_or_group}; there are {', '.join(names)}")


def check_choice(override: Override) -> None:
    """Check that a function such as choice(a, b) has no text that looks like a number, which Hydra would convert.

    Raises:
        InputError: it has one, quoted or not.
    """
    key, chosen = override.get_key_element(), override.value()
    if not isinstance(chosen, ChoiceSweep) or chosen.simple_form:
        return
    if changed := [each for each in chosen.list if as_typed(f"{key}={each}") != f"{key}={each}"]:
        raise InputError(f"{override.input_line}: {changed[0]} is read as a number; list the values, as in {key}=A,B")


def check_list(override: Override, groups: Sequence[str], lists: Sequence[str]) -> None:
    """Check that an override chooses one option of a group, unless the group takes a list.

    Args:
        override: the override.
        groups: groups of options.
        lists: the groups that take a list.

    Raises:
        InputError: it chooses several.
    """
    group, value = override.key_or_group, override.value()
    if group in groups and group not in lists and isinstance(value, list):
        each = ",".join(map(str, value))
        sweep = f"-m {group}={each} trains a run with each" if len(value) > 1 else f"write {group}={each}"
        raise InputError(f"{override.input_line}: {group} takes one option, not a list; {sweep}")
