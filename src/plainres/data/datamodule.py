"""LightningDataModule with the dataloaders of a run."""

from typing import Any

import lightning.pytorch as pl

from plainres.data.batches import Batch, EvaluationBatches, Pixels, TrainingBatch, TrainingBatches, batches_per_epoch
from plainres.data.sources import Images, Source
from plainres.data.streamed_batches import pixels_on


class ImageBatches(pl.LightningDataModule):
    """Dataloaders of a run: batches for training, and the test and training sets for evaluation.

    Args:
        images: images of the run.
        source: source of these images.
        batch_size: number of images in a training batch, over all ranks.
        seed: seed of the run.
        workers: number of processes that decode streamed images for each rank.

    Raises:
        InputError: there are fewer images than a batch has.
    """

    def __init__(self, images: Images, source: Source, batch_size: int, seed: int, workers: int = 0) -> None:
        super().__init__()
        self.steps_per_epoch = batches_per_epoch(len(images.train), batch_size)
        self.images, self.source, self.batch_size, self.seed = images, source, batch_size, seed
        self.workers = workers
        self.training: Pixels
        self.evaluated: dict[str, Pixels] = {}

    def setup(self, stage: str) -> None:
        """Move the images to the device of this rank, where they stay for the final evaluation."""
        assert self.trainer is not None
        if stage != "fit":
            return
        self.close()
        device = self.trainer.strategy.root_device
        statistics = self.images.channel_statistics
        self.training = pixels_on(device, self.images.train, self.source, statistics, self.workers)
        self.evaluated = {
            name: pixels_on(device, split, self.source, statistics, self.workers)
            for name, split in self.images.evaluated.items()
        }

    def close(self) -> None:
        """Stop the processes that decode images."""
        for pixels in (self.training, *self.evaluated.values()) if self.evaluated else ():
            pixels.close()

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Batch:
        """Materialize a sampled or streamed training batch, and return other batches unchanged."""
        if not isinstance(batch, TrainingBatch):
            return batch
        assert self.trainer is not None
        images, targets = self.trainer.precision_plugin.convert_input(self.training.materialize(batch))
        device = self.trainer.strategy.root_device
        return images.to(device), targets.to(device)  # large data sets stay in host memory

    def on_device(self, batch: TrainingBatch) -> Batch | TrainingBatch:
        """Materialize a batch if the images do not fit on the device.

        Otherwise return it unchanged, and the training step materializes it on the device.
        """
        return batch if self.training.fits else self.on_after_batch_transfer(batch, 0)

    def train_dataloader(self) -> TrainingBatches:
        """Return the training batches, starting at the trainer's global step."""
        trainer = self.trainer
        assert trainer is not None
        return TrainingBatches(
            self.training,
            self.batch_size,
            self.seed,
            lambda: trainer.global_step,
            rank=trainer.global_rank,
            world_size=trainer.world_size,
        )

    @property
    def test(self) -> Pixels:
        """Images of the test set."""
        return self.evaluated["test"]

    def val_dataloader(self) -> list[EvaluationBatches]:
        """Return the batches of the test set, and of the validation set if there is one."""
        return [self._evaluation(pixels) for pixels in self.evaluated.values()]

    def evaluation_of_training_set(self) -> EvaluationBatches:
        """Return the batches of the whole training set, without augmentation."""
        return self._evaluation(self.training)

    def _evaluation(self, pixels: Pixels) -> EvaluationBatches:
        assert self.trainer is not None
        return EvaluationBatches(pixels, self.trainer.global_rank, self.trainer.world_size)
