"""Write README.md from README.md.jinja and from the committed results of the studies that it cites.

python experiments/why/build.py
"""

from collections import defaultdict
from collections.abc import Mapping
from functools import cache
from itertools import takewhile
from pathlib import Path
from statistics import mean

from jinja2 import Environment, StrictUndefined

from plainres.files import read_rows
from plainres.reporting.comparisons import ERROR
from plainres.reporting.families import labelled
from plainres.reporting.statistics import Difference, holm, paired_difference, summarize
from plainres.reporting.study import Study, read_study
from plainres.runs.record import Run

HERE = Path(__file__).parent
SHALLOW, DEEP = 8, 56
# study, family without a change; {} is the shortcut
INITIALISATION = "digits_initialisation", "{} (init he_fan_out)"
DECAY = "digits_decay", "{} (decay all, nesterov False)"
GRADIENTS = "cifar10_gradients", "{} (init he_fan_out, not clipped)"
# data -> what is changed -> study, family without the change, family with it
REMEDIES = {
    "digits": {
        "`model/init=he_fan_in`": (*INITIALISATION, "{} (init he_fan_in)"),
        "`model/init=orthogonal`": (*INITIALISATION, "{} (init orthogonal)"),
        "`model/init=delta_orthogonal`": (*INITIALISATION, "{} (init delta_orthogonal)"),
        "`model/norm=group`": ("digits_normalisation", "{} (norm batch)", "{} (norm group)"),
        "`model/norm=none`": ("digits_normalisation", "{} (norm batch)", "{} (norm none)"),
        "`optim.clip_norm=1`": ("digits_clipping", "{} (not clipped)", "{} (clip_norm 1)"),
        "`optim.clip_norm=0.1`": ("digits_clipping", "{} (not clipped)", "{} (clip_norm 0.1)"),
        "`optim.warmup_lr=0.005`": ("digits_warmup", "{} (no warm-up)", "{} (warmup_lr 0.005)"),
        "`model/activation=leaky`": ("digits_leaky", "{} (activation relu)", "{} (activation leaky)"),
        "`optim.decay=weights`": (*DECAY, "{} (decay weights, nesterov False)"),
        "`optim.nesterov=true`": (*DECAY, "{} (decay all, nesterov True)"),
    },
    "cifar10": {
        "`optim.clip_norm=1`": (*GRADIENTS, "{} (init he_fan_out, clip_norm 1)"),
        "`model/init=orthogonal`": (*GRADIENTS, "{} (init orthogonal, not clipped)"),
        "both": (*GRADIENTS, "{} (init orthogonal, clip_norm 1)"),
    },
}
BUDGETS = {
    f"{epochs} epochs": ("digits_budget", f"{{}} (epochs {epochs})") for epochs in (10, 30, 100)
}  # study, family


@cache
def study(name: str) -> Study:
    """Read a committed study."""
    return read_study(HERE.parent / name)


def runs(name: str, label: str, depth: int) -> Mapping[int, Run]:
    """Return the runs of a family and depth by seed, empty if all of them diverged."""
    labels = {family.label: family for family in study(name).families}
    return labels[label].runs.get(depth, {}) if label in labels else {}


def errors(name: str, label: str, depth: int) -> dict[int, float]:
    """Return the final training errors (%) of a family and depth by seed."""
    return {seed: run.result[ERROR] for seed, run in runs(name, label, depth).items()}


def diverged(name: str, label: str, depth: int) -> int:
    """Return the number of runs of a family and depth that diverged."""
    labels = labelled([*(run for _, run in study(name).runs), *study(name).diverged])
    return sum(labels[run.name][0] == label and run.config.model["depth"] == depth for run in study(name).diverged)


def error(name: str, label: str, depth: int) -> str:
    """Return mean and sample standard deviation of the training errors (%) of a family and depth.

    Raises:
        ValueError: it has no runs, although none diverged.
    """
    values = list(errors(name, label, depth).values())
    lost = diverged(name, label, depth)
    if not values and not lost:
        raise ValueError(f"{name} has no runs of {label} with {depth} layers")
    if not values:
        return "diverges"
    summary = summarize(values)
    text = f"{summary.mean:.2f}" + ("" if summary.sd is None else f" ({summary.sd:.2f})")
    return f"{text}; {lost} of {lost + len(values)} diverge" if lost else text


def difference(a: tuple[str, str, int], b: tuple[str, str, int]) -> Difference:
    """Return the paired difference of the training errors of two families, each a study, a label and a depth."""
    return paired_difference(errors(*a), errors(*b))


def points(found: Difference) -> str:
    """Return a mean difference in percentage points with its interval."""
    if found.mean is None:
        return ""
    interval = " [{:+.2f}, {:+.2f}]".format(*found.interval) if found.interval else ""
    return f"{found.mean:+.2f}{interval}"


def change(data: str, remedy: str) -> str:
    """Return what a change adds to the training error of the plain network of 56 layers, in points."""
    name, without, with_ = REMEDIES[data][remedy]
    return compared(name, with_.format("plain"), without.format("plain"))


def compared(name: str, label: str, other: str) -> str:
    """Return the training error of a family with 56 layers minus that of another one, in points."""
    return points(difference((name, label, DEEP), (name, other, DEEP)))


def remedies(data: str) -> str:
    """Return the table of what each change does to the plain network of 56 layers."""
    found = {
        change: difference((name, with_.format("plain"), DEEP), (name, without.format("plain"), DEEP))
        for change, (name, without, with_) in REMEDIES[data].items()
    }
    corrected = holm([each.p for each in found.values()])
    rows = ["| change | without | with | with minus without | verdict |", "|---|---:|---:|---:|---|"]
    for (change, each), p in zip(found.items(), corrected, strict=True):
        name, without, with_ = REMEDIES[data][change]
        cells = error(name, without.format("plain"), DEEP), error(name, with_.format("plain"), DEEP), points(each)
        rows.append(f"| {change} | {' | '.join(cells)} | {each.verdict('worse with it', 'better with it', p)} |")
    return "\n".join(rows)


def degradation(data: str) -> str:
    """Return the table of whether plain networks degrade with each change, and whether the shortcut helps."""
    changed = {change: (name, with_) for change, (name, _, with_) in REMEDIES[data].items()}
    name, without, _ = next(iter(REMEDIES[data].values()))
    return differences("change", {"none": (name, without)} | changed)


def budgets() -> str:
    """Return the table of whether plain networks degrade after longer trainings, and whether the shortcut helps."""
    return differences("budget", BUDGETS)


def differences(title: str, sides: Mapping[str, tuple[str, str]]) -> str:
    """Return a table with, for each study and label, the difference of depths and the difference to identity."""
    deeper, against = [], []
    for name, label in sides.values():
        plain, identity = label.format("plain"), label.format("identity")
        deeper.append(difference((name, plain, DEEP), (name, plain, SHALLOW)))
        against.append(difference((name, plain, DEEP), (name, identity, DEEP)))
    head = (title, "plain, 8", "plain, 56", "identity, 56", "plain: 56 minus 8", "", "plain minus identity, 56", "")
    rows = [f"| {' | '.join(head)} |", "|---|---:|---:|---:|---:|---|---:|---|"]
    tests = zip(sides.items(), deeper, holm([d.p for d in deeper]), against, holm([d.p for d in against]), strict=True)
    for (setting, (name, label)), down, p_down, other, p_other in tests:
        plain, identity = label.format("plain"), label.format("identity")
        cells = (
            *(error(name, plain, SHALLOW), error(name, plain, DEEP), error(name, identity, DEEP)),
            *(points(down), down.verdict("degrades", "deeper is better", p_down)),
            *(points(other), other.verdict("plain is worse", "plain is better", p_other)),
        )
        rows.append(f"| {setting} | {' | '.join(cells)} |")
    return "\n".join(rows)


def sharpness(step: int) -> str:
    """Return the sharpness after a step, relative to the largest stable one, as a table of means over seeds."""
    values: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
    for row in read_rows(HERE.parent / "digits_sharpness" / "probes" / "sharpness.csv"):
        if int(row["step"]) == step:
            family, depth, *_ = row["run"].split("-")
            values[family, depth].append(float(row["to_stable"]))
    rows = ["| network | smallest | mean | largest |", "|---|---:|---:|---:|"]
    for (family, depth), found in values.items():
        shown = (f"{value:,.2f}" if value < 100 else f"{value:,.0f}" for value in (min(found), mean(found), max(found)))
        rows.append(f"| {family}-{depth} | {' | '.join(shown)} |")
    return "\n".join(rows)


def linearised(rise: float) -> str:
    """Return, for each network and seed, what is left when the training error has risen by less than `rise` points."""
    by_run: defaultdict[str, list[dict[str, str]]] = defaultdict(list)
    for row in read_rows(HERE.parent / "linearise" / "linearise.csv"):
        by_run[row["run"]].append(row)
    by_network: defaultdict[str, list[tuple[dict[str, str], dict[str, str], dict[str, str]]]] = defaultdict(list)
    for run, steps in by_run.items():
        limit = float(steps[0]["train_error"]) + rise
        kept = list(takewhile(lambda row, limit=limit: float(row["train_error"]) < limit, steps))
        family, depth, *_ = run.split("-")
        by_network[f"{family}-{depth}"].append((steps[0], kept[-1], steps[-1]))
    rows = [
        "| network | training error (%) | effective depth | non-linear channels at +5 points (%) "
        "| effective depth at +5 points | training error, all linear (%) |"
    ]
    rows.append("|---|---:|---:|---:|---:|---:|")
    for network, found in by_network.items():
        first, kept, last = zip(*found, strict=True)
        shares = [100 * (1 - int(row["linear"]) / int(row["channels"])) for row in kept]
        depths = [float(row["effective_depth"]) for row in kept]
        errors = [mean(float(row["train_error"]) for row in rows_) for rows_ in (first, last)]
        cells = (
            f"{errors[0]:.2f}",
            f"{float(first[0]['effective_depth']):.1f}",
            f"{min(shares):.0f} to {max(shares):.0f}",
        )
        cells += f"{min(depths):.1f} to {max(depths):.1f}", f"{errors[1]:.2f}"
        rows.append(f"| {network} | {' | '.join(cells)} |")
    return "\n".join(rows)


def choices(name: str, *, exponents: bool = True) -> str:
    """Return the table of the chosen values of a tuned study, and, if wanted, the fitted exponents."""
    tuned = study(name).tuned
    assert tuned is not None
    head = f"| network | depth | best {tuned.name} | range | validation error (%) | the same, other seeds | |"
    rows = [head, "|---|---:|---:|---:|---:|---:|---|"]
    for label, depth, *found, note in tuned.rows:
        rows.append(f"| {' | '.join((label, depth, *found, carried(name, label, int(depth)), note))} |")
    fitted = ["", *(f"- {sentence}" for sentence in tuned.exponents)] if exponents else []
    return "\n".join([*rows, *fitted])


def carried(name: str, label: str, depth: int) -> str:
    """Return the mean validation error (%) of a network's other seeds at its own best value."""
    tuned = study(name).tuned
    assert tuned is not None
    at_best = f"{label[:-1]}, best {tuned.name})" if label.endswith(")") else f"{label} (best {tuned.name})"
    errors = [run.result["validation_error"] for run in runs(name, at_best, depth).values()]
    return f"{mean(errors):.2f}" if errors else ""


def grows(name: str, label: str) -> str:
    """Return what Page's test says about the training error of a family over all depths."""
    (trend,) = [each for each in study(name).trends if each.label == label]
    return f"{trend.verdict} ({trend.text})"


def first_norms() -> str:
    """Return the smallest and the largest norm of the gradient of plain networks of 56 layers before training."""
    squares: defaultdict[str, float] = defaultdict(float)
    for row in read_rows(HERE.parent / "digits_probes" / "probes" / "gradients.csv"):
        if row["run"].startswith(f"plain-{DEEP}-") and int(row["step"]) == 0:
            squares[row["run"]] += float(row["gradient"]) ** 2
    norms = [square**0.5 for square in squares.values()]
    return f"{min(norms):.0f} to {max(norms):.0f}"


def best(name: str, label: str, depth: int) -> str:
    """Return the chosen value of a network."""
    tuned = study(name).tuned
    assert tuned is not None
    return f"{tuned.choices[label][depth].best:g}"


def verdicts(name: str, *headings: str) -> str:
    """Return the comparisons of a study whose headings contain one of `headings`, with what the runs support."""
    rows = ["| comparison | points | 95 % interval | verdict |", "|---|---:|---:|---|"]
    for heading, group in study(name).comparisons.items():
        if any(part in heading for part in headings):
            for each in group:
                what = each.what if ":" in each.what else f"{heading.partition(', ')[2]}, {each.what}"
                rows.append(f"| {what} | {each.cells['points']} | {each.cells['95 % interval']} | {each.verdict} |")
    return "\n".join(rows)


def page() -> str:
    """Return the page."""
    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False)
    template = environment.from_string((HERE / "README.md.jinja").read_text(encoding="utf-8"))
    shown = (best, budgets, change, choices, compared, degradation, error, first_norms, grows)
    shown += (linearised, remedies, sharpness, verdicts)
    return template.render({function.__name__: function for function in shown})


if __name__ == "__main__":
    (HERE / "README.md").write_text(page(), encoding="utf-8")
