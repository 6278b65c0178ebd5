"""Hints about settings of new runs that may be unintended, and about runs that resume with other code."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

from plainres.arithmetic import has_bfloat16
from plainres.config.schema import Recipe
from plainres.errors import InputError
from plainres.runs.code import git_commit, source_sha256
from plainres.runs.identity import complete
from plainres.runs.record import Run, State, folders_of

DEEP = 100  # layers; He et al. 2015 (section 4.2) warm up deeper networks
LENGTH = ("epochs", "steps")  # the options of `optim` that set the length of a run


def hints(runs: Sequence[Run]) -> list[str]:
    """Return one line per setting of the new runs among `runs` that may be unintended, and per change of the code."""
    new = [run for run in runs if run.state is State.MISSING]
    return [*_missing_warmup(new), *_slow_precision(new), *_changed_length(new), *_changed_code(runs)]


def unmeasured(finished: Sequence[Run]) -> list[str]:
    """Return a hint for each probe that is asked for, but not as it has measured runs that are now finished."""
    lacking: dict[tuple[str, str], list[Run]] = {}
    for run in finished:
        for probe, settings in run.config.probes.items():
            if not run.probe_file(probe).exists():
                lacking.setdefault((probe, "without"), []).append(run)
            elif settings != Run.read(run.folder).config.probes.get(probe):
                lacking.setdefault((probe, "with other settings of"), []).append(run)
    return [
        f"hint: {members[0].name}{f' (and {len(members) - 1} more)' if members[1:] else ''} finished {how} the probe "
        f"{probe}; a new study measures it, as in study={members[0].config.study}_{probe}"
        for (probe, how), members in lacking.items()
    ]


def _changed_code(runs: Sequence[Run]) -> list[str]:
    """Return a hint for each version of plainres that began interrupted runs and trains otherwise than this one."""
    begun: dict[str, list[Run]] = {}
    for run in runs:
        code = run.code
        if run.state is State.INTERRUPTED and code and code.get("source_sha256") != source_sha256():
            begun.setdefault(_named(code), []).append(run)
    now = _named({"plainres": version("plainres"), "git_commit": git_commit()})
    return [
        f"hint: {members[0].name}{f' (and {len(members) - 1} more)' if members[1:] else ''} began with {before}, whose "
        f"training code differs from that of {now}; the report names both"
        for before, members in begun.items()
    ]


def _named(code: Mapping[str, Any]) -> str:
    commit = code.get("git_commit")
    return f"plainres {code.get('plainres')}" + (f" at commit {commit[:8]}{commit[40:]}" if commit else "")


def _missing_warmup(runs: Sequence[Run]) -> list[str]:
    depths = sorted({run.config.model["depth"] for run in runs if run.config.optim.warmup_lr is None})
    deep = ", ".join(str(depth) for depth in depths if depth >= DEEP)
    if not deep:
        return []
    return [f"hint: {deep} layers without warm-up; He et al. 2015 warm up with optim.warmup_lr=0.01"]


def _slow_precision(runs: Sequence[Run]) -> list[str]:
    mixed = any(run.config.precision == "bf16-mixed" and run.config.trainer.accelerator == "cpu" for run in runs)
    if not mixed or has_bfloat16("cpu"):
        return []
    return [
        "hint: this CPU has no bfloat16 arithmetic, so precision=bf16-mixed is probably slower than 32-true; "
        "plainres bench measures it"
    ]


def _changed_length(runs: Sequence[Run]) -> list[str]:
    """Return a hint for each study in which a new run differs from an existing one only in its length."""
    lines = []
    for folder in sorted({run.folder.parent for run in runs}):
        existing: dict[str, list[Run]] = {}
        for path in folders_of(folder) if folder.is_dir() else ():
            try:
                run = Run.read(path)
            except InputError:  # the report lists such folders
                continue
            existing.setdefault(_without_length(run), []).append(run)
        pairs = [
            (run, other)
            for run in runs
            if run.folder.parent == folder
            for other in existing.get(_without_length(run), [])
            if other.name != run.name
        ]
        for run, other in pairs[:1]:
            others = len({new.name for new, _ in pairs}) - 1
            more = f" (and {others} more)" if others else ""
            lines.append(
                f"hint: {run.name}{more} {'differ' if others else 'differs'} from {other.name} only in length "
                f"({_length(run.config.optim)}; previously {_length(other.config.optim)}); a run of another length "
                "starts from step 0"
            )
    return lines


def _without_length(run: Run) -> str:
    identity = complete(run.config)
    identity["optim"] = {key: value for key, value in identity["optim"].items() if key not in LENGTH}
    return json.dumps(identity, sort_keys=True)


def _length(recipe: Recipe) -> str:
    unit = next(key for key in LENGTH if getattr(recipe, key) is not None)
    number = asdict(recipe)[unit]
    return f"{number:,} {unit.removesuffix('s') if number == 1 else unit}"
