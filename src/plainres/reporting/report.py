"""Report on a study: a table, paired differences with intervals, figures, and an HTML page.

Of a run's files, it reads only config.yaml, metrics.csv, result.json and the files of its probes.
"""

import base64
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from plainres.console import aligned, narrowed, wrapped
from plainres.errors import InputError
from plainres.files import csv_text, write_atomically
from plainres.reporting import evidence, table
from plainres.reporting.comparisons import COLUMNS, DEEPER, Comparison, nothing_to_compare
from plainres.reporting.families import SHORTCUT, Family
from plainres.reporting.figures import COLOURS, save, study_title
from plainres.reporting.statistics import CONFIDENCE, COVERAGE, LEVEL, SIGNS_FROM
from plainres.reporting.study import Study, read_study
from plainres.reporting.study_figures import save_figures
from plainres.reporting.tuned import HEAD, Tuned
from plainres.reporting.tuned_figure import tuned_figure
from plainres.runs.record import REPORT, Run

POINTS, ALL_POINTS = 1000, 60_000  # maximum in the page, per curve and over all curves, which limits it to 2 MB
DIGITS = 3  # decimal places of errors in percent in the page: one image in 100,000
TERMINAL, PROSE = 80, 110  # default width of the text, and maximum line length of its prose
CHOSEN = "* selected on the test set; for comparison only, never the result."
EXPLAINED = {  # the columns of comparisons that need an explanation
    "95 % interval": f"[...]: Student's {100 * CONFIDENCE:.0f} % interval of the mean difference, paired over seeds. "
    "It assumes that the differences are draws from one normal distribution. If training sometimes fails, it covers "
    "the true mean less often: "
    + ", ".join(f"in {100 * share:.0f} % of studies of {n} seeds if {100 * p:.0f} % fail" for p, n, share in COVERAGE)
    + ".",
    "p": "p: p-value of Student's t-test.",
    "Holm": f"Holm: p corrected for all comparisons under one heading; a claim requires less than {LEVEL:.2f}.",
    "sign-flip": f"sign-flip: p-value of an exact test that assumes no distribution, from {SIGNS_FROM} seeds on. With "
    f"n seeds it cannot be below 2/2^n: with {SIGNS_FROM} seeds {2 / 2**SIGNS_FROM:.3f}, so never below {LEVEL:.2f}; "
    f"with {SIGNS_FROM + 1} seeds {2 / 2 ** (SIGNS_FROM + 1):.3f}.",
}
TREND = "Page's one-sided test for a training error that grows with depth, with seeds as blocks"
INDENT = "  "  # of the rows of a table in the text
EXPENDABLE = ("sign-flip", "p")  # columns of comparisons on a narrow terminal
FORMATS = {"markdown": table.markdown, "latex": table.latex}  # formats of the table without the rest of the report


class NotWrittenError(InputError):
    """The report on a study cannot be written."""

    def __init__(self, message: str, study: Study) -> None:
        super().__init__(message)
        self.study = study


def write_report(
    *folders: Path | str, title: str | None = None, width: float | None = None, columns: int = TERMINAL
) -> str:
    """Write a report on one or several studies, and return its text.

    Args:
        folders: folders of studies, or of their evidence.
        title: the title of the figures; None uses the names of the study and its data sets.
        width: the width of the figures in inches; None uses the width that their panels need.
        columns: the width of the text, as of a terminal.

    Raises:
        InputError, NotWrittenError: see `write_files`.
    """
    study = write_files(*folders, title=title, width=width)
    return f"{text(study, columns)}\n\nReport: {page_of(study)}"


def page_of(study: Study) -> Path:
    """Return the path of the report's page."""
    return study.home / REPORT / "index.html"


def write_files(*folders: Path | str, title: str | None = None, width: float | None = None) -> Study:
    """Write the files of a report on one or several studies, and return what it is about.

    The report of one study is in report/ within its folder. The report of studies A and B is in A+B/report, next to A.
    It contains the evidence (see `plainres.reporting.evidence`), figures drawn from it as SVG and PNG, table.csv with
    one row per family and depth, and index.html, which is written last.

    Args:
        folders: folders of studies, or of their evidence.
        title: the title of the figures; None uses the names of the study and its data sets.
        width: the width of the figures in inches; None uses the width that their panels need.

    Raises:
        InputError: no run is finished.
        NotWrittenError: the report cannot be written.
    """
    study = read_study(*folders)
    report = study.home / REPORT
    if title is None:
        title = study_title(study.name, (run.config for _, run in study.runs))
    try:
        report.mkdir(parents=True, exist_ok=True)
        unusable = evidence.write(study.recorded, report, study.diverged)
        kept = {run.name: run for run in evidence.read(report) if run.finished}
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
        if study.tuned:
            save(partial(tuned_figure, study.tuned, title, width), report / "tuned", width)
        else:
            for kind in ("svg", "png"):  # of an earlier report
                (report / f"tuned.{kind}").unlink(missing_ok=True)
        named = {folder for folder, _ in unusable}  # whose measurements are not in the evidence, nor in the figures
        unusable += [(folder, reason) for folder, reason in more if folder not in named]
        study = replace(study, unused=study.unused + unusable)
        write_atomically(report / "table.csv", csv_text(table.records(study.families)))
        write_atomically(page_of(study), _page(study, kept, drawn, title))
    except OSError as error:
        raise NotWrittenError(f"cannot write the report {report}: {error.strerror}", study) from error
    return study


def text(study: Study, columns: int = TERMINAL) -> str:
    """Format the table and the verdicts for a terminal; a narrow one leaves out columns, which the text names."""
    prose = min(columns, PROSE)
    errors, dropped = narrowed(table.shown(study.families), table.EXPENDABLE, columns - len(INDENT))
    rows = iter(aligned(errors, right=range(len(table.HEAD)), indent=INDENT))
    lines = [f"Report on {study.home}", *wrapped(study.summary, prose)]
    lines += ["", table.caption(study.families), next(rows)]
    for family in study.families:
        lines += [*wrapped(family.label, prose), *(next(rows) for _ in family.runs)]
    notes = [table.running(study.families)]
    notes += [CHOSEN] if table.CHOSEN not in dropped else []
    notes += [_published_note(study)] if table.PUBLISHED not in dropped else []
    lines += ["", *(line for note in (*notes, _left_out(dropped, "table.csv")) for line in wrapped(note, prose))]
    lines += ["", *wrapped(study.fairness, prose)]
    lines += _tuned(study.tuned, prose) if study.tuned else []
    if study.comparisons:
        lines += _comparisons(study, columns)
    else:
        lines += ["", *wrapped(nothing_to_compare(study.families, study.reference, len(study.unfinished)), prose)]
    if study.trends:
        cells = [(trend.label, trend.text, trend.verdict) for trend in study.trends]
        lines += ["", *wrapped(TREND, prose), *aligned(cells, indent=INDENT, width=prose)]
    for heading, rest in (("Unfinished runs", study.unfinished + study.absent), ("Not used", study.unused)):
        if rest:
            lines += ["", f"{heading} ({len(rest)})", *aligned(rest, indent=INDENT, width=prose)]
    return "\n".join(lines)


def _tuned(tuned: Tuned, prose: int) -> list[str]:
    """Format the chosen values of a tuned option, and how they depend on depth."""
    cells = aligned([HEAD, *tuned.rows], right=range(1, len(HEAD) - 1), indent=INDENT)
    exponents = [line for sentence in tuned.exponents for line in wrapped(sentence, prose)]
    return ["", *wrapped(tuned.caption, prose), *cells, *exponents]


def _comparisons(study: Study, columns: int) -> list[str]:
    """Format the comparisons, each followed by its verdict and seeds, below an explanation of the columns.

    A description that is too long to stand beside the numbers stands above them.
    """
    prose, deep = min(columns, PROSE), 3 * INDENT
    flat = [comparison for group in study.comparisons.values() for comparison in group]
    head = comparison_columns(flat)[:-2]  # the seeds and the verdict are on a separate line
    least = len(INDENT) + len(head[0]) + 2
    body, dropped = narrowed(
        [head[1:], *([comparison.cells[column] for column in head[1:]] for comparison in flat)],
        EXPENDABLE,
        columns - least,
    )
    head_line, *rest = aligned(body, right=range(len(head)))
    room = columns - len(INDENT) - 2 - max(map(len, rest))
    widest = max(len(what) for what in (head[0], *(each.what for each in flat)) if len(what) <= max(room, len(head[0])))
    cells = iter(zip(flat, rest, strict=True))
    lines = []
    for note in (_explanation(body[0]), _left_out(dropped, "index.html")):
        lines += ["", *wrapped(note, prose)] if note else []
    lines += ["", f"{INDENT}{head[0]:<{widest}}  {head_line}".rstrip()]
    for heading, group in study.comparisons.items():
        lines += ["", *wrapped(f"{heading} (percentage points)", prose)]
        for comparison, numbers in (next(cells) for _ in group):
            what = comparison.what
            if len(what) > widest:
                lines += wrapped(what, prose, INDENT + deep, first=INDENT)
                what = ""
            lines.append(f"{INDENT}{what:<{widest}}  {numbers}".rstrip())
            lines += wrapped(f"{comparison.verdict}. {comparison.seeds}", prose, deep, first=deep)
    return lines


def _left_out(columns: Sequence[str], file: str) -> str:
    """Name the columns that the text leaves out, and the file that has them."""
    return f"Left out for lack of room: {'; '.join(columns)} (see {file})." if columns else ""


def _explanation(columns: Iterable[str]) -> str:
    """Explain the columns of comparisons."""
    return " ".join(EXPLAINED[column] for column in columns if column in EXPLAINED)


def comparison_columns(comparisons: Iterable[Comparison]) -> list[str]:
    """Return the columns that are not empty for all comparisons."""
    cells = [comparison.cells for comparison in comparisons]
    return [column for column in COLUMNS if any(row[column] for row in cells)]


def _published_note(study: Study) -> str:
    """Explain the published errors and name their sources, or return an empty string if there are none."""
    if not (sources := table.sources(study.families)):
        return ""
    return (
        f"{table.PUBLISHED}: by other authors, with their implementations; (...): settings of their runs that differ "
        f"from ours ({'; '.join(sources)})."
    )


def _page(study: Study, kept: Mapping[str, Run], drawn: Iterable[str], title: str) -> str:
    """Render index.html, which contains its script, its data and the report's figures, those of probes in `drawn`."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    package = files("plainres.reporting")
    template = environment.from_string(package.joinpath("report.html").read_text(encoding="utf-8"))
    head, *rows = table.shown(study.families)
    shown = iter(rows)
    tables = [(family.label, [(next(shown), by_seed) for by_seed in family.runs.values()]) for family in study.families]
    others = {heading: group for heading, group in study.comparisons.items() if heading != DEEPER}
    columns = comparison_columns(each for group in study.comparisons.values() for each in group)
    return template.render(
        study=study,
        name=study.name,
        data=(data := _data(study, kept, title)),
        validated=any("validation" in run for run in data["runs"]),
        script=package.joinpath("report.js").read_text(encoding="utf-8"),
        figures={name: _inlined(study.home / REPORT / name) for name in ("curves", "depth")},
        deeper={DEEPER: study.comparisons[DEEPER]} if DEEPER in study.comparisons else {},
        others=others,
        of_shortcuts=SHORTCUT in study.reference,
        nothing=nothing_to_compare(study.families, study.reference, len(study.unfinished)),
        pictures=_pictures(study),
        observed={probe: _inlined(study.home / REPORT / probe) for probe in drawn},
        tuned_head=HEAD,
        tuned_figure=_inlined(study.home / REPORT / "tuned") if study.tuned else "",
        head=head,
        tables=tables,
        published_note=_published_note(study),
        notes=(table.running(study.families), CHOSEN),
        caption=table.caption(study.families),
        several=table.of_several_seeds(study.families),
        explanation=_explanation(columns),
        columns=columns,
        trend=TREND,
        relative=lambda path: os.path.relpath(path, study.home / REPORT),
    )


def _inlined(figure: Path) -> str:
    """Return a data URL of a figure as SVG, or as PNG if that is smaller, as for long curves."""
    kinds = {"svg+xml": figure.with_suffix(".svg"), "png": figure.with_suffix(".png")}
    kind, content = min(((kind, file.read_bytes()) for kind, file in kinds.items()), key=lambda pair: len(pair[1]))
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _data(study: Study, kept: Mapping[str, Run], title: str) -> dict[str, Any]:
    """Return the data of the page's script: the final errors and the curves of each run, thinned if they are long."""
    labels = [family.label for family in study.families]
    max_rows = min(POINTS, max(ALL_POINTS // len(study.runs), 2))
    runs = []
    for family, run in study.runs:
        rows = evidence.thinned(kept[run.name].curve(), max_rows)
        errors = [error for error in ("train", "validation", "test") if f"{error}/error" in rows[0]]
        runs.append(
            {
                "family": labels.index(family.label),
                "depth": run.config.model["depth"],
                "seed": run.config.seed,
                "step": [round(row["step"]) for row in rows],
                **{error: [round(row[f"{error}/error"], DIGITS) for row in rows] for error in errors},
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
    """Find the figures drawn after training, such as landscapes, by the name of their files.

    Returns:
        For each name, the figure of several runs, then those of single runs with their family and run. Each has the
        paths of its SVG and PNG files relative to the report.
    """
    pictures: dict[str, list[tuple[Family | None, Run | None, list[str]]]] = {}
    for family, run, folder in [(None, None, study.home), *((family, run, run.folder) for family, run in study.runs)]:
        if evidence.is_evidence(folder) or not folder.is_dir():  # figures in evidence are the report's own
            continue
        for file in sorted(folder.glob("[!.]*.svg")):  # some file managers add hidden files
            files = [file.with_suffix(kind) for kind in (".svg", ".png")]
            paths = [os.path.relpath(each, study.home / REPORT) for each in files if each.exists()]
            pictures.setdefault(file.stem, []).append((family, run, paths))
    return pictures
