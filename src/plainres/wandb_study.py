"""A study in W&B: one run with curves, figures, table and verdict, and a workspace whose panels are laid out."""

import csv
import os
import shutil
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from plainres.errors import InputError, first_line
from plainres.figures import mean_curve
from plainres.study import Study
from plainres.wandb_files import STEP, sessions
from plainres.wandb_logger import abandon, start

CURVES = {"train/error": "Training error (%), running", "test/error": "Test error (%)"}

VERDICT = ("question", "what", "percentage points", "95 % interval", "seeds", "what the runs support")


def show(study: Study, report: Path, mode: str) -> str:
    """Show a study, whose report has been written to `report`, in W&B; return what to say about it.

    A report that is repeated replaces its W&B run, which is named in <report>/wandb/id.

    Raises:
        InputError: W&B cannot be reached, or does not let us in; the report is written all the same.
    """
    # where tables are kept until they are sent; by default that is outside of the report's folder
    os.environ["WANDB_DATA_DIR"] = str((report / "wandb").absolute())
    for session in sessions(report):
        if not session.sent:
            shutil.rmtree(session.folder)
    _, first = study.runs[0]
    group = first.config.study
    place = {"project": first.config.logger.project, "entity": first.config.logger.entity}
    session: Any = None
    try:
        session = start(report, mode, name=f"{group}: report", group=group, job_type="study", tags=["study"], **place)
        session.log(_panels(study, report))
        session.summary["verdict"] = [f"{c.what}: {c.verdict}" for those in study.comparisons.values() for c in those]
        session.summary["finished_runs"] = len(study.runs)
        session.finish()
        if mode == "offline":
            return f"W&B: kept in {report / 'wandb'}; plainres wandb-sync {report} sends it"
        for each in sessions(report):
            each.mark_sent()
        said = f"W&B: {session.url}"
        if find_spec("wandb_workspaces"):
            said += f"\nW&B workspace: {workspace(study, session.entity, session.project).save().url}"
        else:
            said += "\nW&B workspace: none, for that needs pip install 'plainres[workspace]'"
        return said
    except Exception as error:  # whatever the client makes of a server and a key
        with suppress(Exception):
            session.finish(exit_code=1)
        abandon()
        raise InputError(f"the report is written, but W&B is not told: {first_line(error)}") from error


def _panels(study: Study, report: Path) -> dict[str, Any]:
    import wandb
    from wandb.plot import line_series

    panels: dict[str, Any] = {}
    for column, title in CURVES.items():
        lines = {
            f"{family.label}, {depth}": mean_curve(by_seed.values(), column)
            for family in study.families
            for depth, by_seed in family.runs.items()
        }
        steps, errors = zip(*lines.values(), strict=True)
        panels[f"curves/{column}"] = line_series(steps, errors, list(lines), title, "iteration")
    panels["depth"] = line_series(
        [[row.depth for row in family.rows] for family in study.families],
        [[row.errors["train_error_eval"].mean for row in family.rows] for family in study.families],
        [family.label for family in study.families],
        "Final training error (%)",
        "depth",
    )
    for figure in ("curves", "depth"):
        panels[f"figures/{figure}"] = wandb.Image(str(report / f"{figure}.png"))
    panels["report"] = wandb.Html(str(report / "index.html"))
    head: list[Any]
    head, *rows = csv.reader((report / "table.csv").read_text().splitlines())
    panels["table"] = wandb.Table(columns=head, data=[[_number(cell) for cell in row] for row in rows])
    verdict: list[Any] = [[heading, *c.cells] for heading, those in study.comparisons.items() for c in those]
    panels["verdict"] = wandb.Table(columns=[*VERDICT], data=verdict)
    return panels


def _number(cell: str) -> float | str | None:
    try:
        return float(cell) if cell else None
    except ValueError:
        return cell


def workspace(study: Study, entity: str, project: str) -> Any:
    """A workspace of the study's runs: errors over iterations, grouped by shortcut and depth."""
    import wandb_workspaces.reports.v2 as panels
    from wandb_workspaces import workspaces

    group = study.runs[0][1].config.study
    lines: list[Any] = [
        panels.LinePlot(title=title, x=STEP, y=[column], range_y=(0, 100), smoothing_factor=0, max_runs_to_show=100)
        for column, title in CURVES.items()
    ]
    bars: list[Any] = [
        panels.BarPlot(title="Final training error (%), eval mode", metrics=["train_error_eval"], max_bars_to_show=100),
        panels.BarPlot(title="Final test error (%)", metrics=["test_error"], max_bars_to_show=100),
    ]
    return workspaces.Workspace(
        entity=entity,
        project=project,
        name=f"{group}: plain and residual",
        auto_generate_panels=False,
        sections=[
            workspaces.Section(name="Errors over iterations", panels=lines, is_open=True),
            workspaces.Section(name="Errors at the end", panels=bars, is_open=True),
        ],
        settings=workspaces.WorkspaceSettings(x_axis=STEP, smoothing_type="none", smoothing_weight=0, max_runs=100),
        runset_settings=workspaces.RunsetSettings(
            filters=[workspaces.Metric("Group") == group, workspaces.Metric("JobType") == "train"],
            groupby=[workspaces.Config("shortcut"), workspaces.Config("model.depth")],
        ),
    )
