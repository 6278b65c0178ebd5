"""Lightning strategy of a run on several devices."""

from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.nn.parallel import DistributedDataParallel


class OneStreamDDP(DDPStrategy):
    """DistributedDataParallel that is built on the stream on which the run trains.

    Lightning 2.6 builds it under another CUDA stream, for steps that are captured. The gradients would then be
    accumulated on that stream, and each backward pass would synchronise the two.
    """

    def _setup_model(self, model: nn.Module) -> DistributedDataParallel:
        return DistributedDataParallel(model, device_ids=self.determine_ddp_device_ids(), **self._ddp_kwargs)
