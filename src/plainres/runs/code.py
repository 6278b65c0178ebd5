"""Code that trains a run: that of plainres, and the user's own classes.

Code is compared by digests of its syntax trees without docstrings, so that comments and layout do not count.
"""

import ast
import hashlib
import importlib.util
import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from plainres.config.schema import Config
from plainres.errors import InputError

TRAINING_CODE = (
    "arithmetic.py",
    "config/instantiate.py",
    "config/schema.py",
    "data",
    "models",
    "training",
    "randomness.py",
)
RECORDED = ("plainres", "torch")  # packages whose versions and digests are part of every result
PACKAGE = Path(__file__).parent.parent


@cache
def git_commit() -> str | None:
    """Return the commit of this code's checkout, with "-dirty" if files were changed, or None without a checkout."""
    file = Path(__file__)
    # GIT_DIR, which git sets for its hooks, names another repository
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    call = partial(subprocess.run, capture_output=True, text=True, check=True, cwd=file.parent, env=environment)
    try:
        # an installed copy may be inside the checkout of another project
        call(["git", "ls-files", "--error-unmatch", file.name])
        return call(["git", "describe", "--always", "--dirty", "--abbrev=40", "--match="]).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


@cache
def source_sha256() -> str:
    """Return a digest of the code of plainres that affects a result.

    Two commits or changed checkouts with the same digest train alike.
    """
    files = []
    for part in TRAINING_CODE:
        files += sorted([PACKAGE / part] if part.endswith(".py") else (PACKAGE / part).rglob("*.py"))
    return _digest({file.relative_to(PACKAGE).as_posix(): file for file in files})


def code_of(config: Config) -> dict[str, Any]:
    """Return the version, commit and digest of plainres, and the digests of the user's own classes of a run."""
    return {
        "plainres": version("plainres"),
        "git_commit": git_commit(),
        "source_sha256": source_sha256(),
        "classes": own_classes(config),
    }


def own_classes(config: Config) -> dict[str, str]:
    """Return the digests of `own_classes_in` for a configuration."""
    return own_classes_in([config.model, config.data, config.probes])


def own_classes_in(node: Any) -> dict[str, str]:
    """Return a digest of the source of each class or function that a node names, except those of plainres and torch.

    It covers the module of the class and the modules that it imports, except installed packages. A class whose source
    is not found, such as a compiled one, is left out.
    """
    digests = {}
    for target in sorted(set(_targets(node))):
        if target.partition(".")[0] not in RECORDED and (files := _modules(target)):
            digests[target] = _digest(files)
    return digests


_imported_as: dict[
    str, tuple[Any, str]
] = {}  # each module of the user's that this process has met, and its digest then


def remember_imported(config: Config) -> None:
    """Remember with which digests this process has imported the modules of the user's own classes, or is about to."""
    for module, digest in _modules_of(config).items():
        # a module that is imported again, or reloaded, has another spec
        spec = getattr(sys.modules.get(module), "__spec__", None)
        before, earlier = _imported_as.get(module, (None, digest))
        if before is None and spec is not None:  # imported since
            _imported_as[module] = spec, earlier
        elif before is not spec or spec is None:
            _imported_as[module] = spec, digest


def check_imported(config: Config) -> None:
    """Check that no module of the user's own was edited after this process had imported it, as in a notebook.

    The code that was imported would train, while its record had the digest of the other one.

    Raises:
        InputError: the source of a module is not as it was when `remember_imported` met it.
    """
    remember_imported(config)
    for module, digest in _modules_of(config).items():
        if (before := _imported_as[module][1]) != digest:
            raise InputError(
                f"the source of {module} has changed since this process imported it (digest {before[:8]}, now "
                f"{digest[:8]}); start Python again"
            )


def _modules_of(config: Config) -> dict[str, str]:
    """Return a digest of the source of each module of `own_classes`."""
    files: dict[str, Path] = {}
    for target in set(_targets([config.model, config.data, config.probes])):
        if target.partition(".")[0] not in RECORDED:
            files |= _modules(target)
    return {module: _digest({module: file}) for module, file in files.items()}


def _targets(node: Any) -> Iterator[str]:
    """Yield every `_target_` in a node of the configuration."""
    if isinstance(node, Mapping):
        if "_target_" in node:
            yield str(node["_target_"])
        node = list(node.values())
    if isinstance(node, Sequence) and not isinstance(node, str):
        for part in node:
            yield from _targets(part)


def _modules(target: str) -> dict[str, Path]:
    """Return the files of the module of a class, and of the user's modules that it imports, by module name."""
    packages = target.split(".")[:-1]
    names = [".".join(packages[:length]) for length in range(len(packages), 0, -1)]
    name = next((name for name in names if _file(name)), None)
    found: dict[str, Path] = {}
    waiting = [name] if name else []
    while waiting:
        name = waiting.pop()
        file = _file(name)
        if file is None or name in found or (found and _installed(file)):
            continue
        found[name] = file
        waiting += _imports_of(name, file)
    return found


def _file(module: str) -> Path | None:
    """Return the source file of a module, None if it has none."""
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, AttributeError, ValueError):
        return None
    return Path(spec.origin) if spec and spec.origin and spec.origin.endswith(".py") else None


def _installed(file: Path) -> bool:
    """Whether a file belongs to Python, to an installed package or to plainres."""
    paths = sysconfig.get_paths()
    folders = [PACKAGE, *(Path(paths[key]) for key in ("stdlib", "platstdlib", "purelib", "platlib"))]
    return any(file.is_relative_to(folder) for folder in folders)


def _imports_of(module: str, file: Path) -> Iterator[str]:
    """Yield the names of the modules that a module imports, of their packages, and of what may be modules."""
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            source = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                source = ".".join([*parents, source]).strip(".")
            names = [source, *(f"{source}.{alias.name}" for alias in node.names)]
        else:
            continue
        for words in [name.split(".") for name in names]:
            if words[0] not in sys.stdlib_module_names:
                yield from (".".join(words[:length]) for length in range(1, len(words) + 1))


def _digest(files: Mapping[str, Path]) -> str:
    """Return a digest of the names and the code of files."""
    digest = hashlib.sha256()
    for name, file in sorted(files.items()):
        tree = ast.parse(file.read_bytes())
        for node in ast.walk(tree):
            documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            if documented and ast.get_docstring(node, clean=False) is not None:
                del node.body[0]
        digest.update(f"{name}\n{_structure(tree)}\n".encode())
    return digest.hexdigest()


def _structure(node: Any) -> Any:
    """Return a syntax tree as nested lists, without empty fields, which depend on the version of Python."""
    if isinstance(node, ast.AST):
        return [
            type(node).__name__,
            *([name, _structure(value)] for name, value in ast.iter_fields(node) if value is not None and value != []),
        ]
    return [_structure(part) for part in node] if isinstance(node, list) else repr(node)
