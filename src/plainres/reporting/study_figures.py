"""All figures of a study."""

from functools import partial
from pathlib import Path

from plainres.reporting.figures import curves, error_by_depth, save, study_title
from plainres.reporting.observations import OVER_TRAINING, PROBES, Families, observations, readings
from plainres.reporting.probe_figures import probe_figure, reading_figure, series_figure


def save_figures(
    families: Families, folder: Path, *, title: str | None = None, width: float | None = None
) -> tuple[list[str], list[tuple[str, str]]]:
    """Write the figures curves and depth, and those of each probe with measurements, as SVG and PNG.

    Args:
        families: the runs.
        folder: the folder to write, a subfolder of the study's.
        title: the title of all figures; None uses the names of the study and its data sets.
        width: the width of all figures in inches; None uses the width that their panels need.

    Returns:
        The figures of probes that have been drawn; and the folders of runs with a damaged probe file, with the reason.
    """
    if title is None:
        runs = [run for by_depth in families.values() for by_seed in by_depth.values() for run in by_seed.values()]
        title = study_title(folder.resolve().parent.name, (run.config for run in runs))
    save(lambda: curves(families, title, width), folder / "curves", width)
    save(lambda: error_by_depth(families, title, width), folder / "depth", width)
    drawn, unusable = [], []
    for probe in [*PROBES, *OVER_TRAINING]:
        observed, damaged = observations(probe, families)
        unusable += damaged
        if any(observed.values()):
            draw = probe_figure if probe in PROBES else series_figure
            save(partial(draw, probe, observed, title, width), folder / probe, width)
            drawn.append(probe)
        if probe == "connections":
            weights, left_out = readings(families)
            unusable += [(name, reason) for name, reason in left_out if name not in dict(damaged)]
            if weights:
                save(partial(reading_figure, weights, title, width), folder / "reading", width)
                drawn.append("reading")
    for name in {*PROBES, *OVER_TRAINING, "reading"} - {*drawn}:  # of an earlier report
        for kind in ("svg", "png"):
            (folder / f"{name}.{kind}").unlink(missing_ok=True)
    return drawn, unusable
