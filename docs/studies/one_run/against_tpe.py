"""One run against a search of 15 trials as Optuna does it by default: `python -m studies.one_run.against_tpe`.

The search is TPE over lr in [1e-4, 1e-1] of AdamW under a linear schedule, Trainer's default, with `MedianPruner` as
it comes; trials report 20 times. The one run is `metaoptimize` as it comes, with the same seed: the same
initial weights and the same batches. Rows are kept as soon as a search has ended.

The smallest of 15 held-out losses is below what that trial is worth, since it was chosen by the numbers it is judged
on. So a second figure chooses on one half of the held-out examples and judges on the other, both ways round.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import optuna
import pandas as pd
import torch
import typer
from optuna.storages.journal import JournalFileBackend

from metaopt_hpo.atomic import replacing
from metaopt_hpo.markdown import markdown_table
from metaopt_hpo.strategies import LRStrategy, make
from studies import run as commands
from studies.one_run.length_jobs import Job, job

KEPT = Path(__file__).parent / "against_tpe.parquet"
KEY = ["job", "steps", "seed", "method"]
OURS, SEARCH = "metaoptimize", "tpe15"
TRIALS = 15
REPORTS = 20
SCHEDULE = "linear"
LRS = (1e-4, 1e-1)
HALVES = ("even", "odd")
"""Held-out losses of every other example."""
TAIL = 0.05
"""Fraction of the run at its end whose mean training loss is kept."""

JOBS: dict[str, tuple[int, int]] = {
    "mlp64": (1500, 10),
    "gru96": (1500, 3),
    "tf48": (2000, 3),
    "res12": (1500, 3),
}
"""Steps and seeds of each job; none of these widths is one on which the strategy's constants were learned."""

FIRST_SEED = 500
NOTHING = 1e-2
"""Losses below it are of data learned by heart; their ratio says nothing."""

NAMES = {
    "mlp": "MLP on digits",
    "gru": "GRU over characters",
    "tf": "transformer over bytes",
    "res": "ResNet on CIFAR-10",
}


def plan() -> Iterator[dict[str, Any]]:
    """The cells: the job that takes seconds first, then all others of a seed before the next seed."""
    cheap, *rest = JOBS
    order = [(cheap, k) for k in range(JOBS[cheap][1])]
    order += [(name, k) for k in range(max(JOBS[n][1] for n in rest)) for name in rest if k < JOBS[name][1]]
    for name, k in order:
        for method in (OURS, SEARCH):
            yield {"job": name, "steps": JOBS[name][0], "seed": FIRST_SEED + k, "method": method}


def train(
    data: Job,
    strategy: LRStrategy,
    steps: int,
    seed: int,
    report: Callable[[int, float], None] = lambda step, loss: None,
) -> dict[str, float]:
    """Train once, reporting the held-out loss; its last value, the mean training loss of the end, and the step size."""
    model = data.model(seed)
    run = strategy.build(model, steps)
    end: list[float] = []
    found, held = 0.0, {"held_out": float("nan")}
    for step in range(steps):
        loss = data.loss(model, step, seed)
        loss.backward()
        run.step(loss.detach())
        if step >= steps * (1 - TAIL):
            end.append(float(loss.detach()))
        if step == int(0.69 * steps):
            found = float(run.step_sizes().log().mean().exp())
        if (step + 1) * REPORTS // steps > step * REPORTS // steps:
            model.eval()
            with torch.no_grad():
                losses = data.held_out(model).double()
            held = {"held_out": float(losses.mean())} | {
                half: float(losses[k::2].mean()) for k, half in enumerate(HALVES)
            }
            model.train()
            report(step + 1, held["held_out"])
    return {**held, "training": sum(end) / len(end), "step_size": found}


def one_run(data: Job, steps: int, seed: int) -> dict[str, float]:
    """Our run."""
    row = train(data, make(OURS), steps, seed)
    return {**row, "unbiased": row["held_out"], "spent": steps, "trials": 1, "pruned": 0}


def search(data: Job, steps: int, seed: int, journal: Path) -> dict[str, float]:
    """The best of a search by held-out loss, and what all of it cost in steps; interrupted, it goes on at a trial."""

    def objective(trial: optuna.Trial) -> float:
        lr = trial.suggest_float("lr", *LRS, log=True)

        def report(step: int, loss: float) -> None:
            trial.report(loss, step)
            trial.set_user_attr("spent", step)
            if step < steps and trial.should_prune():
                raise optuna.TrialPruned

        row = train(data, make(SCHEDULE, lr=lr), steps, seed, report)
        for name in ("training", *HALVES):
            trial.set_user_attr(name, row[name])
        return row["held_out"]

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    backend = JournalFileBackend(str(journal))
    found = optuna.create_study(
        storage=optuna.storages.JournalStorage(backend),
        study_name="search",
        load_if_exists=True,
        pruner=optuna.pruners.MedianPruner(),
    )
    ended = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
    for trial in found.get_trials(states=(optuna.trial.TrialState.RUNNING,)):
        found.tell(trial.number, state=optuna.trial.TrialState.FAIL)
    while (done := len(found.get_trials(states=ended))) < TRIALS:
        found.sampler = optuna.samplers.TPESampler(
            seed=seed * TRIALS + done
        )  # the same after an interruption
        found.optimize(objective, n_trials=1)
    trials, best = found.get_trials(states=ended), found.best_trial
    return {
        "held_out": float(best.value or 0.0),
        "unbiased": chosen_on_the_other_half(
            [t.user_attrs for t in trials if t.state == optuna.trial.TrialState.COMPLETE]
        ),
        "training": best.user_attrs["training"],
        "step_size": best.params["lr"],
        "spent": sum(t.user_attrs["spent"] for t in trials),
        "trials": TRIALS,
        "pruned": sum(t.state == optuna.trial.TrialState.PRUNED for t in trials),
    }


def chosen_on_the_other_half(trials: list[dict[str, float]]) -> float:
    """Mean of the losses on each half of the held-out examples of the trial that is best on the other half."""
    ways = [HALVES, HALVES[::-1]]
    return sum(min(trials, key=lambda t: t[choose])[judge] for choose, judge in ways) / 2


def study(
    out: Annotated[
        Path, typer.Option(help="Parquet file of the runs; finished ones are not repeated.")
    ] = KEPT,
    only: Annotated[str, typer.Option(help="Jobs whose names begin with this.")] = "",
    seeds: Annotated[int, typer.Option(help="At most this many seeds of a job.", min=1)] = 10**6,
    method: Annotated[str, typer.Option(help=f"Only {OURS} or {SEARCH}; both by default.")] = "",
    report_only: Annotated[bool, typer.Option("--report-only", help="Run nothing.")] = False,
) -> None:
    """One metaoptimize run against TPE of 15 trials with MedianPruner, seed by seed.

    Example: METAOPT_HPO_DATA=../shared/data python -m studies.one_run.against_tpe --only mlp
    """
    torch.set_num_threads(1)
    table = _read(out)
    for cell in plan():
        known = (table[KEY] == pd.Series(cell)[KEY]).all(axis=1).any()
        beyond = cell["seed"] >= FIRST_SEED + seeds
        unwanted = not (cell["job"].startswith(only) and cell["method"].startswith(method))
        if report_only or known or beyond or unwanted:
            continue
        begun = time.monotonic()
        data, steps, seed = job(cell["job"]), cell["steps"], cell["seed"]
        journal = out.with_suffix(f".{cell['job']}-{seed}.journal")
        row = one_run(data, steps, seed) if cell["method"] == OURS else search(data, steps, seed, journal)
        row = cell | row | {"seconds": time.monotonic() - begun}
        table = _read(out)  # another process may have added to it
        new = pd.DataFrame([row])
        table = pd.concat([table, new], ignore_index=True) if len(table) else new
        with replacing(out) as path:
            table.to_parquet(path)
        journal.unlink(missing_ok=True)
        typer.echo(
            f"{row['job']} seed {row['seed']} {row['method']}: held-out {row['held_out']:.4f}, "
            f"training {row['training']:.4f} at {row['step_size']:.2g}, {row['seconds']:.0f} s",
            err=True,
        )
    typer.echo(markdown(table))


def _read(out: Path) -> pd.DataFrame:
    return pd.read_parquet(out) if out.exists() else pd.DataFrame(columns=KEY)


def markdown(table: pd.DataFrame) -> str:
    """A line a job: paired differences of held-out and training loss in per cent, mean and standard error."""
    head = [
        "job", "steps", "seeds", "one run, held-out", "search, held-out", "held-out, paired", "better in",
        "chosen on the other half, paired", "training, paired", "the search's cost in runs",
    ]  # fmt: skip
    lines = []
    for name, (steps, _) in JOBS.items():
        rows = table[(table.job == name) & (table.steps == steps)]
        ours, theirs = (rows[rows.method == m].set_index("seed") for m in (OURS, SEARCH))
        both = ours.index.intersection(theirs.index)
        if both.empty:
            continue
        ours, theirs = ours.loc[both], theirs.loc[both]
        differences = [difference(ours[loss], theirs[loss]) for loss in ("held_out", "training")]
        fair = theirs.unbiased.dropna() if "unbiased" in theirs else theirs.held_out[:0]
        unbiased = difference(ours.held_out.loc[fair.index], fair) if len(fair) else "–"
        if 0 < len(fair) < len(both):
            unbiased += f" (of {len(fair)})"
        better = f"{(ours.held_out < theirs.held_out).sum()} of {len(both)}"
        kind = NAMES[name.rstrip("0123456789")]
        losses = (f"{ours.held_out.mean():.4f}", f"{theirs.held_out.mean():.4f}")
        cost = f"{(theirs.spent / steps).mean():.1f}"
        lines.append(
            (
                f"{kind} ({name})", f"{steps:,}", len(both), *losses,
                differences[0], better, unbiased, differences[1], cost,
            )
        )  # fmt: skip
    return markdown_table(head, lines)


def difference(ours: pd.Series[float], theirs: pd.Series[float]) -> str:
    """Mean of the paired differences of two columns of losses in per cent of the mean of the search's."""
    if max(ours.mean(), theirs.mean()) < NOTHING:
        return f"both below {NOTHING:g}"
    percent = 100 * (ours - theirs) / theirs.mean()
    error = percent.std() / len(percent) ** 0.5
    return f"{percent.mean():+.1f} %" + (f" ± {error:.1f}" if len(percent) > 1 else "")


if __name__ == "__main__":
    commands.run(study)
