"""Comparisons of families: whether depth hurts, whether the shortcut helps, and whether the runs support a claim.

A comparison makes a claim only if its runs have equal training budgets and data, and differ in no other setting. It
uses only the seeds whose runs have equal training conditions (see `plainres.reporting.conditions`). Conditions may
differ between seeds, because only runs of one seed are subtracted or ranked: each seed is a block. The sources of the
user's own classes may not, because these are what is compared. A comparison is of the training errors of the final
weights in evaluation mode.
"""

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from plainres.console import quantity
from plainres.reporting.conditions import differing, edited_classes
from plainres.reporting.families import OF_SHORTCUT, SHORTCUT, Family
from plainres.reporting.statistics import (
    LEVEL,
    MORE,
    Difference,
    PageTest,
    holm,
    page_test,
    paired_difference,
    summarize,
)
from plainres.runs.record import Run

ERROR = "train_error_eval"
DEEPER = "Training error, deepest minus shallowest"  # heading of the comparisons across depths
MORE_ALIKE = "add seeds, each with equal conditions for all its runs"
COLUMNS = ("comparison", "points", "95 % interval", "p", "Holm", "sign-flip", "seeds", "what the runs support")


@dataclass(frozen=True)
class Comparison:
    """A difference of training errors in percentage points, with the claim that the runs support.

    Args:
        what: a description of the two sides.
        difference: the differences by seed, with interval and tests.
        p_holm: the p-value of the difference, corrected for the other comparisons under the same heading.
        verdict: the supported claim, or the reason for making none.
        pairs: by seed, the two runs whose errors are subtracted.
        unequal: by seed, the training conditions in which its two runs differ; their difference is not used.
    """

    what: str
    difference: Difference
    p_holm: float | None
    verdict: str
    pairs: Mapping[int, tuple[Run, Run]]
    unequal: Mapping[int, Sequence[str]]

    @property
    def claimed(self) -> bool:
        """Whether the runs support a claim."""
        return self.p_holm is not None and self.p_holm < LEVEL

    @property
    def cells(self) -> dict[str, str]:
        """Cells of its row in a table, by `COLUMNS`."""
        difference = self.difference
        unused = {"unpaired": difference.unpaired, "unequal conditions": self.unequal}
        notes = "; ".join(f"{reason}: {_listed(seeds)}" for reason, seeds in unused.items() if seeds)
        cells = (
            self.what,
            "" if difference.mean is None else f"{difference.mean:+z.2f}",
            "[{:+.2f}, {:+.2f}]".format(*difference.interval) if difference.interval else "",
            *(_p(value) for value in (difference.p, self.p_holm, difference.p_signs)),
            quantity(len(difference.by_seed), "seed") + (f" ({notes})" if notes else ""),
            self.verdict,
        )
        return dict(zip(COLUMNS, cells, strict=True))

    @property
    def seeds(self) -> str:
        """Sentences with the difference of each seed, and the seeds that are not used."""
        each = ", ".join(f"{difference:+z.2f} (s{seed})" for seed, difference in self.difference.by_seed.items())
        sentences = [f"By seed: {each}."] if each else []
        if unpaired := self.difference.unpaired:
            sentences.append(f"Unpaired seeds, not used: {_listed(unpaired)}.")
        if self.unequal:
            sentences.append(f"Seeds of unequal conditions, not used: {_with_conditions(self.unequal)}.")
        return " ".join(sentences)


@dataclass(frozen=True)
class Trend:
    """Test of whether a family's training error grows over all of its depths.

    Args:
        label: the label of the family.
        test: the test, or None if there are too few seeds or depths.
        p_holm: the p-value, corrected for the other families.
        verdict: the supported claim, or the reason for making none.
        unequal: by seed, the training conditions in which its runs differ; the test does not use them.
    """

    label: str
    test: PageTest | None
    p_holm: float | None
    verdict: str
    unequal: Mapping[int, Sequence[str]]

    @property
    def text(self) -> str:
        """Statistic and p-values of the test; empty without a test."""
        if self.test is None:
            return ""
        return f"L = {self.test.statistic:g}, p {_p(self.test.p)}, Holm {_p(self.p_holm)}"


def comparisons(families: Sequence[Family], reference: Mapping[str, Any]) -> dict[str, list[Comparison]]:
    """Compare the deepest with the shallowest nets of each family, and the reference with each other family by depth.

    There may be several reference families, for example plain nets of two widths. A family is then compared with the
    one that differs from it only in the reference settings, or with all of them if there is no such family. P-values
    are corrected for all comparisons under one heading.

    Args:
        families: the families, in the order of the report.
        reference: the settings of the reference families.

    Returns:
        The comparisons by heading.
    """
    groups: dict[str, list[Comparison]] = {}
    deeper = []
    for family in families:
        (shallowest, shallow), *_, (deepest, deep) = [*family.runs.items()] * 2
        if shallowest != deepest:
            claims = "degrades: deeper is worse", "deeper is better"
            deeper.append((f"{family.label}: {deepest} minus {shallowest}", deep, shallow, claims, ()))
    if deeper:
        groups[DEEPER] = _compared(deeper)
    references = [family for family in families if family.is_like(reference)]
    for other in [family for family in families if family not in references]:
        unlike = {base.label: _unlike(base.setting, other.setting, reference) for base in references}
        for base in [base for base in references if not unlike[base.label]] or references:
            name = base.setting[SHORTCUT] if SHORTCUT in reference else base.label
            claims = f"{name} is worse", f"{name} is better"
            depths = sorted(base.runs.keys() | other.runs.keys())
            groups[f"Training error, {base.label} minus {other.label}"] = _compared(
                [
                    (f"depth {depth}", base.runs.get(depth, {}), other.runs.get(depth, {}), claims, unlike[base.label])
                    for depth in depths
                ]
            )
    return groups


def nothing_to_compare(families: Sequence[Family], reference: Mapping[str, Any], left: int) -> str:
    """Say which runs are missing for a first comparison: each family has one depth, and one side has no family.

    Args:
        families: the families of the finished runs.
        reference: the settings of the reference families.
        left: the number of the study's runs that are not finished.
    """
    if left:
        return (
            f"Nothing to compare yet: {quantity(left, 'run')} of this study {'is' if left == 1 else 'are'} not "
            "finished; run its `plainres train` command again."
        )
    side = f"with {' '.join(f'{key}={value}' for key, value in reference.items())}, the baseline of this report"
    if any(family.is_like(reference) for family in families):
        side = "with " + " or ".join(f"another {key} than {value}" for key, value in reference.items())
    return f"Nothing to compare yet: add runs with another model.depth, or {side}, to this study."


def trends(families: Iterable[Family]) -> list[Trend]:
    """Test whether the training error grows with depth, for each family with at least three depths.

    The test uses the seeds that have a run at every depth, all in equal training conditions.
    """
    tested = []
    for family in families:
        if len(family.runs) >= 3:
            unequal = _unequal([*family.runs.values()])
            test = page_test([_errors(by_seed, unequal) for by_seed in family.runs.values()])
            seeds = test.seeds if test else ()
            blocks = [[by_seed[seed] for by_seed in family.runs.values()] for seed in seeds]
            tested.append((family, test, _objection(blocks), unequal))
    corrected = holm([test.p if test and not objection else None for _, test, objection, _ in tested])
    results = []
    for (family, test, objection, unequal), p in zip(tested, corrected, strict=True):
        if test is None:
            alike = " in equal conditions" if unequal else ""
            verdict = f"fewer than two seeds have every depth{alike}: no test; add seeds"
        elif objection or p is None:
            verdict = objection
        elif p < LEVEL:
            ends = [summarize([runs[s].result[ERROR] for s in test.seeds]).mean for runs in family.runs.values()]
            verdict = f"training error grows with depth, from {ends[0]:.2f} to {ends[-1]:.2f} %"
            if ends[0] >= ends[-1]:  # the test is of ranks, which a single large error hardly changes
                verdict = (
                    f"training error grows with depth in its ranks, but not in its mean ({ends[0]:.2f} and "
                    f"{ends[-1]:.2f} %): no claim"
                )
        else:
            verdict = "not shown to grow with depth"
        if unequal:
            verdict += f"; seeds of unequal conditions, not used: {_with_conditions(unequal)}"
        results.append(Trend(family.label, test, p, verdict, unequal))
    return results


def budgets(runs: Iterable[Run]) -> list[str]:
    """Describe the distinct training budgets of runs."""
    distinct = sorted({(run.result["steps"], run.result["batch_size"]) for run in runs})
    return [f"{steps:,} steps of {batch} images" for steps, batch in distinct]


Sides = tuple[str, Mapping[int, Run], Mapping[int, Run], tuple[str, str], Iterable[str]]


def _compared(table: Sequence[Sides]) -> list[Comparison]:
    """Compare the two sides of each row, which are runs by seed.

    A row's claims are those for a positive and for a negative difference.
    """
    unused = [_unequal([a, b]) for _, a, b, *_ in table]
    differences = [
        paired_difference(_errors(a, unequal), _errors(b, unequal))
        for (_, a, b, *_), unequal in zip(table, unused, strict=True)
    ]
    objections = [
        _objection([[a[seed], b[seed]] for seed in difference.by_seed], unlike)
        for (_, a, b, _, unlike), difference in zip(table, differences, strict=True)
    ]
    corrected = holm([None if objection else d.p for d, objection in zip(differences, objections, strict=True)])
    compared = []
    for (what, a, b, claims, _), difference, objection, p, unequal in zip(
        table, differences, objections, corrected, unused, strict=True
    ):
        pairs = {seed: (a[seed], b[seed]) for seed in difference.by_seed}
        verdict = objection or difference.verdict(*claims, p, MORE_ALIKE if unequal else MORE)
        compared.append(Comparison(what, difference, p, verdict, pairs, unequal))
    return compared


def _unequal(sides: Sequence[Mapping[int, Run]]) -> dict[int, list[str]]:
    """Return the seeds not to be used because their runs differ in training conditions, with these conditions.

    If that is so for all seeds, all are used, so that a reader sees the differences; `_objection` then forbids a claim.

    Args:
        sides: the runs by seed of each side, or of each depth.
    """
    common = sorted(set.intersection(*(set(side) for side in sides)))
    unequal = {seed: names for seed in common if (names := [*differing(side[seed] for side in sides)])}
    return unequal if len(unequal) < len(common) else {}


def _objection(blocks: Sequence[Sequence[Run]], unlike: Iterable[str] = ()) -> str:
    """Return the reason for making no claim, or an empty string.

    Args:
        blocks: the runs of each seed.
        unlike: settings in which the sides differ, although they should not.
    """
    runs = [run for block in blocks for run in block]
    if len({run.result["data_sha256"] for run in runs}) > 1:
        return "different training data: no claim"
    if len(distinct := budgets(runs)) > 1:
        return f"unequal training budgets ({' against '.join(distinct)}): no claim"
    if unlike:
        return f"settings differ ({', '.join(sorted(unlike))}): no claim"
    if names := sorted({name for block in blocks for name in differing(block)}):
        return f"unequal conditions ({', '.join(names)}): no claim"
    if names := edited_classes(runs):
        return f"several sources of {', '.join(names)}: no claim"
    return ""


def _errors(runs: Mapping[int, Run], unused: Container[int]) -> dict[int, float]:
    return {seed: run.result[ERROR] for seed, run in runs.items() if seed not in unused}


def _unlike(a: Mapping[str, str], b: Mapping[str, str], reference: Iterable[str]) -> set[str]:
    """Return the settings in which two families differ, except those of the reference, or of different shortcuts."""
    different = {key for key in a.keys() | b.keys() if a.get(key) != b.get(key)} - set(reference)
    if a[SHORTCUT] != b[SHORTCUT]:  # another shortcut has other settings
        different = {key for key in different if not key.startswith(OF_SHORTCUT)}
    return {setting[key] for setting in (a, b) for key in different & setting.keys()}


def _listed(seeds: Iterable[int]) -> str:
    return ", ".join(map(str, seeds))


def _with_conditions(unequal: Mapping[int, Sequence[str]]) -> str:
    return ", ".join(f"{seed} ({', '.join(names)})" for seed, names in unequal.items())


def _p(value: float | None) -> str:
    """Format a p-value, with enough digits to show on which side of LEVEL it is."""
    if value is None:
        return ""
    if value < 0.001:
        return "<0.001"
    places = next(places for places in range(3, 18) if (round(value, places) < LEVEL) == (value < LEVEL))
    return f"{value:.{places}f}"
