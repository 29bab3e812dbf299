"""A stream of tasks, one example a step, as in the paper's continual experiment: `python -m studies.one_run.streams`.

CIFAR-10's ten classes come as five tasks of two, in an order drawn by the seed; every image is seen once, predicted
before it is learned, and the share of right predictions so far is what counts. Two convolutions and two linear layers,
in two blocks of step sizes (features and head), AdamW with decay 0.1, γ = 0.999, the authors' units
(`optim.authors_units`). The paper takes CIFAR-100 in ten tasks of ten; here images are 16 by 16, and a task has as many
examples as are asked for. What a detector of switches could gain at most is shown by runs that are told of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import pandas as pd
import torch
import torch.nn.functional as F
import typer
from scipy import stats
from torch import nn

from metaopt_hpo.markdown import markdown_table
from metaopt_hpo.optim import MetaOptimize
from metaopt_hpo.optim.presets import authors_units
from metaopt_hpo.strategies.balance import set_anchor
from studies import run as commands
from studies.one_run.kept import has, keep, read, rows_of
from studies.one_run.length_jobs import Images

KEPT = Path(__file__).parent / "streams.parquet"
KEY = ["examples", "seed", "method", "lr"]
CLASSES, TASKS = 10, 5
CONSTANT = (1e-5, 2e-5, 3e-5, 6e-5, 1e-4, 2e-4, 3e-4, 1e-3)
"""Constant rates, in the authors' units: AdamW's usual number is ten times these."""

STARTS = (1e-6, 1e-5, 1e-4)
"""Of MetaOptimize; the paper starts at 1e-4 here, and at 1e-6 or 1e-5 elsewhere."""

PAPER = 1e-3
"""Its meta step size."""

ONE_BLOCK = "MetaOptimize, one block"
TOLD, TOLD_START = "told of switches, ", 1e-5
"""Prefix of runs of one block that are told when a task begins, and their start."""

REOPENED = {
    "trace forgotten": (False, 1.0),
    "trace and meta state forgotten": (True, 1.0),
    "the same, step size × 3": (True, 3.0),
}
"""What they do then: whether the meta rule begins anew, and what the step size is multiplied with."""


class Net(nn.Module):
    """Two convolutions with pooling, and two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        )
        self.head = nn.Sequential(nn.Linear(32 * 16, 64), nn.ReLU(), nn.Linear(64, CLASSES))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.features(x))
        return out


def order(labels: torch.Tensor, examples: int, seed: int) -> torch.Tensor:
    """The rows of a stream: `examples` of each task, task after task."""
    generator = torch.Generator().manual_seed(seed)
    classes = torch.randperm(CLASSES, generator=generator).split(CLASSES // TASKS)
    parts = []
    for task in classes:
        rows = torch.isin(labels, task).nonzero()[:, 0]
        parts.append(rows[torch.randperm(len(rows), generator=generator)[:examples]])
    return torch.cat(parts)


def reopen(optimizer: MetaOptimize, anew: bool, factor: float) -> None:
    """Forget what was learned of the step size on the task before."""
    set_anchor(optimizer)
    if anew:
        first = optimizer.param_groups[0]
        for name in ("meta_step", *(f"meta_{state}" for state in optimizer.meta.states)):
            first[name].zero_()
    optimizer.scale_step_size(factor)


def train(
    data: Images,
    lr: float,
    meta_lr: float,
    blocks: str,
    examples: int,
    seed: int,
    told: tuple[bool, float] | None = None,
) -> dict[str, float]:
    """One pass over a stream; cumulative accuracy, mean loss before learning, and the last step sizes."""
    torch.manual_seed(seed)
    model = Net()
    optimizer = authors_units(
        model.named_parameters(),
        lr,
        meta_lr=meta_lr,
        gamma=0.999,
        weight_decay=0.1,
        blocks="scalar" if blocks == "one" else (lambda name: name.split(".")[0]),
    )
    right = total = 0.0
    rows = order(data.y, examples, seed)
    for step, row in enumerate(rows.tolist()):
        if told is not None and step and step % examples == 0:
            reopen(optimizer, *told)
        x, y = F.avg_pool2d(data.x[row : row + 1], 2), data.y[row : row + 1]
        logits = model(x)
        loss = F.cross_entropy(logits, y)
        right += float(logits.argmax(1) == y)
        total += float(loss.detach())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    sizes = optimizer.step_sizes()
    return {
        "accuracy": right / len(rows),
        "loss": total / len(rows),
        "first_size": float(sizes[0]),
        "last_size": float(sizes[-1]),
    }


def study(
    out: Annotated[
        Path, typer.Option(help="Parquet file of the runs; finished ones are not repeated.")
    ] = KEPT,
    examples: Annotated[int, typer.Option(help="Examples of each task.", min=1)] = 2000,
    seeds: Annotated[int, typer.Option(help="Seeds.", min=1)] = 5,
    report_only: Annotated[bool, typer.Option("--report-only", help="Run nothing.")] = False,
) -> None:
    """MetaOptimize as its authors run it on a stream, against the best constant learning rate.

    Example: METAOPT_HPO_DATA=../shared/data python -m studies.one_run.streams
    """
    torch.set_num_threads(1)
    data = None if report_only else Images("res", 8)
    for seed in range(seeds if data is not None else 0):
        for (method, lr), (meta_lr, blocks, told) in methods().items():
            cell = dict(zip(KEY, (examples, seed, method, lr), strict=True))
            if data is None or has(read(out, KEY), cell):
                continue
            found = train(data, lr, meta_lr, blocks, examples, seed, told)
            keep(out, cell, found)
            typer.echo(f"{cell}: {found['accuracy']:.4f}", err=True)
    typer.echo(markdown(read(out, KEY)))


def methods() -> dict[tuple[str, float], tuple[float, str, tuple[bool, float] | None]]:
    """(name, rate or start) → meta step size, blocks, and what is done at a switch."""
    found: dict[tuple[str, float], tuple[float, str, tuple[bool, float] | None]] = {
        ("constant", lr): (0.0, "one", None) for lr in CONSTANT
    }
    for lr in STARTS:
        found["MetaOptimize, two blocks", lr] = (PAPER, "two", None)
        found[ONE_BLOCK, lr] = (PAPER, "one", None)
    for what, told in REOPENED.items():
        found[TOLD + what, TOLD_START] = (PAPER, "one", told)
    return found


def markdown(table: pd.DataFrame) -> str:
    """A line a method and rate: means, and paired differences from the best constant rate and from one block."""
    head = [
        "examples a task", "method", "lr or start", "seeds", "accuracy", "loss", "last step sizes",
        "accuracy against the best constant lr", "loss against the best constant lr",
    ]  # fmt: skip
    lines, plain = [], []
    for examples, rows in table.groupby("examples"):
        constant = rows[rows.method == "constant"].groupby("lr")[["accuracy", "loss"]].mean()
        best = {"accuracy": constant.accuracy.idxmax(), "loss": constant.loss.idxmin()}
        tuned = {name: rows_of(rows, method="constant", lr=lr).set_index("seed") for name, lr in best.items()}
        for (method, lr), group in rows.groupby(["method", "lr"], sort=False):
            own = group.set_index("seed")
            points = 100 * (own.accuracy - tuned["accuracy"].accuracy)
            percent = 100 * (own.loss / tuned["loss"].loss - 1)
            sizes = f"{group.first_size.mean():.1e}, {group.last_size.mean():.1e}"
            reached = (f"{100 * group.accuracy.mean():.1f} %", f"{group.loss.mean():.3f}")
            gains = (f"{_mean(points)} points", f"{_mean(percent)} %")
            lines.append((f"{examples:,}", method, f"{lr:.0e}", len(group), *reached, sizes, *gains))
            one = rows_of(rows, method=ONE_BLOCK, lr=lr).set_index("seed")
            if method not in ("constant", ONE_BLOCK) and len(one):
                points, percent = 100 * (own.accuracy - one.accuracy), 100 * (own.loss / one.loss - 1)
                gains = (f"{_mean(points)} points", f"{_mean(percent)} %")
                plain.append((f"{examples:,}", method, f"{lr:.0e}", len(group), *gains))
    plain_head = [*head[:4], "accuracy against one block, same start", "loss against it"]
    return f"{markdown_table(head, lines)}\n\n{markdown_table(plain_head, plain)}"


def _mean(values: pd.Series[float]) -> str:
    """Mean with Student's 90 % interval."""
    found = values.dropna()
    if len(found) < 2 or not found.std():
        return f"{found.mean():+.1f}"
    half = float(stats.sem(found.to_numpy(float)) * stats.t.ppf(0.95, len(found) - 1))
    return f"{found.mean():+.1f} ± {half:.1f}"


if __name__ == "__main__":
    commands.run(study)
