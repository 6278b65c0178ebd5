"""One run: configuration -> objects -> fit -> record."""

import logging
import math
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from plainres.batches import ImageBatches
from plainres.build import network_of, source_of
from plainres.callbacks import Curves, Progress
from plainres.checkpoints import AtomicCheckpointIO, Checkpoints, newest
from plainres.classifier import Classifier
from plainres.data import Source
from plainres.describe import describe
from plainres.errors import RunFailedError, StoppedError
from plainres.provenance import GIT_COMMIT, device_name, peak_memory_mib, versions, weights_sha256
from plainres.runs import Run


def launch(run: Run) -> None:
    """Train a run: in this process, or, on several devices, in a fresh process for each of them.

    Raises:
        InputError: the configuration cannot be carried out (see also `plainres.build.check`); nothing has been written.
        RunFailedError: the training diverged, or a process of several has failed; its error is on the screen.
    """
    devices = run.config.trainer.devices
    if devices == 1:
        train(run)
        return
    source_of(run.config).prepare()  # once, and not by every process
    run.prepare()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={devices}"]
    environment = os.environ | {"OMP_NUM_THREADS": str(run.config.trainer.threads)}
    done = subprocess.run([*command, "-m", "plainres.train", str(run.folder)], env=environment, check=False)
    if done.returncode:
        raise RunFailedError(f"a process of the run {run.folder} failed; its error is above")


def train(run: Run) -> None:
    """Train a run in this process (one of several if torchrun started it), from its newest checkpoint if it has one.

    Raises:
        InputError: as `launch`.
    """
    started = time.monotonic()
    config = run.config
    torch.set_num_threads(config.trainer.threads)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    source = source_of(config)
    network = network_of(config, source).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    data = ImageBatches(source.load(), source, config.optim.batch_size, config.seed)
    steps = config.optim.length(data.steps_per_epoch)
    classifier = Classifier(network, config.optim, steps, data.steps_per_epoch)
    run.prepare()
    checkpoint, step = newest(run.checkpoints) or (None, 0)
    curves = Curves(run.folder / "metrics.csv", step)
    trainer = pl.Trainer(
        accelerator=config.trainer.accelerator,
        devices=config.trainer.devices,
        strategy="ddp" if config.trainer.devices > 1 else "auto",
        precision=config.precision,  # pyright: ignore[reportArgumentType]
        min_epochs=0,
        max_epochs=math.ceil(steps / data.steps_per_epoch),
        logger=curves,
        log_every_n_steps=data.steps_per_epoch,
        callbacks=[
            Progress(run.name, steps),
            Checkpoints(run.checkpoints, config.checkpoint.every_minutes),
        ],
        plugins=[AtomicCheckpointIO()],
        default_root_dir=run.folder,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )
    curves.begin()
    with warnings.catch_warnings():
        # Lightning 2.6 asks newer versions of torch about their trees in an outdated way
        warnings.filterwarnings("ignore", message=".*LeafSpec.*", module="lightning")
        try:
            trainer.fit(classifier, datamodule=data, ckpt_path=checkpoint, weights_only=True)
        except SystemExit as stop:  # what Lightning makes of SIGTERM and of Ctrl-C
            number = signal.SIGTERM if trainer.received_sigterm else signal.SIGINT
            raise StoppedError(trainer.global_step, number) from stop
        loaders = [data.val_dataloader(), data.evaluation_of_training_set()]
        trainer.validate(classifier, loaders, verbose=False)
    if trainer.is_global_zero:
        run.finish(_result(run, classifier, data, source, time.monotonic() - started))


def _result(run: Run, classifier: Classifier, data: ImageBatches, source: Source, wall_time: float) -> dict[str, Any]:
    """The record of a finished run; errors in percent."""
    config, evaluated = run.config, classifier.evaluated
    rows = run.curve()
    best = min(rows, key=lambda row: row["test/error"])
    description = describe(classifier.network, source.shape)
    return {
        "name": run.name,
        "study": config.study,
        "shortcut": config.shortcut,
        "depth": config.model["depth"],
        "width": config.model["width"],
        "seed": config.seed,
        "train_error": rows[-1]["train/error"],  # running, of the last epoch
        "train_loss": rows[-1]["train/loss"],
        "train_error_eval": evaluated["train_eval/error"],  # the final weights on the whole training set
        "train_loss_eval": evaluated["train_eval/loss"],
        "test_error": evaluated["test/error"],
        "test_loss": evaluated["test/loss"],
        "best_test_error": best["test/error"],  # chosen by the test set: no result, only for comparison with such
        "best_test_error_epoch": int(best["epoch"]),
        "epochs": len(rows),
        "steps": classifier.steps,
        "batch_size": config.optim.batch_size,
        "parameters": description.parameters,
        "multiply_adds": description.multiply_adds,
        "weights_sha256": weights_sha256(classifier.network),
        "data_sha256": data.images.sha256(),
        "wall_time_s": round(wall_time, 3),
        "peak_memory_mib": round(peak_memory_mib(classifier.device), 1),
        "device": device_name(classifier.device),
        "devices": config.trainer.devices,
        "versions": versions(),
        "git_commit": GIT_COMMIT,
    }


if __name__ == "__main__":
    train(Run.read(Path(sys.argv[1])))
