"""Groups and options of conf/ and of a user's own --config-dir, for `plainres list` and for error messages."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from importlib.resources import files
from pathlib import Path

from hydra._internal.config_repository import ConfigRepository
from hydra._internal.utils import create_config_search_path
from hydra.core.object_type import ObjectType
from hydra.core.plugins import Plugins
from omegaconf import DictConfig, OmegaConf

from plainres.config.suggestions import similar_names
from plainres.console import aligned
from plainres.errors import InputError

CONF = "plainres.conf"
GLOBAL = "# @package _global_"  # first line of an experiment
LAUNCHERS = "hydra/launcher"  # the only one of Hydra's own groups to choose from
BOM = b"\xef\xbb\xbf"


class Options:
    """The groups of conf/ and their options.

    Args:
        config_dir: folder whose options are added to those of conf/, as given by --config-dir.
    """

    def __init__(self, config_dir: str | None = None) -> None:
        self.config_dir = config_dir

    @cached_property
    def _repository(self) -> ConfigRepository:
        Plugins.instance()  # which store the launchers of installed plugins
        path = create_config_search_path(f"pkg://{CONF}")
        if self.config_dir:
            path.prepend("command-line", f"file://{Path(self.config_dir).absolute()}")
        return ConfigRepository(path)

    def of(self, group: str) -> list[str]:
        """Return the options of a group in alphabetical order."""
        return self._repository.get_group_options(group, ObjectType.CONFIG)

    def groups(self, parent: str = "") -> Iterator[str]:
        """Yield the groups that have options; of Hydra's own, only that of the launchers."""
        for name in self._repository.get_group_options(parent, ObjectType.GROUP):
            group = f"{parent}/{name}".lstrip("/")
            if self.of(group) and (group.partition("/")[0] != "hydra" or group == LAUNCHERS):
                yield group
            yield from self.groups(group)

    def file(self, name: str) -> Path:
        """Return the file of an option, such as experiment/digits, for messages."""
        own = Path(self.config_dir or ".") / f"{name}.yaml"
        return own if self.config_dir and own.is_file() else Path("conf") / f"{name}.yaml"

    def is_global(self, name: str) -> bool:
        """Whether the file of an option begins with the line of an experiment; True without a file."""
        file = self.file(name)
        return not file.is_file() or file.read_text(encoding="utf-8").startswith(GLOBAL)

    def has_bom(self, name: str) -> bool:
        """Whether the file of an option begins with a byte order mark."""
        file = self.file(name)
        return file.is_file() and file.read_bytes().startswith(BOM)

    def check_study(self, name: str, study: str) -> None:
        """Check that the name of a study is not what YAML reads as a number, which would change 1e3 to 1000.0.

        Args:
            name: the option, such as experiment/digits, whose file may name the study.
            study: the name in use, which may be another one.

        Raises:
            InputError: it is.
        """
        loaded = self._repository.load_config(name)
        keys = "study", "hydra.sweeper.params.study"
        written = [OmegaConf.select(loaded.config, key) for key in keys] if loaded else []
        if any(isinstance(each, int | float) and str(each) == study for each in written):
            raise InputError(f"{self.file(name)}: YAML reads the name of the study as {study}; write it in quotes")

    def check_shortcut(self, name: str, target: str) -> None:
        """Check that a shortcut is of the class in the file of its option, after which runs and reports name it.

        Args:
            name: the option of model/shortcut.
            target: import path of the class in use.

        Raises:
            InputError: it is not.
        """
        loaded = self._repository.load_config(f"model/shortcut/{name}")
        declared = OmegaConf.select(loaded.config, "_target_") if loaded else None
        if declared is not None and declared != target:
            raise InputError(
                f"model.shortcut._target_ is {target}, but that of model/shortcut={name} is {declared}, and the run "
                f"would be called {name}; choose the option of your class, or write one, NAME.yaml in model/shortcut "
                "of --config-dir"
            )

    def undecodable(self, arguments: Sequence[str]) -> Path | None:
        """Return the first of the user's files that is not UTF-8, None if all are. Named files come first."""
        files = sorted(Path(self.config_dir).rglob("*.yaml")) if self.config_dir else []
        for file in sorted(files, key=lambda file: not any(file.stem in word for word in arguments)):
            try:
                file.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                return file
        return None

    def header(self, group: str, option: str) -> str:
        """Return the first line of the comment at the top of an option's YAML file, "" if there is none.

        The path of the file itself, and a package, do not count. An option without a file, a launcher, has the name of
        its plugin.
        """
        folders = [Path(self.config_dir)] if self.config_dir else []
        for folder in [*folders, files(CONF)]:
            file = folder.joinpath(group, f"{option}.yaml")
            if file.is_file():
                lines = file.read_text(encoding="utf-8").splitlines()
                comments = [line.removeprefix("#").strip() for line in lines if line.startswith("#")]
                none = "@package", f"conf/{group}/{option}.yaml"
                return next((line for line in comments if not line.startswith(none)), "")
        if option == "basic":
            return "plainres itself, on this machine."
        loaded = self._repository.load_config(f"{group}/{option}")
        target = str(loaded.config.get("_target_", "")) if loaded and isinstance(loaded.config, DictConfig) else ""
        return f"The plugin {target.split('.')[1]}." if target.startswith("hydra_plugins.") else ""

    def table(self, group: str | None = None, width: int | None = None) -> str:
        """Return each option of a group, or of every group, with its description.

        Args:
            group: the group (default: all).
            width: maximum length of a line (default: any).

        Raises:
            InputError: the group does not exist.
        """
        groups = list(self.groups())
        if group is not None and group not in groups:
            close = [f"`plainres list {name}`" for name in similar_names(group, [], groups)]
            advice = (
                f"did you mean {' or '.join(close)}?"
                if close
                else f"the groups are {', '.join(groups)}; list one with its whole name, as in "
                "`plainres list model/shortcut`"
            )
            raise InputError(f"there is no group {group!r}; {advice}")
        blocks = []
        for name in [group] if group else groups:
            rows = [(option, self.header(name, option)) for option in self.of(name)]
            blocks.append("\n".join([name, *aligned(rows, indent="  ", width=width)]))
        return "\n\n".join(blocks)
