"""Views of a study in W&B, built with wandb-workspaces: a workspace of panels, and a W&B Report.

Both show what `plainres.reporting.wandb_report` has logged to the study's own W&B run, beside the runs themselves.
"""

from collections.abc import Iterable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from plainres.files import write_atomically
from plainres.reporting.comparisons import COLUMNS
from plainres.reporting.families import SHORTCUT, labelled
from plainres.reporting.study import Study
from plainres.reporting.table import markdown
from plainres.reporting.tuned import HEAD, Tuned
from plainres.reporting.wandb_panels import CURVES, FIGURES, curves_key, curves_title, halves, run_title
from plainres.tracking.wandb_files import STEP

# Any: the package's annotations reject what it documents
wr: Any = import_module("wandb_workspaces.reports.v2")
workspaces: Any = import_module("wandb_workspaces.workspaces")


def workspace(study: Study, entity: str, project: str) -> Any:
    """Return a workspace with the report's curves of plain and residual nets, and the errors by shortcut and depth."""
    bars: list[Any] = [
        wr.BarPlot(title="Final training error (%), eval mode", metrics=["train_error_eval"], max_bars_to_show=100),
        wr.BarPlot(title="Final test error (%)", metrics=["test_error"], max_bars_to_show=100),
    ]
    return workspaces.Workspace(
        entity=entity,
        project=project,
        name=_title(study),
        auto_generate_panels=False,
        sections=[
            workspaces.Section(
                name=f"{' | '.join(halves(study))}: training error, test error",
                panels=_mean_curves(study),
                is_open=True,
                layout_settings=workspaces.SectionLayoutSettings(columns=len(halves(study)), rows=len(CURVES)),
            ),
            workspaces.Section(name="Errors over iterations, by shortcut and depth", panels=_curves(), is_open=True),
            workspaces.Section(name="Errors at the end", panels=bars, is_open=True),
        ],
        settings=workspaces.WorkspaceSettings(x_axis=STEP, smoothing_type="none", smoothing_weight=0, max_runs=100),
        runset_settings=workspaces.RunsetSettings(
            filters=[
                workspaces.Metric("Group").isin(study.studies),
                workspaces.Metric("JobType").isin(["train", "study"]),
            ],
            groupby=[workspaces.Config(key) for key in _family_keys(study)],
        ),
    )


def save_report(study: Study, report: Path, entity: str, project: str) -> str:
    """Save the study as a W&B Report: verdicts, table, figures, and panels of its runs; return the address.

    The report's id is kept in <report>/wandb/report, so that saving it again replaces it.

    Raises:
        Exception: any exception of wandb-workspaces or of the client.
    """
    file = report / "wandb" / "report"
    page = written_report(study, entity, project)
    if file.exists():
        page.id = file.read_text().strip()
    page.save()
    write_atomically(file, f"{page.id}\n")
    return str(page.url)


def written_report(study: Study, entity: str, project: str) -> Any:
    """Return the W&B Report of a study, which is not saved yet."""
    runs = {"entity": entity, "project": project}
    of_study = wr.Runset(**runs, name="the study", filters=f"JobType = 'study' and Name = {run_title(study)!r}")
    trained = wr.Runset(
        **runs,
        name="its runs",
        filters=f"Group in {study.studies} and JobType = 'train'",
        groupby=[f"config.{key}" for key in _family_keys(study)],
    )
    figures: list[Any] = [wr.MediaBrowser(media_keys=[key], num_columns=1) for key in FIGURES.values()]
    blocks: list[Any] = [
        wr.H2(text="Verdicts"),
        *(_verdicts(study) or [wr.P(text="No comparison is possible yet.")]),
        wr.P(text=study.fairness),
        *(_choices(study.tuned) if study.tuned else []),
        wr.H2(text="Errors"),
        wr.MarkdownBlock(text=markdown(study.families)),
        wr.H2(text="Figures"),
        wr.PanelGrid(runsets=[of_study], panels=figures),
        wr.PanelGrid(runsets=[of_study], panels=_mean_curves(study)),
        wr.H2(text="Runs"),
        wr.PanelGrid(runsets=[trained], panels=_curves()),
    ]
    description = f"{len(study.recorded)} finished runs, compared by plainres"
    return wr.Report(**runs, title=_title(study), description=description, blocks=blocks, width="fluid")


def _verdicts(study: Study) -> list[Any]:
    """Return a heading and a table for each group of comparisons, then the trends."""
    blocks: list[Any] = []
    for heading, comparisons in study.comparisons.items():
        blocks += [wr.H3(text=heading), _table(COLUMNS, [[*each.cells.values()] for each in comparisons])]
    trends = [f"{trend.label}: {trend.verdict}" for trend in study.trends]
    return [*blocks, *([wr.UnorderedList(items=trends)] if trends else [])]


def _choices(tuned: Tuned) -> list[Any]:
    """Return the chosen values of a tuned option, and how they depend on depth."""
    return [
        wr.H2(text="Choice"),
        wr.P(text=tuned.caption),
        _table([*HEAD[:-1], "note"], tuned.rows),
        wr.UnorderedList(items=tuned.exponents),
    ]


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Any:
    lines = [head, ["---"] * len(head), *rows]
    return wr.MarkdownBlock(text="\n".join(f"| {' | '.join(line)} |" for line in lines))


def _mean_curves(study: Study) -> list[Any]:
    """Return charts of the mean curves, which are tables of the report's W&B run, drawn as by `line_series`."""
    return [
        wr.CustomChart(
            query={"summaryTable": {"tableKey": f"{curves_key(part, column)}_table"}},
            chart_name="wandb/lineseries/v0",
            chart_fields={"step": "step", "lineKey": "lineKey", "lineVal": "lineVal"},
            chart_strings={"title": curves_title(part, title), "xname": "iteration"},
        )
        for column, title in CURVES.items()
        for part in halves(study)
    ]


def _curves() -> list[Any]:
    """Return charts of the curves of the single runs."""
    return [
        wr.LinePlot(title=title, x=STEP, y=[column], smoothing_factor=0, max_runs_to_show=100)
        for column, title in CURVES.items()
    ]


def _title(study: Study) -> str:
    return f"{', '.join(study.studies)}: plain and residual"


def _family_keys(study: Study) -> list[str]:
    """Return the keys of a run's configuration in W&B by which runs of a family and depth differ from all others."""
    runs = {run.name: run for _, run in study.runs}
    # families of chosen values and the others name what varies among their own runs only
    keys = {key for _, setting in labelled([*runs.values()]).values() for key in setting} - {SHORTCUT}
    return ["shortcut", "model.depth", *(f"options.{key}" if "/" in key else key for key in sorted(keys))]
