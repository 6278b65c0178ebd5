"""Commands that compose configurations, and commands on folders of runs.

Each command imports its dependencies when it is called, so that --help does not wait for torch.
"""

import json
import shutil
import sys
import webbrowser
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from plainres.cli.arguments import Arguments, integer, positive_number, split_overrides
from plainres.cli.descriptions import BENCH, DESCRIBE, EVAL, LIST, REPORT, STATUS, TRAIN
from plainres.errors import InputError, RunFailedError

if TYPE_CHECKING:
    from plainres.runs.record import Run

STUDY = "folder of a study's runs, such as runs/digits"


def train(arguments: list[str]) -> int:
    """Train one network, or every run of a sweep."""
    if {"-h", "--help"} & set(arguments):
        print(TRAIN, end="")
        return 0
    from plainres.processes.signals import StopSignals
    from plainres.processes.world import World

    with StopSignals(early=World.current().size == 1):
        from plainres.config.compose import compose_jobs
        from plainres.runs.record import Run

        jobs = compose_jobs([word for word in arguments if word != "--dry-run"])
        runs = [Run.of(config) for config in jobs.configs]
        if "--dry-run" in arguments:
            _list_runs(runs)
            return 0
        if jobs.launcher != "basic":
            if not jobs.overrides:
                raise InputError(f"hydra/launcher={jobs.launcher} starts the runs of a sweep: add -m")
            from plainres.launch.hydra_launchers import sweep_with

            return 1 if sweep_with(jobs) else 0
        if len(runs) > 1:
            from plainres.launch.sweep import sweep

            return 1 if sweep(runs) else 0
        for run in runs:
            _train_one(run)
    return 0


def _list_runs(runs: Sequence["Run"]) -> None:
    """Check the configurations of runs, and print the state of each run and their numbers.

    Raises:
        InputError: a configuration is invalid, or the record of a run is damaged.
    """
    from plainres.config.instantiate import check
    from plainres.console import aligned
    from plainres.runs.record import State

    distinct = {run.folder: run for run in runs}
    for run in {repr((run.config.model, run.config.data)): run for run in distinct.values()}.values():
        check(run.config, devices=False)
    states = {run.folder: run.state for run in distinct.values()}
    rows = []
    for folder, state in states.items():
        run = distinct[folder]
        details = {State.INTERRUPTED: f"at step {run.step}", State.FAILED: run.failure or ""}
        rows.append((state.value, str(folder), details.get(state, "")))
    counts = Counter(state.value for state in states.values())
    summary = ", ".join(f"{counts[state.value]} {state.value}" for state in State if counts[state.value])
    if rows:
        print("\n".join([*aligned(rows), "", f"{len(rows)} {'run' if len(rows) == 1 else 'runs'}: {summary}"]))


def _train_one(run: "Run") -> None:
    from plainres.launch.devices import train
    from plainres.processes.world import World

    first = World.current().rank == 0
    if first and run.finished and run.result:
        print(f"{run.name} is finished already", file=sys.stderr)
    result = train(run).result
    if first:
        print(
            f"train error {result['train_error']:.2f} % (running), {result['train_error_eval']:.2f} % (eval); "
            f"test error {result['test_error']:.2f} %"
        )
        print(run.folder)


def list_options(arguments: list[str]) -> int:
    """List the groups of the configuration and their options."""
    parser = Arguments("list", LIST)
    parser.add_argument("group", nargs="?", help="group to list, such as model/shortcut (default: all groups)")
    parser.add_argument("--config-dir", metavar="FOLDER", help="folder of your own options, laid out like conf/")
    options = parser.parse_args(arguments)
    from plainres.config.options import Options

    print(Options(options.config_dir).table(options.group, shutil.get_terminal_size().columns))
    return 0


def status(arguments: list[str]) -> int:
    """Show the progress of the runs of a study."""
    parser = Arguments("status", STATUS, example="runs/digits")
    parser.add_argument("folder", type=Path, help=f"{STUDY}, or of all studies, such as runs")
    parser.add_argument(
        "--watch",
        action="store_true",
        help="refresh until no run is left to train, or none has been running for 30 seconds",
    )
    options = parser.parse_args(arguments)
    from plainres.launch.status import status, watch

    watch(options.folder) if options.watch else print(status(options.folder))
    return 0


def report(arguments: list[str]) -> int:
    """Compare the finished runs of one or more studies."""
    parser = Arguments("report", REPORT, example="runs/digits")
    parser.add_argument("folders", type=Path, nargs="+", metavar="folder", help=STUDY)
    modes = ("offline", "online")
    parser.add_argument("--format", choices=("markdown", "latex"), help="print only the table, in this format")
    parser.add_argument("--title", help="title of the figures (default: the study and its data)")
    parser.add_argument(
        "--width", type=positive_number, metavar="INCHES", help="width of the figures (default: fitted to the panels)"
    )
    parser.add_argument("--open", action="store_true", help="open the page in a browser")
    parser.add_argument(
        "--wandb",
        nargs="?",
        const="offline",
        choices=modes,
        help="log the report to W&B as well: online now, or offline for a later wandb-sync (default: offline)",
    )
    for position, word in enumerate(arguments[1:], 1):
        if arguments[position - 1] == "--wandb" and word not in modes:
            arguments[position - 1] = "--wandb=offline"  # the next word is a folder
    options = parser.parse_args(arguments)
    from plainres.reporting.report import FORMATS, NotWrittenError, write_report
    from plainres.reporting.study import read_study
    from plainres.runs.record import REPORT as REPORTED

    if options.format:
        print(FORMATS[options.format](read_study(*options.folders).families))
        return 0
    columns = shutil.get_terminal_size().columns  # 80 if the output is piped
    try:
        print(write_report(*options.folders, title=options.title, width=options.width, columns=columns))
    except NotWrittenError as error:
        print(error.text)
        raise
    page = read_study(*options.folders).home / REPORTED / "index.html"
    if options.open and not webbrowser.open(page.resolve().as_uri()):
        print(f"there is no browser to open {page} with", file=sys.stderr)
    if options.wandb:
        from plainres.reporting.wandb_report import show

        print(show(read_study(*options.folders), page.parent, options.wandb))
    return 0


def wandb_sync(arguments: list[str]) -> int:
    """Upload to W&B what was logged offline, or while W&B could not be reached."""
    parser = Arguments(
        "wandb-sync", "Upload to W&B what was logged offline, or while W&B could not be reached.", example="runs/digits"
    )
    parser.add_argument("folder", type=Path, help="folder of a run, of a study, or of all runs")
    parser.add_argument(
        "--timeout",
        type=positive_number,
        default=60,
        metavar="SECONDS",
        help="longest wait for each response of W&B (default: 60)",
    )
    options = parser.parse_args(arguments)
    from plainres.tracking.wandb_sync import sync

    complete = True
    for line, sent in sync(options.folder, options.timeout):
        print(line, file=sys.stdout if sent else sys.stderr, flush=True)
        complete &= sent
    if not complete:
        raise RunFailedError(f"not everything in {options.folder} was uploaded; run the same command again to retry")
    return 0


def describe(arguments: list[str]) -> int:
    """Show networks layer by layer."""
    parser = Arguments("describe", DESCRIBE, usage="[OVERRIDES] [--json]", overrides=True)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options, overrides = parser.parse_known_args(arguments)
    from dataclasses import asdict

    from plainres.config.compose import compose
    from plainres.config.instantiate import description_of, source_of
    from plainres.reporting.families import labelled
    from plainres.runs.record import Run

    runs = [Run.of(config) for config in compose(overrides)]
    families = labelled(runs) if runs else {}
    descriptions = {}
    for run in runs:
        config = run.config
        source, model = source_of(config), config.model
        key = (json.dumps(model), *source.shape, source.classes)
        if key not in descriptions:
            label, _ = families[run.name]
            name = f"{label}, depth {model['depth']}, width {model['width']}, on {config.options['data']}"
            descriptions[key] = name, description_of(config, source)
    if options.json:
        networks = [{"network": name, **asdict(description)} for name, description in descriptions.values()]
        print(json.dumps(networks[0] if len(networks) == 1 else networks, indent=2))
    else:
        columns = shutil.get_terminal_size().columns  # 80 if the output is piped
        print("\n\n".join(f"{name}\n{description.table(columns)}" for name, description in descriptions.values()))
    return 0


def bench(arguments: list[str]) -> int:
    """Measure how fast this machine trains."""
    parser = Arguments("bench", BENCH, usage="[OVERRIDES] [--rounds N] [--seconds S] [--json]", overrides=True)
    parser.add_argument(
        "--rounds", type=integer(1), default=5, metavar="N", help="timing windows of each contender (default: 5)"
    )
    parser.add_argument(
        "--seconds",
        type=positive_number,
        default=3.0,
        metavar="S",
        help="approximate length of a timing window (default: 3); windows below a second flatter the DataLoader, "
        "which has prefetched batches",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    options, overrides = parser.parse_known_args(arguments)
    from plainres.config.compose import compose

    configs = compose(overrides)
    if not configs:
        return 0
    from dataclasses import asdict

    from plainres.benchmark.measure import bench

    measurements, estimate = bench(configs, options.rounds, options.seconds)
    if options.json:
        print(json.dumps({"measured": [asdict(each) for each in measurements], "estimate": estimate}, indent=2))
    else:
        print("\n\n".join(map(str, measurements)), estimate, sep="\n\n")
    return 0


def eval_(arguments: list[str]) -> int:
    """Evaluate a trained network on a test set."""
    parser = Arguments("eval", EVAL, usage="RUN|WEIGHTS [OVERRIDES]", overrides=True)
    parser.add_argument("target", type=Path, nargs="?", metavar="RUN|WEIGHTS", help="folder of a run, or weights file")
    options, overrides = parser.parse_known_args(arguments)
    if options.target is None or "=" in str(options.target).partition("/")[0]:
        raise InputError("plainres eval needs the folder of a run or a file of weights first; see plainres eval --help")
    from plainres.analysis.evaluation import predict, with_overrides
    from plainres.analysis.exchange import predict_with_file
    from plainres.runs.record import Run

    target: Path = options.target
    if not target.exists():
        raise InputError(f"{target}: there is no such file of weights, and no such folder of a run")
    if target.is_dir():
        run = Run.read(target)
        config, name, prefix = with_overrides(run.config, overrides), run.name, f"{target}/"
        predictions = predict(run, overrides)
    else:
        config, predictions = predict_with_file(target, overrides)
        name, prefix = target.stem, f"{target.stem}-"
    data = config.options["data"]
    file = Path(f"{prefix}predictions-{data}.parquet")
    predictions.save(file)
    print(f"{name} on the test set of {data}")
    print(predictions)
    print(f"\npredictions of each image: {file}")
    return 0


def export(arguments: list[str]) -> int:
    """Write the weights of a run as safetensors."""
    parser = Arguments(
        "export",
        "Write the weights of a run as safetensors, with its configuration and its channel statistics. The names are "
        "torchvision's if the network is one of its ResNets.",
        example="runs/digits/identity-8-w8-s0-203321d6 weights.safetensors",
        location=True,
    )
    parser.add_argument("run", type=Path, help="folder of a run")
    parser.add_argument("file", type=Path, help="file to write, NAME.safetensors")
    words, overrides = split_overrides(arguments)
    options = parser.parse_args(words)
    if options.file.suffix != ".safetensors":
        raise InputError(f"{options.file}: the name of the file must end with .safetensors")
    from plainres.runs.record import Run

    run = Run.read(options.run)
    from plainres.analysis.exchange import export

    names = export(run, options.file, overrides)
    print(f"wrote {options.file}: the weights of {run.name} under {names} names; its configuration is in the metadata")
    print(f"evaluate it: plainres eval {options.file}")
    return 0
