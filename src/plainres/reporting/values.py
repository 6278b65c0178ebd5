"""Values of a report, for programs. Errors are in percent, differences in percentage points."""

from dataclasses import asdict
from typing import Any

from plainres.reporting.comparisons import Comparison, Trend
from plainres.reporting.report import page_of
from plainres.reporting.study import Study
from plainres.reporting.table import records
from plainres.reporting.tuned import Tuned

TUNED_KEYS = ("network", "depth", "best", "range", "validation_error", "note")  # of the cells of a row, as in the text


def values(study: Study) -> dict[str, Any]:
    """Return what the text of a report says, as nested plain values, and the paths of its page and its table."""
    page = page_of(study)
    return {
        "study": study.name,
        "summary": study.summary,
        "fairness": study.fairness,
        "table": records(study.families),
        "comparisons": [
            {"heading": heading, **_comparison(each)} for heading, group in study.comparisons.items() for each in group
        ],
        "trends": [_trend(trend) for trend in study.trends],
        "tuned": _tuned(study.tuned) if study.tuned else None,
        "unfinished": [{"folder": folder, "state": state} for folder, state in study.unfinished],
        "absent": [{"runs": runs, "reason": reason} for runs, reason in study.absent],
        "unused": [{"folder": folder, "reason": reason} for folder, reason in study.unused],
        "files": {"page": str(page), "table": str(page.with_name("table.csv")), "folder": str(page.parent)},
    }


def _comparison(comparison: Comparison) -> dict[str, Any]:
    difference = comparison.difference
    return {
        "comparison": comparison.what,
        **asdict(difference),
        "by_seed": {str(seed): points for seed, points in difference.by_seed.items()},
        "unequal_conditions": _unequal(comparison),
        "p_holm": comparison.p_holm,
        "verdict": comparison.verdict,
    }


def _trend(trend: Trend) -> dict[str, Any]:
    test = asdict(trend.test) if trend.test else {"seeds": (), "statistic": None, "p": None}
    return {
        "family": trend.label,
        **test,
        "unequal_conditions": _unequal(trend),
        "p_holm": trend.p_holm,
        "verdict": trend.verdict,
    }


def _tuned(tuned: Tuned) -> dict[str, Any]:
    return {
        "option": tuned.option,
        "seeds": tuned.seeds,
        "choices": [dict(zip(TUNED_KEYS, row, strict=True)) for row in tuned.rows],
        "exponents": tuned.exponents,
    }


def _unequal(compared: Comparison | Trend) -> dict[str, list[str]]:
    return {str(seed): [*names] for seed, names in compared.unequal.items()}
