"""Panels of a study for W&B: curves, figures, table and verdicts, each under a key."""

import csv
from pathlib import Path
from typing import Any

from plainres.reporting.comparisons import COLUMNS
from plainres.reporting.families import SHORTCUT, Family
from plainres.reporting.figures import mean_curve
from plainres.reporting.study import Study
from plainres.reporting.table import rows

FIGURES = {figure: f"figures/{figure}" for figure in ("curves", "depth")}
CURVES = {"train/error": "Training error (%), running", "test/error": "Test error (%)"}


def panels(study: Study, report: Path) -> dict[str, Any]:
    """Return what is logged of a study: mean curves, errors, figures, page, table and verdicts, by key.

    Args:
        study: the study.
        report: the folder of its written report.
    """
    import wandb
    from wandb.plot import line_series

    shown: dict[str, Any] = {}
    for part, families in {"": study.families, **halves(study)}.items():
        for column, title in CURVES.items():
            lines = {
                f"{family.label}, {depth}": mean_curve(by_seed.values(), column)
                for family in families
                for depth, by_seed in family.runs.items()
            }
            steps, errors = zip(*lines.values(), strict=True)
            shown[curves_key(part, column)] = line_series(
                steps, errors, list(lines), curves_title(part, title), "iteration"
            )
    shown["depth"] = line_series(
        [[row.depth for row in rows(family)] for family in study.families],
        [[row.train_error for row in rows(family)] for family in study.families],
        [family.label for family in study.families],
        "Final training error (%)",
        "depth",
    )
    for figure, key in FIGURES.items():
        shown[key] = wandb.Image(str(report / f"{figure}.png"))
    shown["report"] = wandb.Html(str(report / "index.html"))
    head: list[Any]
    head, *body = csv.reader((report / "table.csv").read_text().splitlines())
    # a published error may be "> 20", and a column of W&B's is either numeric or text
    data: Any = [
        [cell if name == "test_error_published" else _number(cell) for name, cell in zip(head, row, strict=True)]
        for row in body
    ]
    shown["table"] = wandb.Table(columns=head, data=data)
    verdict: list[Any] = [[heading, *c.cells.values()] for heading, group in study.comparisons.items() for c in group]
    shown["verdict"] = wandb.Table(columns=["question", *COLUMNS], data=verdict)
    return shown


def run_title(study: Study) -> str:
    """Return the name of the report's own W&B run."""
    return f"{', '.join(study.studies)}: report"


def halves(study: Study) -> dict[str, list[Family]]:
    """Split the families of a study into plain and residual ones, without an empty part."""
    halves: dict[str, list[Family]] = {"plain": [], "residual": []}
    for family in study.families:
        halves["plain" if family.is_like({SHORTCUT: "plain"}) else "residual"].append(family)
    return {part: families for part, families in halves.items() if families}


def curves_key(part: str, column: str) -> str:
    """Return the key under which the mean curves of a column are logged, of a part of the families or of all."""
    return f"curves/{part}/{column}" if part else f"curves/{column}"


def curves_title(part: str, title: str) -> str:
    """Return the title of mean curves, of a part of the families or of all."""
    return f"{title}: {part}" if part else title


def _number(cell: str) -> float | str | None:
    try:
        return float(cell) if cell else None
    except ValueError:
        return cell
