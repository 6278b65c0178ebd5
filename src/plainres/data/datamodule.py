"""The LightningDataModule: the loaders of a run."""

from typing import Any

import lightning.pytorch as pl

from plainres.data.batches import Batch, DeviceImages, EvaluationBatches, SampledBatch, TrainingBatches
from plainres.data.sources import Images, Source
from plainres.errors import InputError


class ImageBatches(pl.LightningDataModule):
    """The loaders of a run: training batches, and the test and training sets for evaluation."""

    def __init__(self, images: Images, source: Source, batch_size: int, seed: int) -> None:
        super().__init__()
        if batch_size > len(images.train):
            raise InputError(
                f"optim.batch_size is {batch_size}, but there are only {len(images.train)} training images"
            )
        self.images, self.source, self.batch_size, self.seed = images, source, batch_size, seed

    @property
    def steps_per_epoch(self) -> int:
        """The number of whole batches in the training set."""
        return len(self.images.train) // self.batch_size

    def setup(self, stage: str) -> None:
        """Bring the images to the device of this process."""
        assert self.trainer is not None
        device = self.trainer.strategy.root_device
        statistics = self.images.channel_statistics
        self.training = DeviceImages(self.images.train, self.source, statistics, device)
        self.test = DeviceImages(self.images.test, self.source, statistics, device)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Batch:
        """Make a training batch, where it is needed."""
        if not isinstance(batch, SampledBatch):
            return batch
        assert self.trainer is not None
        images, targets = self.trainer.precision_plugin.convert_input(self.training.materialize(batch))
        device = self.trainer.strategy.root_device
        return images.to(device), targets.to(device)  # for large data sets stay in the host's memory

    def on_device(self, sampled: SampledBatch) -> Batch | SampledBatch:
        """What a step on the device can take: a batch that is made already, if the images do not fit there."""
        return sampled if self.training.fits else self.on_after_batch_transfer(sampled, 0)

    def train_dataloader(self) -> TrainingBatches:
        """The training batches, beginning where the trainer stands."""
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

    def val_dataloader(self) -> EvaluationBatches:
        """The test set."""
        return self._evaluation(self.test)

    def evaluation_of_training_set(self) -> EvaluationBatches:
        """The training set, unaugmented and whole."""
        return self._evaluation(self.training)

    def _evaluation(self, pixels: DeviceImages) -> EvaluationBatches:
        assert self.trainer is not None
        return EvaluationBatches(pixels, self.trainer.global_rank, self.trainer.world_size)
