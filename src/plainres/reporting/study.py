"""Reading of a study: its finished runs by family, their comparisons, and its unusable folders."""

import math
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
from plainres.reporting.conditions import differing
from plainres.reporting.families import Family, families, labelled, reference, references
from plainres.reporting.run_folders import check_record, progress_of, relative_to, runs_in, unique_runs
from plainres.reporting.tuned import Tuned, read_tuned
from plainres.runs.identity import identity, settings
from plainres.runs.record import Run

if TYPE_CHECKING:
    import pandas


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
        """Finished runs, each once, with the labels of its families, and those among which values were chosen.

        A run that names the reference comes first, so that a report on the evidence of these runs has the same one.
        """
        labels: dict[str, list[str]] = {}
        runs = {}
        candidates = [each for each in (self.tuned.candidates if self.tuned else ()) if each[1].finished]
        for label, run in [*((family.label, run) for family, run in self.runs), *candidates]:
            runs[run.name] = run
            labels.setdefault(run.name, []).append(label)
        ordered = sorted(runs.values(), key=lambda run: reference(run.config) != self.reference)
        return [("; ".join(labels[run.name]), run) for run in ordered]

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
            sentences += " Runs with the same data configuration saw different data; see data_sha256 in results.csv. "
            sentences += "Means over different data are marked 'mixed'."
        if unequal := differing(recorded):
            conditions = "; ".join(f"{name}: {' or '.join(values)}" for name, values in unequal.items())
            sentences += (
                f" Conditions of training differ ({conditions}). Comparisons leave out the seeds within which they "
                "differ, or claim nothing if no other seed is left. Means over such runs are marked 'mixed'."
            )
        aside = [*(run for _, run in self.tuned.candidates), *self.tuned.unused] if self.tuned else []
        not_compared = {run.folder for run in aside}
        if lost := [run.name for run in self.diverged if run.folder not in not_compared]:
            runs_lost = f"{quantity(len(lost), 'run')} diverged ({', '.join(lost)})"
            sentences += f" {runs_lost}: means and comparisons are of the other seeds."
        if warming := [run.name for run in recorded if _warmed_up_throughout(run)]:
            sentences += (
                f" In {quantity(len(warming), 'run')} the warm-up did not end ({', '.join(warming)}): the learning "
                "rate was optim.warmup_lr up to the last step."
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


def _warmed_up_throughout(run: Run) -> bool:
    """Whether the warm-up of a run did not end, so that it had none of the recipe's learning rates."""
    start = run.config.optim.warmup_lr
    return start not in (None, run.config.optim.lr) and all(
        math.isclose(row["lr"], start, rel_tol=1e-4) for row in run.curve()
    )


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
    runs, unused = unique_runs([runs_in(folder) for folder in folders], home)
    finished: list[Run] = []
    unfinished: list[tuple[str, str]] = []
    for run in runs:
        if not run.finished:
            unfinished.append((relative_to(home, run.folder), progress_of(run)))
            continue
        try:
            check_record(run)
            finished.append(run)
        except InputError as error:
            unused.append((relative_to(home, run.folder), str(error).removeprefix(f"{run.folder}/")))
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
        settled = {relative_to(home, run.folder) for _, run in tuned.candidates if run.diverged}
        unfinished = [each for each in unfinished if each[0] not in settled]
        unused += [
            (relative_to(home, run.folder), f"not at a compared {tuned.option}") for run in tuned.unused if run.finished
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
