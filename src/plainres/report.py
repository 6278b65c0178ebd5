"""A study's finished runs -> table, paired differences with intervals, figures, one page.

Reads config.yaml, metrics.csv and result.json of the runs alone.
"""

import base64
import textwrap
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from plainres.errors import InputError
from plainres.figures import save_figures
from plainres.runs import REPORT, csv_text, write_atomically
from plainres.study import Study, read

RESULTS = (  # the columns of results.csv
    *("folder", "study", "family", "shortcut", "depth", "width", "seed"),
    *("train_error_eval", "train_loss_eval", "train_error", "train_loss", "test_error", "test_loss"),
    *("best_test_error", "best_test_error_epoch"),
    *("steps", "epochs", "batch_size", "parameters", "multiply_adds"),
    *("wall_time_s", "peak_memory_mib", "device", "git_commit", "weights_sha256", "data_sha256", "versions"),
)
PUBLISHED = "test, published"
HEAD = (  # of the table that is shown, without what others have published if there is nothing
    *("depth", "seeds", "train, eval mode", "train, running", "test", "test, best epoch*", PUBLISHED),
    *("parameters", "multiply-adds"),
)
LINE = 110  # characters of the terminal text
NOTES = (
    "eval mode: a pass over the training set at the end; running: over the last epoch, as the net changes.",
    "* chosen on the test set: shown beside, never the result.",
    "[...] is Student's 95 % interval, paired over seeds. Each holds by itself, not all of them at once.",
)
NOTHING = "Nothing to compare: neither two depths of one family nor plain runs beside others."


def write(folder: Path) -> str:
    """Report on the runs in a study's folder: write <folder>/report/, return the table and verdict as text.

    The report holds index.html (written last), curves and depth as SVG and PNG, table.csv (a row for each
    family and depth) and results.csv (a row for each finished run).

    Raises:
        InputError: there is no finished run to report on, or the report cannot be written.
    """
    study = read(folder)
    report = folder / REPORT
    try:
        report.mkdir(exist_ok=True)
        save_figures({family.label: family.runs for family in study.families}, report)
        write_atomically(report / "table.csv", csv_text(_table(study)))
        write_atomically(report / "results.csv", csv_text(_results(study)))
        write_atomically(report / "index.html", _page(study))
    except OSError as error:
        raise InputError(f"cannot write the report {report}: {error.strerror}") from error
    return f"{text(study)}\n\nReport: {report / 'index.html'}\n"


def text(study: Study) -> str:
    """The table and the verdict for a terminal, at most 110 columns wide."""
    table = iter(_aligned(_shown(study), str.rjust))
    lines = [f"Report on {study.folder}", *textwrap.wrap(study.summary, LINE)]
    lines += ["", "Final errors in %: mean (sample s.d.) over seeds", next(table)]
    for family in study.families:
        lines += [family.label, *(next(table) for _ in family.rows)]
    lines += ["", *NOTES[:2], *textwrap.wrap(_published_note(study), LINE), "", *textwrap.wrap(study.budget, LINE)]
    lines.append(NOTES[2] if study.comparisons else NOTHING)
    comparisons = iter(_aligned([c.cells for group in study.comparisons.values() for c in group], str.ljust))
    for heading, group in study.comparisons.items():
        lines += ["", f"{heading} (percentage points)", *(next(comparisons) for _ in group)]
    missing = study.unfinished + study.absent
    for heading, found in (("Missing runs", missing), ("Folders not used", study.unused)):
        if found:
            lines += ["", f"{heading} ({len(found)})", *_aligned(found, str.ljust)]
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


def _results(study: Study) -> list[dict[str, Any]]:
    """A row for each finished run: the main fields of its record."""
    rows = []
    for family, run in study.runs:
        versions = "; ".join(f"{name} {version}" for name, version in run.result.get("versions", {}).items())
        record = run.result | {"folder": run.folder.name, "family": family.label, "versions": versions}
        rows.append({column: record.get(column) for column in RESULTS})
    return rows


def _page(study: Study) -> str:
    """index.html, with the figures of the report's folder inside."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    template = environment.from_string(files("plainres").joinpath("report.html").read_text(encoding="utf-8"))
    figures = {
        name: base64.b64encode((study.folder / REPORT / f"{name}.svg").read_bytes()).decode()
        for name in ("curves", "depth")
    }
    head, *rows = _shown(study)
    return template.render(
        study=study,
        figures=figures,
        head=head,
        rows=iter(rows),
        next=next,
        published_note=_published_note(study),
        notes=NOTES,
        nothing=NOTHING,
    )


def _aligned(rows: Sequence[Sequence[str]], justify: Callable[[str, int], str]) -> list[str]:
    """Cells -> a line for each row; the last column wraps."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        *cells, last = map(justify, row, widths)
        start = "  " + "".join(f"{cell}  " for cell in cells)
        later = " " * min(len(start), LINE // 2)
        lines.append(textwrap.fill(last, LINE, initial_indent=start, subsequent_indent=later))
    return lines
