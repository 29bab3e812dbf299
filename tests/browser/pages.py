"""Every kind of page the package makes, written into a folder from small or kept results: name and file."""

from __future__ import annotations

import importlib.util
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from metaopt_hpo.atomic import write_text
from metaopt_hpo.attribution import ExperimentConfig, GridResult, WorldRuns, attribute
from metaopt_hpo.attribution.levels import factorial
from metaopt_hpo.attribution.outcome import Attribution
from metaopt_hpo.cli.fitting import write_page
from metaopt_hpo.comparison.replay import replay
from metaopt_hpo.comparison.results import Comparison
from metaopt_hpo.comparison.table_objective import TableObjective
from metaopt_hpo.plan.page import write_page as write_plan
from metaopt_hpo.plan.run import run as run_plan
from metaopt_hpo.report import write_report
from metaopt_hpo.report.attribution_page import attribution_page
from metaopt_hpo.report.prediction_page import prediction_page, score_page
from metaopt_hpo.report.replay_page import replay_page
from metaopt_hpo.report.rule_page import rule_page
from metaopt_hpo.scaling import fit, preregistration
from metaopt_hpo.theory import LMOBound, verify_rule
from metaopt_hpo.trials.table import TrialTable

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
KINDS = (
    "report-optuna",
    "report-ray",
    "law",
    "replay",
    "study",
    "rule",
    "attribution",
    "register",
    "check",
    "plan",
)


def write_pages(folder: Path) -> dict[str, Path]:
    """Every page of KINDS."""
    out = {name: folder / f"{name}.html" for name in KINDS}
    for engine in ("optuna", "ray"):
        kept = DOCS / "studies" / "gain" / f"live_race_{engine}"
        write_report(few_seeds(Comparison.read(kept)), out[f"report-{engine}"])
    table = trials()
    large = table.frame["size"].to_numpy() > 2e8
    law = fit(table.select(where=~large), draws=40)
    write_page(
        law, table.select(where=~large), out["law"], "Law fitted to runs.csv", table.select(where=large)
    )
    result = replay(TableObjective(table), (3e8, 3e10), methods=("random", "grid"), seeds=3, limit=20)
    write_text(out["replay"], replay_page(result, "runs.csv"))
    from studies.one_run.page import render as study

    kept_runs = TrialTable.read(DOCS / "studies" / "one_run" / "study.parquet")
    write_text(out["study"], study(kept_runs))
    check = verify_rule("lr ~ n^-1 D^-0.5", LMOBound(1, 1, 1), "L ~ n^2")
    write_text(out["rule"], rule_page(check))
    write_text(out["attribution"], attribution_page(attribution()))
    registered = preregistration.register(law, size=3e8, tokens=3e10)
    write_text(out["register"], prediction_page(registered))
    write_text(out["check"], score_page(registered.score(1.01 * registered.loss.value)))
    # the plan of the plan's own tests, half run
    found = importlib.util.spec_from_file_location(
        "plan_conftest", ROOT / "tests/metaopt_hpo/plan/conftest.py"
    )
    assert found is not None
    assert found.loader is not None
    plans = importlib.util.module_from_spec(found)
    found.loader.exec_module(plans)
    run_plan(plans.builder(folder)(), folder / "plan", most=3)
    out["plan"] = write_plan(folder / "plan")
    return out


def few_seeds(held: Comparison) -> Comparison:
    """A comparison cut to two seeds: the same page from fewer lines."""
    plan = replace(held.plan, seeds=held.plan.seeds[:2])
    return replace(
        held, plan=plan, table=held.table.select(where=held.table.frame["seed"].isin(plan.seeds).to_numpy())
    )


def trials() -> TrialTable:
    """Grids of a known law: lr falls with size, batch grows with tokens."""
    rng = np.random.default_rng(0)
    rows = []
    for n in (3e7, 1e8, 2e8, 3e8):
        for d in (3e9, 1e10, 3e10):
            for lr in 0.003 * np.exp(np.linspace(-1.5, 1.5, 6)):
                for b in 5e5 * np.exp(np.linspace(-1.5, 1.5, 4)):
                    x = math.log(lr / (0.003 * (n / 1e8) ** -0.4))
                    y = math.log(b / (5e5 * (d / 1e10) ** 0.5))
                    floor = 1.7 + 0.6 * (n / 1e8) ** -0.3 + 0.4 * (d / 1e10) ** -0.3
                    loss = floor * math.exp(0.02 * x * x + 0.015 * y * y + 1e-3 * rng.standard_normal())
                    rows.append({"size": n, "tokens": d, "batch": b, "lr": lr, "loss": loss})
    return TrialTable.from_frame(pd.DataFrame(rows))


def attribution() -> Attribution:
    """An attribution of a world whose optimum does not move."""
    config = ExperimentConfig(factors=("schedule",), levels=False, seeds=(0, 1, 2))
    d, b = config.cells
    cube = factorial(config.factors)
    lr = np.exp(np.linspace(-8, 2, 11)) * (b / d)[:, None] ** 0.5
    centre = np.log((b / d) ** 0.5)[:, None, None] - 3
    bowl = np.exp(0.1 * (np.log(lr)[:, :, None] - centre) ** 2)
    criteria = np.stack([np.stack([bowl.repeat(3, axis=2)] * 4, axis=-1)] * 2, axis=1)
    grid = GridResult(
        "quadratic", d, b, lr, tuple(cube), config.seeds, criteria, np.full(criteria.shape[:-1], 0.5)
    )
    return Attribution(0, (attribute(WorldRuns((grid,)), config),), 1.0)
