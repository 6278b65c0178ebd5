"""Compilation of training for runs that are long enough.

torch.compile takes half a minute before the first step and makes each step faster. On the CPU it compiles the network.
On a GPU, where the number of kernels decides, augmentation, loss and counting are compiled with it as one function.
"""

import sys
import time
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from plainres.config.schema import AUTO, Config
from plainres.data.batches import Batch, SampledBatch, TrainingBatch
from plainres.data.datamodule import ImageBatches
from plainres.errors import InputError, first_line
from plainres.models.normalisation import convert_batch_norm_by_image
from plainres.models.pooling import convert_global_average
from plainres.processes.signals import StopSignals
from plainres.training.classifier import Classifier

# Floating-point operations of a run, per thread, from which compilation pays (experiments/throughput). In float32 they
# take one to two hours on a core of 2024; compilation then saves at least five minutes and costs at most one. In
# bfloat16 they take a quarter of an hour on a core with AMX; compilation saves three minutes.
PAYS_FROM = {"32-true": 5e14, "64-true": 5e14, "bf16-mixed": 1e14}

WHOLE = ("cuda",)  # types of devices for which augmentation, loss and counting are compiled with the network


def pays(config: Config, multiply_adds: int, steps: int) -> bool:
    """Whether a run is long enough for compilation to pay; False on a GPU, where this has not been measured.

    Compiled and eager networks round differently, so the decision depends only on values that stay the same when a run
    resumes.

    Args:
        config: the run's configuration.
        multiply_adds: the network's multiply-adds in the forward pass of one image.
        steps: the length of the run in optimizer steps.
    """
    trainer = config.trainer
    operations = 6 * multiply_adds * config.optim.batch_size * steps  # the backward pass costs two forward passes
    pays_from = PAYS_FROM[config.precision] * trainer.threads
    return trainer.accelerator == "cpu" and trainer.processes == 1 and operations >= pays_from


def compiled(network: nn.Module, device: torch.device, *, mixed: bool) -> Callable[[Tensor], Tensor]:
    """Compile a network's forward pass, and with it its backward pass.

    In bfloat16 on the CPU, batch normalisation sums over each image first (`BatchNorm2dByImage`), the last features are
    kept instead of their signs (`AvgPool2dOfKept`), and no result overwrites its input. 16 numbers in bfloat16 are half
    of an AVX512 register, so that they are loaded and stored with masks, and a load waits for such a store to a place
    nearby, see experiments/throughput/README.md.

    Args:
        network: the network, (N, C, H, W) -> (N, classes).
        device: the device of the network.
        mixed: whether it runs under bfloat16 autocast.
    """
    if not (mixed and device.type == "cpu"):
        return torch.compile(network.forward, dynamic=False)
    convert_batch_norm_by_image(network)
    convert_global_average(network)
    return torch.compile(network.forward, dynamic=False, options={"inplace_buffers": False})


class Compilation(Callback):
    """Callback that compiles what a training step differentiates, before the first one; evaluation stays eager.

    All training batches have the same shape, so it is compiled once per attempt.

    Args:
        mode: True, False, or "auto", which compiles if that pays and works.
        pays: whether compilation pays for this run.
        signals: the signals that this process receives; one of them stops the compilation.
        attempt: the conditions of this attempt; its key "compile" is set to whether the network is compiled.
    """

    def __init__(self, mode: bool | str, pays: bool, signals: StopSignals, attempt: dict[str, Any]) -> None:
        self.mode, self.signals, self.attempt = mode, signals, attempt
        self.attempt["compile"] = mode is True or (mode == AUTO and pays)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compile the network, if this attempt is to be compiled.

        Raises:
            InputError: compilation was requested by trainer.compile=true, and fails.
            StoppedError: a signal arrived.
        """
        if not self.attempt["compile"]:
            return
        assert isinstance(pl_module, Classifier)
        if trainer.world_size == 1:
            self.signals.deferring = False  # no step would be lost, so a signal may stop the process immediately
            self._stop_on_signal()
        reason = "trainer.compile=true" if self.mode is True else "a long run"
        _say(trainer, f"compiling the network with torch.compile ({reason}), which may take a minute")
        # networks of earlier runs in this process, of which torch keeps 8, would make it run the next one uncompiled
        torch.compiler.reset()
        eager, started = (pl_module.logits_of, pl_module.loss_of), time.monotonic()
        if pl_module.device.type in WHOLE:
            pl_module.loss_of = torch.compile(_loss_of(trainer, pl_module), dynamic=False)
        else:
            pl_module.logits_of = compiled(pl_module.network, pl_module.device, mixed=trainer.precision == "bf16-mixed")
        if trainer.world_size > 1:
            return  # the first step compiles, since a pass on a single rank would block in DDP
        try:
            _run_one_pass(trainer, pl_module)
        except Exception as error:
            self._stop_on_signal()  # the compiler's processes also receive Ctrl-C, and fail
            message = f"torch.compile failed ({type(error).__name__}: {first_line(error)})"
            if self.mode is True:
                raise InputError(f"{message}; use trainer.compile=false to train without it") from error
            self.attempt["compile"], (pl_module.logits_of, pl_module.loss_of) = False, eager
            _say(trainer, f"{message}; training without it")
        else:
            _say(trainer, f"compiled in {time.monotonic() - started:.0f} s")
        self.signals.deferring = True

    def _stop_on_signal(self) -> None:
        if self.signals.received:
            self.signals.stop(self.signals.received)


def _say(trainer: pl.Trainer, text: str) -> None:
    if trainer.is_global_zero:
        print(text, file=sys.stderr)


def _loss_of(trainer: pl.Trainer, classifier: Classifier) -> Callable[[Batch | TrainingBatch], Tensor]:
    """Return the function from a batch to its loss, with augmentation and counting, without Lightning's objects."""
    training, weight = _data(trainer).training, next(classifier.parameters())
    device, dtype = weight.device, weight.dtype

    def loss_of(batch: Batch | TrainingBatch) -> Tensor:
        images, targets = training.materialize(batch) if isinstance(batch, TrainingBatch) else batch
        return classifier.loss_of_images(images.to(device, dtype), targets.to(device))

    return loss_of


def _data(trainer: pl.Trainer) -> ImageBatches:
    data = trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
    assert isinstance(data, ImageBatches)
    return data


def _run_one_pass(trainer: pl.Trainer, classifier: Classifier) -> None:
    """Run one forward and backward pass as a training step does, then restore what it changed."""
    data = _data(trainer)
    device = data.training.targets.device
    index = torch.arange(data.batch_size, device=device)
    sampled = SampledBatch(index, torch.zeros((), dtype=torch.int64, device=device))
    batch = data.on_device(sampled)
    changed = [*classifier.network.buffers(), classifier.counted]
    before = [tensor.clone() for tensor in changed]
    try:
        with trainer.precision_plugin.forward_context():
            loss = classifier.loss_of(batch)
        loss.backward()
    finally:
        for tensor, value in zip(changed, before, strict=True):
            tensor.copy_(value)
        classifier.zero_grad()
