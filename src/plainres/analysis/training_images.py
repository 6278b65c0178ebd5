"""Agreement of the images that a network is evaluated on with those of its training."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plainres.analysis.predictions import Origin
from plainres.config.instantiate import source_of
from plainres.config.schema import Config
from plainres.console import say
from plainres.data.sources import AnySplit, Images
from plainres.errors import InputError
from plainres.runs.agreement import data_of
from plainres.runs.identity import identity

LISTED = 3  # classes that a message names


@dataclass(frozen=True)
class TrainingImages:
    """Record of the images that a network was trained on, as far as it is known.

    Args:
        network: folder of its run, or its file, for messages.
        images: the images of the training, for messages.
        data: the part of its configuration that chose them, None if it is not known.
        config: configuration of its training, with its images where they lie now; None if it is not known.
        data_sha256: digest of all its images and targets; None if it is not known.
        class_names: names of its classes in the order of its outputs; None if they have numbers only, or are not known.
    """

    network: Path
    images: str
    data: Mapping[str, Any] | None
    config: Config | None
    data_sha256: str | None
    class_names: Sequence[str] | None

    def are_those_of(self, config: Config) -> bool:
        """Whether a configuration chooses the images of the training, wherever they lie."""
        return self.config is not None and identity(config)["data"] == identity(self.config)["data"]

    def origin(self, config: Config, images: Images[AnySplit], step: int | None) -> Origin:
        """Return what predictions of the network on the test images of a configuration are of."""
        own = self.are_those_of(config) and self.config is not None and config.precision == self.config.precision
        data = identity(config)["data"]
        return Origin(self.network.name, step, data, images.sha256(), config.precision, own=own)

    def check(self, config: Config, images: Images[AnySplit]) -> None:
        """Check that images were not seen in the training, and that their classes are numbered as there.

        Images that the training chose are compared by their digest. Where the training drew its test images from an
        undivided data set, they are compared even if only a part of them is evaluated: one image more would have drawn
        others.

        Args:
            config: configuration of the evaluation.
            images: its images.

        Raises:
            InputError: the images have changed since the training, or a class has another number than there.
        """
        if self.are_those_of(config):
            self._compare(config, images.sha256())
        elif self.config is not None and self._is_divided_for(config):
            self._compare(self.config, source_of(self.config).load().sha256())
        if self.class_names is not None and images.classes is not None:
            self._check_classes(images.classes)

    def _is_divided_for(self, config: Config) -> bool:
        """Whether the training drew its test images from images among which may be those of a configuration."""
        return (
            self.data is not None and self.data.get("test_share") is not None and have_one_place(self.data, config.data)
        )

    def _compare(self, config: Config, sha256: str) -> None:
        if self.data_sha256 not in (None, sha256):
            raise InputError(
                f"{self.network} was trained on other images ({self.images}, digest {self.data_sha256[:8]}) than these "
                f"({data_of(config)}, digest {sha256[:8]}), so its test images are not known; restore those, or give "
                "a test set of its own under another data.name"
            )

    def _check_classes(self, names: Sequence[str]) -> None:
        """Compare the names of the classes with those of the training.

        Raises:
            InputError: a class has another number.
        """
        assert self.class_names is not None
        numbers = {name: number for number, name in enumerate(self.class_names)}
        if moved := [name for number, name in enumerate(names) if numbers.get(name, number) != number]:
            name = moved[0]
            raise InputError(
                f"class {name} has the number {list(names).index(name)} in these images, but {numbers[name]} in the "
                f"training of {self.network}; number or name the classes as there"
            )
        if unknown := [name for name in names if name not in numbers]:
            shown = ", ".join(f"{list(names).index(name)} ({name})" for name in unknown[:LISTED])
            say(
                f"{self.network} was trained without class{'es' * (len(unknown) > 1)} {shown}"
                f"{', ...' * (len(unknown) > LISTED)}; predictions are compared by number"
            )


def have_one_place(data: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two configurations of images have a name or a path in common, so that they may be the same images."""
    places = [
        {str(Path(str(each[key])).expanduser().resolve()) for key in ("name", "path") if each.get(key) is not None}
        for each in (data, other)
    ]
    return bool(places[0] & places[1])
