"""A study's finished runs -> table, paired differences with intervals, figures, one page.

Reads config.yaml, metrics.csv and result.json of the runs alone.
"""

import base64
import os
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from plainres.console import aligned
from plainres.errors import InputError
from plainres.files import csv_text, write_atomically
from plainres.reporting import evidence, table
from plainres.reporting.comparisons import COLUMNS, DEEPER, Comparison
from plainres.reporting.families import SHORTCUT, Family, reference
from plainres.reporting.figures import COLOURS, save_figures, study_title
from plainres.reporting.statistics import CONFIDENCE, COVERAGE, LEVEL
from plainres.reporting.study import Study, read_study
from plainres.runs.record import REPORT, Run

POINTS, ALL_POINTS = 1000, 60_000  # of a curve, and of all curves together, in the page: 2 MB are opened at once
DIGITS = 3  # of an error in percent in the page: one image of 100,000
LINE = 110  # characters of the terminal text
CHOSEN = "* chosen on the test set: shown beside, never the result."
ASSUMPTIONS = (
    f"[...]: Student's {100 * CONFIDENCE:.0f} % interval of the mean difference, paired over seeds. It takes the "
    "differences as draws from one normal distribution. Where runs fail now and then it covers the true mean less "
    "often: "
    + ", ".join(f"in {100 * share:.0f} % of studies of {n} seeds if {100 * p:.0f} % fail" for p, n, share in COVERAGE)
    + ". p: of the same test. Holm: p corrected for all comparisons under one heading; a claim needs less than "
    f"{LEVEL:.2f}. sign-flip: p of the exact test that assumes no distribution, from 5 seeds on; with n seeds it is at "
    "least 2/2^n."
)
TREND = "Page's test that training error grows along all depths, one-sided, each seed a block"
NOTHING = "Nothing to compare: neither two depths of one family nor plain runs beside others."
FORMATS = {"markdown": table.markdown, "latex": table.latex}  # of the table alone


def write_report(*folders: Path | str, title: str | None = None, width: float | None = None) -> str:
    """Report on the runs, or the evidence, in the folders of one or several studies; return the report's text.

    The report of one study is in its folder, report/; that of A and B beside A, A+B/report/. It holds the evidence (see
    `plainres.reporting.evidence`), the figures that are drawn from it, as SVG and PNG, table.csv (a row for each family
    and depth), and index.html, written last.

    Args:
        folders: of the studies.
        title: of the figures; None: the study and its data.
        width: of the figures in inches; None: as wide as their panels need.

    Raises:
        InputError: there is no finished run to report on, or the report cannot be written.
    """
    study = read_study(*folders)
    report = study.home / REPORT
    if title is None:
        title = study_title(study.name, (run.config for _, run in study.runs))
    try:
        report.mkdir(parents=True, exist_ok=True)
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
        write_atomically(report / "table.csv", csv_text(table.records(study.families)))
        write_atomically(report / "index.html", _page(study, kept, drawn, title))
    except OSError as error:
        raise InputError(f"cannot write the report {report}: {error.strerror}") from error
    return f"{text(study)}\n\nReport: {report / 'index.html'}\n"


def text(study: Study) -> str:
    """Return the table and the verdicts for a terminal, at most 110 columns wide."""
    rows = iter(aligned(table.shown(study.families), right=range(len(table.HEAD)), indent="  ", width=LINE))
    lines = [f"Report on {study.home}", *textwrap.wrap(study.summary, LINE)]
    lines += ["", "Final errors in %: mean (sample s.d.) over seeds", next(rows)]
    for family in study.families:
        lines += [family.label, *(next(rows) for _ in family.runs)]
    for note in (table.running(study.families), CHOSEN, _published_note(study), study.fairness):
        lines += ["", *textwrap.wrap(note, LINE)] if note else []
    lines += _comparisons(study.comparisons) if study.comparisons else [NOTHING]
    if study.trends:
        cells = [(trend.label, trend.text, trend.verdict) for trend in study.trends]
        lines += ["", TREND, *aligned(cells, indent="  ", width=LINE)]
    for heading, rest in (("Missing runs", study.unfinished + study.absent), ("Not used", study.unused)):
        if rest:
            lines += ["", f"{heading} ({len(rest)})", *aligned(rest, indent="  ", width=LINE)]
    return "\n".join(lines)


def _comparisons(groups: Mapping[str, Sequence[Comparison]]) -> list[str]:
    """Return the comparisons, each with its seeds below it, and what their columns mean."""
    every = [comparison for group in groups.values() for comparison in group]
    head = comparison_columns(every)[:-2]  # the seeds and the verdict have a line of their own
    body = [[comparison.cells[column] for column in head] for comparison in every]
    head_line, *rest = aligned([head, *body], right=range(1, len(head)), indent="  ")
    cells = iter(zip(every, rest, strict=True))
    lines = [*textwrap.wrap(ASSUMPTIONS, LINE), "", head_line]
    for heading, group in groups.items():
        lines += ["", f"{heading} (percentage points)"]
        for comparison, line in (next(cells) for _ in group):
            below = f"{comparison.verdict}. {comparison.seeds}"
            lines += [line, *textwrap.wrap(below, LINE, initial_indent=" " * 6, subsequent_indent=" " * 6)]
    return lines


def comparison_columns(comparisons: Iterable[Comparison]) -> list[str]:
    """Return the columns of which some comparison has something."""
    cells = [comparison.cells for comparison in comparisons]
    return [column for column in COLUMNS if any(row[column] for row in cells)]


def _published_note(study: Study) -> str:
    """Where published errors are from, nothing if there are none."""
    if not (sources := table.sources(study.families)):
        return ""
    return (
        f"{table.PUBLISHED}: by others, with their implementation; (...): what their runs had and ours have not "
        f"({'; '.join(sources)})."
    )


def _page(study: Study, kept: Mapping[str, Run], drawn: Iterable[str], title: str) -> str:
    """index.html, with its script, its data and the figures of the report's folder inside, of which probes `drawn`."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    ours = files("plainres.reporting")
    template = environment.from_string(ours.joinpath("report.html").read_text(encoding="utf-8"))
    head, *rows = table.shown(study.families)
    shown = iter(rows)
    tables = [(family.label, [(next(shown), by_seed) for by_seed in family.runs.values()]) for family in study.families]
    others = {heading: group for heading, group in study.comparisons.items() if heading != DEEPER}
    return template.render(
        study=study,
        name=study.name,
        data=_data(study, kept, title),
        script=ours.joinpath("report.js").read_text(encoding="utf-8"),
        figures={name: _inlined(study.home / REPORT / name) for name in ("curves", "depth")},
        deeper={DEEPER: study.comparisons[DEEPER]} if DEEPER in study.comparisons else {},
        others=others,
        of_shortcuts=SHORTCUT in reference(study.runs[0][1].config),
        pictures=_pictures(study),
        observed={probe: _inlined(study.home / REPORT / probe) for probe in drawn},
        head=head,
        tables=tables,
        published_note=_published_note(study),
        notes=(table.running(study.families), CHOSEN),
        assumptions=ASSUMPTIONS,
        columns=comparison_columns(each for group in study.comparisons.values() for each in group),
        trend=TREND,
        relative=lambda path: os.path.relpath(path, study.home / REPORT),
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
        "study": study.name,
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
    for family, run, folder in [(None, None, study.home), *((family, run, run.folder) for family, run in study.runs)]:
        if evidence.is_evidence(folder) or not folder.is_dir():  # its figures are those of the report
            continue
        for file in sorted(folder.glob("*.svg")):
            files = [file.with_suffix(kind) for kind in (".svg", ".png")]
            seen = [os.path.relpath(each, study.home / REPORT) for each in files if each.exists()]
            found.setdefault(file.stem, []).append((family, run, seen))
    return found
