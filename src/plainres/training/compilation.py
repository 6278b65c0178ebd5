"""torch.compile where it pays: it takes half a minute before the first step and makes each a little faster."""

import sys
import time
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback

from plainres.config.schema import AUTO, Config
from plainres.data.batches import SampledBatch
from plainres.data.datamodule import ImageBatches
from plainres.errors import InputError, StoppedError, first_line
from plainres.processes.signals import StopSignals
from plainres.training.classifier import Classifier, full_precision

# Floating-point operations of a whole run, for each of its threads, from which on it pays: on a core of 2024 they take
# two hours, of which compiling saves five minutes and costs one at most (experiments/throughput).
PAYS_FROM = 5e14


def pays(config: Config, multiply_adds: int, steps: int) -> bool:
    """Whether a run is so long that compiling its network pays; on a GPU nobody has measured that yet.

    A compiled network rounds otherwise, so nothing decides that could change while the run is interrupted.

    Args:
        config: of the run.
        multiply_adds: of its network, for one image forward.
        steps: of the whole run.
    """
    trainer = config.trainer
    operations = 6 * multiply_adds * config.optim.batch_size * steps  # backward costs twice the forward pass
    return trainer.accelerator == "cpu" and trainer.processes == 1 and operations >= PAYS_FROM * trainer.threads


class Compilation(Callback):
    """Compiles what a training step does with the network, before the first step; the evaluation stays as it is.

    The batches of training are of one shape, so that one compilation serves the whole run, wherever it goes on.

    Args:
        wanted: true, false, or auto: if it pays, and can be done.
        pays: whether it does.
        signals: stop it at once.
        attempt: the conditions of this attempt; takes whether its network is compiled.
    """

    def __init__(self, wanted: bool | str, pays: bool, signals: StopSignals, attempt: dict[str, Any]) -> None:
        self.wanted, self.signals, self.attempt = wanted, signals, attempt
        self.attempt["compile"] = wanted is True or (wanted == AUTO and pays)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compile.

        Raises:
            InputError: it was asked for, and cannot be done.
            StoppedError: a signal came.
        """
        if not self.attempt["compile"]:
            return
        assert isinstance(pl_module, Classifier)
        if trainer.world_size == 1:
            self.signals.deferring = False  # no step is lost
            self._stop_if_told()
        why = "trainer.compile=true" if self.wanted is True else "a long run"
        _say(trainer, f"{why}: torch.compile compiles the network, which may take a minute")
        eager, started = pl_module.logits_of, time.monotonic()
        pl_module.logits_of = torch.compile(eager, dynamic=False)
        if trainer.world_size > 1:
            return  # the first step compiles: a pass of one process alone would make the others wait
        try:
            _pass(trainer, pl_module)
        except Exception as error:
            self._stop_if_told()  # Ctrl-C has reached the compiler, too
            reason = f"torch.compile fails here: {type(error).__name__}: {first_line(error)}"
            if self.wanted is True:
                raise InputError(f"{reason}; trainer.compile=false trains without it") from error
            self.attempt["compile"], pl_module.logits_of = False, eager
            _say(trainer, f"{reason}; the run goes on without it")
        else:
            _say(trainer, f"compiled in {time.monotonic() - started:.0f} s")
        self.signals.deferring = True

    def _stop_if_told(self) -> None:
        if self.signals.received:
            raise StoppedError("stopped at once; run the same command again to resume", self.signals.received)


def _say(trainer: pl.Trainer, text: str) -> None:
    if trainer.is_global_zero:
        print(text, file=sys.stderr)


def _pass(trainer: pl.Trainer, classifier: Classifier) -> None:
    """Go once forward and backward as a step does, and leave nothing of it behind."""
    data = trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
    assert isinstance(data, ImageBatches)
    home = data.training.targets.device
    sampled = SampledBatch(torch.arange(data.batch_size, device=home), torch.zeros((), dtype=torch.int64, device=home))
    images, targets = data.on_after_batch_transfer(sampled, 0)
    before = [buffer.clone() for buffer in classifier.network.buffers()]
    try:
        with trainer.precision_plugin.forward_context():
            loss = F.cross_entropy(full_precision(classifier.logits_of(images)), targets)
        loss.backward()
    finally:
        for buffer, value in zip(classifier.network.buffers(), before, strict=True):
            buffer.copy_(value)
        classifier.zero_grad()
