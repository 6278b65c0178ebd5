"""What the folder of a study holds: its finished runs by family, compared, and every folder of no use.

Runs of one family and depth differ by seed only (see `plainres.reporting.families`). The training error compared is
that of an eval-mode pass over the training set at the end.
"""

import csv
import math
import textwrap
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plainres.errors import InputError
from plainres.reporting.families import SHORTCUT, labelled, reference
from plainres.reporting.published import Published, published
from plainres.reporting.statistics import Difference, Summary, paired_difference, summarize
from plainres.runs.identity import identity, matches
from plainres.runs.record import Run, folders_of

ERRORS = ("train_error_eval", "train_error", "test_error", "best_test_error")  # percent
SIZES = ("steps", "batch_size", "parameters", "multiply_adds")
DEEPER = "Training error, deepest minus shallowest"  # the heading of what tells whether depth hurts


@dataclass(frozen=True)
class Row:
    """The finished runs of one family and depth."""

    depth: int
    seeds: int
    errors: dict[str, Summary]  # in the order of ERRORS
    parameters: int
    multiply_adds: int
    published: Published | None  # what others have found


@dataclass(frozen=True)
class Family:
    """Runs that differ by depth and seed only."""

    label: str
    setting: dict[str, str]  # what tells it from other families, a shortcut's own parameters aside
    runs: dict[int, dict[int, Run]]  # depth -> seed -> finished run, in ascending order

    def is_like(self, wanted: Mapping[str, Any]) -> bool:
        """Whether its runs are what a study compares the others with."""
        return all(matches(run.config, wanted) for by_seed in self.runs.values() for run in by_seed.values())

    @property
    def rows(self) -> list[Row]:
        """The family's part of the table."""
        rows = []
        for depth, by_seed in self.runs.items():
            results = [run.result for run in by_seed.values()]
            errors = {error: summarize([result[error] for result in results]) for error in ERRORS}
            sizes = results[0]["parameters"], results[0]["multiply_adds"]
            others = published(next(iter(by_seed.values())).config)
            rows.append(Row(depth, len(results), errors, *sizes, others))
        return rows


@dataclass(frozen=True)
class Comparison:
    """A difference of training errors in percentage points, and what may be said about it."""

    what: str
    difference: Difference
    verdict: str
    pairs: dict[int, tuple[Run, Run]]  # by seed: the runs whose errors are subtracted

    @property
    def cells(self) -> tuple[str, str, str, str, str]:
        """What, mean, interval, seeds, verdict."""
        mean, interval, seeds = self.difference.mean, self.difference.interval, self.difference.seeds
        alone = ", ".join(map(str, self.difference.unpaired))
        return (
            self.what,
            "" if mean is None else f"{mean:+z.2f}".rjust(7),
            "[{:+.2f}, {:+.2f}]".format(*interval) if interval else "",
            _count(len(seeds), "seed") + (f" (unpaired: {alone})" if alone else ""),
            self.verdict,
        )


@dataclass(frozen=True)
class Study:
    """What the folder of a study holds."""

    folder: Path
    families: list[Family]
    comparisons: dict[str, list[Comparison]]  # by heading
    unfinished: list[tuple[str, str]]  # folders of runs without a result, and how far they are
    absent: list[tuple[str, str]]  # family and seed, and the depths that have no folder
    unused: list[tuple[str, str]]  # other folders, or those of which something is of no use, and why

    @property
    def runs(self) -> list[tuple[Family, Run]]:
        """The finished runs, family by family."""
        return [(family, run) for family in self.families for by in family.runs.values() for run in by.values()]

    @property
    def sources(self) -> list[str]:
        """Where the published errors that the table has beside its own are from."""
        rows = [row for family in self.families for row in family.rows]
        return list(dict.fromkeys(row.published.source for row in rows if row.published))

    @property
    def summary(self) -> str:
        """What was counted, as one sentence."""
        depths = sorted({run.config.model["depth"] for _, run in self.runs})
        seeds = sorted({run.config.seed for _, run in self.runs})
        families = ", ".join(family.label for family in self.families)
        return (
            f"{_count(len(self.runs), 'finished run')} of {families}; "
            f"depth {', '.join(map(str, depths))}; seed {', '.join(map(str, seeds))}."
        )

    @property
    def budget(self) -> str:
        """Whether the runs had an equal training budget and the same data."""
        runs = [run for _, run in self.runs]
        budgets = _budgets(runs)
        sentence = f"All runs are at an equal training budget: {budgets[0]}."
        if len(budgets) > 1:
            sentence = (
                f"Training budgets differ ({', or '.join(budgets)}): a comparison across budgets says so and "
                "claims nothing, every other one is at an equal training budget."
            )
        digests: defaultdict[str, set[str]] = defaultdict(set)
        for run in runs:
            digests[str(identity(run.config)["data"])].add(run.result["data_sha256"])
        if any(len(found) > 1 for found in digests.values()):
            sentence += " Runs of one data configuration saw different data: see data_sha256 in results.csv."
        if len({str((run.result.get("versions"), run.result.get("git_commit"))) for run in runs}) > 1:
            sentence += " Runs differ in versions or commit: see results.csv."
        if len({_normalised_over(run) for run in runs}) > 1:
            sentence += (
                " Runs were trained on different numbers of devices, so that batch normalisation had its statistics "
                "from shares of different sizes: see devices in results.csv."
            )
        return sentence


def _normalised_over(run: Run) -> frozenset[int]:
    """Into how many shares the batch statistics of a run's steps were divided, in each of its attempts."""
    result = run.result
    attempts = result.get("attempts") or [{"devices": result.get("devices", 1)}]
    return frozenset({1} if result.get("sync_batch_norm") else {attempt["devices"] for attempt in attempts})


def read(folder: Path) -> Study:
    """The runs in a study's folder, compared.

    Raises:
        InputError: there is no finished run among them.
    """
    runs, unused = _runs_in(folder)
    labels = labelled(runs)
    finished: list[Run] = []
    unfinished: list[tuple[str, str]] = []
    for run in runs:
        if not run.finished:
            reason = f"failed: {run.failure}" if run.failure else f"not finished: {_progress(run)}"
            unfinished.append((run.folder.name, reason))
            continue
        try:
            _check(run)
            finished.append(run)
        except InputError as error:
            unused.append((run.folder.name, str(error).removeprefix(f"{run.folder}/")))
    if not finished:
        others = "; ".join(f"{name}: {reason}" for name, reason in [*unfinished, *unused])
        raise InputError(
            f"{folder} has no finished run; repeat the `plainres train` command that started it "
            f"({textwrap.shorten(others, 300, placeholder=' ...')})"
        )
    found: dict[str, Family] = {}
    for run in sorted(finished, key=lambda run: (run.config.model["depth"], run.config.seed)):
        label, setting = labels[run.name]
        family = found.setdefault(label, Family(label, setting, {}))
        family.runs.setdefault(run.config.model["depth"], {})[run.config.seed] = run
    wanted = reference(finished[0].config)
    ordered = sorted(found.values(), key=lambda family: (not family.is_like(wanted), family.label))
    absent = _absent(runs, labels)
    return Study(folder, ordered, _comparisons(ordered, wanted), unfinished, absent, sorted(unused))


def _runs_in(folder: Path) -> tuple[list[Run], list[tuple[str, str]]]:
    """The different runs in a folder, and the folders that are none or hold a run a second time."""
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; give the folder of a study, such as runs/digits")
    if (folder / "config.yaml").exists():
        raise InputError(f"{folder} is a single run; give the folder of its study, {folder.resolve().parent}")
    found: dict[str, list[Run]] = {}
    unused: list[tuple[str, str]] = []
    for path in folders_of(folder):
        try:
            run = Run.read(path)
            found.setdefault(run.name, []).append(run)
        except InputError as error:
            unused.append((path.name, str(error).removeprefix(f"{path} is ").removeprefix(f"{path}/")))
    if not found:
        studies = [name for name, _ in unused if any((folder / name).glob("*/config.yaml"))]
        if studies:
            raise InputError(f"{folder} holds the studies {', '.join(studies)}: name one of them")
        others = f" ({'; '.join(f'{name}: {reason}' for name, reason in unused)})" if unused else ""
        raise InputError(f"{folder} holds no runs{others}; `plainres train` makes some, in runs/<study>")
    runs = []
    for name, same in found.items():
        run = next((run for run in same if run.folder.name == name), same[0])
        runs.append(run)
        unused += [(other.folder.name, f"the same run as {run.folder.name}") for other in same if other is not run]
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


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}{'s' * (n != 1)}"


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


def _comparisons(families: list[Family], wanted: Mapping[str, Any]) -> dict[str, list[Comparison]]:
    """Deepest minus shallowest in each family, and the reference minus every other family at each depth.

    There may be several references, plain nets of two widths for example: then a family is compared with the one that
    differs from it in nothing but what makes a reference, and with all of them if there is none such.
    """
    deeper = []
    for family in families:
        (shallowest, shallow), *_, (deepest, deep) = [*family.runs.items()] * 2
        if shallowest != deepest:
            what = f"{family.label}: {deepest} minus {shallowest}"
            deeper.append(_compare(what, deep, shallow, ("degrades: deeper is worse", "deeper is better")))
    comparisons = {DEEPER: deeper} if deeper else {}
    references = [family for family in families if family.is_like(wanted)]
    for other in [family for family in families if family not in references]:
        unlike = {one.label: _unlike(one.setting, other.setting, wanted) for one in references}
        for one in [one for one in references if not unlike[one.label]] or references:
            name = one.setting[SHORTCUT] if SHORTCUT in wanted else "the reference"
            comparisons[f"Training error, {one.label} minus {other.label}"] = [
                _compare(
                    f"depth {depth}",
                    one.runs.get(depth, {}),
                    other.runs.get(depth, {}),
                    (f"{name} is worse", f"{name} is better"),
                    unlike[one.label],
                )
                for depth in sorted(one.runs.keys() | other.runs.keys())
            ]
    return comparisons


def _unlike(one: Mapping[str, str], other: Mapping[str, str], wanted: Iterable[str]) -> set[str]:
    """The settings in which two families differ, those aside that make the reference."""
    differing = {key for key in one.keys() | other.keys() if one.get(key) != other.get(key)}
    return {own[key] for own in (one, other) for key in differing - set(wanted) if key in own}


def _compare(
    what: str,
    a: dict[int, Run],
    b: dict[int, Run],
    claims: tuple[str, str],
    unlike: Iterable[str] = (),
) -> Comparison:
    """The difference a - b of runs by seed; a claim only at an equal budget, on the same data, with like settings."""
    errors = [{seed: run.result["train_error_eval"] for seed, run in runs.items()} for runs in (a, b)]
    difference = paired_difference(*errors)
    paired = [runs[seed] for runs in (a, b) for seed in difference.seeds]
    budgets = _budgets(paired)
    if len({run.result["data_sha256"] for run in paired}) > 1:
        verdict = "different training data: no claim"
    elif len(budgets) > 1:
        verdict = f"unequal training budgets ({' against '.join(budgets)}): no claim"
    elif unlike:
        verdict = f"settings differ ({', '.join(sorted(unlike))}): no claim"
    else:
        verdict = difference.verdict(*claims)
    return Comparison(what, difference, verdict, {seed: (a[seed], b[seed]) for seed in difference.seeds})


def _budgets(runs: Iterable[Run]) -> list[str]:
    budgets = sorted({(run.result["steps"], run.result["batch_size"]) for run in runs})
    return [f"{steps:,} steps of {batch} images" for steps, batch in budgets]
