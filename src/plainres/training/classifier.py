"""LightningModule that trains a classifier: loss, error, optimizer and learning-rate schedule."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torchmetrics import Metric

from plainres.config.schema import Recipe
from plainres.data.batches import Batch, TrainingBatch
from plainres.models.networks import misclassified, over_crops
from plainres.randomness import noises
from plainres.training.optimizer import clip_gradient, fused, sgd

COUNTED = ("loss", "wrong", "images", "warmup_wrong")  # the last: misclassified images in the current warm-up window
WARMUP_WINDOW = 100  # steps over which the warm-up measures the training error


class LossAndError(Metric):
    """Mean cross-entropy and error, in percent, over all images since the last reset and over all ranks."""

    full_state_update = False
    sums: Tensor

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.add_state("sums", torch.zeros(3, dtype=dtype), dist_reduce_fx="sum")

    def update(self, sums: Tensor) -> None:
        """Add the sums (3,) of `count`."""
        self.sums += sums

    def compute(self) -> dict[str, Tensor]:
        """Return the mean loss and the error in percent."""
        loss, wrong, images = self.sums
        return {"loss": loss / images, "error": 100 * wrong / images}

    def values(self, prefix: str) -> dict[str, float]:
        """Return <prefix>/loss and <prefix>/error as floats."""
        return {f"{prefix}/{name}": value.item() for name, value in self.compute().items()}


def count(sums: Tensor, loss: Tensor, wrong: Tensor) -> Tensor:
    """Add a batch's summed loss, misclassified images and images to `sums` (3+,) in place.

    Args:
        sums: the running sums, of which the first three are updated.
        loss: the mean cross-entropy () of the batch.
        wrong: whether each image (N,) is misclassified.

    Returns:
        The number () of misclassified images in the batch.
    """
    number = wrong.sum()
    sums[0] += loss * len(wrong)
    sums[1] += number
    sums[2] += len(wrong)
    return number


def full_precision(logits: Tensor) -> Tensor:
    """Convert logits to float32, unless they are more precise already.

    Under bf16-mixed a network may return bfloat16 logits, whose 8 bits of precision are too few for log_softmax and
    argmax. The networks of plainres.models return float32 logits.
    """
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


class Classifier(pl.LightningModule):
    """LightningModule that trains a network by a recipe and logs one row of curves after each epoch.

    A row is {epoch (1-based), lr (of the last step), train/loss, train/error, test/loss, test/error}, logged at the
    number of completed steps; with a validation set also {validation/loss, validation/error}. Errors are in percent.
    Training values are running means over the images of the epoch's steps, each computed before the step's update.

    A partial last epoch would average too few steps. Its row therefore averages that epoch and the one before it
    (`averaged_steps`); the previous row still averages its own epoch only.

    Args:
        network: images (N, C, H, W) -> logits (N, classes).
        recipe: batch size, length, optimizer and schedule.
        steps: the length of the run in optimizer steps.
        steps_per_epoch: the number of training batches in an epoch.
        evaluated: the names of the sets of images in the evaluation loaders, in order.
        capturable: whether steps are captured in a CUDA graph, which requires a tensor as learning rate.
        sums: the dtype of the sums of losses and errors.
    """

    def __init__(
        self,
        network: nn.Module,
        recipe: Recipe,
        steps: int,
        steps_per_epoch: int,
        *,
        evaluated: Sequence[str] = ("test", "train_eval"),
        capturable: bool = False,
        sums: torch.dtype = torch.float64,
    ) -> None:
        super().__init__()
        self.capturable = capturable
        self.network, self.recipe = network, recipe
        # used by training steps only; `Compilation` may replace either
        self.logits_of = network.forward
        self.loss_of: Callable[[Batch | TrainingBatch], Tensor] = self._loss
        self.steps, self.steps_per_epoch = steps, steps_per_epoch
        self.running = LossAndError(sums)
        # Not buffers, because DDP would overwrite those of every rank with rank 0's.
        self.counted = torch.zeros(len(COUNTED), dtype=sums)  # sums of this rank since the epoch started
        self.position = torch.zeros(2, dtype=torch.int64)  # step, and index of this rank's first image in the batch
        self.evaluations = nn.ModuleDict({name: LossAndError(sums) for name in evaluated})
        self.evaluated: dict[str, float] = {}  # losses and errors of the last evaluation
        self.rows: list[dict[str, float]] = []  # all rows logged so far
        self.lr = 0.0  # of the last step
        self.warming_up = recipe.warmup_lr is not None
        self.noises = noises(network)
        self.pending: tuple[Tensor, torch.cuda.Event] | None = None  # loss that `finite_losses` is copying from a GPU

    def forward(self, images: Tensor) -> Tensor:
        """Map images to logits."""
        return self.network(images)

    def configure_optimizers(self) -> SGD:
        """Return SGD with momentum, whose learning rate is set before each step."""
        return sgd(self.network, self.recipe, capturable=self.capturable)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the gradient as the recipe says. Lightning's own arguments are not used."""
        clip_gradient(optimizer, self.recipe)

    @property
    def averaged_steps(self) -> int:
        """Number of final steps that the training values of the last row average."""
        return min(self.steps, self.steps_per_epoch + self.steps % self.steps_per_epoch)

    def on_fit_start(self) -> None:
        """Move the sums and the position to the device, and share the position with the noise modules."""
        self.counted, self.position = self.counted.to(self.device), self.position.to(self.device)
        trainer = self.trainer
        self.position[1] = trainer.global_rank * (self.recipe.batch_size // trainer.world_size)
        for noise in self.noises:
            noise.position = self.position

    def on_train_start(self) -> None:
        """Configure the optimizer for this device, since a restored one is configured for the previous device.

        A captured step reads its learning rate from a tensor.
        """
        for optimizer in self.trainer.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = torch.zeros((), device=self.device) if self.capturable else 0.0  # set before each step
                group["fused"] = fused(self.device, capturable=self.capturable)

    def on_train_batch_start(self, batch: Batch | TrainingBatch, batch_idx: int) -> None:
        """Set the step's learning rate, a function of the step and the warm-up, and the noise modules' position."""
        step, recipe = self.trainer.global_step, self.recipe
        if self.warming_up and step and step % WARMUP_WINDOW == 0:
            self._end_warmup_if_learning()
        lr = recipe.lr * recipe.lr_factor(step, self.steps)
        if self.warming_up and recipe.warmup_lr is not None:
            lr = recipe.warmup_lr
        if lr != self.lr:
            self._set_lr(lr)
        if self.noises:
            self.position[0].fill_(step)  # unlike a copy from the CPU, this does not wait for a GPU

    def _set_lr(self, lr: float) -> None:
        self.lr = lr
        for optimizer in self.trainer.optimizers:
            for group in optimizer.param_groups:
                if isinstance(group["lr"], Tensor):
                    group["lr"].fill_(lr)
                else:
                    group["lr"] = lr

    def training_step(self, batch: Batch | TrainingBatch, batch_idx: int) -> Tensor:
        """Return the mean cross-entropy of a batch and add it to the sums, without waiting for the device."""
        return self.loss_of(batch)

    def _loss(self, batch: Batch | TrainingBatch) -> Tensor:
        data = self.trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
        return self.loss_of_images(*data.on_after_batch_transfer(batch, 0))

    def loss_of_images(self, images: Tensor, targets: Tensor) -> Tensor:
        """Return the mean cross-entropy of images (N, C, H, W) with targets (N,), and add it to the sums."""
        logits = full_precision(self.logits_of(images))
        loss = F.cross_entropy(logits, targets)
        # a NaN among the logits ends the training (`finite_losses`), so it needs no count of its own in every step
        self.counted[3] += count(self.counted, loss.detach(), logits.detach().argmax(1) != targets)
        return loss

    def on_validation_start(self) -> None:
        """Copy the buffers of rank 0 to all ranks, so that all evaluate the same network.

        Without this, batch statistics would differ between ranks until the next training step.
        """
        if self.trainer.world_size > 1:
            for buffer in self.network.buffers():
                dist.broadcast(buffer, 0)

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Add a batch to the metrics of its loader."""
        images, targets = batch
        measure = list(self.evaluations.values())[dataloader_idx]
        assert isinstance(measure, LossAndError)
        sums = torch.zeros(3, dtype=self.counted.dtype, device=self.device)
        if len(targets):  # a rank's share is empty if there are fewer images than ranks
            logits = over_crops(lambda crops: full_precision(self(crops)), images)
            count(sums, F.cross_entropy(logits, targets), misclassified(logits, targets))
        measure.update(sums)

    def on_validation_epoch_end(self) -> None:
        """Store the losses and errors of the evaluated sets."""
        self.evaluated = {}
        for name, measure in self.evaluations.items():
            assert isinstance(measure, LossAndError)
            if measure.update_called:
                self.evaluated |= measure.values(name)
                measure.reset()

    def _end_warmup_if_learning(self) -> None:
        """End the warm-up if the error over the last WARMUP_WINDOW steps is low enough (He et al. 2015, 4.2)."""
        error = 100 * self._sum(self.counted)[3].item() / (WARMUP_WINDOW * self.recipe.batch_size)
        self.warming_up = error >= self.recipe.warmup_until
        self.counted[3] = 0

    def on_train_epoch_start(self) -> None:
        """Reset the sums, unless this is a partial last epoch, which is averaged with the previous one."""
        if self.steps - self.trainer.global_step >= self.steps_per_epoch:
            self.counted[:3] = 0

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Stop after the last step, even within an epoch. Unlike max_steps, this still evaluates."""
        if self.trainer.global_step >= self.steps:
            self.trainer.should_stop = True

    def on_train_epoch_end(self) -> None:
        """Log the epoch's row."""
        self.running.reset()
        self.running.update(self.counted[:3])
        row = {"epoch": self.current_epoch + 1, "lr": self.lr} | self.running.values("train") | self.evaluated
        self.rows.append({**row, "step": self.trainer.global_step})
        for logger in self.loggers:
            logger.log_metrics(row, step=self.trainer.global_step)

    def finite_losses(self) -> bool:
        """Whether all losses of this rank since the epoch started are finite.

        On a GPU, return the value copied asynchronously by the previous call, to avoid a synchronisation.
        """
        if self.device.type != "cuda":
            return math.isfinite(self.counted[0].item())
        previous, copied = self.pending, torch.cuda.Event()
        self.pending = self.counted[0].to("cpu", non_blocking=True), copied
        copied.record()
        if previous is None:
            return True
        loss, event = previous
        event.synchronize()
        return math.isfinite(loss.item())

    @property
    def finite_weights(self) -> bool:
        """Whether all weights are finite."""
        return all(bool(parameter.isfinite().all()) for parameter in self.parameters())

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the rows, the warm-up's state and the sums over all ranks, so that any world size can resume."""
        checkpoint["measured"] = dict(zip(COUNTED, self._sum(self.counted).tolist(), strict=True))
        checkpoint["warming_up"] = self.warming_up
        checkpoint["rows"] = self.rows

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the rows, the warm-up's state and the sums: rank 0 takes the sums, other ranks start at 0."""
        self.warming_up, self.rows = checkpoint["warming_up"], checkpoint["rows"]
        if self.trainer.is_global_zero:
            measured = [float(checkpoint["measured"][name]) for name in COUNTED]
            self.counted.copy_(torch.tensor(measured, dtype=self.counted.dtype))

    def _sum(self, values: Tensor) -> Tensor:
        """Return the sum of a tensor over all ranks."""
        return self.trainer.strategy.reduce(values.to(self.device, copy=True), reduce_op="sum")
