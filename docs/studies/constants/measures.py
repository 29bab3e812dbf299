"""What constants are judged by: real tables, worlds of known truth, a search, running trials.

Each measure takes the folder of published tables and a seed, and gives numbers; `UNITS` says what they are.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from metaopt_hpo.comparison.replay import replay
from metaopt_hpo.comparison.scoring import cells_of, of_law, score
from metaopt_hpo.comparison.table_objective import TableObjective
from metaopt_hpo.scaling import fit
from metaopt_hpo.scaling.base.sources import base_of
from metaopt_hpo.scaling.fitting.pointfit import point_fit
from metaopt_hpo.scaling.fitting.reading import from_table
from metaopt_hpo.scaling.policy import History, Refits, Run, decide
from metaopt_hpo.scaling.schedule_fit import fit_schedule_law
from metaopt_hpo.trials.record import TrialRecord
from studies import benchmarks
from studies.laws import borrowing, doubt, schedules
from studies.laws.worlds import worlds

SPLITS = ("oe-302", "sl-215", "sl-both")
WORLDS = ("plain, noise 0.5 %", "plain, small grids", "an edge of stability", "a bend", "plain, one batch",
          "another regime at the last size", "half the sizes in millions")  # fmt: skip
SEARCH_TARGET = (4.3e8, 5e10)
SEARCH_PILOTS = (2.2e8, 8.5e9)
SEARCH_SEEDS = 4
BUDGETS = (0.03, 0.3)
DESIGNS = 2
DRAWS = 40


@dataclass(frozen=True)
class Unit:
    """One number of a measure: what a change of it is called, and the least that counts as one."""

    words: str
    least: float


UNITS: Mapping[str, Unit] = {
    "excess": Unit("points of excess", 0.005),
    "error": Unit("of the loss's error", 0.05),
    "lent": Unit("points of excess with a base", 0.005),
    "warned": Unit(f"of {len(WORLDS)} worlds warned of", 0.5),
    "curve": Unit("points of error of schedules' ends", 0.005),
    "runs": Unit("target runs", 0.05),
    "saved": Unit("points of tokens saved", 0.5),
    "lost": Unit("points of loss given away", 0.005),
}


def of_fits(data: Path, seed: int) -> dict[str, float]:
    """Mean excess (%) at predicted configurations, and the rms of the predicted loss's error over its half-width."""
    excess, errors = [], []
    for split in benchmarks.ordered_splits(data):
        if split.name not in SPLITS:
            continue
        law = fit(split.train, allow_weak=True, draws=DRAWS, seed=seed)
        cells = cells_of(split.test)
        excess += score(of_law(law), cells)
        for cell, grid in cells.items():
            loss = law.predict(*cell).loss
            errors.append(math.log(loss.value / grid.best) / (0.5 * math.log(loss.high / loss.low)))
    return {"excess": 100 * float(np.mean(excess)), "error": float(np.sqrt(np.mean(np.square(errors))))}


def of_few_runs(data: Path, seed: int) -> dict[str, float]:
    """Mean excess (%) of laws of few pilots that lean on the other table, at either table's largest target."""
    tables = [benchmarks.openeurollm(data), benchmarks.steplaw(data)]
    excess = []
    for own, other in (tables, tables[::-1]):
        base, fitted, cells, grids = (
            base_of(other),
            point_fit(from_table(other)),
            from_table(own),
            cells_of(own),
        )
        target = max(grids)
        for budget, design in itertools.product(BUDGETS, range(DESIGNS)):
            rng = np.random.default_rng([seed, design])
            rows, _ = borrowing.pilots(cells, target, budget, fitted, rng)
            trials = own.select(where=np.isin(np.arange(len(own)), cells.row[rows]))
            excess += score(of_law(fit(trials, base=base, draws=DRAWS)), {target: grids[target]})
    return {"lent": 100 * float(np.mean(excess))}


def of_worlds(data: Path, seed: int) -> dict[str, float]:
    """How many of some worlds' laws, right and wrong ones, say that they may be wrong."""
    return {"warned": float(sum(bool(doubt.of_world(w, seed).said) for w in worlds() if w.name in WORLDS))}


def of_schedules(data: Path, seed: int) -> dict[str, float]:
    """Mean error (%) of other curves' ends, by laws of two curves, and of one with another size's law as prior."""
    off, prior = [], None
    for curves in schedules.multipower(data).values():
        for chosen in (schedules.FITTED[1], schedules.FITTED[4]):
            law = fit_schedule_law([curves[name] for name in chosen], prior=prior)
            for name, c in curves.items():
                if name not in chosen:
                    error = law.predict(c.steps, c.lr, before=c.before) / c.loss - 1.0
                    off.append(abs(float(np.mean(error[-schedules.LAST :]))))
            prior = prior or law
        prior = law
    return {"curve": 100 * float(np.mean(off))}


def of_search(data: Path, seed: int) -> dict[str, float]:
    """Mean target runs, pilots included, until the law's search is within 0.25 % of the best."""
    objective = TableObjective(benchmarks.steplaw(data))
    size, tokens = SEARCH_TARGET
    target = min(objective.cells, key=lambda c: abs(math.log(c[0] / size)) + abs(math.log(c[1] / tokens)))
    pilots = [c for c in objective.cells if c[0] < SEARCH_PILOTS[0] and c[1] < SEARCH_PILOTS[1]]
    result = replay(objective, target, pilots=pilots, methods=("law",), seeds=SEARCH_SEEDS, limit=20.0)
    costs = result.costs()
    return {"runs": float(costs["0.25%"].mean())}


def of_running(data: Path, seed: int) -> dict[str, float]:
    """Trials of `text-lm`'s largest ladder size judged at each report: tokens not run, and loss given away, in %."""
    split = next(s for s in benchmarks.live_splits() if "14 k" in s.name)
    history = History.of(split.train.records())
    refits = Refits(background=False)
    trials = split.test.records()
    order = np.random.default_rng(seed).permutation(len(trials))
    spent, best = 0.0, math.inf
    for i, k in enumerate(order):
        record = _judged(trials[k], history, refits)
        history.add((10**6 + i,), record)
        spent += record.tokens / record.planned_tokens
        if record.state == "complete":
            best = min(best, record.loss)
    least = min(r.loss for r in trials)
    return {"saved": 100 * (1 - spent / len(trials)), "lost": 100 * math.log(best / least)}


def _judged(trial: TrialRecord, history: History, refits: Refits) -> TrialRecord:
    """A trial as it ends under the policy's decisions."""
    assert trial.curve is not None
    points = tuple(zip(trial.curve.tokens, trial.curve.loss, strict=True))
    for k in range(len(points)):
        run = Run(
            size=trial.size,
            tokens=trial.planned_tokens,
            batch=trial.batch,
            lr=trial.lr,
            curve=points[:k],
            strategy=trial.strategy,
        )
        decision = decide(run, history, refits.in_force(history))
        if decision.spared:
            break
        if decision.action == "stop":
            return replace(trial, state="pruned", tokens=points[k - 1][0] if k else 1.0)
    return trial


Measure = Callable[[Path, int], dict[str, float]]
FITS: Mapping[str, Measure] = {
    "fits": of_fits,
    "few": of_few_runs,
    "worlds": of_worlds,
    "schedules": of_schedules,
    "running": of_running,
}
"""Of what a fit is made of."""

CHOICES: Mapping[str, Measure] = {"running": of_running, "search": of_search}
"""Of what chooses runs and judges them."""
