"""One run beside its rivals, each at its authors' defaults and calibrated once: `python -m studies.one_run.rivals`.

Every rival has one knob, the one its authors name where they name one. Its setting is chosen on two small jobs outside
the study by the mean of the logarithm of their losses, and then frozen, as AlgoPerf asks of self-tuning methods. The
study trains all of them from the same weights on the same batches as `metaoptimize`, which has nothing to choose. Two
fixed recipes stand beside the rivals: WSD at a rate that was chosen in the same way, and a constant rate with
an exponential moving average of the weights (torch's `AveragedModel`) instead of a decay.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
import typer
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from metaopt_hpo.markdown import markdown_table
from metaopt_hpo.strategies import make
from studies import run as commands
from studies.one_run.kept import has, keep, read, rows_of
from studies.one_run.length_jobs import Job, job

KEPT = Path(__file__).parent / "rivals.parquet"
KEY = ["job", "steps", "seed", "method", "setting"]
OURS = "metaoptimize"
CALIBRATION: tuple[tuple[str, int, int], ...] = (("shorttf32", 1000, 900), ("teach32", 1000, 900))
"""Job, steps and seed of the runs that choose a rival's setting; none of them is in the study."""

JOBS: dict[str, int] = {"shortgru48": 2000, "shorttf48": 2000, "teach64": 2000, "mlp64": 2000, "res8": 2000}
FIRST_SEED = 700
REFRESH = 50
"""Training batches with which statistics of BatchNorm are made anew where the weights evaluated are averages."""

PROFILE = (1.0, 1.01, 1.02, 1.05, 1.1, 1.2)
"""Ratios of a loss to the best of all methods on the same job and seed."""

Setting = Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Method:
    """A way to set the learning rate.

    Args:
        strategy: its name in the registry.
        settings: options from which one is chosen. `average` and `decay` are not the strategy's: they ask for a moving
            average of the weights, by its window as a fraction of the run or by its decay a step.
        default: options at the authors' defaults; None where they are the strategy's.
    """

    strategy: str
    settings: tuple[Setting, ...] = ()
    default: Setting | None = None


def _grid(knob: str, *values: float) -> tuple[Setting, ...]:
    return tuple({knob: v} for v in values)


RATES = (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2)
METHODS: dict[str, Method] = {
    OURS: Method(strategy="metaoptimize"),
    "wsd": Method(strategy="wsd", settings=_grid("lr", *RATES)),
    "constant, averaged": Method(
        strategy="constant",
        settings=tuple({"lr": lr, "average": w} for w in (0.03, 0.1, 0.2) for lr in RATES),
        default={"decay": 0.999},
    ),
    "prodigy": Method(strategy="prodigy", settings=_grid("d_coef", 0.125, 0.25, 0.5, 1.0, 2.0, 4.0)),
    "d-adaptation": Method(strategy="d-adaptation", settings=_grid("lr", 0.0625, 0.125, 0.25, 0.5, 1.0, 2.0)),
    "dog": Method(strategy="dog", settings=_grid("lr", 0.5, 1.0, 2.0, 4.0)),
    "schedule-free": Method(
        strategy="schedule-free", settings=_grid("lr", 2.5e-3, 5e-3, 1e-2, 2e-2, 4e-2, 8e-2)
    ),
    "prodigy-schedule-free": Method(
        strategy="prodigy-schedule-free", settings=_grid("d_coef", 0.5, 1.0, 2.0, 4.0)
    ),
    "mechanic": Method(strategy="mechanic", settings=_grid("s_decay", 1e-3, 1e-2, 0.1, 1.0)),
    "momo": Method(strategy="momo", settings=_grid("lr", 2.5e-3, 5e-3, 1e-2, 2e-2, 4e-2)),
    "adamg": Method(strategy="adamg", settings=_grid("p", 0.1, 0.2, 0.4, 0.8, 1.6, 3.2)),
    "adalrs": Method(strategy="adalrs", settings=_grid("lr", 1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2)),
}
"""In the order in which they are run. Defaults are those of the strategies, which are their authors'."""


def train(data: Job, method: str, setting: Setting, steps: int, seed: int) -> dict[str, float]:
    """Train once; held-out loss at the weights that the method evaluates, and the mean training loss of the end."""
    options = dict(setting)
    window, decay = options.pop("average", None), options.pop("decay", None)
    if window is not None:
        decay = 1 - 1 / max(1.0, window * steps)
    model = data.model(seed)
    run = make(METHODS[method].strategy, **options).build(model, steps)
    averaged = None
    if decay is not None:
        averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))
    started, end = time.monotonic(), 0.0
    last = steps - max(1, steps // 50)
    for step in range(steps):
        loss = data.loss(model, step, seed)
        loss.backward()
        run.step(loss.detach())
        if averaged is not None:
            averaged.update_parameters(model)
        if step >= last:
            end += float(loss.detach()) / (steps - last)
    before = [p.detach().clone() for p in model.parameters()]
    run.eval()
    judged = model if averaged is None else averaged.module
    if averaged is not None or any(
        not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)
    ):
        _refresh(judged, data, steps, seed)
    judged.eval()
    with torch.no_grad():
        held = float(data.held_out(judged).mean())
    return {"held_out": held, "training": end, "seconds": time.monotonic() - started}


def _refresh(model: nn.Module, data: Job, steps: int, seed: int) -> None:
    """Statistics of BatchNorm at these weights, from the last training batches."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    model.train()
    with torch.no_grad():
        for step in range(steps - REFRESH, steps):
            data.loss(model, step, seed)


def said(setting: Setting | None) -> str:
    """A setting as it stands in the table; the authors' defaults are "defaults"."""
    return "defaults" if setting is None else json.dumps(dict(setting), sort_keys=True)


def chosen(table: pd.DataFrame, method: str) -> Setting | None:
    """The setting with the smallest mean ln loss over the calibration's jobs; None where a run of them is missing."""
    scores = []
    for setting in METHODS[method].settings:
        losses = [
            rows_of(table, job=j, steps=k, seed=s, method=method, setting=said(setting)).held_out
            for j, k, s in CALIBRATION
        ]
        if any(x.empty for x in losses):
            return None
        scores.append(float(np.mean([_log(x.iloc[0]) for x in losses])))
    return METHODS[method].settings[int(np.argmin(scores))]


def _log(loss: float) -> float:
    return float(np.log(loss)) if np.isfinite(loss) else float("inf")


def plan(
    out: Path, jobs: list[str], seeds: int, methods: list[str]
) -> Iterator[tuple[dict[str, Any], Setting | None]]:
    """The cells in order, a row's key and its setting; the study follows when the calibration has been run."""
    for method, what in METHODS.items():
        for setting in what.settings:
            for name, steps, seed in CALIBRATION:
                yield _cell(name, steps, seed, method, setting), setting
    for seed in range(FIRST_SEED, FIRST_SEED + seeds):
        for name in jobs:
            for method in methods:
                what = METHODS[method]
                yield _cell(name, JOBS[name], seed, method, None), None
                best = chosen(read(out, KEY), method) if what.settings else None
                if best is not None:
                    yield _cell(name, JOBS[name], seed, method, best), best


def _cell(name: str, steps: int, seed: int, method: str, setting: Setting | None) -> dict[str, Any]:
    return {"job": name, "steps": steps, "seed": seed, "method": method, "setting": said(setting)}


def study(
    out: Annotated[
        Path, typer.Option(help="Parquet file of the runs; finished ones are not repeated.")
    ] = KEPT,
    jobs: Annotated[str, typer.Option(help="Jobs, by comma.")] = ",".join(JOBS),
    seeds: Annotated[int, typer.Option(help="Seeds of each job.", min=1)] = 2,
    methods: Annotated[str, typer.Option(help="Methods, by comma; all by default.")] = "",
    again: Annotated[
        bool, typer.Option("--again", help="Repeat the metaoptimize runs that are kept.")
    ] = False,
    report_only: Annotated[bool, typer.Option("--report-only", help="Run nothing.")] = False,
) -> None:
    """One run beside its rivals, each at its authors' defaults and calibrated once on jobs outside the study.

    Example: METAOPT_HPO_DATA=../shared/data python -m studies.one_run.rivals --jobs shortgru48 --seeds 1
    """
    torch.set_num_threads(1)
    asked = [m for m in METHODS if not methods or m in re.split(r",(?! )", methods)]
    for key, setting in [] if report_only else plan(out, jobs.split(","), seeds, asked):
        if has(read(out, KEY), key) and not (again and key["method"] == OURS):
            continue
        options = METHODS[key["method"]].default if setting is None else setting
        found = train(job(key["job"]), key["method"], options or {}, key["steps"], key["seed"])
        keep(out, key, found)
        typer.echo(" ".join(map(str, key.values())) + f": {found['held_out']:.4f}", err=True)
    typer.echo(markdown(read(out, KEY)))


def results(table: pd.DataFrame) -> pd.DataFrame:
    """The study's losses: a row a job and seed, a column a method and how it was set; NaN where it was not run."""
    columns = {}
    studied = table[table.job.isin(list(JOBS))]
    for method, what in METHODS.items():
        ways = {"" if method == OURS else "defaults": said(None)}
        best = chosen(table, method) if what.settings else None
        if best is not None:
            ways["calibrated"] = said(best)
        for how, setting in ways.items():
            rows = rows_of(studied, method=method, setting=setting)
            columns[method, how] = rows.set_index(["job", "seed"]).held_out.fillna(float("inf"))
    grid = pd.DataFrame(columns)
    return grid.dropna(subset=[(OURS, "")])


def markdown(table: pd.DataFrame) -> str:
    """The settings that were chosen, losses by job (seeds with all methods), pairs won (all), and the profile."""
    settings = []
    for method, what in METHODS.items():
        best = chosen(table, method) if what.settings else None
        if best is None:
            continue
        edge = [
            k
            for k, v in best.items()
            if v in (min(s[k] for s in what.settings), max(s[k] for s in what.settings))
        ]
        shown = ", ".join(f"{k} {v:g}" for k, v in best.items())
        settings.append((method, shown, len(what.settings), ", ".join(edge) or "no"))
    parts = [markdown_table(["method", "chosen", "of", "at its edge"], settings)]
    grid = results(table)
    if grid.empty:
        return parts[0]
    complete = grid.dropna()  # means over the same seeds for all
    jobs = [j for j in JOBS if j in complete.index.get_level_values("job")]
    counted = [f"{j} ({len(complete.loc[j])})" for j in jobs]
    won = []
    ours = grid[(OURS, "")]
    for name, how in _ways(grid):
        theirs = grid[(name, how)].dropna()
        cells = [f"{complete.loc[j][(name, how)].mean():.4f}" for j in jobs]
        wins = f"{int((ours[theirs.index] < theirs).sum())} of {len(theirs)}"
        excess = f"{100 * np.expm1(np.median(np.log(theirs / ours[theirs.index]))):+.1f} %"
        won.append((name, how or "–", *cells, *(("–", "–") if name == OURS else (wins, excess))))
    head = ["method", "set by", *counted, "one run wins", "median excess of the rival"]
    parts.append(markdown_table(head, won))
    for how in ("defaults", "calibrated"):
        pairs = [grid[way].dropna() for way in _ways(grid) if way[1] == how]
        beaten = sum(int((ours[p.index] < p).sum()) for p in pairs)
        count = sum(len(p) for p in pairs)
        percent = 100 * beaten / max(1, count)
        parts.append(f"Of all pairs with rivals set by {how} {beaten} of {count} won ({percent:.0f} %).")
    return "\n\n".join([*parts, profile(grid)])


def _ways(grid: pd.DataFrame) -> list[tuple[str, str]]:
    methods, hows = (grid.columns.get_level_values(i).astype(str) for i in (0, 1))
    return list(zip(methods, hows, strict=True))


def profile(grid: pd.DataFrame) -> str:
    """Share of jobs and seeds on which a method's loss is within a ratio of the best of all; jobs count alike.

    The score is the mean share over ratios from 1 to the largest, evenly in their logarithm. Jobs on which not all
    methods were run are left out.
    """
    grid = grid.dropna()
    ratio = grid.div(grid.min(axis=1), axis=0)
    rows = []
    for name, how in _ways(grid):
        within = [(ratio[(name, how)] <= t + 1e-12).groupby("job").mean().mean() for t in PROFILE]
        fine = np.geomspace(1.0, PROFILE[-1], 200)
        score = np.mean([(ratio[(name, how)] <= t + 1e-12).groupby("job").mean().mean() for t in fine])
        shares = [f"{100 * w:.0f} %" for w in within]
        rows.append((score, (name, how or "–", *shares, f"{score:.2f}")))
    head = ["method", "set by", *(f"≤ {t:g}" for t in PROFILE), "score"]
    return markdown_table(head, [row for _, row in sorted(rows, key=lambda r: -r[0])])


if __name__ == "__main__":
    commands.run(study)
