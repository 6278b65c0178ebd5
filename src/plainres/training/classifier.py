"""The LightningModule: loss, error, optimizer, schedule."""

import math
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD
from torchmetrics import Metric

from plainres.config.schema import Recipe
from plainres.data.batches import Batch, SampledBatch
from plainres.randomness import noises

COUNTED = ("loss", "wrong", "images", "warmup_wrong")  # the last: images misjudged since the warm-up last looked
EVALUATED = ("test", "train_eval")  # what the evaluation loaders hold, in their order
WARMUP_WINDOW = 100  # steps over which the warm-up measures the training error


class LossAndError(Metric):
    """The mean cross-entropy and the error, in percent, of all images since the last reset, over all processes."""

    full_state_update = False
    sums: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("sums", torch.zeros(3, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, sums: Tensor) -> None:
        """Add what `count` has counted (3,)."""
        self.sums += sums

    def compute(self) -> dict[str, Tensor]:
        """Return the loss and the error."""
        loss, wrong, images = self.sums
        return {"loss": loss / images, "error": 100 * wrong / images}

    def values(self, prefix: str) -> dict[str, float]:
        """Return <prefix>/loss and <prefix>/error as numbers."""
        return {f"{prefix}/{name}": value.item() for name, value in self.compute().items()}


def count(sums: Tensor, loss: Tensor, logits: Tensor, targets: Tensor) -> Tensor:
    """Add a batch to `sums`, in place: the sum of its losses, its wrong answers, its images; return the wrong ones ().

    The batch has a mean cross-entropy (), logits (N, classes) and targets (N,).
    """
    wrong = (logits.argmax(1) != targets).sum()
    sums[0] += loss * len(targets)
    sums[1] += wrong
    sums[2] += len(targets)
    return wrong


def full_precision(logits: Tensor) -> Tensor:
    """Return logits in float32 or better.

    Under bf16-mixed a network may give bfloat16 logits, of which log_softmax and argmax would see 8 bits. (Networks of
    plainres.models give float32 ones.)
    """
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


class Classifier(pl.LightningModule):
    """Trains a network by a recipe and logs a row of curves after each epoch.

    A row is {epoch (1-based), lr (of the last step), train/loss, train/error, test/loss, test/error} at the number of
    steps done; errors are in percent. The training values are running ones: means over the images of the epoch's steps,
    each as it was trained on. A last, partial epoch is measured together with the one before it, for a few steps would
    say little: the last row then has the means over all steps of these two epochs (`averaged_steps`), and the row
    before it those of its own epoch alone.

    Args:
        network: images (N, C, H, W) -> logits (N, classes).
        recipe: batch size, length, optimizer, schedule.
        steps: the length of the run in optimizer steps.
        steps_per_epoch: training batches of one epoch.
        capturable: whether a step is captured and replayed, so that its learning rate must be a tensor.
    """

    def __init__(
        self, network: nn.Module, recipe: Recipe, steps: int, steps_per_epoch: int, *, capturable: bool = False
    ) -> None:
        super().__init__()
        self.capturable = capturable
        self.network, self.recipe = network, recipe
        self.logits_of = network.forward  # in a training step; compiled, perhaps
        self.steps, self.steps_per_epoch = steps, steps_per_epoch
        self.running = LossAndError()
        # no buffers: DDP would give every process the first one's
        self.counted = torch.zeros(len(COUNTED), dtype=torch.float64)  # of this process, since the epoch began
        self.position = torch.zeros(2, dtype=torch.int64)  # the step, and the place of this process's first image
        self.evaluations = nn.ModuleList(LossAndError() for _ in EVALUATED)
        self.evaluated: dict[str, float] = {}  # what the last evaluation found
        self.rows: list[dict[str, float]] = []  # logged so far
        self.lr = 0.0  # of the last step
        self.warming_up = recipe.warmup_lr is not None
        self.noises = noises(network)
        self.asked: tuple[Tensor, torch.cuda.Event] | None = None  # what `look` has asked a GPU for

    def forward(self, images: Tensor) -> Tensor:
        """Map images to logits."""
        return self.network(images)

    def configure_optimizers(self) -> SGD:
        """SGD with momentum; each step sets its learning rate."""
        recipe = self.recipe
        return SGD(
            self.parameters(),
            recipe.lr,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
            fused=self._fused,
        )

    @property
    def averaged_steps(self) -> int:
        """The number of steps, up to the last one, over which the last row's training values are means."""
        return min(self.steps, self.steps_per_epoch + self.steps % self.steps_per_epoch)

    @property
    def _fused(self) -> bool | None:
        return self.capturable or self.device.type == "cuda" or None

    def on_fit_start(self) -> None:
        """Bring what is counted to the device."""
        self.counted, self.position = self.counted.to(self.device), self.position.to(self.device)
        for noise in self.noises:
            noise.position = self.position

    def on_train_start(self) -> None:
        """Keep the learning rate where a captured step reads it, wherever the run was trained before."""
        for optimizer in self.trainer.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = torch.zeros((), device=self.device) if self.capturable else 0.0  # each step sets it
                group["fused"] = self._fused

    def on_train_batch_start(self, batch: Batch | SampledBatch, batch_idx: int) -> None:
        """Set the learning rate of the step that comes, and tell the network's random numbers which one it is.

        The learning rate is a function of the step and of whether the warm-up is over.
        """
        step, recipe = self.trainer.global_step, self.recipe
        if self.warming_up and step and step % WARMUP_WINDOW == 0:
            self._end_warmup_if_learning()
        lr = recipe.lr * recipe.lr_factor(step, self.steps)
        if self.warming_up and recipe.warmup_lr is not None:
            lr = recipe.warmup_lr
        if lr != self.lr:
            self._set_lr(lr)
        if self.noises:
            self.position.copy_(torch.tensor([step, self.trainer.global_rank * len(batch[0])]))

    def _set_lr(self, lr: float) -> None:
        self.lr = lr
        for optimizer in self.trainer.optimizers:
            for group in optimizer.param_groups:
                if isinstance(group["lr"], Tensor):
                    group["lr"].fill_(lr)
                else:
                    group["lr"] = lr

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the mean cross-entropy of a batch, which is counted; nothing here waits for the device."""
        images, targets = batch
        logits = full_precision(self.logits_of(images))
        loss = F.cross_entropy(logits, targets)
        self.counted[3] += count(self.counted, loss.detach(), logits.detach(), targets)
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
        sums = torch.zeros(3, dtype=torch.float64, device=self.device)
        if len(targets):  # else there are fewer images than processes
            logits = full_precision(self(images))
            count(sums, F.cross_entropy(logits, targets), logits, targets)
        measure.update(sums)

    def on_validation_epoch_end(self) -> None:
        """Note the loss and the error of the sets that were evaluated."""
        self.evaluated = {}
        for name, measure in zip(EVALUATED, self.evaluations, strict=True):
            assert isinstance(measure, LossAndError)
            if measure.update_called:
                self.evaluated |= measure.values(name)
                measure.reset()

    def _end_warmup_if_learning(self) -> None:
        """End the warm-up if the error of the last WARMUP_WINDOW steps is small enough (He et al. 2015, 4.2)."""
        error = 100 * self._sum(self.counted)[3].item() / (WARMUP_WINDOW * self.recipe.batch_size)
        self.warming_up = error >= self.recipe.warmup_until
        self.counted[3] = 0

    def on_train_epoch_start(self) -> None:
        """Begin to count anew, unless the steps that are left are too few for a measure."""
        if self.steps - self.trainer.global_step >= self.steps_per_epoch:
            self.counted[:3] = 0

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Stop after the last step, also in mid-epoch; unlike max_steps this still evaluates."""
        if self.trainer.global_step >= self.steps:
            self.trainer.should_stop = True

    def on_train_epoch_end(self) -> None:
        """Log the row of this epoch."""
        self.running.reset()
        self.running.update(self.counted[:3])
        row = {"epoch": self.current_epoch + 1, "lr": self.lr} | self.running.values("train") | self.evaluated
        self.rows.append({**row, "step": self.trainer.global_step})
        for logger in self.loggers:
            logger.log_metrics(row, step=self.trainer.global_step)

    def look(self) -> bool:
        """Whether all losses of this process since the epoch began were finite numbers.

        On a GPU this is the answer to the question before, which has arrived by now, so that nobody waits for it.
        """
        if self.device.type == "cpu":
            return math.isfinite(self.counted[0].item())
        asked, arrived = self.asked, torch.cuda.Event()
        self.asked = self.counted[0].to("cpu", non_blocking=True), arrived
        arrived.record()
        if asked is None:
            return True
        loss, before = asked
        before.synchronize()
        return math.isfinite(loss.item())

    @property
    def finite_weights(self) -> bool:
        """Whether all weights are finite numbers."""
        return all(bool(parameter.isfinite().all()) for parameter in self.parameters())

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the rows, the warm-up and what is counted, summed so that any number of processes can go on."""
        checkpoint["measured"] = dict(zip(COUNTED, self._sum(self.counted).tolist(), strict=True))
        checkpoint["warming_up"] = self.warming_up
        checkpoint["rows"] = self.rows

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore them; the first process takes the sums, the others begin at 0."""
        self.warming_up, self.rows = checkpoint["warming_up"], checkpoint["rows"]
        if self.trainer.is_global_zero:
            measured = [float(checkpoint["measured"][name]) for name in COUNTED]
            self.counted.copy_(torch.tensor(measured, dtype=torch.float64))

    def _sum(self, values: Tensor) -> Tensor:
        """The sum of a tensor over all processes."""
        return self.trainer.strategy.reduce(values.to(self.device, copy=True), reduce_op="sum")
