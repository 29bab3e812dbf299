"""Fine-tuning by one run, with a step size for all, a layer or a tensor: `python -m studies.one_run.fine_tuning`.

Beside it five tuned WSD schedules and, but for LoRA, as many with the trunk at a tenth of the head's rate
(discriminative rates, Howard & Ruder 2018, arXiv 1801.06146), on the same weights and batches. One run is taken as it
comes, and as the guide advises for fine-tuning: `limit=None` and a low start. Rates are tuned on the first seed; the
others get its three best.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
import typer
from torch import Tensor, nn

from metaopt_hpo.markdown import markdown_table
from metaopt_hpo.strategies import LRRun, LRStrategy, make
from metaopt_hpo.strategies.groups import decay_groups
from metaopt_hpo.strategies.schedules import WSD, ScheduleRun
from studies import run as commands
from studies.one_run.bases import next_rate
from studies.one_run.fine_tuning_jobs import HEAD, job
from studies.one_run.kept import has, keep, read, rows_of
from studies.one_run.length_jobs import Job
from studies.one_run.lengths import train

KEPT = Path(__file__).parent / "fine_tuning.parquet"
KEY = ["job", "steps", "seed", "method", "lr"]
JOBS = ("prose", "faces", "lora")
STEPS, FIRST_SEED = 500, 900
BLOCKS = ("scalar", "layer", "tensor")
ADVICE: dict[str, dict[str, Any]] = {"as it comes": {}, "as advised": {"limit": None, "lr": 1e-4}}
SCHEDULE, LOWER = "wsd", "wsd, trunk at a tenth"
BEGIN, TRIALS, LATER_TRIALS = 2e-3, 5, 3
TENTH = 0.1


@dataclass(frozen=True, kw_only=True)
class LowerTrunk(WSD):
    """WSD over AdamW whose rate is a tenth for every weight outside the head."""

    def build(self, model: nn.Module | Iterable[nn.Parameter], horizon: int) -> LRRun:
        groups = []
        for group in decay_groups(model, self.weight_decay):
            for below in (True, False):
                params = [(n, p) for n, p in group["params"] if n.startswith(HEAD) != below]
                if params:
                    factor = TENTH if below else 1.0
                    groups.append(group | {"params": params, "factor": factor})
        return LowerTrunkRun(self, torch.optim.AdamW(groups, lr=self.lr, betas=self.betas), horizon)


class LowerTrunkRun(ScheduleRun):
    """A run under `LowerTrunk`."""

    def _before_step(self, step: int, loss: Tensor | None) -> None:
        super()._before_step(step, loss)
        for group in self.optimizer.param_groups:
            group["lr"] *= group["factor"]


def strategy(method: str, lr: float) -> LRStrategy:
    """The strategy of a row."""
    if method == LOWER:
        return LowerTrunk(lr=lr)
    if method == SCHEDULE:
        return make(SCHEDULE, lr=lr)
    blocks, advice = method.split(", ")
    return make("metaoptimize", blocks=blocks, **ADVICE[advice])


OURS = tuple(
    f"{blocks}, {advice}"
    for advice in ADVICE
    for blocks in BLOCKS
    if (blocks, advice) != ("tensor", "as advised")
)


def study(
    out: Annotated[
        Path, typer.Option(help="Parquet file of the runs; finished ones are not repeated.")
    ] = KEPT,
    jobs: Annotated[str, typer.Option(help="Jobs, by comma.")] = ",".join(JOBS),
    steps: Annotated[int, typer.Option(help="Steps of a run.", min=1)] = STEPS,
    seeds: Annotated[int, typer.Option(help="Seeds of each job.", min=1)] = 2,
    report_only: Annotated[bool, typer.Option("--report-only", help="Run nothing.")] = False,
) -> None:
    """Fine-tuning by one run, with a step size for all, a layer or a tensor, beside tuned schedules.

    Example: METAOPT_HPO_DATA=../shared/data python -m studies.one_run.fine_tuning --jobs prose
    """
    torch.set_num_threads(1)
    loaded = lru_cache(job)
    pairs = [(s, j) for s in range(FIRST_SEED, FIRST_SEED + seeds) for j in jobs.split(",")]
    for seed, name in [] if report_only else pairs:
        key = {"job": name, "steps": steps, "seed": seed}
        for method in OURS:
            _run(out, loaded(name), key | {"method": method, "lr": 0.0})
        for method in (SCHEDULE,) if name == "lora" else (SCHEDULE, LOWER):
            for rate in iter(lambda m=method, k=key: _next(out, k, m), None):  # type: ignore[misc]
                _run(out, loaded(name), key | {"method": method, "lr": rate})
    typer.echo(markdown(read(out, KEY)))


def _run(out: Path, data: Job, key: dict[str, Any]) -> None:
    """Train a run that is not kept yet, and keep it."""
    if has(read(out, KEY), key):
        return
    keep(out, key, found := train(data, strategy(key["method"], key["lr"]), key["steps"], key["seed"]))
    typer.echo(f"{list(key.values())}: {found['held_out']:.4f} at {found['step_size']:.3g}", err=True)


def _next(out: Path, key: dict[str, Any], method: str) -> float | None:
    """The next rate of a schedule to run; None where it has all."""
    kept = rows_of(read(out, KEY), job=key["job"], steps=key["steps"], method=method)
    first = rows_of(kept, seed=FIRST_SEED)
    if key["seed"] == FIRST_SEED:
        tried = dict(zip(first.lr, first.held_out, strict=True))
        return None if len(tried) >= TRIALS else next_rate(tried, BEGIN)
    missing = set(first.nsmallest(LATER_TRIALS, "held_out").lr) - set(rows_of(kept, seed=key["seed"]).lr)
    return min(missing, default=None)


def compared(table: pd.DataFrame) -> pd.DataFrame:
    """A row a method, job and seed: per cent over one step size for all, started alike, and over the best schedule.

    Schedules are at the rate that is best in the mean over seeds; the best is the better one of the two kinds.
    """
    out = []
    for (name, steps), rows in table.groupby(["job", "steps"], sort=False):
        chosen = {method: rows_of(rows, method=method).set_index("seed") for method in OURS}
        for method in (SCHEDULE, LOWER):
            grid = rows_of(rows, method=method)
            losses = grid.pivot_table(index="lr", columns="seed", values="held_out").dropna()
            best = losses.mean(axis=1).idxmin() if len(losses) else np.nan
            chosen[method] = grid[grid.lr == best].set_index("seed")
        schedules = [chosen[m] for m in (SCHEDULE, LOWER) if len(chosen[m])]
        best_of_all = min(schedules, key=lambda s: s.held_out.mean()).held_out if schedules else None
        for method, runs in chosen.items():
            for seed, run in runs.iterrows():
                alike = chosen.get(f"{BLOCKS[0]}, {method.partition(', ')[2]}")
                common = np.nan if alike is None else alike.held_out.get(seed, np.nan)
                tuned = np.nan if best_of_all is None else best_of_all.get(seed, np.nan)
                out.append(
                    {
                        "job": name,
                        "steps": steps,
                        "method": method,
                        "seed": seed,
                        "held_out": run.held_out,
                        "rate": run.lr or run.step_size,
                        "spread": run.spread,
                        "over_common": 100 * (run.held_out / common - 1),
                        "over_tuned": 100 * (run.held_out / tuned - 1),
                    }
                )
    return pd.DataFrame(out)


def markdown(table: pd.DataFrame) -> str:
    """A line a job and method, then one a kind of blocks: mean over pairs of one job, start and seed."""
    found = compared(table)
    lines, pairs = [], []
    for (name, steps, method), rows in found.groupby(["job", "steps", "method"], sort=False):
        rate, spread = (f"{np.exp(np.log(rows[c]).mean()):.2g}" for c in ("rate", "spread"))
        over = [_each(rows[column]) for column in ("over_common", "over_tuned")]
        lines.append(
            (name, f"{steps:,}", method, len(rows), f"{rows.held_out.mean():.4f}", rate, spread, *over)
        )
    for blocks in BLOCKS[1:]:
        excess = found.over_common[found.method.str.startswith(blocks)].dropna().to_numpy(float)
        if len(excess) > 1:
            mean, error = excess.mean(), excess.std(ddof=1) / len(excess) ** 0.5
            better = f"{(excess < 0).sum()} of {len(excess)}"
            pairs.append((blocks, better, f"{mean:+.2f} ± {error:.2f} %", f"{excess.max():+.2f} %"))
    head = ["job", "steps", "method", "seeds", "held-out", "at", "largest over smallest",
            "against one for all, same start", "against the best schedule"]  # fmt: skip
    of_pairs = ["a step size a", "better in", "mean over pairs", "worst"]
    return f"{markdown_table(head, lines)}\n\n{markdown_table(of_pairs, pairs)}"


def _each(per_cent: pd.Series[float]) -> str:
    """Mean, and each seed in brackets."""
    known = per_cent.dropna().to_numpy(float)
    return f"{known.mean():+.1f} % ({', '.join(f'{x:+.1f}' for x in known)})" if len(known) else "–"


if __name__ == "__main__":
    commands.run(study)
