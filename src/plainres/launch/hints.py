"""Hints about runs that have not begun: what their user may not have meant."""

import json
from collections.abc import Sequence
from dataclasses import asdict

from plainres.config.schema import Recipe
from plainres.errors import InputError
from plainres.runs.identity import complete
from plainres.runs.record import Run, State, folders_of

DEEP = 100  # layers, from which on He et al. 2015 (section 4.2) warm up
LENGTH = ("epochs", "steps")


def hints(runs: Sequence[Run]) -> list[str]:
    """Return a line for each thing about these runs that their user may not have meant."""
    new = [run for run in runs if run.state is State.MISSING]
    return [*_without_warmup(new), *_of_another_length(new)]


def _without_warmup(runs: Sequence[Run]) -> list[str]:
    depths = sorted({run.config.model["depth"] for run in runs if run.config.optim.warmup_lr is None})
    deep = ", ".join(str(depth) for depth in depths if depth >= DEEP)
    if not deep:
        return []
    return [f"hint: {deep} layers without warm-up; He et al. 2015 warm up with optim.warmup_lr=0.01"]


def _of_another_length(runs: Sequence[Run]) -> list[str]:
    lines = []
    for folder in sorted({run.folder.parent for run in runs}):
        shorter: dict[str, list[Run]] = {}
        for path in folders_of(folder) if folder.is_dir() else ():
            try:
                run = Run.read(path)
            except InputError:  # the report names what is no run
                continue
            shorter.setdefault(_without_length(run), []).append(run)
        begun = [
            (run, other)
            for run in runs
            if run.folder.parent == folder
            for other in shorter.get(_without_length(run), [])
            if other.name != run.name
        ]
        for run, other in begun[:1]:
            more = f" (and {len(begun) - 1} more)" if len(begun) > 1 else ""
            lines.append(
                f"hint: {other.name}{more} differs from {run.name} in its length alone ({_length(other.config.optim)}, "
                f"now {_length(run.config.optim)}); another length is another run and begins at step 0"
            )
    return lines


def _without_length(run: Run) -> str:
    identity = complete(run.config)
    identity["optim"] = {key: value for key, value in identity["optim"].items() if key not in LENGTH}
    return json.dumps(identity, sort_keys=True)


def _length(recipe: Recipe) -> str:
    unit = next(key for key in LENGTH if getattr(recipe, key) is not None)
    return f"{asdict(recipe)[unit]:,} {unit}"
