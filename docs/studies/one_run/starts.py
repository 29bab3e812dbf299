"""How much the start of a run matters: `python -m studies.one_run.starts`.

`metaoptimize` from six starts, 1e-6 to 1e-1, beside the run from the default one, same weights and batches. Jobs are a
transformer, a taught network, and a transformer some of whose weights begin at zero: its output layer ("zero head"), or
the B matrices of LoRA beside its frozen random trunk, whose embeddings, norms and output layer train. Such weights have
no size of their own, on which the limit of a first step could be built.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import pandas as pd
import torch
import typer
from torch import Tensor, nn

from metaopt_hpo.markdown import markdown_table
from metaopt_hpo.strategies import make
from metaopt_hpo.strategies.metaoptimize import MetaOptimizeStrategy
from studies import run as commands
from studies.one_run.kept import has, keep, read, rows_of
from studies.one_run.length_jobs import Job, job
from studies.one_run.lengths import train

KEPT = Path(__file__).parent / "starts.parquet"
KEY = ["job", "steps", "seed", "lr"]
ZERO_HEAD, LORA = " zero head", " lora"
"""After the name of a transformer's job."""

JOBS = ("teach64", "shorttf48", f"shorttf24{ZERO_HEAD}", f"shorttf24{LORA}")
STEPS = 2000
FIRST_SEED = 700
STARTS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
DEFAULT = MetaOptimizeStrategy().lr
RANK = 4


class LoRA(nn.Module):
    """A frozen linear layer plus a product B·A of rank `RANK` that begins at zero."""

    def __init__(self, frozen: nn.Linear) -> None:
        super().__init__()
        self.frozen = frozen.requires_grad_(False)
        self.a = nn.Parameter(torch.randn(RANK, frozen.in_features) / frozen.in_features**0.5)
        self.b = nn.Parameter(torch.zeros(frozen.out_features, RANK))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.frozen(x) + x @ self.a.T @ self.b.T
        return out


class Zeroed:
    """A transformer's job with weights that begin at zero; the batches are those of the plain job.

    Args:
        plain: name of the transformer's job.
        kind: which weights, `ZERO_HEAD` or `LORA`.
    """

    def __init__(self, plain: str, kind: str) -> None:
        self.plain, self.kind = job(plain), kind

    def model(self, seed: int) -> nn.Module:
        model = self.plain.model(seed)
        if self.kind == ZERO_HEAD:
            assert isinstance(model.head, nn.Linear)
            nn.init.zeros_(model.head.weight)
            return model
        assert isinstance(model.blocks, nn.ModuleList)
        torch.manual_seed(seed)
        for block in model.blocks:
            for name, layer in list(block.named_children()):
                if isinstance(layer, nn.Linear):
                    setattr(block, name, LoRA(layer))
        return model

    def loss(self, model: nn.Module, step: int, seed: int) -> Tensor:
        return self.plain.loss(model, step, seed)

    def held_out(self, model: nn.Module) -> Tensor:
        return self.plain.held_out(model)


def named(name: str) -> Job:
    """The job of that name; those with weights that begin at zero have `ZERO_HEAD` or `LORA` behind a plain one's."""
    for kind in (ZERO_HEAD, LORA):
        if name.endswith(kind):
            return Zeroed(name.removesuffix(kind), kind)
    return job(name)


def study(
    out: Annotated[
        Path, typer.Option(help="Parquet file of the runs; finished ones are not repeated.")
    ] = KEPT,
    jobs: Annotated[str, typer.Option(help="Jobs, by comma.")] = ",".join(JOBS),
    seeds: Annotated[int, typer.Option(help="Seeds of each cell.", min=1)] = 2,
    report_only: Annotated[bool, typer.Option("--report-only", help="Run nothing.")] = False,
) -> None:
    """How much the start of a run matters, from 1e-6 to 1e-1.

    Example: python -m studies.one_run.starts --jobs teach64
    """
    torch.set_num_threads(1)
    cells = [
        (name, STEPS, seed, lr)
        for seed in range(FIRST_SEED, FIRST_SEED + seeds)
        for name in jobs.split(",")
        for lr in sorted({*STARTS, DEFAULT})
    ]
    for cell in [] if report_only else cells:
        name, steps, seed, lr = cell
        key = dict(zip(KEY, cell, strict=True))
        if has(read(out, KEY), key):
            continue
        found = train(named(name), make("metaoptimize", lr=lr), steps, seed)
        keep(out, key, {"held_out": found["held_out"], "step_size": found["step_size"]})
        typer.echo(f"{cell}: {found['held_out']:.4f} at {found['step_size']:.3g}", err=True)
    typer.echo(markdown(read(out, KEY)))


def markdown(table: pd.DataFrame) -> str:
    """A line a job and seed: the loss from the default start, and that of the others in per cent of it."""
    others = [lr for lr in STARTS if lr != DEFAULT]
    lines = []
    for (name, seed), rows in table.groupby(["job", "seed"], sort=False):
        usual = rows_of(rows, lr=DEFAULT)
        if usual.empty or not set(others) <= set(rows.lr):
            continue
        loss = float(usual.held_out.iloc[0])
        over = 100 * (rows.set_index("lr").held_out[others] / loss - 1)
        cells = [f"{x:+.2f} %" for x in (*over, over.mean(), over.max(), over.abs().max())]
        cells[-1] = cells[-1].removeprefix("+")
        lines.append((name, seed, f"{loss:.4f} at {usual.step_size.iloc[0]:.2g}", *cells))
    starts = [f"{lr:.0e}".replace("e-0", "e-") for lr in others]
    usual_head = f"from {DEFAULT:.0e}".replace("e-0", "e-")
    head = ["job", "seed", usual_head, *starts, "mean", "worst", "largest difference"]
    return markdown_table(head, lines)


if __name__ == "__main__":
    commands.run(study)
