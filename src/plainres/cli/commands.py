"""The commands on configurations and on folders of runs.

What a command needs is imported when it is called: --help must not wait for torch.
"""

import json
import sys
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING

from plainres.cli.arguments import Arguments, above_zero, whole
from plainres.errors import InputError, RunFailedError

if TYPE_CHECKING:
    from plainres.runs.record import Run

STUDY = "folder of a study's runs, for example runs/digits"

DESCRIBE = "A network layer by layer: output shape, parameters, multiply-adds; every network of a study."

BENCH = """\
How fast this machine trains a network, or each network of a study: images/s and ms/step of plainres as you run it, of a
bare loop over the same network, batches and precision in torch alone (the limit), and of a DataLoader whose worker
processes crop and mirror image by image (eager float32). They take turns in one process. Then the parts of a step, the
peak memory, and how long the run or the study would take.

  plainres bench data=cifar10 optim=he2015 model.depth=20 trainer.threads=2
  plainres bench experiment=cifar10_degradation trainer=gpu precision=bf16-mixed
"""

REPORT = """\
Compare the finished runs of a study, or of several: table, verdicts, figures, page. The report of one study is written
into its folder, report/; that of several beside the first.

  plainres report runs/digits --open
  plainres report runs/digits runs/digits_wide
  plainres report runs/digits --format latex
"""

EVAL = """\
Evaluate a run, by its folder, on its own test set or, with data=..., on another; or a file of weights (.pth, .th,
.safetensors), whose network the overrides describe.

  plainres eval runs/default/identity-20-w16-s0-a1b2c3d4
  plainres eval resnet50.pth model=imagenet model.depth=50 model/block=bottleneck data=imagenet

Images are normalised by the channel means and deviations of the network's training: a run and an exported file record
them. For any other file they are data.mean and data.std, by default those of the data's own training images.

Prints loss, error and the error of each class, and writes a row for each image as Parquet: target, prediction, loss,
logits; of a run into its folder, of a file into this one.
"""


def train(arguments: list[str]) -> int:
    """Train one network, or every run of a sweep."""
    from plainres.processes.signals import StopSignals
    from plainres.processes.world import World

    with StopSignals(early=World.current().size == 1):
        from plainres.config.compose import compose_jobs
        from plainres.runs.record import Run

        jobs = compose_jobs(arguments)
        runs = [Run.of(config) for config in jobs.configs]
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


def _train_one(run: "Run") -> None:
    from plainres.launch.devices import train
    from plainres.processes.world import World

    if run.finished and run.result:
        print(f"{run.name} is finished already", file=sys.stderr)
    result = train(run).result
    if World.current().rank == 0:
        print(
            f"train error {result['train_error']:.2f} % (running), {result['train_error_eval']:.2f} % (eval); "
            f"test error {result['test_error']:.2f} %"
        )
        print(run.folder)


def status(arguments: list[str]) -> int:
    """Show how far the runs of a study are."""
    parser = Arguments("status", "How far the runs of a study are.")
    parser.add_argument("folder", type=Path, help=STUDY)
    parser.add_argument(
        "--watch",
        action="store_true",
        help="again and again, until nothing is left to train, or nothing has been running for half a minute",
    )
    given = parser.parse_args(arguments)
    from plainres.launch.status import status, watch

    watch(given.folder) if given.watch else print(status(given.folder))
    return 0


def report(arguments: list[str]) -> int:
    """Compare the finished runs of a study."""
    parser = Arguments("report", REPORT)
    parser.add_argument("folders", type=Path, nargs="+", metavar="folder", help=STUDY)
    modes = ("offline", "online")
    parser.add_argument("--format", choices=("markdown", "latex"), help="print the table alone, for a paper")
    parser.add_argument("--title", help="title of the figures (default: the study and its data)")
    parser.add_argument(
        "--width", type=above_zero, metavar="INCHES", help="width of the figures (default: what their panels need)"
    )
    parser.add_argument("--open", action="store_true", help="open the page in the browser")
    parser.add_argument("--wandb", nargs="?", const="offline", choices=modes, help="show it in W&B; offline: later")
    for position, word in enumerate(arguments[1:], 1):
        if arguments[position - 1] == "--wandb" and word not in modes:
            arguments[position - 1] = "--wandb=offline"  # a folder stands behind it
    given = parser.parse_args(arguments)
    from plainres.reporting.report import FORMATS, write_report
    from plainres.reporting.study import read_study
    from plainres.runs.record import REPORT as REPORTED

    if given.format:
        print(FORMATS[given.format](read_study(*given.folders).families))
        return 0
    print(write_report(*given.folders, title=given.title, width=given.width))
    page = read_study(*given.folders).home / REPORTED / "index.html"
    if given.open and not webbrowser.open(page.resolve().as_uri()):
        print(f"there is no browser to open {page} with", file=sys.stderr)
    if given.wandb:
        from plainres.reporting.wandb_report import show

        print(show(read_study(*given.folders), page.parent, given.wandb))
    return 0


def wandb_sync(arguments: list[str]) -> int:
    """Send to W&B what has not been sent."""
    parser = Arguments("wandb-sync", "Send to W&B what was logged offline, or while it did not answer.")
    parser.add_argument("folder", type=Path, help="folder of a run, of a study, or of all runs")
    parser.add_argument(
        "--timeout",
        type=above_zero,
        default=60,
        metavar="SECONDS",
        help="longest wait for W&B, each time (default: 60)",
    )
    given = parser.parse_args(arguments)
    from plainres.tracking.wandb_sync import sync

    complete = True
    for line, sent in sync(given.folder, given.timeout):
        print(line, file=sys.stdout if sent else sys.stderr, flush=True)
        complete &= sent
    if not complete:
        raise RunFailedError(f"not everything in {given.folder} was sent; the same command tries again")
    return 0


def describe(arguments: list[str]) -> int:
    """Show networks layer by layer."""
    parser = Arguments("describe", DESCRIBE)
    parser.usage = "plainres describe [OVERRIDES] [--json]"
    parser.add_argument("--json", action="store_true", help="output for programs")
    given, overrides = parser.parse_known_args(arguments)
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
    if given.json:
        networks = [{"network": name, **asdict(description)} for name, description in descriptions.values()]
        print(json.dumps(networks[0] if len(networks) == 1 else networks, indent=2))
    else:
        print("\n\n".join(f"{name}\n{description}" for name, description in descriptions.values()))
    return 0


def bench(arguments: list[str]) -> int:
    """Measure how fast this machine trains."""
    parser = Arguments("bench", BENCH)
    parser.usage = "plainres bench [OVERRIDES] [--rounds N] [--seconds S] [--json]"
    parser.add_argument("--rounds", type=whole(1), default=5, help="timing windows of each contender (default: 5)")
    parser.add_argument(
        "--seconds",
        type=above_zero,
        default=3.0,
        help="approximate length of a timing window (default: 3); below a second, batches that the DataLoader has "
        "prefetched count",
    )
    parser.add_argument("--json", action="store_true", help="output for programs")
    given, overrides = parser.parse_known_args(arguments)
    from plainres.config.compose import compose

    configs = compose(overrides)
    if not configs:
        return 0
    from dataclasses import asdict

    from plainres.benchmark.measure import bench

    measured, estimate = bench(configs, given.rounds, given.seconds)
    if given.json:
        print(json.dumps({"measured": [asdict(one) for one in measured], "estimate": estimate}, indent=2))
    else:
        print("\n\n".join(map(str, measured)), estimate, sep="\n\n")
    return 0


def eval_(arguments: list[str]) -> int:
    """Evaluate a trained network on a test set."""
    parser = Arguments("eval", EVAL)
    parser.usage = "plainres eval RUN|WEIGHTS [OVERRIDES]"
    parser.add_argument(
        "target", type=Path, nargs="?", metavar="RUN|WEIGHTS", help="folder of a run, or file of weights"
    )
    given, overrides = parser.parse_known_args(arguments)
    if given.target is None or "=" in str(given.target).partition("/")[0]:
        raise InputError("plainres eval needs the folder of a run or a file of weights first; see plainres eval --help")
    from plainres.analysis.evaluation import compose_one, evaluate, predict, sets_statistics, with_overrides
    from plainres.config.instantiate import build_network, check
    from plainres.models.weights import statistics_in
    from plainres.runs.record import Run

    target: Path = given.target
    if not target.exists():
        raise InputError(f"{target}: there is no such file of weights, and no such folder of a run")
    if target.is_dir():
        run = Run.read(target)
        config, name, prefix = with_overrides(run.config, overrides), run.name, f"{target}/"
        predictions = predict(run, overrides)
    else:
        config = compose_one(overrides)
        config.model["weights"] = str(target)
        check(config)
        name, prefix = target.stem, f"{target.stem}-"
        statistics = None if sets_statistics(overrides) else statistics_in(target)
        if statistics is None and config.data.get("mean") is None:
            hint = "; data.mean and data.std set others" if "mean" in config.data else ""
            print(
                f"{target} does not record the channel means and deviations of its training; those of the training "
                f"images of {config.options['data']} normalise images{hint}",
                file=sys.stderr,
            )
        predictions = evaluate(build_network(config), config, statistics)
    data = config.options["data"]
    file = Path(f"{prefix}predictions-{data}.parquet")
    predictions.save(file)
    print(f"{name} on the test set of {data}")
    print(predictions)
    print(f"\n{file}")
    return 0


def export(arguments: list[str]) -> int:
    """Write the weights of a run as safetensors."""
    parser = Arguments("export", "Write the weights of a run as safetensors, in torchvision's names where it has such.")
    parser.add_argument("run", type=Path, help="folder of a run")
    parser.add_argument("file", type=Path, help="file to write, NAME.safetensors")
    given = parser.parse_args(arguments)
    if given.file.suffix != ".safetensors":
        raise InputError(f"{given.file}: the name of the file must end with .safetensors")
    from plainres.runs.record import Run

    run = Run.read(given.run)
    from plainres.analysis.evaluation import load_network, training_statistics
    from plainres.models.weights import save_weights

    names = save_weights(load_network(run), run.config.model, training_statistics(run, run.config), given.file)
    print(f"{given.file}: in {names} names")
    return 0
