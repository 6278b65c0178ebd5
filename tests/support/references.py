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


class KuangliuBlock(nn.Module):
    """Block of kuangliu/pytorch-cifar with option B, whose shortcut is empty where the shape stays."""

    def __init__(self, inputs: int, inside: int, stride: int, *, bottleneck: bool) -> None:
        super().__init__()
        outputs = 4 * inside if bottleneck else inside
        # kernel, input channels, output channels and stride of each convolution
        plan = [(3, inputs, inside, stride), (3, inside, inside, 1)]
        if bottleneck:
            plan = [(1, inputs, inside, 1), (3, inside, inside, stride), (1, inside, outputs, 1)]
        for number, (kernel, before, after, step) in enumerate(plan, 1):
            self.add_module(f"conv{number}", nn.Conv2d(before, after, kernel, step, kernel // 2, bias=False))
            self.add_module(f"bn{number}", nn.BatchNorm2d(after))
        self.depth, self.shortcut = len(plan), nn.Sequential()
        if stride != 1 or inputs != outputs:
            projection = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        out = x
        for number in range(1, self.depth + 1):
            out = self.get_submodule(f"bn{number}")(self.get_submodule(f"conv{number}")(out))
            out = F.relu(out) if number < self.depth else out
        return F.relu(out + self.shortcut(x))


class KuangliuResNet(nn.Module):
    """Network of kuangliu/pytorch-cifar for 32x32 images: a 3x3 stem without pooling, and four stages."""

    def __init__(self, blocks: tuple[int, ...], width: int = 64, *, bottleneck: bool = False) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        channels = width
        for stage, count in enumerate(blocks):
            layers = []
            for index in range(count):
                stride = 2 if stage and not index else 1
                layers.append(KuangliuBlock(channels, width * 2**stage, stride, bottleneck=bottleneck))
                channels = width * 2**stage * (4 if bottleneck else 1)
            self.add_module(f"layer{stage + 1}", nn.Sequential(*layers))
        self.stages, self.linear = len(blocks), nn.Linear(channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        for stage in range(self.stages):
            x = self.get_submodule(f"layer{stage + 1}")(x)
        return self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))


def _named(**modules: nn.Module) -> nn.ModuleDict:
    return nn.ModuleDict(modules)


def _hugging_face_layer(inputs: int, outputs: int, kernel: int, stride: int) -> nn.ModuleDict:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return _named(convolution=convolution, normalization=nn.BatchNorm2d(outputs))


class HuggingFaceResNet(nn.Module):
    """Network with the names of Hugging Face's ResNetForImageClassification, and of its ResNetModel inside."""

    def __init__(self, blocks: tuple[int, ...], width: int = 64, classes: int = 7, *, bottleneck: bool) -> None:
        super().__init__()
        channels, stages = width, []
        for stage, count in enumerate(blocks):
            inside = width * 2**stage
            outputs = 4 * inside if bottleneck else inside
            layers = []
            for index in range(count):
                stride = 2 if stage and not index else 1
                if bottleneck:
                    plan = [(channels, inside, 1, 1), (inside, inside, 3, stride), (inside, outputs, 1, 1)]
                else:
                    plan = [(channels, inside, 3, stride), (inside, inside, 3, 1)]
                layer = {"layer": nn.ModuleList([_hugging_face_layer(*each) for each in plan])}
                if stride != 1 or channels != outputs:
                    layer = {"shortcut": _hugging_face_layer(channels, outputs, 1, stride), **layer}
                layers.append(nn.ModuleDict(layer))
                channels = outputs
            stages.append(_named(layers=nn.ModuleList(layers)))
        embedder = _named(embedder=_hugging_face_layer(3, width, 7, 2))
        self.resnet = _named(embedder=embedder, encoder=_named(stages=nn.ModuleList(stages)))
        self.classifier = nn.Sequential(nn.Flatten(), nn.Linear(channels, classes))

    def forward(self, x: Tensor) -> Tensor:
        def apply(layer: nn.Module, x: Tensor) -> Tensor:
            return layer.get_submodule("normalization")(layer.get_submodule("convolution")(x))

        x = F.max_pool2d(F.relu(apply(self.resnet.get_submodule("embedder.embedder"), x)), 3, 2, 1)
        for stage in self.resnet.get_submodule("encoder.stages").children():
            for block in stage.get_submodule("layers").children():
                *inner, last = block.get_submodule("layer").children()
                out = x
                for layer in inner:
                    out = F.relu(apply(layer, out))
                shortcut = dict(block.named_children()).get("shortcut")
                x = F.relu(apply(last, out) + (x if shortcut is None else apply(shortcut, x)))
        return self.classifier(x.mean((2, 3), keepdim=True))


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
