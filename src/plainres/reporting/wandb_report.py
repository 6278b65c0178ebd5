"""Report of a study in W&B: a run with curves, figures, table and verdicts, and the views of it."""

import os
import shutil
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from plainres.errors import InputError, first_line
from plainres.reporting.study import Study
from plainres.reporting.wandb_panels import panels, run_title
from plainres.tracking.wandb_client import finish_online, start, tear_down
from plainres.tracking.wandb_files import attempts


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
    target = {"project": first.config.logger.project, "entity": first.config.logger.entity}
    run: Any = None
    try:
        run = start(
            report, mode, name=run_title(study), group=study.studies[0], job_type="study", tags=["study"], **target
        )
        run.log(panels(study, report))
        compared = [(heading, each) for heading, group in study.comparisons.items() for each in group]
        verdicts = [f"{heading}: {each.what}: {each.verdict}. {each.seeds}" for heading, each in compared]
        run.summary["verdict"] = verdicts + [f"{trend.label}: {trend.verdict}" for trend in study.trends]
        run.summary["fairness"] = study.fairness
        run.summary["finished_runs"] = len(study.recorded)
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
    message = f"W&B: {url}"
    if not find_spec("wandb_workspaces"):
        return f"{message}\nW&B workspace and Report: none; pip install 'plainres[workspace]' to create them"
    from plainres.reporting import wandb_views

    views = {
        "workspace": lambda: wandb_views.workspace(study, entity, project).save().url,
        "Report": lambda: wandb_views.save_report(study, report, entity, project),
    }
    for name, save in views.items():
        try:
            message += f"\nW&B {name}: {save()}"
        except Exception as error:
            raise InputError(
                f"the report is written and logged to W&B ({url}), but saving its {name} failed: {first_line(error)}"
            ) from error
    return message
