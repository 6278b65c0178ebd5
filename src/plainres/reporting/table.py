"""The table of final errors, a row for each family and depth: for people, for programs, for papers."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from plainres.reporting.conditions import differing
from plainres.reporting.families import Family
from plainres.reporting.published import Published, published
from plainres.reporting.statistics import Summary, summarize
from plainres.runs.record import Run

ERRORS = ("train_error_eval", "train_error", "test_error", "best_test_error")  # percent
PUBLISHED = "test, published"
HEAD = (  # of the table that is shown, without what others have published if there is nothing
    *("depth", "seeds", "train, eval mode", "train, running", "test", "test, best epoch*", PUBLISHED),
    *("parameters", "multiply-adds"),
)


@dataclass(frozen=True)
class Row:
    """The finished runs of one family and depth."""

    depth: int
    runs: list[Run]
    errors: dict[str, Summary]  # in the order of ERRORS
    published: Published | None  # what others have found

    @property
    def seeds(self) -> str:
        """The number of seeds, marked if the mean is over runs of different conditions."""
        return f"{len(self.runs)}{' mixed' if differing(self.runs) else ''}"

    @property
    def sizes(self) -> tuple[int, int]:
        """Parameters and multiply-adds of the network."""
        result = self.runs[0].result
        return result["parameters"], result["multiply_adds"]


def rows(family: Family) -> list[Row]:
    """Return a family's part of the table."""
    found = []
    for depth, by_seed in family.runs.items():
        runs = [*by_seed.values()]
        errors = {error: summarize([run.result[error] for run in runs]) for error in ERRORS}
        found.append(Row(depth, runs, errors, published(runs[0].config)))
    return found


def running(families: Iterable[Family]) -> str:
    """Return what the two training errors are, and over which steps the running one is a mean."""
    results = [run.result for family in families for by_seed in family.runs.values() for run in by_seed.values()]
    averaged = {result["train_error_steps"]: result for result in results if result.get("train_error_steps")}
    partial = sorted(n for n, result in averaged.items() if n * result["epochs"] != result["steps"])
    note = "eval mode: a pass over the training set at the end; running: as the net changes, over the last epoch"
    if partial:
        note += f" or, where that is partial, over the last two: {' or '.join(map(str, partial))} steps"
    elif not averaged:  # records of an older version do not tell
        note += " or, where that is partial, over the last two"
    return f"{note}."


def sources(families: Iterable[Family]) -> list[str]:
    """Return where the published errors in the table are from."""
    return list(dict.fromkeys(row.published.source for each in families for row in rows(each) if row.published))


def shown(families: Sequence[Family]) -> list[list[str]]:
    """Return the table as it is shown: HEAD and a row for each family and depth, without columns that are empty."""
    table = [list(HEAD)]
    for row in [row for family in families for row in rows(family)]:
        errors = [
            f"{summary.mean:.2f}" + ("" if summary.sd is None else f" ({summary.sd:.2f})")
            for summary in row.errors.values()
        ]
        others = row.published.cell if row.published else ""
        table.append([str(row.depth), row.seeds, *errors, others, *(f"{size:,}" for size in row.sizes)])
    if not sources(families):
        for cells in table:
            del cells[HEAD.index(PUBLISHED)]
    return table


def records(families: Sequence[Family]) -> list[dict[str, Any]]:
    """Return table.csv: a row for each family and depth, errors in percent."""
    found = []
    for family in families:
        for row in rows(family):
            cells: dict[str, Any] = {"family": family.label, "depth": row.depth, "seeds": len(row.runs)}
            cells["conditions_differ"] = "; ".join(differing(row.runs))
            for error, summary in row.errors.items():
                cells |= {f"{error}_mean": summary.mean, f"{error}_sd": summary.sd}
            if sources(families):
                cells["test_error_published"] = row.published.test_error if row.published else None
                cells["published_with"] = row.published.unlike if row.published else None
                cells["source"] = row.published.source if row.published else None
            parameters, multiply_adds = row.sizes
            found.append(cells | {"parameters": parameters, "multiply_adds": multiply_adds})
    return found


def markdown(families: Sequence[Family]) -> str:
    """Return the table for a page of text, errors in percent as mean ± sample s.d."""
    head, *body = _for_papers(families, "±")
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---", *["---:"] * (len(head) - 1)], *body))


def latex(families: Sequence[Family]) -> str:
    r"""Return the table for a paper, errors in percent as mean ± sample s.d.; it needs \usepackage{booktabs}."""
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
            errors = [
                f"{summary.mean:.2f}" + ("" if summary.sd is None else f" {sign} {summary.sd:.2f}")
                for summary in (row.errors["train_error_eval"], row.errors["test_error"])
            ]
            table.append([family.label, str(row.depth), row.seeds, *errors, f"{row.sizes[0]:,}"])
    return table


def _escaped(text: str) -> str:
    """Return text in which no character means something to LaTeX."""
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(special.get(c, rf"\{c}" if c in "&%$#_{}" else c) for c in text)
