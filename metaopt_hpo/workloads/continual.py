"""`continual`: tasks in sequence whose labels are permuted anew, judged while they are learned.

Every batch is predicted before it is trained on, so the mean over the stream is an honest held-out measure
(prequential, Dawid 1984), and the one continual learning reports. What has been counted lives in the model's
buffers: it is saved and resumed with the model, and the workload itself stays a pure function.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaopt_hpo.workloads.base import step_generator
from metaopt_hpo.workloads.cifar10 import FOLDERS
from metaopt_hpo.workloads.images import ImageWorkload
from metaopt_hpo.workloads.resnet import ResNetShape, check_network
from metaopt_hpo.workloads.sampling import batch_indices
from metaopt_hpo.workloads.settings import check_counts, check_parts, data_folder, initialised, placement
from metaopt_hpo.workloads.vision_data import SIDE, VisionData, augmented, normalised, read_cifar

FIRST_TASK = 2**30 + 2**29
"""Permutations draw from the generators of steps that neither a run nor its epochs reach."""


@dataclass(frozen=True, kw_only=True)
class Continual(ImageWorkload):
    """A stream of `tasks` tasks of `task_steps` steps each; tokens and batch count images.

    Args:
        width, network: as in `Cifar10`.
        dataset: "cifar10" or "cifar100".
        tasks: how many; each permutes the labels at random (the first keeps them).
        task_steps: optimizer steps of each task. A run longer than the stream stays in the last task.
        examples, data: as in `Cifar10`.
    """

    name: ClassVar[str] = "continual"
    default_widths: ClassVar[tuple[int, ...]] = (8, 12, 16, 32)
    recommended: ClassVar[dict[str, dict[str, Any]]] = {
        "metaoptimize": {"gamma": 0.999, "cooldown": 0.0, "guard": False}
    }
    """Options of strategies that suit a stream: the paper's discount, no cooldown, and no guard, as the loss jumps with
    every task. It commits, which the paper's does not: a step size that goes on adapting stays below the one that
    serves the stream best (the study shows both)."""

    network: str = "resnet8"
    dataset: str = "cifar10"
    tasks: int = 10
    task_steps: int = 400
    examples: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(self, "tasks", "task_steps")
        check_network(self.network)
        if self.dataset not in FOLDERS:
            raise ValueError(f"dataset must be one of {', '.join(FOLDERS)}, got {self.dataset!r}")

    @property
    def stream(self) -> int:
        """Images of the whole stream: the `tokens` to train on."""
        return self.tasks * self.task_steps * self.examples

    @property
    def shape(self) -> ResNetShape:
        """What the network is built from."""
        return ResNetShape(self.network, self.width, 10 if self.dataset == "cifar10" else 100)

    @property
    def side(self) -> int:
        """Pixels along an edge."""
        return SIDE

    def model(self, seed: int) -> nn.Module:
        """A freshly initialised network with empty counts."""
        return initialised(lambda: Counted(self.shape(), self.tasks, seed), seed)

    def images(self) -> VisionData:
        """The data, read once.

        Raises:
            WorkloadError: missing, truncated or foreign files.
        """
        return read_cifar(data_folder(self.data, FOLDERS[self.dataset]), self.dataset)

    def task(self, step: int) -> int:
        """Number of the task that step `step` belongs to."""
        return min(step // self.task_steps, self.tasks - 1)

    def permutation(self, task: int, seed: int) -> Tensor:
        """The label that task `task` gives to each class, (classes,); the identity for task 0."""
        classes = self.shape.classes
        if task == 0:
            return torch.arange(classes)
        return torch.randperm(classes, generator=step_generator(seed, FIRST_TASK + task))

    def losses(self, model: nn.Module, step: int, seed: int, parts: int) -> tuple[Tensor, ...]:
        """Mean cross-entropy of `parts` equal parts of the batch; its predictions are counted on the way."""
        check_parts(parts, self.examples)
        if not isinstance(model, Counted):
            raise ValueError(f"the continual workload trains the model it made, got {type(model).__name__}")
        x, y = self._batch(model, step, seed)
        losses = []
        for a, b in zip(x.chunk(parts), y.chunk(parts), strict=True):
            logits = model(a).float()
            losses.append(F.cross_entropy(logits, b))
            if model.training:
                model.count(self.task(step), losses[-1].detach(), logits.detach(), b)
        return tuple(losses)

    def _batch(self, model: nn.Module, step: int, seed: int) -> tuple[Tensor, Tensor]:
        where = placement(model)
        train = self.images().train
        chosen = batch_indices(len(train), self.examples, step, seed)
        x = normalised(augmented(train.pixels[chosen], step_generator(seed, step)), where)
        y = self.permutation(self.task(step), seed)[train.labels[chosen]].to(where[0])
        return x, y

    def held_out_loss(self, model: nn.Module) -> float:
        """Mean loss of all predictions so far, each made before its batch was trained on, nats per image.

        Before the first step it is the model's loss on the first batch.
        """
        if not isinstance(model, Counted):
            raise ValueError(f"the continual workload judges the model it made, got {type(model).__name__}")
        seen = int(model.seen.sum())
        if seen:
            return float(model.loss_sum.sum()) / seen
        x, y = self._batch(model, 0, model.seed)
        with torch.no_grad():
            return float(F.cross_entropy(model(x).float(), y))

    def scores(self, model: nn.Module) -> dict[str, float]:
        """`cumulative_accuracy` over the stream so far, and `accuracy_task_<i>` of each task begun."""
        if not isinstance(model, Counted):
            raise ValueError(f"the continual workload judges the model it made, got {type(model).__name__}")
        correct, seen = model.correct.tolist(), model.seen.tolist()
        total = sum(seen)
        out = {"cumulative_accuracy": sum(correct) / total if total else math.nan}
        return out | {
            f"accuracy_task_{i}": c / n for i, (c, n) in enumerate(zip(correct, seen, strict=True)) if n
        }


class Counted(nn.Module):
    """A network with the counts of its online predictions, one of each for every task."""

    seen: Tensor
    correct: Tensor
    loss_sum: Tensor

    def __init__(self, network: nn.Module, tasks: int, seed: int) -> None:
        super().__init__()
        self.network = network
        self.seed = seed
        self.register_buffer("seen", torch.zeros(tasks, dtype=torch.int64))
        self.register_buffer("correct", torch.zeros(tasks, dtype=torch.int64))
        self.register_buffer("loss_sum", torch.zeros(tasks, dtype=torch.float64))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        # a sum over a whole stream must not follow the weights into a short dtype
        self.loss_sum = self.loss_sum.double()
        return self

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x)
        return logits

    @torch.no_grad()
    def count(self, task: int, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Add the predictions of one part of a batch; nothing is read back from the device."""
        self.seen[task] += len(labels)
        self.correct[task] += (logits.argmax(1) == labels).sum()
        self.loss_sum[task] += loss.double() * len(labels)
