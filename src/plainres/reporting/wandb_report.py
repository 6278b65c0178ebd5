"""Report of a study in W&B: a run with curves, figures, table and verdicts, and a workspace with arranged panels."""

import csv
import os
import shutil
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from plainres.errors import InputError, first_line
from plainres.reporting.comparisons import COLUMNS
from plainres.reporting.families import SHORTCUT, Family
from plainres.reporting.figures import mean_curve
from plainres.reporting.study import Study
from plainres.reporting.table import rows
from plainres.tracking.wandb_files import STEP, attempts
from plainres.tracking.wandb_logger import finish_online, start, tear_down

CURVES = {"train/error": "Training error (%), running", "test/error": "Test error (%)"}


def show(study: Study, report: Path, mode: str) -> str:
    """Log a study to W&B, after its report has been written to `report`, and return a message for the user.

    A report has one W&B run, whose id is in <report>/wandb/id. Logging it again replaces data that have not been
    uploaded, and otherwise adds a step; W&B shows the last one.

    Raises:
        InputError: the W&B server is unreachable or rejects the API key or the workspace. The report remains written.
    """
    # Directory of tables until they are uploaded, which W&B would create outside the report's folder.
    os.environ["WANDB_DATA_DIR"] = str((report / "wandb").absolute())
    for attempt in attempts(report):
        if not attempt.sent:
            shutil.rmtree(attempt.folder)
    _, first = study.runs[0]
    group = first.config.study
    target = {"project": first.config.logger.project, "entity": first.config.logger.entity}
    run: Any = None
    try:
        run = start(report, mode, name=f"{group}: report", group=group, job_type="study", tags=["study"], **target)
        run.log(_panels(study, report))
        verdicts = [f"{each.what}: {each.verdict}" for group in study.comparisons.values() for each in group]
        run.summary["verdict"] = verdicts + [f"{trend.label}: {trend.verdict}" for trend in study.trends]
        run.summary["finished_runs"] = len(study.runs)
        if mode == "offline":
            run.finish()
            return f"W&B: saved in {report / 'wandb'}; run `plainres wandb-sync {report}` to upload it"
        url, entity, project = run.url, run.entity, run.project
        finish_online(run, report, run.starting_step + 1)
    except Exception as error:  # the client raises many types for server and login errors
        with suppress(Exception):
            run.finish(exit_code=1)
        tear_down()
        raise InputError(f"the report is written, but logging it to W&B failed: {first_line(error)}") from error
    message = f"W&B: {url}\nW&B workspace: "
    if not find_spec("wandb_workspaces"):
        return f"{message}none; pip install 'plainres[workspace]' to create one"
    try:
        return f"{message}{workspace(study, entity, project).save().url}"
    except Exception as error:
        raise InputError(
            f"the report is written and logged to W&B ({url}), but saving its workspace failed: {first_line(error)}"
        ) from error


def _panels(study: Study, report: Path) -> dict[str, Any]:
    import wandb
    from wandb.plot import line_series

    panels: dict[str, Any] = {}
    for part, families in {"": study.families, **_halves(study)}.items():
        for column, title in CURVES.items():
            lines = {
                f"{family.label}, {depth}": mean_curve(by_seed.values(), column)
                for family in families
                for depth, by_seed in family.runs.items()
            }
            steps, errors = zip(*lines.values(), strict=True)
            panels[_key(part, column)] = line_series(steps, errors, list(lines), _title(part, title), "iteration")
    panels["depth"] = line_series(
        [[row.depth for row in rows(family)] for family in study.families],
        [[row.train_error for row in rows(family)] for family in study.families],
        [family.label for family in study.families],
        "Final training error (%)",
        "depth",
    )
    for figure in ("curves", "depth"):
        panels[f"figures/{figure}"] = wandb.Image(str(report / f"{figure}.png"))
    panels["report"] = wandb.Html(str(report / "index.html"))
    head: list[Any]
    head, *body = csv.reader((report / "table.csv").read_text().splitlines())
    # a published error may be "> 20", and a column of W&B's is either numeric or text
    data: Any = [
        [cell if name == "test_error_published" else _number(cell) for name, cell in zip(head, row, strict=True)]
        for row in body
    ]
    panels["table"] = wandb.Table(columns=head, data=data)
    verdict: list[Any] = [[heading, *c.cells.values()] for heading, group in study.comparisons.items() for c in group]
    panels["verdict"] = wandb.Table(columns=["question", *COLUMNS], data=verdict)
    return panels


def _halves(study: Study) -> dict[str, list[Family]]:
    """Split the families into plain and residual ones, without an empty part."""
    halves: dict[str, list[Family]] = {"plain": [], "residual": []}
    for family in study.families:
        halves["plain" if family.is_like({SHORTCUT: "plain"}) else "residual"].append(family)
    return {part: families for part, families in halves.items() if families}


def _key(part: str, column: str) -> str:
    return f"curves/{part}/{column}" if part else f"curves/{column}"


def _title(part: str, title: str) -> str:
    return f"{title}: {part}" if part else title


def _number(cell: str) -> float | str | None:
    try:
        return float(cell) if cell else None
    except ValueError:
        return cell


def workspace(study: Study, entity: str, project: str) -> Any:
    """Return a workspace with the report's curves of plain and residual nets, and the errors by shortcut and depth."""
    import wandb_workspaces.reports.v2 as panels
    from wandb_workspaces import workspaces

    group = study.runs[0][1].config.study
    halves: list[Any] = [
        panels.CustomChart(  # a table of the report's W&B run, drawn as by `line_series`
            query={"summaryTable": {"tableKey": f"{_key(part, column)}_table"}},
            chart_name="wandb/lineseries/v0",
            chart_fields={"step": "step", "lineKey": "lineKey", "lineVal": "lineVal"},
            chart_strings={"title": _title(part, title), "xname": "iteration"},
        )
        for column, title in CURVES.items()
        for part in _halves(study)
    ]
    lines: list[Any] = [
        panels.LinePlot(title=title, x=STEP, y=[column], smoothing_factor=0, max_runs_to_show=100)
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
            workspaces.Section(
                name=f"{' | '.join(_halves(study))}: training error, test error",
                panels=halves,
                is_open=True,
                layout_settings=workspaces.SectionLayoutSettings(columns=len(_halves(study)), rows=len(CURVES)),
            ),
            workspaces.Section(name="Errors over iterations, by shortcut and depth", panels=lines, is_open=True),
            workspaces.Section(name="Errors at the end", panels=bars, is_open=True),
        ],
        settings=workspaces.WorkspaceSettings(x_axis=STEP, smoothing_type="none", smoothing_weight=0, max_runs=100),
        runset_settings=workspaces.RunsetSettings(
            filters=[workspaces.Metric("Group") == group, workspaces.Metric("JobType").isin(["train", "study"])],
            groupby=[workspaces.Config("shortcut"), workspaces.Config("model.depth")],
        ),
    )
