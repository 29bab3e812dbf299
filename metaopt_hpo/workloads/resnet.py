"""Residual networks for small and for large images, without pretrained weights.

Source: He et al. 2016 (arXiv 1512.03385): section 3.3 for large images (7 × 7 stem, max-pooling), the customary
CIFAR variant (3 × 3 stem, no pooling) for small ones. ResNet-18 is four stages of two basic blocks at width 64.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

NETWORKS = {"resnet8": (3, 1), "resnet18": (4, 2)}
"""(stages, basic blocks a stage)."""


@dataclass(frozen=True)
class ResNetShape:
    """What a network is built from; callable, so that it can be counted and cached.

    Attributes:
        network: "resnet8" or "resnet18".
        width: channels of the first stage; each further stage doubles them.
        classes: outputs.
        large: stem for large images.
    """

    network: str
    width: int
    classes: int
    large: bool = False

    def __call__(self) -> ResNet:
        return ResNet(self)


class BasicBlock(nn.Module):
    """Two 3 × 3 convolutions around which the input is carried."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class ResNet(nn.Module):
    """Images (n, 3, h, w) to logits (n, classes)."""

    def __init__(self, shape: ResNetShape) -> None:
        super().__init__()
        stages, blocks = NETWORKS[shape.network]
        w = shape.width
        self.large = shape.large
        self.conv1 = (
            nn.Conv2d(3, w, 7, 2, padding=3, bias=False)
            if shape.large
            else nn.Conv2d(3, w, 3, padding=1, bias=False)
        )
        self.bn1 = nn.BatchNorm2d(w)
        self.stages = stages
        inputs = w
        for i in range(stages):
            outputs = w * 2**i
            layer = [BasicBlock(inputs, outputs, 1 if i == 0 else 2)]
            layer += [BasicBlock(outputs, outputs, 1) for _ in range(blocks - 1)]
            self.add_module(f"layer{i + 1}", nn.Sequential(*layer))
            inputs = outputs
        self.fc = nn.Linear(inputs, shape.classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        if self.large:
            x = F.max_pool2d(x, 3, 2, padding=1)
        for i in range(self.stages):
            x = self.get_submodule(f"layer{i + 1}")(x)
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits


def six_blocks(name: str) -> str:
    """Parameter name to one of ResNet-18's six blocks: stem, four stages, output layer.

    The blocks of arXiv 2402.02342: `MetaOptimize(model.named_parameters(), blocks=six_blocks)`.

    Raises:
        ValueError: not the name of a parameter of `ResNet`.
    """
    first = name.removeprefix("network.").split(".")[0]
    if first in ("conv1", "bn1"):
        return "stem"
    if first.startswith("layer") or first == "fc":
        return first
    raise ValueError(f"{name!r} is no parameter of a ResNet: its blocks are conv1, bn1, layer1 … and fc")


def check_network(name: str) -> None:
    """Raise ValueError for a network that is not known."""
    if name not in NETWORKS:
        raise ValueError(f"network must be one of {', '.join(NETWORKS)}, got {name!r}")
