"""Commands that compose configurations without training, and commands on folders of runs.

Each command imports its dependencies when it is called, so that --help does not wait for torch.
"""

import json
import shutil
import sys
import webbrowser
from pathlib import Path

from plainres.cli.arguments import Arguments, integer, positive_number, split_overrides
from plainres.cli.descriptions import BENCH, DESCRIBE, EVAL, LIST, REPORT, STATUS
from plainres.cli.output import print_json, standard_output_free
from plainres.errors import InputError, RunFailedError

STUDY = "folder of a study's runs, such as runs/digits"


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
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    options = parser.parse_args(arguments)
    if options.json and options.watch:
        raise InputError("--watch refreshes a table, and --json prints one object: leave out one of the two")
    from dataclasses import asdict

    from plainres.launch.status import read_status, watch

    if options.watch:
        watch(options.folder)
    elif options.json:
        print_json(asdict(read_status(options.folder)))
    else:
        print(read_status(options.folder))
    return 0


def report(arguments: list[str]) -> int:
    """Compare the finished runs of one or more studies."""
    parser = Arguments("report", REPORT, example="runs/digits")
    parser.add_argument("folders", type=Path, nargs="+", metavar="folder", help=STUDY)
    modes = ("offline", "online")
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--format", choices=("markdown", "latex"), help="print only the table, in this format")
    output.add_argument("--json", action="store_true", help="print one JSON object instead of text")
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
    from plainres.reporting import report
    from plainres.reporting.study import read_study

    if options.format:
        print(report.FORMATS[options.format](read_study(*options.folders).families))
        return 0
    columns = shutil.get_terminal_size().columns  # 80 if the output is piped
    with standard_output_free(options.json):
        try:
            study = report.write_files(*options.folders, title=options.title, width=options.width)
        except report.NotWrittenError as error:
            print(report.text(error.study, columns))
            raise
        page = report.page_of(study)
        print(f"{report.text(study, columns)}\n\nReport: {page}")
        if options.open and not webbrowser.open(page.resolve().as_uri()):
            print(f"there is no browser to open {page} with", file=sys.stderr)
        if options.wandb:
            from plainres.reporting.wandb_report import show

            print(show(study, page.parent, options.wandb))
    if options.json:
        from plainres.reporting.values import values

        print_json(values(study))
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

    from plainres.benchmark.bench import bench

    measurements, estimate = bench(configs, options.rounds, options.seconds)
    if options.json:
        print(json.dumps({"measured": [asdict(each) for each in measurements], "estimate": estimate}, indent=2))
    else:
        print("\n\n".join(map(str, measurements)), estimate, sep="\n\n")
    return 0


def eval_(arguments: list[str]) -> int:
    """Evaluate a trained network on a test set."""
    parser = Arguments("eval", EVAL, usage="RUN|WEIGHTS [OVERRIDES] [--json]", overrides=True)
    parser.add_argument("target", type=Path, nargs="?", metavar="RUN|WEIGHTS", help="folder of a run, or weights file")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    options, overrides = parser.parse_known_args(arguments)
    if options.target is None or "=" in str(options.target).partition("/")[0]:
        raise InputError("plainres eval needs the folder of a run or a file of weights first; see plainres eval --help")
    from dataclasses import asdict

    from plainres.analysis.evaluation import predict, with_overrides
    from plainres.analysis.exchange import predict_with_file
    from plainres.runs.record import Run

    target: Path = options.target
    if not target.exists():
        raise InputError(f"{target}: there is no such file of weights, and no such folder of a run")
    with standard_output_free(options.json):
        if target.is_dir():
            run = Run.read(target)
            finished, config, name = run.finished, with_overrides(run.config, overrides), run.name
            predictions = predict(run, overrides)
            assert predictions.origin is not None
            prefix = f"{target}/" if finished else f"{target}/step-{predictions.origin.step}-"
        else:
            config, predictions = predict_with_file(target, overrides)
            assert predictions.origin is not None
            name, prefix = target.stem, f"{target.stem}-"
        data = config.options["data"]
        file = Path(f"{prefix}predictions-{data}{predictions.origin.suffix}.parquet")
        predictions.save(file)
    evaluation = predictions.evaluation
    if options.json:
        step = predictions.origin.step
        print_json({"network": name, "step": step, "data": data, **asdict(evaluation), "predictions": str(file)})
    else:
        print(f"{name} on the test set of data={data}")
        print(evaluation)
        print(f"\npredictions of each image: {file}")
    return 0


def export(arguments: list[str]) -> int:
    """Write the weights of a run as safetensors."""
    parser = Arguments(
        "export",
        "Write the weights of a run as safetensors, with its configuration and its channel statistics. The names are "
        "torchvision's if the network is one of its ResNets.",
        example="runs/digits/identity-8-w8-s0-d36f80ca weights.safetensors",
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
