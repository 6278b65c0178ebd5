"""Training of one run: build its objects from the configuration, fit, and record the result."""

import logging
import math
import socket
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.fabric.utilities.rank_zero import rank_zero_only

from plainres.arithmetic import set_arithmetic
from plainres.config.instantiate import network_of, probes_of, source_of
from plainres.data.datamodule import ImageBatches
from plainres.data.workers import worker_count
from plainres.errors import InputError, RunFailedError, StoppedError, first_line
from plainres.models.normalisation import convert_sync_batch_norm
from plainres.models.summary import Description, describe
from plainres.processes.environment import unchanged
from plainres.processes.memory import keep_freed_memory
from plainres.processes.signals import StopSignals
from plainres.processes.world import World
from plainres.runs.agreement import check_code, check_data
from plainres.runs.anew import set_aside
from plainres.runs.code import check_imported, own_classes_in, remember_imported
from plainres.runs.identity import measurement
from plainres.runs.provenance import conditions, peak_memory_of, reset_peak_memory, weights_sha256
from plainres.runs.record import DIVERGED, Run
from plainres.runs.saved import newest
from plainres.tracking.loggers import CsvLogger, RunLogger, TensorBoardLogger
from plainres.training.callbacks import Probes, Progress
from plainres.training.checkpoints import AtomicCheckpointIO, Checkpoints
from plainres.training.classifier import Classifier
from plainres.training.compilation import Compilation, pays
from plainres.training.epoch_loop import EpochLoop, cuda_graph
from plainres.training.global_randomness import NoGlobalRandomness
from plainres.training.slow_steps import SlowSteps
from plainres.training.strategy import OneStreamDDP

_TRAINING = threading.Lock()  # held by the thread that trains a run
MEETING = timedelta(minutes=10)  # longest wait of a process for the others


def train(run: Run, observers: Sequence[pl.Callback] = ()) -> None:
    """Train a run in this process, which may be one of several ranks, and resume from its newest checkpoint.

    A finished run is left as it is.

    A failure is recorded in the run's folder, unless the user can fix its cause, such as an invalid configuration or a
    full disk.

    Args:
        run: the run.
        observers: callbacks that are called before the run's own.

    Raises:
        InputError: the configuration is invalid (see also `plainres.config.instantiate.check`).
        LockedError: another process trains the run.
        OSError: a file cannot be read or written, for example because the disk is full; the run can resume afterwards.
        RunFailedError: training diverged.
        StoppedError: a signal arrived; the run is saved and can resume.
    """
    keep_freed_memory()
    remember_imported(run.config)  # now, because to read the images may take long
    early = World.current().size == 1
    try:
        with _alone(), unchanged("CUBLAS_WORKSPACE_CONFIG"), StopSignals(early=early) as signals:
            _train(run, signals, observers)
    except (dist.DistNetworkError, dist.DistStoreError) as error:
        raise InputError(
            f"the processes of this run lost or did not find each other within {MEETING} ({first_line(error)}); start "
            "all of them, and set MASTER_ADDR to an address of the first machine that the others can reach"
        ) from error
    except (InputError, OSError):
        raise
    except torch.OutOfMemoryError as error:  # not recorded, since other processes may have filled the GPU
        raise InputError(
            f"{first_line(error)} Train fewer runs on this GPU at a time, or lower optim.batch_size"
        ) from error
    except RunFailedError as error:
        run.fail(str(error))
        raise
    except Exception as error:
        # with several ranks, another one may be the cause; another process may train the run, which has not failed
        if World.current().size == 1 and run.folder.exists() and not run.locked:
            run.fail(f"{type(error).__name__}: {first_line(error)}")
        raise


@contextmanager
def _alone() -> Iterator[None]:
    """Reserve this process, since threads, precision, signals and the peak of memory are settings of all of it.

    Raises:
        InputError: another thread trains a run.
    """
    if not _TRAINING.acquire(blocking=False):
        raise InputError("this process is training another run; train several at a time with plainres.sweep")
    try:
        yield
    finally:
        _TRAINING.release()


def _train(run: Run, signals: StopSignals, observers: Sequence[pl.Callback]) -> None:
    config, world = run.config, World.current()
    environment = _environment(world)
    rank_zero_only.rank = world.rank  # Lightning guesses it from variables that may be left over  # pyright: ignore
    set_arithmetic(config.trainer.threads)
    reset_peak_memory()
    for logger in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(logger).setLevel(logging.WARNING)
    source = source_of(config)
    network = network_of(config, source).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    description = describe(network, source.shape)
    if config.precision == "64-true":
        network.double()  # Lightning 2.6 converts only after restoring a checkpoint, which would round its weights
    if config.trainer.sync_batch_norm and world.size > 1:
        convert_sync_batch_norm(network)
    workers = worker_count(config.trainer.workers, config.trainer.devices)
    data = ImageBatches(source.load(), source, config.optim.batch_size, config.seed, workers)
    steps = config.optim.length(data.steps_per_epoch)
    capturable = config.trainer.cuda_graph
    attempt = conditions(config, world.size)
    compilation = Compilation(config.trainer.compile, pays(config, description.multiply_adds, steps), signals, attempt)
    classifier = Classifier(
        network,
        config.optim,
        steps,
        data.steps_per_epoch,
        evaluated=[*data.images.evaluated, "train_eval"],
        capturable=capturable,
        sums=torch.float32 if config.trainer.accelerator == "mps" else torch.float64,  # all that Apple's GPUs have
    )
    data_sha256 = data.images.sha256()
    with ExitStack() as stack:
        stack.callback(data.close)
        if world.rank == 0:
            stack.enter_context(_reserved(run, data_sha256))
        if run.finished:  # by a process that held the lock until now
            return
        saved = newest(run)
        if world.rank == 0:
            if saved.path is None:
                set_aside(run, data_sha256)
            run.begin(data_sha256, data.images.classes)
        loggers: list[RunLogger] = []
        if world.rank == 0:
            loggers = stack.enter_context(open_loggers(run, saved.rows, list(data.images.evaluated)))
        checkpoints = Checkpoints(run, config.checkpoint, signals, saved, attempt, data_sha256=data_sha256)
        progress = Progress(run.name, steps, run.progress_file)
        with warnings.catch_warnings():
            # Lightning 2.6 uses a deprecated function of torch's pytrees
            warnings.filterwarnings("ignore", message=".*LeafSpec.*", module="lightning")
            # Lightning recommends srun wherever SLURM is installed; using it is the user's choice
            warnings.filterwarnings("ignore", message=".*`srun` command is available.*")
            trainer = pl.Trainer(
                accelerator=config.trainer.accelerator,
                devices=config.trainer.devices,
                num_nodes=config.trainer.num_nodes,
                strategy=OneStreamDDP(timeout=MEETING) if world.size > 1 else "auto",
                precision=config.precision,  # pyright: ignore[reportArgumentType]
                deterministic=config.trainer.deterministic,
                benchmark=not config.trainer.deterministic,
                min_epochs=0,
                max_epochs=math.ceil(steps / data.steps_per_epoch),
                logger=loggers,
                log_every_n_steps=data.steps_per_epoch,
                callbacks=[*observers, compilation, progress, *_probes(run, steps), checkpoints],
                plugins=[AtomicCheckpointIO(), environment],
                default_root_dir=run.folder,
                enable_progress_bar=False,
                enable_model_summary=False,
                num_sanity_val_steps=0,
                use_distributed_sampler=False,
            )
            # `Checkpoints` handles signals. Lightning 2.6 would stop within a step, hang if only one rank receives a
            # signal, or exit with code 0.
            trainer._signal_connector.register_signal_handlers = lambda: None
            trainer.fit_loop.epoch_loop = _epoch_loop(trainer, run)
            trainer.fit(classifier, datamodule=data, ckpt_path=saved.path, weights_only=True)
            loaders = [*data.val_dataloader(), data.evaluation_of_training_set()]
            trainer.validate(classifier, loaders, verbose=False)
        if world.rank == 0:
            run.finish(_checked(_result(run, classifier, data, description, checkpoints)) | attempt)
        if world.size > 1:
            dist.destroy_process_group()  # its threads may abort a process that exits while they run


def _probes(run: Run, steps: int) -> list[Probes]:
    """Return the callback for the probes of a run of this length, if it has any."""
    probes = probes_of(run.config)
    settings = {name: measurement(node) | own_classes_in(node) for name, node in run.config.probes.items()}
    return [Probes(probes, settings, run.folder / "probes", steps)] if probes else []


@contextmanager
def _reserved(run: Run, data_sha256: str) -> Iterator[None]:
    """Hold the lock of a run whose images and classes are those that it began with, if it has begun."""
    if run.finished:
        run.check_configuration()
    else:
        run.prepare()
    with run.lock():
        check_data(run, data_sha256)
        check_code(run)
        check_imported(run.config)
        yield


def _checked(result: dict[str, Any]) -> dict[str, Any]:
    """Return a result after checking that its numbers are finite.

    Raises:
        RunFailedError: one is not, as the losses of weights that are finite can be.
    """
    if lost := [key for key, value in result.items() if isinstance(value, float) and not math.isfinite(value)]:
        raise RunFailedError(f"{DIVERGED}: {', '.join(lost)} not finite; lower optim.lr")
    return result


def _epoch_loop(trainer: pl.Trainer, run: Run) -> EpochLoop:
    """Return the loop of a run over the batches of an epoch."""
    loop = EpochLoop(trainer, cuda_graph if run.config.trainer.cuda_graph else None)
    loop.step = NoGlobalRandomness(loop.step, run.config.trainer.device_type)
    if trainer.is_global_zero and run.config.trainer.accelerator == "cpu":
        loop.step = SlowSteps(loop.step, run.config.trainer.threads, run.warn)
    return loop


@contextmanager
def open_loggers(run: Run, rows: Sequence[Mapping[str, float]], evaluated: Sequence[str]) -> Iterator[list[RunLogger]]:
    """Open a run's loggers, which continue from `rows`, and close them with the exit code of the run."""
    loggers: list[RunLogger] = [CsvLogger(run.folder / "metrics.csv", evaluated)]
    if run.config.logger.wandb:
        from plainres.tracking.wandb_agent import assignment
        from plainres.tracking.wandb_logger import WandbLogger

        loggers.append(WandbLogger(run, assigned=assignment()))
    if run.config.logger.tensorboard:
        loggers.append(TensorBoardLogger(run.folder / "tensorboard"))
    exit_code = 1
    try:
        for logger in loggers:
            logger.begin(rows)
        yield loggers
        exit_code = 0
    except StoppedError as stop:
        exit_code = 128 + stop.number
        raise
    finally:
        for logger in loggers:
            logger.end(exit_code)


def _environment(world: World) -> ClusterEnvironment:
    """Return the environment from which Lightning reads its rank and world size.

    Lightning's own detection is wrong for a run of a sweep.

    Raises:
        InputError: the address at which the processes meet does not resolve, for which torch would wait for minutes.
    """
    if world.launcher is None:
        return LightningEnvironment()
    environment = TorchElasticEnvironment() if world.launcher == "torchrun" else SLURMEnvironment(auto_requeue=False)
    try:
        socket.getaddrinfo(environment.main_address, None)
    except OSError as error:
        raise InputError(
            f"the processes of this run are to meet at {environment.main_address}, a name that does not resolve here "
            f"({error.strerror}); set MASTER_ADDR to an address of the first machine that the others can reach"
        ) from error
    return environment


def _result(
    run: Run,
    classifier: Classifier,
    data: ImageBatches,
    description: Description,
    checkpoints: Checkpoints,
) -> dict[str, Any]:
    """Return the contents of result.json; errors are in percent."""
    config, evaluated, attempts = run.config, classifier.evaluated, checkpoints.attempts
    mean, std = data.images.channel_statistics
    rows = classifier.rows
    best = min(rows, key=lambda row: row["test/error"])
    validation = {}
    if data.images.validation is not None:
        chosen = min(rows, key=lambda row: row["validation/error"])  # the earliest of equals
        validation = {
            "validation_error": evaluated["validation/error"],
            "validation_loss": evaluated["validation/loss"],
            "best_validation_error": chosen["validation/error"],
            "best_validation_error_epoch": int(chosen["epoch"]),
            "test_error_at_best_validation": chosen["test/error"],  # an epoch chosen without the test set
        }
    return {
        "name": run.name,
        "study": config.study,
        "shortcut": config.shortcut,
        "depth": config.model["depth"],
        "width": config.model["width"],
        "seed": config.seed,
        "train_error": rows[-1]["train/error"],  # running mean over the last `train_error_steps` steps
        "train_loss": rows[-1]["train/loss"],
        "train_error_steps": classifier.averaged_steps,  # one epoch, plus a partial last epoch
        "train_error_eval": evaluated["train_eval/error"],  # final weights on the whole training set
        "train_loss_eval": evaluated["train_eval/loss"],
        "test_error": evaluated["test/error"],
        "test_loss": evaluated["test/loss"],
        "best_test_error": best["test/error"],  # selected on the test set; only for comparison with papers that do so
        "best_test_error_epoch": int(best["epoch"]),
        **validation,
        "epochs": len(rows),
        "steps": classifier.steps,
        "batch_size": config.optim.batch_size,
        "parameters": description.parameters,
        "multiply_adds": description.multiply_adds,
        "weights_sha256": weights_sha256(classifier.network),
        "data_sha256": run.data_sha256,
        **({"images_left_out": data.images.left_out} if data.images.left_out else {}),  # damaged ones
        "channel_mean": mean.tolist(),  # for normalising images, in units of pixel values
        "channel_std": std.tolist(),
        "wall_time_s": round(checkpoints.elapsed_s, 3),
        "peak_memory_mib": peak_memory_of(attempts),
        "attempts": attempts,
    }
