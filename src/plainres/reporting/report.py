"""A study's finished runs -> table, paired differences with intervals, figures, one page.

Reads config.yaml, metrics.csv and result.json of the runs alone.
"""

import base64
import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from plainres.console import aligned
from plainres.errors import InputError
from plainres.files import csv_text, write_atomically
from plainres.reporting import evidence
from plainres.reporting.families import SHORTCUT, reference
from plainres.reporting.figures import COLOURS, save_figures, study_title
from plainres.reporting.study import DEEPER, Family, Study, read
from plainres.runs.record import REPORT, Run

PUBLISHED = "test, published"
HEAD = (  # of the table that is shown, without what others have published if there is nothing
    *("depth", "seeds", "train, eval mode", "train, running", "test", "test, best epoch*", PUBLISHED),
    *("parameters", "multiply-adds"),
)
POINTS, ALL_POINTS = 1000, 60_000  # of a curve, and of all curves together, in the page: 2 MB are opened at once
DIGITS = 3  # of an error in percent in the page: one image of 100,000
LINE = 110  # characters of the terminal text
NOTES = (
    "eval mode: a pass over the training set at the end; running: over the last epoch, as the net changes.",
    "* chosen on the test set: shown beside, never the result.",
    "[...] is Student's 95 % interval, paired over seeds. Each holds by itself, not all of them at once.",
)
NOTHING = "Nothing to compare: neither two depths of one family nor plain runs beside others."


def write(folder: Path, *, title: str | None = None, width: float | None = None) -> str:
    """Report on the runs, or the evidence, in a study's folder: write <folder>/report/, return its text.

    The report holds the evidence (see `plainres.reporting.evidence`), the figures that are drawn from it, as SVG and
    PNG, table.csv (a row for each family and depth), and index.html, written last.

    Args:
        folder: of the study.
        title: of the figures; None: the study and its data.
        width: of the printed figures in inches; None: as their panels need.

    Raises:
        InputError: there is no finished run to report on, or the report cannot be written.
    """
    study = read(folder)
    report = folder / REPORT
    if title is None:
        title = study_title(folder.resolve().name, (run.config for _, run in study.runs))
    try:
        report.mkdir(exist_ok=True)
        unusable = evidence.write([(family.label, run) for family, run in study.runs], report)
        kept = {run.name: run for run in evidence.read(report)}
        drawn, more = save_figures(
            {
                family.label: {
                    depth: {seed: kept[run.name] for seed, run in by_seed.items()}
                    for depth, by_seed in family.runs.items()
                }
                for family in study.families
            },
            report,
            title=title,
            width=width,
        )
        study = replace(study, unused=study.unused + unusable + more)
        write_atomically(report / "table.csv", csv_text(_table(study)))
        write_atomically(report / "index.html", _page(study, kept, drawn, title))
    except OSError as error:
        raise InputError(f"cannot write the report {report}: {error.strerror}") from error
    return f"{text(study)}\n\nReport: {report / 'index.html'}\n"


def text(study: Study) -> str:
    """The table and the verdict for a terminal, at most 110 columns wide."""
    table = iter(aligned(_shown(study), right=range(len(HEAD)), indent="  ", width=LINE))
    lines = [f"Report on {study.folder}", *textwrap.wrap(study.summary, LINE)]
    lines += ["", "Final errors in %: mean (sample s.d.) over seeds", next(table)]
    for family in study.families:
        lines += [family.label, *(next(table) for _ in family.rows)]
    lines += ["", *NOTES[:2], *textwrap.wrap(_published_note(study), LINE), "", *textwrap.wrap(study.budget, LINE)]
    lines.append(NOTES[2] if study.comparisons else NOTHING)
    cells = [comparison.cells for group in study.comparisons.values() for comparison in group]
    comparisons = iter(aligned(cells, indent="  ", width=LINE) if cells else ())
    for heading, group in study.comparisons.items():
        lines += ["", f"{heading} (percentage points)", *(next(comparisons) for _ in group)]
    missing = study.unfinished + study.absent
    for heading, found in (("Missing runs", missing), ("Not used", study.unused)):
        if found:
            lines += ["", f"{heading} ({len(found)})", *aligned(found, indent="  ", width=LINE)]
    return "\n".join(lines)


def _shown(study: Study) -> list[list[str]]:
    """The table as it is shown: HEAD and a row for each family and depth, without columns that nobody needs."""
    rows = [list(HEAD)]
    for row in [row for family in study.families for row in family.rows]:
        errors = [
            f"{summary.mean:.2f}" + ("" if summary.sd is None else f" ({summary.sd:.2f})")
            for summary in row.errors.values()
        ]
        others = row.published.test_error if row.published else ""
        sizes = f"{row.parameters:,}", f"{row.multiply_adds:,}"
        rows.append([str(row.depth), str(row.seeds), *errors, others, *sizes])
    if not study.sources:
        for row in rows:
            del row[HEAD.index(PUBLISHED)]
    return rows


def _published_note(study: Study) -> str:
    """Where published errors are from, nothing if there are none."""
    if not study.sources:
        return ""
    return f"{PUBLISHED}: by others, with their implementation and budget ({'; '.join(study.sources)})."


def _table(study: Study) -> list[dict[str, Any]]:
    """A row for each family and depth, errors in percent."""
    rows = []
    for family in study.families:
        for row in family.rows:
            cells: dict[str, Any] = {"family": family.label, "depth": row.depth, "seeds": row.seeds}
            for error, summary in row.errors.items():
                cells |= {f"{error}_mean": summary.mean, f"{error}_sd": summary.sd}
            if study.sources:
                cells["test_error_published"] = row.published.test_error if row.published else None
                cells["source"] = row.published.source if row.published else None
            rows.append(cells | {"parameters": row.parameters, "multiply_adds": row.multiply_adds})
    return rows


def _page(study: Study, kept: Mapping[str, Run], drawn: Iterable[str], title: str) -> str:
    """index.html, with its script, its data and the figures of the report's folder inside, of which probes `drawn`."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    ours = files("plainres.reporting")
    template = environment.from_string(ours.joinpath("report.html").read_text(encoding="utf-8"))
    head, *rows = _shown(study)
    shown = iter(rows)
    tables = [(family.label, [(next(shown), by_seed) for by_seed in family.runs.values()]) for family in study.families]
    others = {heading: group for heading, group in study.comparisons.items() if heading != DEEPER}
    return template.render(
        study=study,
        name=study.folder.resolve().name,
        data=_data(study, kept, title),
        script=ours.joinpath("report.js").read_text(encoding="utf-8"),
        figures={name: _inlined(study.folder / REPORT / name) for name in ("curves", "depth")},
        deeper={DEEPER: study.comparisons[DEEPER]} if DEEPER in study.comparisons else {},
        others=others,
        of_shortcuts=SHORTCUT in reference(study.runs[0][1].config),
        pictures=_pictures(study),
        observed={probe: _inlined(study.folder / REPORT / probe) for probe in drawn},
        head=head,
        tables=tables,
        published_note=_published_note(study),
        notes=NOTES,
        nothing=NOTHING,
    )


def _inlined(figure: Path) -> str:
    """A figure as a URL that contains it: as SVG, or as PNG where that is smaller, that is of long curves."""
    kinds = {"svg+xml": figure.with_suffix(".svg"), "png": figure.with_suffix(".png")}
    kind, content = min(((kind, file.read_bytes()) for kind, file in kinds.items()), key=lambda found: len(found[1]))
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _data(study: Study, kept: Mapping[str, Run], title: str) -> dict[str, Any]:
    """Return what the page's script draws: of each run the curves, thinned if they are long, and the final errors."""
    labels = [family.label for family in study.families]
    most = min(POINTS, max(ALL_POINTS // len(study.runs), 2))
    runs = []
    for family, run in study.runs:
        rows = evidence.thinned(kept[run.name].curve(), most)
        runs.append(
            {
                "family": labels.index(family.label),
                "depth": run.config.model["depth"],
                "seed": run.config.seed,
                "step": [round(row["step"]) for row in rows],
                "train": [round(row["train/error"], DIGITS) for row in rows],
                "test": [round(row["test/error"], DIGITS) for row in rows],
                "train_final": round(run.result["train_error_eval"], DIGITS),
                "test_final": round(run.result["test_error"], DIGITS),
            }
        )
    depths = sorted({run["depth"] for run in runs})
    return {
        "study": study.folder.resolve().name,
        "title": title,
        "families": labels,
        "depths": depths,
        "colours": COLOURS,
        "runs": runs,
    }


def _pictures(study: Study) -> dict[str, list[tuple[Family | None, Run | None, list[str]]]]:
    """What has been drawn of finished runs after their training, by what it shows: that of several side by side, then
    each run's, with where the files are, seen from the report: SVG and, if there is one, PNG."""
    found: dict[str, list[tuple[Family | None, Run | None, list[str]]]] = {}
    if evidence.is_evidence(study.folder):  # whose figures are those of its report
        return found
    for family, run, folder in [(None, None, study.folder), *((family, run, run.folder) for family, run in study.runs)]:
        for file in sorted(folder.glob("*.svg")):
            files = [file.with_suffix(kind) for kind in (".svg", ".png")]
            seen = [f"../{each.relative_to(study.folder).as_posix()}" for each in files if each.exists()]
            found.setdefault(file.stem, []).append((family, run, seen))
    return found
