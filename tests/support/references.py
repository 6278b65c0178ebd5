"""Residual networks of the papers in plain torch, with the parameter names of published weight files.

They share no code with plainres, so that equal outputs show that both follow the papers.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Module):
    """Block of He et al. 2015, figure 5: two 3x3 layers, or with `bottleneck` 1x1, 3x3 and 1x1."""

    def __init__(self, inputs: int, inside: int, stride: int, *, bottleneck: bool, option: str) -> None:
        super().__init__()
        self.bottleneck, self.stride, self.outputs = bottleneck, stride, inside * (4 if bottleneck else 1)
        if bottleneck:
            self.conv1 = nn.Conv2d(inputs, inside, 1, bias=False)
            self.conv2 = nn.Conv2d(inside, inside, 3, stride, 1, bias=False)
            self.conv3 = nn.Conv2d(inside, self.outputs, 1, bias=False)
            self.bn3 = nn.BatchNorm2d(self.outputs)
        else:
            self.conv1 = nn.Conv2d(inputs, inside, 3, stride, 1, bias=False)
            self.conv2 = nn.Conv2d(inside, inside, 3, 1, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(inside), nn.BatchNorm2d(inside)
        self.widened = self.outputs - inputs
        if option == "B" and (stride > 1 or self.widened):
            conv = nn.Conv2d(inputs, self.outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(self.outputs))

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.bottleneck:
            out = self.bn3(self.conv3(F.relu(out)))
        if hasattr(self, "downsample"):
            x = self.downsample(x)
        elif self.stride > 1 or self.widened:
            x = x[:, :, :: self.stride, :: self.stride]
            zeros = x.new_zeros(x.shape[0], self.widened // 2, *x.shape[2:])
            x = torch.cat([zeros, x, zeros], 1)
        return F.relu(out + x)


def _stage(inputs: int, inside: int, blocks: int, stride: int, *, bottleneck: bool, option: str) -> nn.Sequential:
    layers = []
    for index in range(blocks):
        layers.append(Block(inputs, inside, stride if index == 0 else 1, bottleneck=bottleneck, option=option))
        inputs = layers[-1].outputs
    return nn.Sequential(*layers)


class ImageNetResNet(nn.Module):
    """Network of He et al. 2015, Table 1, option B, with torchvision's names."""

    def __init__(self, blocks: tuple[int, int, int, int], *, bottleneck: bool, classes: int = 1000) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        wide = 4 if bottleneck else 1
        self.layer1 = _stage(64, 64, blocks[0], 1, bottleneck=bottleneck, option="B")
        self.layer2 = _stage(64 * wide, 128, blocks[1], 2, bottleneck=bottleneck, option="B")
        self.layer3 = _stage(128 * wide, 256, blocks[2], 2, bottleneck=bottleneck, option="B")
        self.layer4 = _stage(256 * wide, 512, blocks[3], 2, bottleneck=bottleneck, option="B")
        self.fc = nn.Linear(512 * wide, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(x.mean((2, 3)))


class CifarResNet(nn.Module):
    """Network of He et al. 2015, section 4.2, option A, with the names of akamaster/pytorch_resnet_cifar10."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, n, 1, bottleneck=False, option="A")
        self.layer2 = _stage(16, 32, n, 2, bottleneck=False, option="A")
        self.layer3 = _stage(32, 64, n, 2, bottleneck=False, option="A")
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x))))))
        return self.linear(x.mean((2, 3)))


def scrambled(network: nn.Module, size: int = 32) -> nn.Module:
    """Randomise all weights, biases and batch statistics of a network, so that tests detect swapped parameters.

    The statistics are those of random images, so that activations keep their scale as in a trained network.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.ndim > 1:
                deviation = (2 / parameter[0].numel()) ** 0.5
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * deviation)
            elif name.endswith("weight"):
                parameter.copy_(torch.rand(parameter.shape, generator=generator) + 0.5)
            else:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / 10)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 1
        channels = next(network.parameters()).shape[1]
        network.train()(torch.randn(8, channels, size, size, generator=generator))
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.1
    return network.eval()
