"""Networks, their initialisation, and probes. conf/model and conf/probes refer to these classes and functions."""

from plainres.models.activations import TailoredReLU, leaky_relu
from plainres.models.blocks import BlockSpec, LayerOrder
from plainres.models.history import AttentionResiduals, Dense, DepthWeightedAverage, NormalizerFree
from plainres.models.initialisation import delta_orthogonal, fixup, he_fan_in, he_fan_out, orthogonal, zero_gamma
from plainres.models.networks import MLP, CifarNet, ImageNet
from plainres.models.normalisation import group_norm
from plainres.models.probes import Connections, GradientCorrelation, Gradients, Responses, Sharpness, Signals
from plainres.models.scaled_shortcuts import (
    DecayedIdentity,
    DepthScaled,
    LayerScale,
    OrthogonalUpdate,
    ReZero,
    Scaling,
    SkipInit,
)
from plainres.models.shortcuts import (
    Convolution,
    Dropout,
    ExclusiveGating,
    Highway,
    Identity,
    Plain,
    Projection,
    ProjectionAll,
    ResBlk,
    ShortcutGating,
    StochasticDepth,
    Wide,
)
from plainres.models.streams import FracConnections, HyperConnections, ManifoldHyperConnections

__all__ = [
    "MLP",
    "AttentionResiduals",
    "BlockSpec",
    "CifarNet",
    "Connections",
    "Convolution",
    "DecayedIdentity",
    "Dense",
    "DepthScaled",
    "DepthWeightedAverage",
    "Dropout",
    "ExclusiveGating",
    "FracConnections",
    "GradientCorrelation",
    "Gradients",
    "Highway",
    "HyperConnections",
    "Identity",
    "ImageNet",
    "LayerOrder",
    "LayerScale",
    "ManifoldHyperConnections",
    "NormalizerFree",
    "OrthogonalUpdate",
    "Plain",
    "Projection",
    "ProjectionAll",
    "ReZero",
    "ResBlk",
    "Responses",
    "Scaling",
    "Sharpness",
    "ShortcutGating",
    "Signals",
    "SkipInit",
    "StochasticDepth",
    "TailoredReLU",
    "Wide",
    "delta_orthogonal",
    "fixup",
    "group_norm",
    "he_fan_in",
    "he_fan_out",
    "leaky_relu",
    "orthogonal",
    "zero_gamma",
]
