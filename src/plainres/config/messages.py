"""Errors of Hydra, OmegaConf and YAML as one line that names what is allowed."""

from collections.abc import Callable, Sequence
from typing import Any, get_args, get_type_hints

from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    ConfigTypeError,
    OmegaConfBaseException,
    ValidationError,
)
from yaml import YAMLError
from yaml.reader import ReaderError

from plainres.config.options import GLOBAL, Options
from plainres.config.overrides import parse
from plainres.config.schema import in_words
from plainres.config.suggestions import keys_of, similar_options, suggestion
from plainres.errors import InputError, first_line

RESUME = "; run the same command again, without it, to resume"


def one_line(
    error: Exception, arguments: Sequence[str], options: Options, default_keys: Callable[[], Sequence[str]]
) -> str:
    """Return the message of an error that was raised during composition.

    Args:
        error: the error.
        arguments: the words of the command line.
        options: the options of conf/ and of the user.
        default_keys: returns the keys of the default configuration.
    """
    if isinstance(error, YAMLError | UnicodeDecodeError):
        return _of_yaml(error, arguments, options)
    if isinstance(error, MissingConfigException):
        if not error.options:  # for an option in a list of options
            error.options = options.of(str(error.missing_cfg_file).rpartition("/")[0])
        if error.options:
            return _missing_option(str(error.missing_cfg_file), error.options, has_own=bool(options.config_dir))
    if isinstance(error, ConfigCompositionException) and str(error).startswith("In '"):
        name = str(error).split("'")[1]
        return f"{options.file(name)}{_in_file(name, error.__context__ or error, options, default_keys)}"
    if isinstance(error, HydraException | OmegaConfBaseException):
        return _of_override(error, arguments, options, default_keys)
    return f"{' '.join(arguments)}: {_sentences(error)}"


def _of_yaml(error: YAMLError | UnicodeDecodeError, arguments: Sequence[str], options: Options) -> str:
    """Describe a YAML file that cannot be read."""
    if isinstance(error, UnicodeDecodeError):
        return f"{options.undecodable(arguments) or ' '.join(arguments)} is not UTF-8; save it in this encoding"
    if isinstance(error, ReaderError):
        return f"{error.name}: {error.reason} (at character {error.position})"
    mark = getattr(error, "problem_mark", None)
    advice = "; indent with spaces, not with tabs" if "'\\t'" in str(error) else ""
    return f"{mark.name}, {first_line(error)}{advice}" if mark else f"{' '.join(arguments)}: {_sentences(error)}"


def _missing_option(file: str, names: Sequence[str], *, has_own: bool) -> str:
    group, _, option = file.rpartition("/")
    if group == "hydra/launcher":
        return (
            f"{group}={option}: there is no such launcher; there are {', '.join(names)}; others come with "
            "their plugins, slurm with pip install 'plainres[slurm]'"
        )
    close = similar_options(option, names)
    guess = f"did you mean {' or '.join(f'{group}={name}' for name in close)}? There" if close else "there"
    own = "" if has_own else "; --config-dir=FOLDER adds those of your own"
    return f"{group}={option}: there is no such option; {guess} are {', '.join(names)}{own}"


def _in_file(name: str, cause: Any, options: Options, default_keys: Callable[[], Sequence[str]]) -> str:
    """Describe an error in a YAML file, as the rest of a sentence that begins with the file's name."""
    if name.startswith("experiment/") and not options.is_global(name):
        marked = ", but begins with a byte order mark; save it as UTF-8 without one" if options.has_bom(name) else ""
        return f" must begin with the line `{GLOBAL}`{marked}"
    if isinstance(cause, ConfigAttributeError | ConfigKeyError):
        return f": {unknown_option(str(cause.full_key), None, default_keys(), options)}"
    if isinstance(cause, ValidationError) and cause.object_type is not None:
        return f": {_must_be(cause)}"
    if isinstance(cause, ConfigTypeError):
        return " must contain keys and values"
    reason = _sentences(cause).removeprefix(f"In '{name}': ")
    absent = reason.partition("Could not find 'experiment/")[2].rstrip("'")
    advice = f"; `override /{absent.replace('/', ': ')}` chooses an option of another group" if absent else ""
    return f": {reason}{advice}"


def _of_override(
    error: Exception, arguments: Sequence[str], options: Options, default_keys: Callable[[], Sequence[str]]
) -> str:
    """Describe an error in an override."""
    if isinstance(error, OverrideParseException):  # of a sweep in a YAML file; others were parsed before
        try:
            parse(error.override)
        except InputError as problem:
            return str(problem)
    if "Ambiguous value" in str(error):
        override = str(error).splitlines()[0].partition("'")[2].rpartition("'")[0]
        return f"{override} lists several values: add -m for a run with each of them, or give one value"
    cause = error.__cause__
    if isinstance(cause, ConfigAttributeError | ConfigKeyError) and isinstance(cause.parent_node, DictConfig):
        key = str(cause.full_key)
        keys = keys_of(cause.parent_node._get_root())  # pyright: ignore[reportArgumentType]
        siblings = [str(name) for name in cause.parent_node if not is_internal(str(name))]
        return unknown_option(key, value_of(key, arguments), keys, options, siblings)
    deletion = next((word for word in arguments if word.startswith("~") and word.lstrip("~") in str(error)), "")
    if deletion and "does not exist" in str(error):
        return unknown_option(deletion.lstrip("~").partition("=")[0], None, default_keys(), options)
    if deletion:
        return f"{deletion}: it cannot be removed; set another value, {deletion.lstrip('~').partition('=')[0]}=VALUE"
    parts = [_sentences(error).removeprefix("Error merging override ")]
    if "appears more than once" in parts[0]:
        parts[0] += "; in defaults, `override /GROUP: OPTION` chooses another option of a group"
    if isinstance(cause, ValidationError) and cause.object_type is not None:
        parts.append(_must_be(cause))
    elif isinstance(cause, OmegaConfBaseException):
        parts.append(_sentences(cause))
    return ": ".join(part for part in parts if part)


def unknown_option(
    key: str, value: str | None, keys: Sequence[str], options: Options, siblings: Sequence[str] = ()
) -> str:
    """Say that an option does not exist, and which ones were meant or exist beside it.

    Args:
        key: dotted path or group.
        value: its value, None if it is not known.
        keys: dotted paths of the configuration.
        options: the options of conf/ and of the user.
        siblings: the names in the same node; by default those in `keys`.
    """
    groups = list(options.groups())
    group, _, rest = key.partition(".")
    probe = rest.partition(".")[0]
    if group == "probes" and probe in options.of(group):
        return f"there is no option {key}; choose the probe as well, as in 'probes=[{probe}]'"
    known = [each for each in keys if each != key]
    guess = RESUME if key == "resume" else suggestion(key, value, known, groups)
    if "/" in key:
        return f"there is no group {key}" + (guess or f"; the groups are {', '.join(groups)}")
    parent, _, name = key.rpartition(".")
    siblings = siblings or [
        each.rpartition(".")[2] for each in known if each.rpartition(".")[0] == parent and not is_internal(each)
    ]
    others = [each for each in siblings if each != name]
    return f"there is no option {key}" + (guess or (f"; there are {', '.join(others)}" if others else ""))


def is_internal(key: str) -> bool:
    """Whether a key is not meant to be overridden."""
    return key.startswith("_") or key in ("hydra", "options", "weights_sha256")


def value_of(key: str, arguments: Sequence[str]) -> str | None:
    """Return the value that the command line gives to a key or group, None if it is not given there."""
    overrides = [word.lstrip("+~").partition("=") for word in arguments if "=" in word]
    return next((value for name, _, value in overrides if name == key), None)


def _must_be(cause: ValidationError) -> str:
    hint = (
        get_args(cause.ref_type)[0] if cause.object_type is list else get_type_hints(cause.object_type)[str(cause.key)]  # pyright: ignore[reportArgumentType]
    )
    return f"{cause.full_key} must be {in_words(hint)}"


def _sentences(error: Any) -> str:
    """Return the sentences of a message without its advice and its indented details."""
    advice = (" ", "\t", "To append", "See http", "Set the env", "Config search path")
    return " ".join(line.strip() for line in str(error).splitlines() if line.strip() and not line.startswith(advice))
