"""A stream of tasks, one example a step, as in the paper's continual experiment: `python -m studies.one_run.streams`.

CIFAR-10's ten classes come as five tasks of two, in an order drawn by the seed; every image is seen once, predicted
before it is learned, and the share of right predictions so far is what counts. Two convolutions and two linear layers,
in two blocks of step sizes (features and head), AdamW with decay 0.1, γ = 0.999, the authors' units
(`optim.authors_units`). The paper takes CIFAR-100 in ten tasks of ten; here images are 16 by 16, and a task has as many
examples as are asked for.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import pandas as pd
import torch
import torch.nn.functional as F
import typer
from torch import nn

from metaopt_hpo.atomic import replacing
from metaopt_hpo.markdown import markdown_table
from metaopt_hpo.optim.presets import authors_units
from studies import run as commands
from studies.one_run.length_jobs import Images

KEPT = Path(__file__).parent / "streams.parquet"
CLASSES, TASKS = 10, 5
CONSTANT = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3)
"""Constant rates, in the authors' units: AdamW's usual number is ten times these."""

STARTS = (1e-6, 1e-5, 1e-4)
"""Of MetaOptimize; the paper starts at 1e-4 here, and at 1e-6 or 1e-5 elsewhere."""

PAPER = 1e-3
"""Its meta step size."""


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


def train(data: Images, lr: float, meta_lr: float, blocks: str, examples: int, seed: int) -> dict[str, float]:
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
    for row in rows.tolist():
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
    examples: Annotated[int, typer.Option(help="Examples of each task.", min=1)] = 300,
    seeds: Annotated[int, typer.Option(help="Seeds.", min=1)] = 3,
    report_only: Annotated[bool, typer.Option("--report-only", help="Run nothing.")] = False,
) -> None:
    """MetaOptimize as its authors run it on a stream, against the best constant learning rate.

    Example: METAOPT_HPO_DATA=../shared/data python -m studies.one_run.streams
    """
    torch.set_num_threads(1)
    key = ["examples", "seed", "method", "lr"]
    table = pd.read_parquet(out) if out.exists() else pd.DataFrame(columns=key)
    if not report_only:
        data = Images("res", 8)
        methods = [("constant", lr, 0.0, "one") for lr in CONSTANT]
        methods += [
            (f"MetaOptimize, {b} block{'s' * (b == 'two')}", lr, PAPER, b)
            for lr in STARTS
            for b in ("two", "one")
        ]
        for seed in range(seeds):
            for method, lr, meta_lr, blocks in methods:
                cell = {"examples": examples, "seed": seed, "method": method, "lr": lr}
                if (table[key] == pd.Series(cell)[key]).all(axis=1).any():
                    continue
                row = pd.DataFrame([cell | train(data, lr, meta_lr, blocks, examples, seed)])
                table = pd.concat([table, row], ignore_index=True) if len(table) else row
                with replacing(out) as path:
                    table.to_parquet(path, index=False)
                typer.echo(f"{cell}: {row.accuracy.iloc[0]:.4f}", err=True)
    typer.echo(markdown(table))


def markdown(table: pd.DataFrame) -> str:
    """A line a method and rate: mean cumulative accuracy, and its paired difference from the best constant rate."""
    head = [
        "examples a task", "method", "lr or start", "seeds", "accuracy", "loss", "last step sizes",
        "against the best constant lr",
    ]  # fmt: skip
    lines = []
    for examples, rows in table.groupby("examples"):
        constant = rows[rows.method == "constant"]
        best = constant[constant.lr == constant.groupby("lr").accuracy.mean().idxmax()]
        reference = dict(zip(best.seed, best.accuracy, strict=True))
        for (method, lr), group in rows.groupby(["method", "lr"]):
            gains = pd.Series(
                [
                    100 * (r["accuracy"] - reference[r["seed"]])
                    for r in group.to_dict("records")
                    if r["seed"] in reference
                ]
            )
            error = gains.std(ddof=1) / len(gains) ** 0.5 if len(gains) > 1 else float("nan")
            sizes = f"{group.first_size.mean():.1e}, {group.last_size.mean():.1e}"
            reached = (f"{100 * group.accuracy.mean():.1f} %", f"{group.loss.mean():.3f}")
            gain = f"{gains.mean():+.1f} ± {error:.1f} points"
            lines.append((examples, method, f"{lr:.0e}", len(group), *reached, sizes, gain))
    return markdown_table(head, lines)


if __name__ == "__main__":
    commands.run(study)
