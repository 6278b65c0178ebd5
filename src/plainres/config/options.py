"""The options that can be chosen from conf/, and from a user's own --config-dir, for help and messages."""

from collections.abc import Iterator
from functools import cached_property
from importlib.resources import files
from pathlib import Path

from hydra._internal.config_repository import ConfigRepository
from hydra._internal.utils import create_config_search_path
from hydra.core.object_type import ObjectType

CONF = "plainres.conf"
HELP = """\
plainres train [OVERRIDES]: train one network, or a whole study.

  plainres train model.depth=20 model/shortcut=plain        one run
  plainres train -m model.depth=8,20,56 seed=0,1,2          a sweep: every combination
  plainres train experiment=digits                          a study with its axes ready
  plainres train --cfg job                                  show the whole configuration, train nothing
  plainres train --hydra-help                               Hydra's own options

Options (group=option)
{groups}

Studies (experiment=study)
{studies}

Every value of the configuration is an override too: path.to.key=value, as in optim.lr=0.05.
"""


class Options:
    """The groups of conf/ and their options.

    Args:
        config_dir: a folder that adds to conf/, as of --config-dir.
    """

    def __init__(self, config_dir: str | None = None) -> None:
        self.config_dir = config_dir

    @cached_property
    def _repository(self) -> ConfigRepository:
        path = create_config_search_path(f"pkg://{CONF}")
        if self.config_dir:
            path.prepend("command-line", f"file://{Path(self.config_dir).absolute()}")
        return ConfigRepository(path)

    def of(self, group: str) -> list[str]:
        """Return the options of a group, in alphabetical order."""
        return self._repository.get_group_options(group, ObjectType.CONFIG)

    def groups(self, parent: str = "") -> Iterator[str]:
        """Yield the groups with options, Hydra's own left out."""
        for name in self._repository.get_group_options(parent, ObjectType.GROUP):
            group = f"{parent}/{name}".lstrip("/")
            if group == "hydra":
                continue
            if self.of(group):
                yield group
            yield from self.groups(group)

    def header(self, group: str, option: str) -> str:
        """Return the first sentence that an option's file says about itself, "" if it says nothing."""
        places = [Path(self.config_dir)] if self.config_dir else []
        for folder in [*places, files(CONF)]:
            file = folder.joinpath(group, f"{option}.yaml")
            if file.is_file():
                lines = file.read_text(encoding="utf-8").splitlines()
                comments = [line.removeprefix("#").strip() for line in lines if line.startswith("#")]
                return next((line for line in comments if not line.startswith("@package")), "")
        return ""

    def help(self) -> str:
        """Return the help of `plainres train`."""
        groups = [f"  {group}: {', '.join(self.of(group))}" for group in self.groups() if group != "experiment"]
        studies = [f"  {study:<26}{self.header('experiment', study)}" for study in self.of("experiment")]
        return HELP.format(groups="\n".join(groups), studies="\n".join(studies))
