"""Comparisons of families: does depth hurt, does the shortcut help, and may one say so?

A comparison claims something only about runs of an equal training budget, on the same data, under equal conditions (see
`plainres.reporting.conditions`), with settings that differ in nothing else. The error compared is that of an eval-mode
pass over the training set at the end.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from plainres.reporting.conditions import differing
from plainres.reporting.families import SHORTCUT, Family
from plainres.reporting.statistics import LEVEL, Difference, PageTest, holm, page_test, paired_difference, summarize
from plainres.runs.record import Run

ERROR = "train_error_eval"
DEEPER = "Training error, deepest minus shallowest"  # the heading of what tells whether depth hurts
COLUMNS = ("comparison", "points", "95 % interval", "p", "Holm", "sign-flip", "seeds", "what the runs support")


@dataclass(frozen=True)
class Comparison:
    """A difference of training errors in percentage points, and what may be said about it.

    Args:
        what: the two sides, in words.
        difference: by seed.
        p_holm: the difference's p, corrected for the other comparisons under the same heading.
        verdict: the claim that is supported, or why there is none.
        pairs: by seed, the runs whose errors are subtracted.
    """

    what: str
    difference: Difference
    p_holm: float | None
    verdict: str
    pairs: Mapping[int, tuple[Run, Run]]

    @property
    def cells(self) -> dict[str, str]:
        """Its row of a table, by `COLUMNS`."""
        own = self.difference
        alone = ", ".join(map(str, own.unpaired))
        cells = (
            self.what,
            "" if own.mean is None else f"{own.mean:+z.2f}",
            "[{:+.2f}, {:+.2f}]".format(*own.interval) if own.interval else "",
            *(_p(value) for value in (own.p, self.p_holm, own.p_signs)),
            count(len(own.by_seed), "seed") + (f" (unpaired: {alone})" if alone else ""),
            self.verdict,
        )
        return dict(zip(COLUMNS, cells, strict=True))

    @property
    def seeds(self) -> str:
        """The difference of each seed, in a line."""
        each = ", ".join(f"{difference:+z.2f} (s{seed})" for seed, difference in self.difference.by_seed.items())
        return f"{self.cells['seeds']}: {each}" if each else self.cells["seeds"]


@dataclass(frozen=True)
class Trend:
    """Whether a family's training error grows with depth, all of its depths taken together."""

    label: str
    test: PageTest | None
    p_holm: float | None
    verdict: str

    @property
    def text(self) -> str:
        """The test in words; empty if there is none."""
        if self.test is None:
            return ""
        return f"L = {self.test.statistic:g}, p {_p(self.test.p)}, Holm {_p(self.p_holm)}"


def comparisons(families: Sequence[Family], wanted: Mapping[str, Any]) -> dict[str, list[Comparison]]:
    """Compare the deepest with the shallowest nets of each family, and the reference with every other at each depth.

    There may be several references, plain nets of two widths for example: then a family is compared with the one that
    differs from it in nothing but what makes a reference, and with all of them if there is none such. The comparisons
    under one heading are corrected for each other.

    Args:
        families: in the order of the report.
        wanted: the settings of the reference.

    Returns:
        The comparisons by heading.
    """
    found: dict[str, list[Comparison]] = {}
    deeper = []
    for family in families:
        (shallowest, shallow), *_, (deepest, deep) = [*family.runs.items()] * 2
        if shallowest != deepest:
            claims = "degrades: deeper is worse", "deeper is better"
            deeper.append((f"{family.label}: {deepest} minus {shallowest}", deep, shallow, claims, ()))
    if deeper:
        found[DEEPER] = _compared(deeper)
    references = [family for family in families if family.is_like(wanted)]
    for other in [family for family in families if family not in references]:
        unlike = {one.label: _unlike(one.setting, other.setting, wanted) for one in references}
        for one in [one for one in references if not unlike[one.label]] or references:
            name = one.setting[SHORTCUT] if SHORTCUT in wanted else "the reference"
            claims = f"{name} is worse", f"{name} is better"
            depths = sorted(one.runs.keys() | other.runs.keys())
            found[f"Training error, {one.label} minus {other.label}"] = _compared(
                [
                    (f"depth {depth}", one.runs.get(depth, {}), other.runs.get(depth, {}), claims, unlike[one.label])
                    for depth in depths
                ]
            )
    return found


def trends(families: Iterable[Family]) -> list[Trend]:
    """Test for each family of three or more depths whether its training error grows with depth, over common seeds."""
    tested = []
    for family in families:
        if len(family.runs) >= 3:
            errors = [_errors(by_seed) for by_seed in family.runs.values()]
            test = page_test(errors)
            seeds = test.seeds if test else ()
            runs = [by_seed[seed] for by_seed in family.runs.values() for seed in seeds]
            tested.append((family, test, _objection(runs)))
    corrected = holm([test.p if test and not objection else None for _, test, objection in tested])
    found = []
    for (family, test, objection), p in zip(tested, corrected, strict=True):
        if test is None:
            verdict = "fewer than two seeds have every depth: no test"
        elif objection or p is None:
            verdict = objection
        elif p < LEVEL:
            ends = [summarize([_errors(runs)[s] for s in test.seeds]).mean for runs in family.runs.values()]
            verdict = f"training error grows with depth, from {ends[0]:.2f} to {ends[-1]:.2f} %"
        else:
            verdict = "not shown to grow with depth"
        found.append(Trend(family.label, test, p, verdict))
    return found


def count(n: int, noun: str) -> str:
    """Return a number with its noun."""
    return f"{n} {noun}{'s' * (n != 1)}"


def budgets(runs: Iterable[Run]) -> list[str]:
    """Return the different training budgets of runs, in words."""
    different = sorted({(run.result["steps"], run.result["batch_size"]) for run in runs})
    return [f"{steps:,} steps of {batch} images" for steps, batch in different]


Sides = tuple[str, Mapping[int, Run], Mapping[int, Run], tuple[str, str], Iterable[str]]


def _compared(table: Sequence[Sides]) -> list[Comparison]:
    """Compare the two sides of each row, runs by seed; claims are about a positive and about a negative difference."""
    differences = [paired_difference(_errors(a), _errors(b)) for _, a, b, *_ in table]
    objections = [
        _objection([runs[seed] for runs in (a, b) for seed in difference.by_seed], unlike)
        for (_, a, b, _, unlike), difference in zip(table, differences, strict=True)
    ]
    corrected = holm([None if objection else one.p for one, objection in zip(differences, objections, strict=True)])
    found = []
    for (what, a, b, claims, _), one, objection, p in zip(table, differences, objections, corrected, strict=True):
        pairs = {seed: (a[seed], b[seed]) for seed in one.by_seed}
        found.append(Comparison(what, one, p, objection or one.verdict(*claims, p), pairs))
    return found


def _objection(runs: Sequence[Run], unlike: Iterable[str] = ()) -> str:
    """Return why nothing may be claimed about runs, empty if something may."""
    if len({run.result["data_sha256"] for run in runs}) > 1:
        return "different training data: no claim"
    if len(different := budgets(runs)) > 1:
        return f"unequal training budgets ({' against '.join(different)}): no claim"
    if unlike:
        return f"settings differ ({', '.join(sorted(unlike))}): no claim"
    if names := differing(runs):
        return f"unequal conditions ({', '.join(names)}): no claim"
    return ""


def _errors(runs: Mapping[int, Run]) -> dict[int, float]:
    return {seed: run.result[ERROR] for seed, run in runs.items()}


def _unlike(one: Mapping[str, str], other: Mapping[str, str], wanted: Iterable[str]) -> set[str]:
    """The settings in which two families differ, those aside that make the reference."""
    different = {key for key in one.keys() | other.keys() if one.get(key) != other.get(key)}
    return {own[key] for own in (one, other) for key in different - set(wanted) if key in own}


def _p(value: float | None) -> str:
    """Return a p-value as it is printed."""
    if value is None:
        return ""
    return "<0.001" if value < 0.001 else f"{value:.3f}"
