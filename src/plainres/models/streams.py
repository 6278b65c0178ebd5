"""Connections of several residual streams: hyper-connections, their constrained form and their fractional form.

The state holds n streams. A branch reads a weighted sum of the streams, and its output is added to all of them:

    read(h) = sum_j p_j h_j                          write(h, fx)_i = sum_j R_ij h_j + q_i fx

Where the shape changes, each stream is subsampled and padded with zeros, like x in `Identity`. Weighted sums are
computed in the precision of the weights, also under autocast, because bfloat16 would round a weight near 1 to 8 bits.
With weights that depend on the position, `torch.einsum` returns streams in the memory order (N, H, W, n, C), so that
the next weighted sum needs no copy. Parameter counts are per block, where C is the number of channels of the branch's
input.
"""

import math
from contextlib import AbstractContextManager, nullcontext
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from plainres.errors import InputError
from plainres.models.shortcuts import Identity

EPSILON = 1e-5  # of normalisations


def weighted_sum(equation: str, weights: Tensor, values: Tensor) -> Tensor:
    """Return `torch.einsum(equation, weights, values)` in the precision of the weights, also under autocast."""
    with without_autocast(values.device):
        return torch.einsum(equation, weights, values.to(weights.dtype))


def products_with_normalised(weights: Tensor, values: Tensor, *, centre: bool) -> Tensor:
    """Return the products (N, k, n, H, W) of k vectors (k, C) with normalised values (N, n, C, H, W).

    Normalisation divides a value by its root mean square over the channels, after subtracting the mean if `centre`. The
    division is applied to the products (Xie et al. 2025, section 4.3), of which there are usually fewer. The precision
    is that of the weights, also under autocast.
    """
    last = values.permute(0, 3, 4, 1, 2).to(weights.dtype)
    if centre:
        last = last - last.mean(-1, keepdim=True)
    inverse = (last.square().mean(-1, keepdim=True) + EPSILON).rsqrt()
    with without_autocast(values.device):
        products = F.linear(last, weights) * inverse
    return products.permute(0, 4, 3, 1, 2)


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Disable autocast."""
    available = torch.amp.is_autocast_available(device.type)
    return torch.autocast(device.type, enabled=False) if available else nullcontext()


class Streams(nn.Module):
    """State of n streams (N, n, C, H, W), all equal to x at the start of a stage. Their mean is the stage's output.

    Raises:
        InputError: `streams` is less than 1.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, streams: int) -> None:
        super().__init__()
        if streams < 1:
            raise InputError(f"model.shortcut.streams is {streams}; it must be at least 1")
        self.streams = streams
        self.skip = Identity(in_channels, out_channels, stride)

    def open(self, x: Tensor) -> Tensor:
        """Copy x to every stream."""
        return x.unsqueeze(1).expand(-1, self.streams, -1, -1, -1)

    def read(self, state: Tensor) -> Tensor:
        """Return the weighted sum of the streams."""
        return weighted_sum("njhw,njchw->nchw", self.reading(state), state)

    def write(self, state: Tensor, fx: Tensor) -> Tensor:
        """Mix the streams and add the weighted output of the branch to each."""
        stride = self.skip.stride
        mixing, writing = (weights[..., ::stride, ::stride] for weights in self.mixing_and_writing(state))
        mixed = weighted_sum("nijhw,njchw->nichw", mixing, self.skip.align(state))
        return torch.addcmul(mixed, writing[:, :, None], fx[:, None].to(mixed.dtype))

    def close(self, state: Tensor) -> Tensor:
        """Return the mean of the streams."""
        return state.mean(1)

    def reading(self, state: Tensor) -> Tensor:
        """Return p (N, n, H, W), with sizes of 1 where it is constant."""
        raise NotImplementedError

    def mixing(self, state: Tensor) -> Tensor:
        """Return R (N, n, n, H, W), with sizes of 1 where it is constant."""
        return self.mixing_and_writing(state)[0]

    def mixing_and_writing(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """Return R (N, n, n, H, W) and q (N, n, H, W), with sizes of 1 where they are constant."""
        raise NotImplementedError


class HyperConnections(Streams):
    """n streams with learned weights p, q and R: n (n + 2) parameters, and C (n + 2) + 2 more if `dynamic`.

    Zhu et al. 2024 (Hyper-Connections, arXiv 2409.19606), section 2. Equation 14 initialises q to 1, R to the identity
    matrix, and p so that block k of the network, counted from 0, reads stream k mod n. The streams are then equal, and
    the network computes what the residual network does.

    Dynamic weights depend on the position in the image (equations 10 to 13). p_j, q_j and R_ij are increased by
    s tanh(u h_j'), t tanh(v h_j') and s tanh(w_i h_j'), where h_j' is h_j normalised over its channels. The vectors u,
    v and w_i are initialised to 0, and the scalars s and t to 0.01.

    The paper sums the streams once, at the end of the network and before a normalisation. Here they are averaged at the
    end of each stage, so that the equality above needs none. Here h_j is normalised by a layer normalisation without a
    learned scale. The paper excludes p, q and R from weight decay, where optim.decay=weights excludes p, q, u, v and
    the scalars, and rescales the initial weights of some layers, which is not done here.

    Raises:
        InputError: `streams` is less than 1.
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, streams: int = 4, *, dynamic: bool = True
    ) -> None:
        super().__init__(in_channels, out_channels, stride, streams)
        self.dynamic = dynamic
        self.p, self.q = nn.Parameter(torch.zeros(streams)), nn.Parameter(torch.ones(streams))
        self.r = nn.Parameter(torch.eye(streams))
        self.set_position(1, 1)
        if dynamic:
            self.u, self.v = nn.Parameter(torch.zeros(in_channels)), nn.Parameter(torch.zeros(in_channels))
            self.w = nn.Parameter(torch.zeros(streams, in_channels))
            self.s, self.t = nn.Parameter(torch.tensor(0.01)), nn.Parameter(torch.tensor(0.01))

    def set_position(self, index: int, total: int) -> None:
        """Choose the stream that the block reads before training."""
        with torch.no_grad():
            self.p.zero_()[(index - 1) % self.streams] = 1

    def reading(self, state: Tensor) -> Tensor:
        """Return p (N, n, H, W), with sizes of 1 where it is constant."""
        p = self.p[None, :, None, None]
        if self.dynamic:
            p = p + self.s * products_with_normalised(self.u[None], state, centre=True)[:, 0].tanh()
        return p

    def mixing_and_writing(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """Return R (N, n, n, H, W) and q (N, n, H, W), with sizes of 1 where they are constant."""
        r, q = self.r[None, :, :, None, None], self.q[None, :, None, None]
        if self.dynamic:
            vectors = torch.cat([self.v[None], self.w])
            products = products_with_normalised(vectors, state, centre=True).tanh()
            r = r + self.s * products[:, 1:]
            q = q + self.t * products[:, 0]
        return r, q


class ManifoldHyperConnections(Streams):
    """n streams whose mixing matrix R is doubly stochastic: (n^2 + 2 n) (n C + 1) + 3 parameters.

    Xie et al. 2025 (mHC: Manifold-Constrained Hyper-Connections, arXiv 2512.24880), section 4. In each position of the
    image, with h' the concatenation of the streams divided by its root mean square,

        p = sigmoid(s_p U h' + a)       q = 2 sigmoid(s_q V h' + b)       R = sinkhorn(s_r W h' + c)

    A doubly stochastic R neither amplifies nor attenuates the mean of the streams. The scalars s are initialised to
    0.01.

    optim.decay=weights excludes a, b and the scalars from weight decay, but neither U, V and W nor c, whose decay
    brings R closer to 1 / n. The paper does not state the other initial values. Here b = 0 and a = -log(n - 1), so that
    q = 1 and the elements of p add up to 1, up to the small random terms; c is such that each stream keeps nine tenths
    of itself; the elements of U, V and W are N(0, 1 / (n C)), without which the streams would remain equal. The streams
    are averaged at the end.

    Raises:
        InputError: `streams` is less than 2.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, streams: int = 4) -> None:
        super().__init__(in_channels, out_channels, stride, streams)
        if streams < 2:
            raise InputError(f"model.shortcut.streams is {streams}; it must be at least 2")
        features = streams * in_channels
        self.u, self.v = (nn.Parameter(torch.empty(streams, features)) for _ in range(2))
        self.w = nn.Parameter(torch.empty(streams, streams, features))
        for weight in (self.u, self.v, self.w):
            nn.init.normal_(weight, std=features**-0.5)
        self.a = nn.Parameter(torch.full((streams,), -math.log(streams - 1)))
        self.b = nn.Parameter(torch.zeros(streams))
        self.c = nn.Parameter(math.log(9 * (streams - 1)) * torch.eye(streams))
        self.s_p, self.s_q, self.s_r = (nn.Parameter(torch.tensor(0.01)) for _ in range(3))

    def reading(self, state: Tensor) -> Tensor:
        """Return p (N, n, H, W)."""
        return (self.s_p * self._products(self.u, state) + self.a[:, None, None]).sigmoid()

    def mixing_and_writing(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """Return R (N, n, n, H, W) and q (N, n, H, W)."""
        products = self._products(torch.cat([self.v, self.w.flatten(0, 1)]), state)
        q = 2 * (self.s_q * products[:, : self.streams] + self.b[:, None, None]).sigmoid()
        r = self.s_r * products[:, self.streams :].unflatten(1, (self.streams, -1)) + self.c[:, :, None, None]
        # as in the paper, section 4.3.2, the 40 intermediate results are computed again in the backward pass
        return cast("Tensor", checkpoint(sinkhorn, r, use_reentrant=False, preserve_rng_state=False)), q

    @staticmethod
    def _products(vectors: Tensor, state: Tensor) -> Tensor:
        """Return the products (N, k, H, W) of vectors (k, n C) with h'."""
        return products_with_normalised(vectors, state.flatten(1, 2)[:, None], centre=False)[:, :, 0]


def sinkhorn(logits: Tensor, iterations: int = 20) -> Tensor:
    """Return a doubly stochastic matrix for each matrix of logits (N, n, n, H, W).

    Sinkhorn & Knopp 1967: the columns and the rows of the exponentials are divided by their sums in turn, 20 times in
    mHC. Here this is done with their logarithms, so that nothing underflows. The rows then add up to 1, but the sums of
    the columns may differ from 1 by some hundredths, for example where the matrix is close to triangular. Unlike in the
    paper, they are corrected to rounding (see `rounded`). The gradient is that of the divisions, without the
    correction.
    """
    for _ in range(iterations):
        logits = logits.log_softmax(1).log_softmax(2)
    matrix = logits.exp()
    return matrix + (rounded(matrix) - matrix).detach()


@torch.no_grad()
def rounded(matrix: Tensor) -> Tensor:
    """Return a doubly stochastic matrix (N, n, n, H, W) close to one that nearly is.

    Altschuler et al. 2017 (Near-linear time approximation algorithms for optimal transport), algorithm 2: rows and
    columns of sums above 1 are divided by them, and what is missing is added as a matrix of rank 1.
    """
    for dimension in (2, 1):
        matrix = matrix / matrix.sum(dimension, keepdim=True).clamp_min(1)
    rows, columns = ((1 - matrix.sum(dimension, keepdim=True)).clamp_min(0) for dimension in (2, 1))
    tiny = torch.finfo(matrix.dtype).tiny  # where nothing is missing
    return matrix + rows * columns / rows.sum(1, keepdim=True).clamp_min(tiny)


class FracConnections(nn.Module):
    """x in m fractions of its channels, with learned weights: m (2 m + 1) parameters.

    Zhu et al. 2025 (Frac-Connections, arXiv 2503.14125), section 3. The state is x. Fraction i of the branch's input is
    sum_j P_ij x_j, and that of the next x is sum_j R_ij x_j + q_i F(P x)_i. P and R are initialised to the identity
    matrix and q to 1, so that the network computes what the residual network does. Where the number of channels grows,
    sum_j R_ij x_j are the fractions of the x that is then padded as a whole. optim.decay=weights excludes q from weight
    decay. The dynamic form of the paper is not implemented.

    Raises:
        InputError: `fractions` does not divide the numbers of channels.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, fractions: int = 4) -> None:
        super().__init__()
        if fractions < 1 or in_channels % fractions or out_channels % fractions:
            raise InputError(
                f"model.shortcut.fractions is {fractions}; it must divide the numbers of channels, which are "
                f"{in_channels} and {out_channels}"
            )
        self.fractions = fractions
        self.skip = Identity(in_channels, out_channels, stride)
        self.p, self.r = (nn.Parameter(torch.eye(fractions)) for _ in range(2))
        self.q = nn.Parameter(torch.ones(fractions))

    def open(self, x: Tensor) -> Tensor:
        """Return x."""
        return x

    def read(self, state: Tensor) -> Tensor:
        """Return the mixed fractions of x."""
        return self._mixed(self.p, state)

    def write(self, state: Tensor, fx: Tensor) -> Tensor:
        """Mix the fractions of x and add the weighted fractions of fx."""
        written = self.q[:, None, None, None] * fx.unflatten(1, (self.fractions, -1))
        return self.skip.align(self._mixed(self.r, state)) + written.flatten(1, 2)

    def close(self, state: Tensor) -> Tensor:
        """Return x."""
        return state

    def _mixed(self, weights: Tensor, x: Tensor) -> Tensor:
        return weighted_sum("ij,njchw->nichw", weights, x.unflatten(1, (self.fractions, -1))).flatten(1, 2)
