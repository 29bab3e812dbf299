"""`tabular` and `regression`: small tables that scikit-learn ships, learned by a multilayer perceptron."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaopt_hpo.workloads.base import WorkloadError
from metaopt_hpo.workloads.sampling import batch_indices
from metaopt_hpo.workloads.settings import (
    check_counts,
    check_even,
    check_parts,
    flops_per_example,
    initialised,
    parameter_count,
    placement,
)

CLASSIFICATION = ("digits", "breast_cancer", "wine")
REGRESSION = ("diabetes",)

HOLD_OUT_EVERY = 5
"""Every fifth row, after one fixed shuffle, is held out."""


@dataclass(frozen=True)
class Table:
    """Standardised features and targets: `x` float32 (n, features), `y` int64 (n,) or float32 (n,)."""

    x: Tensor
    y: Tensor


@dataclass(frozen=True)
class MLPShape:
    """What a network is built from; callable, so that it can be counted and cached."""

    features: int
    width: int
    layers: int
    outputs: int

    def __call__(self) -> nn.Module:
        parts: list[nn.Module] = []
        inputs = self.features
        for _ in range(self.layers):
            parts += [nn.Linear(inputs, self.width), nn.ReLU()]
            inputs = self.width
        return nn.Sequential(*parts, nn.Linear(inputs, self.outputs))


@dataclass(frozen=True, kw_only=True)
class Tabular:
    """Classification of table rows; tokens and batch count rows.

    Args:
        width: of the hidden layers.
        layers: hidden layers.
        dataset: "digits" (1,797 rows × 64, 10 classes), "breast_cancer" (569 × 30, 2) or "wine" (178 × 13, 3).
        examples: rows per optimizer step.
    """

    name: ClassVar[str] = "tabular"
    default_widths: ClassVar[tuple[int, ...]] = (16, 32, 64, 128)
    datasets: ClassVar[tuple[str, ...]] = CLASSIFICATION

    width: int = 64
    layers: int = 2
    dataset: str = "digits"
    examples: int = 32

    def __post_init__(self) -> None:
        check_counts(self, "width", "layers")
        check_even(self, "examples")
        if self.dataset not in self.datasets:
            raise ValueError(
                f"dataset of {self.name} must be one of {', '.join(self.datasets)}, got {self.dataset!r}"
            )

    @property
    def _shape(self) -> MLPShape:
        train, test = table(self.dataset)
        outputs = 1 + int(torch.cat((train.y, test.y)).max()) if self.dataset in CLASSIFICATION else 1
        return MLPShape(train.x.shape[1], self.width, self.layers, outputs)

    @property
    def size(self) -> int:
        """Trainable parameters, input and output layer included."""
        return parameter_count(self._shape)

    @property
    def batch(self) -> int:
        """Rows per optimizer step."""
        return self.examples

    @property
    def flops_per_token(self) -> float:
        """Measured training FLOPs per row."""
        shape = self._shape
        return flops_per_example(shape, (shape.features,), False)

    def with_batch(self, batch: int) -> Self:
        """The same job at `batch` rows per step."""
        return replace(self, examples=batch)

    def model(self, seed: int) -> nn.Module:
        """A freshly initialised network."""
        return initialised(self._shape, seed)

    def losses(self, model: nn.Module, step: int, seed: int, parts: int) -> tuple[Tensor, ...]:
        """Mean losses of `parts` equal parts of the batch."""
        check_parts(parts, self.examples)
        train = table(self.dataset)[0]
        chosen = batch_indices(len(train.y), self.examples, step, seed)
        device, dtype = placement(model)
        x, y = train.x[chosen].to(device, dtype), train.y[chosen].to(device)
        return tuple(
            self._loss(model(a).float(), b) for a, b in zip(x.chunk(parts), y.chunk(parts), strict=True)
        )

    def held_out_loss(self, model: nn.Module) -> float:
        """Mean loss on the held-out rows."""
        out, y = self._outputs(model)
        return float(self._loss(out, y))

    def scores(self, model: nn.Module) -> dict[str, float]:
        """`accuracy`: fraction of the held-out rows classified correctly."""
        out, y = self._outputs(model)
        return {"accuracy": float((out.argmax(1) == y).float().mean())}

    def _outputs(self, model: nn.Module) -> tuple[Tensor, Tensor]:
        test = table(self.dataset)[1]
        device, dtype = placement(model)
        with torch.no_grad():
            return model(test.x.to(device, dtype)).float(), test.y.to(device)

    def _loss(self, out: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(out, y)


@dataclass(frozen=True, kw_only=True)
class Regression(Tabular):
    """Regression on table rows: the loss is the squared error over the variance of the training targets.

    Args:
        dataset: "diabetes" (442 rows × 10).
    """

    name: ClassVar[str] = "regression"
    datasets: ClassVar[tuple[str, ...]] = REGRESSION

    dataset: str = "diabetes"

    def scores(self, model: nn.Module) -> dict[str, float]:
        """`r2`: the fraction of the held-out variance that is explained."""
        out, y = self._outputs(model)
        return {"r2": float(1 - (out[:, 0] - y).square().mean() / y.var(correction=0))}

    def _loss(self, out: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(out[:, 0], y)


@lru_cache(maxsize=4)
def table(dataset: str) -> tuple[Table, Table]:
    """Training and held-out rows, standardised by the training rows.

    Raises:
        WorkloadError: scikit-learn is not installed.
    """
    try:
        from sklearn import datasets
    except ImportError as error:
        raise WorkloadError(
            "the tabular workloads read tables that scikit-learn ships, which is not installed; "
            'run: pip install "metaopt-hpo[workloads]"'
        ) from error
    raw = getattr(datasets, f"load_{dataset}")()
    x = torch.as_tensor(raw.data, dtype=torch.float64)
    y = torch.as_tensor(raw.target)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    held_out = torch.zeros(len(y), dtype=torch.bool)
    held_out[order[::HOLD_OUT_EVERY]] = True
    x = _standardised(x, held_out).float()
    y = y.long() if dataset in CLASSIFICATION else _standardised(y.double(), held_out).float()
    return Table(x[~held_out], y[~held_out]), Table(x[held_out], y[held_out])


def _standardised(values: Tensor, held_out: Tensor) -> Tensor:
    train = values[~held_out]
    spread = train.std(0, correction=0)
    # a column that never varies stays 0
    return (values - train.mean(0)) / torch.where(spread > 0, spread, torch.ones_like(spread))
