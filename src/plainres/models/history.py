"""Connections that depend on the earlier blocks of a stage: on their outputs, or on their number.

Where the shape changes, an earlier tensor is subsampled and padded with zeros, like x in `Identity`. Parameter counts
are per block; k is the index of the block in its stage, counted from 1, and C the number of channels that it reads.
"""

import math

import torch
from torch import Tensor, nn

from plainres.models.shortcuts import Identity
from plainres.models.streams import products_with_normalised, weighted_sum


class DepthWeightedAverage(nn.Module):
    """y_k = sum_i a_i x_i over x_0 to x_k, with k + 1 parameters a.

    Pagliardini et al. 2024 (DenseFormer, arXiv 2402.02622), section 3, with dilation and period 1. x_0 = y_0 is the
    stage's input and x_k = y_(k-1) + F(y_(k-1)). a_k is initialised to 1 and the other weights to 0, so that the
    network computes what the residual network does. The paper averages over the whole network, whose shape does not
    change.

    The state is y_k, x_0, ..., x_k and the weights of y_k.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.skip = Identity(in_channels, out_channels, stride)
        self.set_stage_position(1, 1)

    def set_stage_position(self, index: int, total: int) -> None:
        """Set the number of weights."""
        self.weights = nn.Parameter(torch.cat([torch.zeros(index), torch.ones(1)]))

    def open(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return y_0, which is x, x_0, and the weight 1."""
        return x, x, torch.ones(1, dtype=x.dtype, device=x.device)

    def read(self, state: tuple[Tensor, ...]) -> Tensor:
        """Return y_(k-1)."""
        return state[0]

    def reading(self, state: tuple[Tensor, ...]) -> Tensor:
        """Return the weights of y_(k-1), (1, k, 1, 1)."""
        return state[-1][None, :, None, None]

    def write(self, state: tuple[Tensor, ...], fx: Tensor) -> tuple[Tensor, ...]:
        """Return the next state."""
        y, *xs = (self.skip.align(x) for x in state[:-1])
        xs.append(y + fx)
        return weighted_sum("k,nkchw->nchw", self.weights, torch.stack(xs, 1)), *xs, self.weights

    def close(self, state: tuple[Tensor, ...]) -> Tensor:
        """Return y_k."""
        return state[0]


class AttentionResiduals(nn.Module):
    """The branch of block k reads sum_i a_i v_i, where v_0 = x and v_i is the output of branch i. C parameters.

    Kimi Team 2026 (Attention Residuals, arXiv 2603.15031), section 3: in each position of the image a is the softmax of
    <w, v_i'>, where w is a learned query of the block and v_i' is v_i divided by its root mean square over channels. w
    is initialised to 0, which averages; in the first block of a stage, which reads v_0 alone, it has no effect. The
    last block of a stage has a second query, by which the stage's output reads all v_i: C_out more parameters.

    The paper attends over the whole network, or over blocks of layers. Its normalisation has a learned scale, which the
    query contains here.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.skip = Identity(in_channels, out_channels, stride)
        self.out_channels = out_channels
        self.query = nn.Parameter(torch.zeros(in_channels))
        self.set_stage_position(1, 1)

    def set_stage_position(self, index: int, total: int) -> None:
        """Give the last block of a stage the query of the stage's output."""
        self.last_query = nn.Parameter(torch.zeros(self.out_channels)) if index == total else None

    def open(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return v_0."""
        return (x,)

    def read(self, state: tuple[Tensor, ...]) -> Tensor:
        """Attend over v_0 to v_(k-1)."""
        return attend(self.query, state)

    def reading(self, state: tuple[Tensor, ...]) -> Tensor:
        """Return the softmax over v_0 to v_(k-1), (N, k, H, W)."""
        return attention(self.query, torch.stack(state, 1))

    def write(self, state: tuple[Tensor, ...], fx: Tensor) -> tuple[Tensor, ...]:
        """Append v_k."""
        return *(self.skip.align(v) for v in state), fx

    def close(self, state: tuple[Tensor, ...]) -> Tensor:
        """Attend over v_0 to v_k."""
        assert self.last_query is not None
        return attend(self.last_query, state)


def attention(query: Tensor, values: Tensor) -> Tensor:
    """Return the softmax (N, k, H, W) of <query, normalised value> over k values (N, k, C, H, W)."""
    return products_with_normalised(query[None], values, centre=False)[:, 0].softmax(1)


def attend(query: Tensor, values: tuple[Tensor, ...]) -> Tensor:
    """Return the average of values (N, C, H, W), weighted by `attention`."""
    stacked = torch.stack(values, 1)
    return weighted_sum("nihw,nichw->nchw", attention(query, stacked), stacked)


class Dense(nn.Module):
    """The branch of block k reads W (x, F_1, ..., F_(k-1)), the concatenated outputs of all branches before it.

    Huang et al. 2016 (DenseNet, arXiv 1608.06993), equation 2, where W is a 1x1 convolution to the C channels that a
    branch reads, so k C^2 parameters; the first block of a stage reads x. Another 1x1 convolution, of
    (L + 1) C^2 parameters in the last of L blocks, computes the stage's output. The weights of both are drawn from
    N(0, 1 / fan_in), regardless of model/init.

    Differences from DenseNet: a branch has all layers of its block, and adds as many channels as the stage has (the
    growth rate); the 1x1 convolutions are not preceded by normalisation and activation, and have C output channels
    instead of four times the growth rate; the last stage ends with one, too; the next stage strides instead of pooling.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.skip = Identity(in_channels, out_channels, stride)
        self.channels = out_channels
        self.set_stage_position(1, 1)

    def set_stage_position(self, index: int, total: int) -> None:
        """Make the convolutions for this position."""
        self.bottleneck = self._convolution(index) if index > 1 else None
        self.transition = self._convolution(index + 1) if index == total else None

    def _convolution(self, tensors: int) -> nn.Conv2d:
        convolution = nn.Conv2d(tensors * self.channels, self.channels, kernel_size=1, bias=False)
        nn.init.kaiming_normal_(convolution.weight, mode="fan_in", nonlinearity="linear")
        return convolution

    def open(self, x: Tensor) -> Tensor:
        """Return x."""
        return x

    def read(self, state: Tensor) -> Tensor:
        """Return the channels that the branch reads."""
        return state if self.bottleneck is None else self.bottleneck(state)

    def write(self, state: Tensor, fx: Tensor) -> Tensor:
        """Append the channels of fx."""
        return torch.cat([self.skip.align(state) if self.bottleneck is None else state, fx], 1)

    def close(self, state: Tensor) -> Tensor:
        """Return the stage's output."""
        assert self.transition is not None
        return self.transition(state)


class NormalizerFree(nn.Module):
    """The branch reads x / b_k, and x <- x + a F(x / b_k) with a constant a (`residual`). No parameters.

    Brock et al. 2021 (Characterizing signal propagation to close the performance gap in unnormalized ResNets,
    arXiv 2101.08692), section 3: b_k = sqrt(1 + (k - 1) a^2) is the standard deviation of x before training if the
    stage's input has variance 1 and branches preserve variance. The first block of the next stage reads the divided x
    on both paths, after which the count starts again. Here the last stage's output is divided too.

    Use it with model/norm=none, since normalisation undoes the division. The paper's convolutions have Scaled Weight
    Standardisation, without which it finds these networks unstable (section 4.1), and its activations a gain. Neither
    is implemented here, so that the variances are not those above.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, residual: float = 0.2) -> None:
        super().__init__()
        self.skip = Identity(in_channels, out_channels, stride)
        self.residual = residual
        self.set_stage_position(1, 1)

    def set_stage_position(self, index: int, total: int) -> None:
        """Set the expected standard deviations before and after the block."""
        self.before, self.after = (math.sqrt(1 + k * self.residual**2) for k in (index - 1, index))

    def open(self, x: Tensor) -> Tensor:
        """Return x."""
        return x

    def read(self, state: Tensor) -> Tensor:
        """Return x / b_k."""
        return state / self.before

    def write(self, state: Tensor, fx: Tensor) -> Tensor:
        """Return x + a fx."""
        return self.skip.align(state) + self.residual * fx

    def close(self, state: Tensor) -> Tensor:
        """Return x / b_(k+1)."""
        return state / self.after
