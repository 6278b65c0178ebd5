"""The LightningModule: loss, error, optimizer, schedule."""

import math
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
import torch.nn.functional as F
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import Metric

from plainres.batches import Batch
from plainres.config import Recipe
from plainres.randomness import noises

RUNNING = ("loss", "wrong", "images")  # the sums of a LossAndError
EVALUATED = ("test", "train_eval")  # what the evaluation loaders hold, in their order
WARMUP_WINDOW = 100  # steps over which the warm-up measures the training error


class LossAndError(Metric):
    """The mean cross-entropy and the error, in percent, of all images since the last reset, over all processes."""

    full_state_update = False
    loss: Tensor
    wrong: Tensor
    images: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("loss", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("wrong", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("images", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, loss: Tensor, logits: Tensor, targets: Tensor) -> None:
        """Add a batch: its mean cross-entropy (), logits (N, classes), targets (N,)."""
        self.loss += loss * len(targets)
        self.wrong += (logits.argmax(1) != targets).sum()
        self.images += len(targets)

    def compute(self) -> dict[str, Tensor]:
        """Return the loss and the error."""
        return {"loss": self.loss / self.images, "error": 100 * self.wrong.double() / self.images}

    def values(self, prefix: str) -> dict[str, float]:
        """Return <prefix>/loss and <prefix>/error as numbers."""
        return {f"{prefix}/{name}": value.item() for name, value in self.compute().items()}


class Classifier(pl.LightningModule):
    """Trains a network by a recipe and logs a row of curves after each epoch.

    A row is {epoch (1-based), lr (of the last step), train/loss, train/error, test/loss, test/error} at the number of
    steps done; errors are in percent. The training values are running ones: those of the epoch's batches as they were
    trained on. A last, partial epoch is measured together with the one before it, for a few steps would say little.

    Args:
        network: images (N, C, H, W) -> logits (N, classes).
        recipe: batch size, length, optimizer, schedule.
        steps: the length of the run in optimizer steps.
        steps_per_epoch: training batches of one epoch.
    """

    def __init__(self, network: nn.Module, recipe: Recipe, steps: int, steps_per_epoch: int) -> None:
        super().__init__()
        self.network, self.recipe = network, recipe
        self.steps, self.steps_per_epoch = steps, steps_per_epoch
        self.running = LossAndError()
        self.evaluations = nn.ModuleList(LossAndError() for _ in EVALUATED)
        self.evaluated: dict[str, float] = {}  # what the last evaluation found
        self.rows: list[dict[str, float]] = []  # logged so far
        self.lr = 0.0  # of the last step
        self.warming_up = recipe.warmup_lr is not None
        self.noises = noises(network)
        self.warmup_wrong: Tensor | int = 0  # images of this process misjudged since the warm-up last looked

    def forward(self, images: Tensor) -> Tensor:
        """Map images to logits."""
        return self.network(images)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """SGD with momentum; the learning rate is a function of the step and of whether the warm-up is over."""
        recipe = self.recipe
        optimizer = SGD(self.parameters(), recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay)

        def factor(step: int) -> float:
            if self.warming_up and recipe.warmup_lr is not None:
                return recipe.warmup_lr / recipe.lr
            return recipe.lr_factor(step, self.steps)

        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": LambdaLR(optimizer, factor), "interval": "step"}}

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the mean cross-entropy of a batch."""
        images, targets = batch
        if self.noises:
            position = torch.tensor([self.trainer.global_step, self.trainer.global_rank * len(images)])
            position = position.to(self.device)
            for noise in self.noises:
                noise.position = position
        logits = self(images)
        loss = F.cross_entropy(logits, targets)
        self.running.update(loss.detach(), logits.detach(), targets)
        if self.warming_up:
            self.warmup_wrong += (logits.argmax(1) != targets).sum()
        return loss

    def on_validation_start(self) -> None:
        """Evaluate one network: the processes' batch statistics differ until the next training step unites them."""
        if self.trainer.world_size > 1:
            for buffer in self.network.buffers():
                dist.broadcast(buffer, 0)

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Take a batch of the test set, or, from the second loader, of the training set, into account."""
        images, targets = batch
        measure = self.evaluations[dataloader_idx]
        assert isinstance(measure, LossAndError)
        if not len(targets):  # there are fewer images than processes
            measure.update(torch.zeros((), device=self.device), images.new_zeros(0, 1), targets)
            return
        logits = self(images)
        measure.update(F.cross_entropy(logits, targets), logits, targets)

    def on_validation_epoch_end(self) -> None:
        """Note the loss and the error of the sets that were evaluated."""
        self.evaluated = {}
        for name, measure in zip(EVALUATED, self.evaluations, strict=True):
            assert isinstance(measure, LossAndError)
            if measure.update_called:
                self.evaluated |= measure.values(name)
                measure.reset()

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Set the learning rate of the next step."""
        self.lr = scheduler.get_last_lr()[0]
        if self.warming_up and self.trainer.global_step % WARMUP_WINDOW == 0:
            self._end_warmup_if_learning()
        scheduler.step()

    def _end_warmup_if_learning(self) -> None:
        """End the warm-up if the error of the last WARMUP_WINDOW steps is small enough (He et al. 2015, 4.2)."""
        error = 100 * self._sum(self.warmup_wrong).item() / (WARMUP_WINDOW * self.recipe.batch_size)
        self.warming_up = error >= self.recipe.warmup_until
        self.warmup_wrong = 0

    def on_train_epoch_start(self) -> None:
        """Begin a new running measure, unless the steps that are left are too few for one."""
        if self.steps - self.trainer.global_step >= self.steps_per_epoch:
            self.running.reset()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Stop after the last step, also in mid-epoch; unlike max_steps this still evaluates."""
        if self.trainer.global_step >= self.steps:
            self.trainer.should_stop = True

    def on_train_epoch_end(self) -> None:
        """Log the row of this epoch."""
        row = {"epoch": self.current_epoch + 1, "lr": self.lr} | self.running.values("train") | self.evaluated
        self.rows.append({**row, "step": self.trainer.global_step})
        for logger in self.loggers:
            logger.log_metrics(row, step=self.trainer.global_step)

    @property
    def finite(self) -> bool:
        """Whether all losses of this process since the epoch began were finite numbers."""
        return math.isfinite(self.running.loss.item())

    @property
    def finite_weights(self) -> bool:
        """Whether all weights are finite numbers."""
        return all(bool(parameter.isfinite().all()) for parameter in self.parameters())

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the rows, the running measure and the warm-up, summed so that any number of processes can go on."""
        sums = {name: getattr(self.running, name) for name in RUNNING} | {"warmup_wrong": self.warmup_wrong}
        checkpoint["measured"] = {name: self._sum(value).item() for name, value in sums.items()}
        checkpoint["warming_up"] = self.warming_up
        checkpoint["rows"] = self.rows

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore them; the first process takes the sums, the others begin at 0."""
        self.warming_up, self.rows = checkpoint["warming_up"], checkpoint["rows"]
        if self.trainer.is_global_zero:
            self.warmup_wrong = checkpoint["measured"]["warmup_wrong"]
            for name in RUNNING:
                getattr(self.running, name).fill_(checkpoint["measured"][name])

    def _sum(self, value: Tensor | int) -> Tensor:
        """The sum of a number () over all processes."""
        return self.trainer.strategy.reduce(torch.as_tensor(value, device=self.device).clone(), reduce_op="sum")
