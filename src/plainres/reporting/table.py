"""Table of final errors, one row per family and depth, in formats for readers, programs and papers."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from plainres.reporting.conditions import differing
from plainres.reporting.families import Family
from plainres.reporting.published import Published, published
from plainres.reporting.statistics import Summary, summarize
from plainres.runs.record import Run

RUNNING, CHOSEN, PUBLISHED = "train, running", "test, best epoch*", "test, published"
EARLY = "test, best validation epoch"
ERRORS = {  # in percent, with their headings
    "train_error_eval": "train, eval mode",
    "train_error": RUNNING,
    "validation_error": "validation",
    "test_error": "test",
    "test_error_at_best_validation": EARLY,
    "best_test_error": CHOSEN,
}
VALIDATED = ("validation_error", "test_error_at_best_validation")  # only of runs with a validation set
HEAD = ("depth", "seeds", *ERRORS.values(), PUBLISHED, "parameters", "multiply-adds")  # without empty columns
EXPENDABLE = ("multiply-adds", "parameters", CHOSEN, EARLY, RUNNING, PUBLISHED)  # on a narrow terminal


@dataclass(frozen=True)
class Row:
    """Finished runs of one family and depth."""

    depth: int
    runs: list[Run]
    errors: dict[str, Summary | None]  # in the order of ERRORS; None where a run has no such error
    published: Published | None  # published result of an equal run

    @property
    def differing(self) -> list[str]:
        """Names of what differs between the runs although it should not: their images, or training conditions."""
        digests = {run.result["data_sha256"] for run in self.runs}
        return [*(["images"] if len(digests) > 1 else []), *differing(self.runs)]

    @property
    def seeds(self) -> str:
        """Number of seeds, marked if the runs' images or training conditions differ."""
        return f"{len(self.runs)}{' mixed' if self.differing else ''}"

    @property
    def train_error(self) -> float:
        """Mean final training error, in percent."""
        summary = self.errors["train_error_eval"]
        assert summary is not None  # every finished run has it
        return summary.mean

    @property
    def sizes(self) -> tuple[int, int]:
        """Numbers of parameters and multiply-adds of the network."""
        result = self.runs[0].result
        return result["parameters"], result["multiply_adds"]


def rows(family: Family) -> list[Row]:
    """Return the rows of a family."""
    family_rows = []
    for depth, by_seed in family.runs.items():
        runs = [*by_seed.values()]
        errors = {error: _summary([run.result.get(error) for run in runs]) for error in ERRORS}
        family_rows.append(Row(depth, runs, errors, published(runs[0].config)))
    return family_rows


def _summary(values: Sequence[float | None]) -> Summary | None:
    known = [value for value in values if value is not None]
    return summarize(known) if len(known) == len(values) else None


def of_several_seeds(families: Iterable[Family]) -> bool:
    """Whether a row of the table has several seeds, and thereby a spread."""
    return any(len(by_seed) > 1 for family in families for by_seed in family.runs.values())


def caption(families: Iterable[Family]) -> str:
    """Describe the cells of the table."""
    cells = "mean (sample s.d.) over seeds" if of_several_seeds(families) else "one seed per row, so no s.d."
    return f"Final errors in %: {cells}"


def running(families: Iterable[Family]) -> str:
    """Return a note that explains the two training errors and the steps that the running one averages."""
    results = [run.result for family in families for by_seed in family.runs.values() for run in by_seed.values()]
    averaged = {result["train_error_steps"]: result for result in results if result.get("train_error_steps")}
    partial = sorted(n for n, result in averaged.items() if n * result["epochs"] != result["steps"])
    note = "eval mode: final weights on the whole training set; running: mean over the steps of the last epoch"
    if partial:
        note += f" or, if that is partial, of the last two ({' or '.join(map(str, partial))} steps)"
    elif not averaged:  # an older version did not record the number of steps
        note += " or, if that is partial, of the last two"
    return f"{note}."


def sources(families: Iterable[Family]) -> list[str]:
    """Return the sources of the published errors in the table."""
    return list(dict.fromkeys(row.published.source for each in families for row in rows(each) if row.published))


def shown(families: Sequence[Family]) -> list[list[str]]:
    """Return the cells of the table for readers: HEAD and one row per family and depth, without empty columns."""
    table = [list(HEAD)]
    for row in [row for family in families for row in rows(family)]:
        errors = [_cell(summary, "({})") for summary in row.errors.values()]
        published_error = row.published.cell if row.published else ""
        table.append([str(row.depth), row.seeds, *errors, published_error, *(f"{size:,}" for size in row.sizes)])
    empty = {column for column in range(len(HEAD)) if not any(cells[column] for cells in table[1:])}
    return [[cell for column, cell in enumerate(cells) if column not in empty] for cells in table]


def _cell(summary: Summary | None, spread: str) -> str:
    """Format a mean and, if there are several seeds, the standard deviation as `spread` does."""
    if summary is None:
        return ""
    return f"{summary.mean:.2f}" + ("" if summary.sd is None else f" {spread.format(f'{summary.sd:.2f}')}")


def records(families: Sequence[Family]) -> list[dict[str, Any]]:
    """Return the rows of table.csv, one per family and depth; errors are in percent."""
    table = []
    of_families = [(family, rows(family)) for family in families]
    validated = any(row.errors["validation_error"] for _, of_family in of_families for row in of_family)
    compared = any(row.published for _, of_family in of_families for row in of_family)
    for family, of_family in of_families:
        for row in of_family:
            cells: dict[str, Any] = {"family": family.label, "depth": row.depth, "seeds": len(row.runs)}
            cells["conditions_differ"] = "; ".join(row.differing)
            for error, summary in row.errors.items():
                if validated or error not in VALIDATED:
                    values = (summary.mean, summary.sd) if summary else (None, None)
                    cells |= dict(zip((f"{error}_mean", f"{error}_sd"), values, strict=True))
            if compared:
                cells["test_error_published"] = row.published.test_error if row.published else None
                cells["published_with"] = row.published.unlike if row.published else None
                cells["source"] = row.published.source if row.published else None
            parameters, multiply_adds = row.sizes
            table.append(cells | {"parameters": parameters, "multiply_adds": multiply_adds})
    return table


def markdown(families: Sequence[Family]) -> str:
    """Format the table in Markdown, with errors in percent as mean ± sample s.d."""
    head, *body = _for_papers(families, "±")
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---", *["---:"] * (len(head) - 1)], *body))


def latex(families: Sequence[Family]) -> str:
    r"""Format the table in LaTeX, with errors in percent as mean ± sample s.d.; it requires \usepackage{booktabs}."""
    head, *body = _for_papers(families, "$\\pm$")
    rules = [r"\toprule", r"\midrule", r"\bottomrule"]
    lines = [" & ".join([_escaped(cells[0]), *cells[1:]]) + r" \\" for cells in (head, *body)]
    columns = "l" + "r" * (len(head) - 1)
    table = [rules[0], lines[0], rules[1], *lines[1:], rules[2]]
    return "\n".join([rf"\begin{{tabular}}{{{columns}}}", *(f"  {line}" for line in table), r"\end{tabular}"])


def _for_papers(families: Sequence[Family], sign: str) -> list[list[str]]:
    table = [["family", "depth", "seeds", "train", "test", "parameters"]]
    for family in families:
        for row in rows(family):
            errors = [_cell(row.errors[error], f"{sign} {{}}") for error in ("train_error_eval", "test_error")]
            table.append([family.label, str(row.depth), row.seeds, *errors, f"{row.sizes[0]:,}"])
    return table


def _escaped(text: str) -> str:
    """Escape the characters that are special in LaTeX."""
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(special.get(c, rf"\{c}" if c in "&%$#_{}" else c) for c in text)
