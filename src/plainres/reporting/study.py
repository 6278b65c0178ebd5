"""The folders of a study: its finished runs by family, their comparisons, and every folder that is of no use."""

import csv
import math
import os
import textwrap
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from plainres.errors import InputError
from plainres.reporting import evidence
from plainres.reporting.comparisons import Comparison, Trend, budgets, comparisons, count, trends
from plainres.reporting.conditions import differing
from plainres.reporting.families import Family, families, labelled, reference
from plainres.reporting.table import ERRORS
from plainres.runs.identity import identity, settings
from plainres.runs.record import Run, folders_of

if TYPE_CHECKING:
    import pandas

SIZES = ("steps", "batch_size", "parameters", "multiply_adds")


@dataclass(frozen=True)
class Study:
    """What the folders of one study, or of several, hold."""

    home: Path  # the folder that takes its report
    families: list[Family]
    comparisons: dict[str, list[Comparison]]  # by heading
    trends: list[Trend]
    unfinished: list[tuple[str, str]]  # folders of runs without a result, and how far they are
    absent: list[tuple[str, str]]  # family and seed, and the depths that have no folder
    unused: list[tuple[str, str]]  # other folders, or those of which something is of no use, and why

    @property
    def runs(self) -> list[tuple[Family, Run]]:
        """The finished runs, family by family."""
        return [(family, run) for family in self.families for by in family.runs.values() for run in by.values()]

    @property
    def results(self) -> "pandas.DataFrame":
        """The records of the finished runs, one a row, as results.csv has them."""
        import pandas as pd

        return pd.DataFrame(evidence.results([(family.label, run) for family, run in self.runs]))

    @property
    def curves(self) -> "pandas.DataFrame":
        """The curves of the finished runs, a row for each epoch, with run, family, depth and seed."""
        import pandas as pd

        rows = [
            {"run": run.name, "family": family.label, "depth": run.config.model["depth"], "seed": run.config.seed} | row
            for family, run in self.runs
            for row in run.curve()
        ]
        return pd.DataFrame(rows).astype({"epoch": int, "step": int})

    @property
    def name(self) -> str:
        """The name of the study; of several, all of them."""
        return self.home.resolve().name

    @property
    def summary(self) -> str:
        """What was counted, as one sentence."""
        depths = sorted({run.config.model["depth"] for _, run in self.runs})
        seeds = sorted({run.config.seed for _, run in self.runs})
        return (
            f"{count(len(self.runs), 'finished run')} of {', '.join(family.label for family in self.families)}; "
            f"depth {', '.join(map(str, depths))}; seed {', '.join(map(str, seeds))}."
        )

    @property
    def fairness(self) -> str:
        """Whether the runs had an equal training budget, the same data and equal conditions."""
        runs = [run for _, run in self.runs]
        different = budgets(runs)
        sentence = f"All runs are at an equal training budget: {different[0]}."
        if len(different) > 1:
            sentence = (
                f"Training budgets differ ({', or '.join(different)}): a comparison across budgets says so and "
                "claims nothing, every other one is at an equal training budget."
            )
        digests: defaultdict[str, set[str]] = defaultdict(set)
        for run in runs:
            digests[str(identity(run.config)["data"])].add(run.result["data_sha256"])
        if any(len(found) > 1 for found in digests.values()):
            sentence += " Runs of one data configuration saw different data: see data_sha256 in results.csv."
        if unequal := differing(runs):
            values = "; ".join(f"{name}: {' or '.join(found)}" for name, found in unequal.items())
            sentence += (
                f" Conditions of training differ ({values}): a comparison across them claims nothing, and a mean over "
                "them is marked 'mixed'."
            )
        return sentence


def results(*folders: Path | str) -> "pandas.DataFrame":
    """Return the records of the finished runs of studies, one a row (see `Study.results`)."""
    return read_study(*folders).results


def curves(*folders: Path | str) -> "pandas.DataFrame":
    """Return the curves of the finished runs of studies, a row for each epoch (see `Study.curves`)."""
    return read_study(*folders).curves


def read_study(*names: Path | str) -> Study:
    """Read and compare the runs in the folders of one or several studies, or of their evidence.

    Args:
        names: the folders.

    Raises:
        InputError: a folder holds no runs, none of them is finished, or two that differ cannot be told apart.
    """
    folders = [Path(name) for name in names]
    home = folders[0] if len(folders) == 1 else folders[0].parent / "+".join(each.resolve().name for each in folders)
    runs, unused = _different([_runs_in(folder) for folder in folders], home)
    labels = labelled(runs)
    finished: list[Run] = []
    unfinished: list[tuple[str, str]] = []
    for run in runs:
        if not run.finished:
            reason = f"failed: {run.failure}" if run.failure else f"not finished: {_progress(run)}"
            unfinished.append((_seen_from(home, run.folder), reason))
            continue
        try:
            _check(run)
            finished.append(run)
        except InputError as error:
            unused.append((_seen_from(home, run.folder), str(error).removeprefix(f"{run.folder}/")))
    where = " and ".join(map(str, folders))
    if not finished:
        others = "; ".join(f"{name}: {reason}" for name, reason in [*unfinished, *unused])
        raise InputError(
            f"{where} has no finished run; repeat the `plainres train` command that started it "
            f"({textwrap.shorten(others, 300, placeholder=' ...')})"
        )
    wanted = reference(finished[0].config)
    if unknown := wanted.keys() - {key for run in finished for key in settings(run.config)}:
        raise InputError(f"report.reference names {', '.join(sorted(unknown))}, which no run of {where} has")
    ordered = sorted(families(finished, labels), key=lambda family: (not family.is_like(wanted), family.label))
    return Study(
        home,
        ordered,
        comparisons(ordered, wanted),
        trends(ordered),
        unfinished,
        _absent(runs, labels),
        sorted(unused),
    )


def _seen_from(home: Path, folder: Path) -> str:
    return os.path.relpath(folder, home)


def _different(
    read: Sequence[tuple[list[Run], list[tuple[Path, str]]]], home: Path
) -> tuple[list[Run], list[tuple[str, str]]]:
    """Return the different runs of several folders, and what of them is of no use."""
    runs: dict[str, Run] = {}
    unused = [(_seen_from(home, path), reason) for _, of_no_use in read for path, reason in of_no_use]
    for run in [run for found, _ in read for run in found]:
        first = runs.setdefault(run.name, run)
        if first is not run:
            reason = f"the same run as {_seen_from(home, first.folder)}"
            if first.finished and run.finished and first.result["weights_sha256"] != run.result["weights_sha256"]:
                reason += ", with another result"
            unused.append((_seen_from(home, run.folder), reason))
    return [*runs.values()], unused


def _runs_in(folder: Path) -> tuple[list[Run], list[tuple[Path, str]]]:
    """Return the different runs in a folder, and the folders that are none or hold a run a second time."""
    if evidence.is_evidence(folder):
        return evidence.read(folder), []
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; give the folder of a study, such as runs/digits")
    if (folder / "config.yaml").exists():
        raise InputError(f"{folder} is a single run; give the folder of its study, {folder.resolve().parent}")
    found: dict[str, list[Run]] = {}
    unused: list[tuple[Path, str]] = []
    for path in folders_of(folder):
        try:
            run = Run.read(path)
            found.setdefault(run.name, []).append(run)
        except InputError as error:
            unused.append((path, str(error).removeprefix(f"{path} is ").removeprefix(f"{path}/")))
    if not found:
        studies = [path.name for path, _ in unused if any(path.glob("*/config.yaml"))]
        if studies:
            raise InputError(f"{folder} holds the studies {', '.join(studies)}: name them, as in {folder / studies[0]}")
        others = f" ({'; '.join(f'{path.name}: {reason}' for path, reason in unused)})" if unused else ""
        raise InputError(f"{folder} holds no runs{others}; `plainres train` makes some, in runs/<study>")
    runs = []
    for name, same in found.items():
        run = next((run for run in same if run.folder.name == name), same[0])
        runs.append(run)
        unused += [(other.folder, f"the same run as {run.folder.name}") for other in same if other is not run]
    return runs, unused


def _check(run: Run) -> None:
    """Raise InputError unless the record of a finished run is whole and its own."""
    result = run.result
    try:
        *recorded, _ = [result[key] for key in ("shortcut", "depth", "seed", "data_sha256")]
        broken = [key for key in (*ERRORS, *SIZES) if not math.isfinite(result[key])]
    except (KeyError, TypeError) as error:
        raise InputError(f"result.json is damaged ({error!r}); delete it and repeat the run") from error
    if broken:
        raise InputError(f"result.json is damaged ({', '.join(broken)} not finite); delete it and repeat the run")
    configured = [run.config.shortcut, run.config.model["depth"], run.config.seed]
    if recorded != configured:
        raise InputError(f"result.json is of the run {recorded}, config.yaml of {configured}")
    steps = _steps_done(run)
    if steps != result["steps"]:
        raise InputError(f"metrics.csv ends at step {steps:g}, result.json at {result['steps']}; repeat the run")


def _steps_done(run: Run) -> float:
    """The last step in metrics.csv, 0 if there is none."""
    try:
        rows = [(row["step"], row["train/error"], row["test/error"]) for row in run.curve()]
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise InputError(f"metrics.csv is damaged ({error!r}); repeat the run") from error
    return rows[-1][0] if rows else 0


def _progress(run: Run) -> str:
    try:
        steps = max(_steps_done(run), run.step)
    except InputError as error:
        return str(error)
    return f"at step {steps:g}" if steps else "not started, or in its first epoch"


def _absent(runs: list[Run], labels: dict[str, tuple[str, dict[str, str]]]) -> list[tuple[str, str]]:
    """Depths and seeds of the study that a family has not even begun."""
    begun = {(labels[run.name][0], run.config.seed, run.config.model["depth"]) for run in runs}
    families, seeds, depths = (sorted({run[i] for run in begun}) for i in range(3))
    return [
        (f"{family}, seed {seed}", f"no run of depth {', '.join(map(str, lacking))}")
        for family in families
        for seed in seeds
        if (lacking := [depth for depth in depths if (family, seed, depth) not in begun])
    ]
