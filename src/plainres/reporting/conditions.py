"""Training conditions that runs must share to be compared, in addition to their settings.

Rounding depends on the kind of device, the number of threads and devices, the versions of libraries, and compilation.
Training amplifies rounding: another kind of CPU changed the training error of a plain net of 32 layers from 15 to 9 %.
Another version of the code, or of a class of the user's own, may compute something else.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from plainres.runs.record import Run

# Versions that change no result. The effects of scikit-learn and plainres would show in the digest of the data and in
# the configuration, which are compared.
IMMATERIAL = ("python", "hydra-core", "scikit-learn", "plainres")


def conditions(run: Run) -> dict[str, frozenset[str]]:
    """Return the conditions of a finished run, by name, with their values in all attempts."""
    attempts = [_of_attempt(run, run.result | attempt) for attempt in run.result.get("attempts") or [{}]]
    names = {name for attempt in attempts for name in attempt}
    return {name: frozenset(attempt.get(name, "unknown") for attempt in attempts) for name in sorted(names)}


def differing(runs: Iterable[Run]) -> dict[str, list[str]]:
    """Return the conditions, by name, that differ between runs or attempts, with all their values."""
    all_values: dict[str, set[str]] = {}
    for run in runs:
        for name, values in conditions(run).items():
            all_values.setdefault(name, set()).update(values)
    return {name: sorted(values) for name, values in all_values.items() if len(values) > 1}


def edited_classes(runs: Iterable[Run]) -> list[str]:
    """Return the names of the user's own classes of which the runs have several sources."""
    sources: dict[str, set[str]] = {}
    for run in runs:
        for attempt in run.result.get("attempts") or [run.result]:
            for name, digest in attempt.get("classes", {}).items():
                sources.setdefault(name, set()).add(digest)
    return sorted(name for name, digests in sources.items() if len(digests) > 1)


def _of_attempt(run: Run, record: Mapping[str, Any]) -> dict[str, str]:
    device, devices = str(record["device"]), record.get("devices") or 1
    on_cpu = not device or device.startswith("cpu")
    synchronised = " with synchronised batch normalisation" if devices > 1 and record.get("sync_batch_norm") else ""
    return {
        "device": device,
        "number of devices": f"{devices}{synchronised}",
        "threads": str(record.get("threads")) if on_cpu else "",  # on a GPU, threads only load data
        "compile": str(bool(record.get("compile"))),
        "cuda_graph": str(bool(record.get("cuda_graph"))),
        "deterministic": str(bool(record.get("deterministic"))),
        "versions": ", ".join(
            f"{name} {version}" for name, version in record.get("versions", {}).items() if name not in IMMATERIAL
        ),
        "code": _code(run, record),
        **{name: f"source {digest[:8]}" for name, digest in record.get("classes", {}).items()},
    }


def _code(run: Run, record: Mapping[str, Any]) -> str:
    """Identify the code that trained a run by its digest, or else by its commit, or else by its version."""
    if source := record.get("source_sha256"):
        return f"source {source[:8]}"
    commit = record.get("git_commit")
    if commit and commit.endswith("-dirty"):
        return f"{commit[:8]} with unknown changes ({run.name})"
    return f"commit {commit[:8]}" if commit else f"plainres {record.get('versions', {}).get('plainres', 'unknown')}"
