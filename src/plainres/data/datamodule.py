"""LightningDataModule with the dataloaders of a run."""

from typing import Any

import lightning.pytorch as pl

from plainres.data.batches import Batch, DeviceImages, EvaluationBatches, SampledBatch, TrainingBatches
from plainres.data.sources import Images, Source
from plainres.errors import InputError


class ImageBatches(pl.LightningDataModule):
    """Dataloaders of a run: batches for training, and the test and training sets for evaluation."""

    def __init__(self, images: Images, source: Source, batch_size: int, seed: int) -> None:
        super().__init__()
        if batch_size > len(images.train):
            raise InputError(
                f"optim.batch_size is {batch_size}, but there are only {len(images.train)} training images"
            )
        self.images, self.source, self.batch_size, self.seed = images, source, batch_size, seed

    @property
    def steps_per_epoch(self) -> int:
        """Number of full batches in the training set."""
        return len(self.images.train) // self.batch_size

    def setup(self, stage: str) -> None:
        """Move the images to the device of this rank."""
        assert self.trainer is not None
        device = self.trainer.strategy.root_device
        statistics = self.images.channel_statistics
        self.training = DeviceImages(self.images.train, self.source, statistics, device)
        self.evaluated = {
            name: DeviceImages(split, self.source, statistics, device) for name, split in self.images.evaluated.items()
        }

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Batch:
        """Materialize a sampled training batch, and return other batches unchanged."""
        if not isinstance(batch, SampledBatch):
            return batch
        assert self.trainer is not None
        images, targets = self.trainer.precision_plugin.convert_input(self.training.materialize(batch))
        device = self.trainer.strategy.root_device
        return images.to(device), targets.to(device)  # large data sets stay in host memory

    def on_device(self, sampled: SampledBatch) -> Batch | SampledBatch:
        """Materialize a batch if the images do not fit on the device.

        Otherwise return it unchanged, and the training step materializes it on the device.
        """
        return sampled if self.training.fits else self.on_after_batch_transfer(sampled, 0)

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
    def test(self) -> DeviceImages:
        """Images of the test set."""
        return self.evaluated["test"]

    def val_dataloader(self) -> list[EvaluationBatches]:
        """Return the batches of the test set, and of the validation set if there is one."""
        return [self._evaluation(pixels) for pixels in self.evaluated.values()]

    def evaluation_of_training_set(self) -> EvaluationBatches:
        """Return the batches of the whole training set, without augmentation."""
        return self._evaluation(self.training)

    def _evaluation(self, pixels: DeviceImages) -> EvaluationBatches:
        assert self.trainer is not None
        return EvaluationBatches(pixels, self.trainer.global_rank, self.trainer.world_size)
