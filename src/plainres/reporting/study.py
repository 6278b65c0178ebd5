"""Reading of a study: its finished runs by family, their comparisons, and its unusable folders."""

import csv
import math
import os
import textwrap
from collections import defaultdict
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plainres.console import quantity
from plainres.errors import InputError
from plainres.reporting import evidence
from plainres.reporting.comparisons import Comparison, Trend, budgets, comparisons, trends
from plainres.reporting.conditions import differing, edited_classes
from plainres.reporting.families import Family, families, labelled, references
from plainres.reporting.table import ERRORS, VALIDATED
from plainres.reporting.tuned import Tuned, read_tuned
from plainres.runs.identity import identity, settings
from plainres.runs.record import Run, State, folders_of

if TYPE_CHECKING:
    import pandas

SIZES = ("steps", "batch_size", "parameters", "multiply_adds")


@dataclass(frozen=True)
class Study:
    """Runs of one study, or of several studies, and their comparisons."""

    home: Path  # the folder in which the report is written
    families: list[Family]
    comparisons: dict[str, list[Comparison]]  # by heading
    trends: list[Trend]
    unfinished: list[tuple[str, str]]  # folder, state and progress of each run without a result
    absent: list[tuple[str, str]]  # family and seed, and the depths without a folder
    unused: list[tuple[str, str]]  # folders that are unusable, in whole or in part, and the reason
    diverged: list[Run]
    tuned: Tuned | None  # the chosen values of an option, if one was tuned
    references: list[dict[str, Any]]  # settings of the reference family; runs may differ in them, and the first count

    @property
    def reference(self) -> dict[str, Any]:
        """Settings of the families that the others are compared with."""
        return self.references[0]

    @property
    def runs(self) -> list[tuple[Family, Run]]:
        """Finished runs with their families, in the order of the families."""
        return [(family, run) for family in self.families for by in family.runs.values() for run in by.values()]

    @property
    def recorded(self) -> list[tuple[str, Run]]:
        """Finished runs, each once, with the labels of its families, and those among which values were chosen."""
        labels: dict[str, list[str]] = {}
        runs = {}
        candidates = [each for each in (self.tuned.candidates if self.tuned else ()) if each[1].finished]
        for label, run in [*((family.label, run) for family, run in self.runs), *candidates]:
            runs[run.name] = run
            labels.setdefault(run.name, []).append(label)
        return [("; ".join(labels[name]), run) for name, run in runs.items()]

    @property
    def results(self) -> "pandas.DataFrame":
        """Results of the finished runs, one row per run, as in results.csv."""
        import pandas as pd

        return pd.DataFrame(evidence.results(self.recorded))

    @property
    def curves(self) -> "pandas.DataFrame":
        """Curves of the finished runs, one row per epoch, with run, family, depth and seed."""
        import pandas as pd

        rows = [
            {"run": run.name, "family": label, "depth": run.config.model["depth"], "seed": run.config.seed} | row
            for label, run in self.recorded
            for row in run.curve()
        ]
        return pd.DataFrame(rows).astype({"epoch": int, "step": int})

    @property
    def name(self) -> str:
        """Name of the study, or the names of several studies joined by "+"."""
        return self.home.resolve().name

    @property
    def studies(self) -> list[str]:
        """Names of the studies, which are the groups of their runs in W&B."""
        return [*dict.fromkeys(run.config.study for _, run in self.runs)]

    @property
    def summary(self) -> str:
        """Sentence with the number of finished runs, the families, the depths and the seeds."""
        depths = sorted({run.config.model["depth"] for _, run in self.runs})
        seeds = sorted({run.config.seed for _, run in self.runs})
        return (
            f"{quantity(len(self.recorded), 'finished run')}: {', '.join(family.label for family in self.families)}; "
            f"{_listed('depth', depths)}; {_listed('seed', seeds)}."
        )

    @property
    def fairness(self) -> str:
        """Sentences on whether the runs share a training budget, their data and their training conditions."""
        runs, recorded = [run for _, run in self.runs], [run for _, run in self.recorded]
        distinct = budgets(runs)
        sentences = (
            f"{'Training budget' if len(runs) == 1 else 'All runs have the same training budget'}: {distinct[0]}."
        )
        if len(distinct) > 1:
            sentences = (
                f"Training budgets differ ({', or '.join(distinct)}). Comparisons across budgets are marked and claim "
                "nothing; the others compare equal budgets."
            )
        digests: defaultdict[str, set[str]] = defaultdict(set)
        for run in recorded:
            digests[str(identity(run.config)["data"])].add(run.result["data_sha256"])
        if any(len(of_config) > 1 for of_config in digests.values()):
            sentences += " Runs with the same data configuration saw different data; see data_sha256 in results.csv."
        if unequal := differing(recorded):
            conditions = "; ".join(f"{name}: {' or '.join(values)}" for name, values in unequal.items())
            sentences += (
                f" Conditions of training differ ({conditions}). A comparison within which they differ for one seed "
                "claims nothing, and means over them are marked 'mixed'."
            )
        chosen_among = {run.folder for _, run in self.tuned.candidates} if self.tuned else set[Path]()
        if lost := [run.config for run in self.diverged if run.folder not in chosen_among]:
            listed = "; ".join(f"{each.shortcut}, depth {each.model['depth']}, seed {each.seed}" for each in lost)
            sentences += (
                f" {quantity(len(lost), 'run')} diverged ({listed}): means and comparisons are of the other seeds."
            )
        if len(self.references) > 1:
            named = "; ".join(" ".join(f"{key}={value}" for key, value in each.items()) for each in self.references)
            sentences += (
                f" Runs name different baselines ({named}). The first is used here, as the first run names it; run the "
                "`plainres train` command of the others again with its report.reference, or name its study first."
            )
        return sentences


def results(*folders: Path | str) -> "pandas.DataFrame":
    """Return the results of the finished runs of studies, one row per run (see `Study.results`)."""
    return read_study(*folders).results


def curves(*folders: Path | str) -> "pandas.DataFrame":
    """Return the curves of the finished runs of studies, one row per epoch (see `Study.curves`)."""
    return read_study(*folders).curves


def _listed(noun: str, values: Sequence[int]) -> str:
    return f"{noun}{'s' * (len(values) > 1)} {', '.join(map(str, values))}"


def read_study(*names: Path | str) -> Study:
    """Read and compare the runs of one or several studies.

    Args:
        names: folders of studies, or of their evidence (see `plainres.reporting.evidence`).

    Raises:
        InputError: a folder contains no runs, no run is finished, or the report cannot distinguish two different runs.
    """
    folders = [Path(name) for name in names]
    home = folders[0] if len(folders) == 1 else folders[0].parent / "+".join(each.resolve().name for each in folders)
    runs, unused = _unique_runs([_runs_in(folder) for folder in folders], home)
    finished: list[Run] = []
    unfinished: list[tuple[str, str]] = []
    for run in runs:
        if not run.finished:
            unfinished.append((_relative(home, run.folder), _progress(run)))
            continue
        try:
            _check(run)
            finished.append(run)
        except InputError as error:
            unused.append((_relative(home, run.folder), str(error).removeprefix(f"{run.folder}/")))
    location = " and ".join(map(str, folders))
    if not finished:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in [*unfinished, *unused])
        raise InputError(
            f"{location} has no finished run; run its `plainres train` command again to resume "
            f"({textwrap.shorten(reasons, 300, placeholder=' ...')})"
        )
    named = references(finished)
    baseline = named[0]
    if unknown := baseline.keys() - {key for run in finished for key in settings(run.config)}:
        raise InputError(
            f"report.reference has {', '.join(sorted(unknown))}, but no run of {location} does; give settings that the "
            "runs have"
        )
    diverged = [run for run in runs if not run.finished and run.diverged]
    tuned, rest = read_tuned([*finished, *(run for run in runs if not run.finished)], baseline)
    untuned = [run for run in rest if run.finished]
    labels = labelled(untuned)  # an unfinished run, which contributes nothing, does not rename them
    found = [*families(untuned, labels), *(tuned.families if tuned else ())]
    if not found:
        raise InputError(
            f"{location} has only runs among which values are chosen; run its `plainres train` command again to train "
            "those that are compared"
        )
    if tuned:
        settled = {_relative(home, run.folder) for _, run in tuned.candidates if run.diverged}
        unfinished = [each for each in unfinished if each[0] not in settled]
        unused += [
            (_relative(home, run.folder), f"not at a compared {tuned.option}") for run in tuned.unused if run.finished
        ]
    ordered = sorted(found, key=lambda family: (not family.is_like(baseline), family.label))
    absent = _absent([run for run in runs if not run.config.tuning], labels)
    return Study(
        home,
        ordered,
        comparisons(ordered, baseline),
        trends(ordered),
        unfinished,
        absent + (_gaps(tuned.begun) if tuned else []),
        sorted(unused),
        diverged,
        tuned,
        named,
    )


def _relative(home: Path, folder: Path) -> str:
    return os.path.relpath(folder, home)


def _unique_runs(
    read: Sequence[tuple[list[Run], list[tuple[Path, str]]]], home: Path
) -> tuple[list[Run], list[tuple[str, str]]]:
    """Return the distinct runs of several folders, and the unusable folders with their reasons.

    Of a run in several folders, the first that is finished counts, or else the first.
    """
    copies: defaultdict[str, list[Run]] = defaultdict(list)
    unused = [(_relative(home, path), reason) for _, unusable in read for path, reason in unusable]
    for run in [run for of_folder, _ in read for run in of_folder]:
        copies[run.name].append(run)
    runs = []
    for of_run in copies.values():
        used = next((run for run in of_run if _is_usable(run)), of_run[0])
        runs.append(used)
        for run in of_run:
            if run is used:
                continue
            unused.append((_relative(home, run.folder), _copy_of(used, run, _relative(home, used.folder))))
    return runs, unused


def _copy_of(used: Run, run: Run, where: str) -> str:
    """Say that a run counts with its result in another folder, `where`, and whether the two are unlike."""
    reason = f"the same run as {where}"
    if _is_usable(run) and run.result["weights_sha256"] != used.result["weights_sha256"]:
        edited = edited_classes([used, run])
        reason += f", with another source of {', '.join(edited)}" if edited else ", with another result"
    return reason


def _is_usable(run: Run) -> bool:
    """Whether a run is finished and its record intact."""
    try:
        if run.finished:
            _check(run)
    except InputError:
        return False
    return run.finished


def _runs_in(folder: Path) -> tuple[list[Run], list[tuple[Path, str]]]:
    """Return the distinct runs in a folder, and the subfolders that are not runs, or are duplicates of one."""
    if evidence.is_evidence(folder):
        return evidence.read(folder), []
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; give the folder of a study, such as runs/digits")
    if (folder / "config.yaml").exists():
        raise InputError(f"{folder} is a single run; give the folder of its study, {folder.resolve().parent}")
    by_name: dict[str, list[Run]] = {}
    unused: list[tuple[Path, str]] = []
    try:
        paths = list(folders_of(folder))
    except OSError as error:
        raise InputError(f"{folder} cannot be read: {error.strerror}") from error
    for path in paths:
        try:
            run = Run.read(path)
            by_name.setdefault(run.name, []).append(run)
        except InputError as error:
            unused.append((path, str(error).removeprefix(f"{path} is ").removeprefix(f"{path}/")))
    if not by_name:
        studies = [path.name for path, _ in unused if any(path.glob("*/config.yaml"))]
        if studies:
            raise InputError(
                f"{folder} holds the studies {', '.join(studies)}; give one, such as {folder / studies[0]}"
            )
        reasons = f" ({'; '.join(f'{path.name}: {reason}' for path, reason in unused)})" if unused else ""
        raise InputError(
            f"{folder} holds no runs{reasons}; give the folder of a study, runs/<study>, which `plainres train` creates"
        )
    runs = []
    for name, copies in by_name.items():
        run = max(copies, key=lambda copy: (_is_usable(copy), copy.folder.name == name))
        runs.append(run)
        unused += [(copy.folder, _copy_of(run, copy, run.folder.name)) for copy in copies if copy is not run]
    return runs, unused


def _check(run: Run) -> None:
    """Check that the result of a finished run is complete and matches its configuration and curves.

    Raises:
        InputError: it does not.
    """
    result = run.result
    try:
        *recorded, _ = [result[key] for key in ("shortcut", "depth", "seed", "data_sha256")]
        expected = [key for key in (*ERRORS, *SIZES) if key not in VALIDATED or result.get(key) is not None]
        non_finite = [key for key in expected if not math.isfinite(result[key])]
    except (KeyError, TypeError) as error:
        raise InputError(f"result.json is damaged ({error!r}); delete it and train the run again") from error
    if non_finite:
        raise InputError(
            f"result.json is damaged ({', '.join(non_finite)} not finite); delete it and train the run again"
        )
    configured = [run.config.shortcut, run.config.model["depth"], run.config.seed]
    # an older version did not record the name, or named the run, and so its folder, otherwise
    if result.get("name", run.name) not in (run.name, run.folder.name):
        recorded, configured = result["name"], run.name
    if recorded != configured:
        raise InputError(
            f"result.json is of the run {recorded}, but config.yaml of {configured}; delete result.json and train the "
            "run again"
        )
    steps = _last_step(run)
    if steps != result["steps"]:
        raise InputError(
            f"metrics.csv ends at step {steps:g}, but result.json at {result['steps']}; delete result.json and train "
            "the run again"
        )


def _last_step(run: Run) -> float:
    """Return the last step in metrics.csv, or 0 if it is empty.

    Raises:
        InputError: metrics.csv is damaged, or cannot be read.
    """
    try:
        rows = [(row["step"], row["train/error"], row["test/error"]) for row in run.curve()]
    except OSError as error:
        raise InputError(f"metrics.csv cannot be read: {error.strerror}") from error
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise InputError(f"metrics.csv is damaged ({error!r}); train the run again") from error
    return rows[-1][0] if rows else 0


def _progress(run: Run) -> str:
    """Return the state of a run without a result, in the words of `plainres status`, and the reason or its step."""
    try:
        state = run.state
        step = run.step
    except OSError as error:
        return f"{Path(error.filename or run.folder).name} cannot be read: {error.strerror}"
    if state is State.FAILED:
        return f"{state.value}: {run.failure}"
    try:
        _last_step(run)
    except InputError as error:
        return f"{state.value}: {error}"
    return f"{state.value} at step {step}" if step else state.value


def _absent(runs: Sequence[Run], labels: Mapping[str, tuple[str, dict[str, str]]]) -> list[tuple[str, str]]:
    """Return the combinations of family, seed and depth for which the study has no folder.

    Args:
        runs: all runs. Unfinished ones may be of a family of their own.
        labels: for each finished run's name, the label of its family and its settings.
    """
    if not runs:
        return []
    of_all = {name: label for name, (label, _) in labelled(runs).items()}
    of_finished = {of_all[name]: label for name, (label, _) in labels.items()}
    present = {
        (of_finished.get(of_all[run.name], of_all[run.name]), run.config.seed, run.config.model["depth"])
        for run in runs
    }
    return _gaps(present)


def _gaps(present: Set[tuple[str, int, int]]) -> list[tuple[str, str]]:
    """Return the combinations of family, seed and depth that are not present."""
    families = sorted({family for family, _, _ in present})
    seeds = sorted({seed for _, seed, _ in present})
    depths = sorted({depth for _, _, depth in present})
    return [
        (f"{family}, seed {seed}", f"missing: {_listed('depth', missing)}")
        for family in families
        for seed in seeds
        if (missing := [depth for depth in depths if (family, seed, depth) not in present])
    ]
