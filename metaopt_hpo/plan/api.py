"""The face of planning: make a plan, read and write one, ask it about budgets."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from metaopt_hpo.plan import model, show, toml
from metaopt_hpo.plan.costs import Budget, Hardware
from metaopt_hpo.plan.hardware import hardware as hardware_named
from metaopt_hpo.plan.planner import Planner
from metaopt_hpo.plan.recipes import Recipe

if TYPE_CHECKING:
    from metaopt_hpo.comparison.engine import SearchEngine
    from metaopt_hpo.plan.rebudget import Rebudget
    from metaopt_hpo.plan.run import PlanRun
    from metaopt_hpo.trials.record import TrialRecord
    from metaopt_hpo.trials.table import TrialTable


@dataclass(frozen=True, kw_only=True)
class Plan(model.Plan):
    """From a target and a budget to a list of small runs, and from those to a recipe. Make one with `plan`.

    Its data are those of `plan.model.Plan`.

    Examples:
        >>> from metaopt_hpo import Plan, plan
        >>> made = plan(target="10M", tokens="200M", base=[], batch=2**16, tokens_per_parameter=[20])
        >>> path = made.write("plan.toml")
        >>> Plan.read(path) == made
        True
    """

    @classmethod
    def of(cls, data: model.Plan) -> Self:
        """A plan with its conveniences, from its data."""
        return cls(**{f.name: getattr(data, f.name) for f in fields(data)})

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Self:
        """Read plan.toml.

        Raises:
            PlanError: there is none, or an edit does not fit; the message names line and field.
        """
        return cls.of(toml.read(model.Plan, path))

    @classmethod
    def from_toml(cls, text: str, *, source: str = "plan.toml") -> Self:
        """From TOML text; `source` is what messages call it."""
        return cls.of(toml.from_toml(model.Plan, text, source=source))

    def to_toml(self) -> str:
        """As TOML, units in comments."""
        return toml.to_toml(self, head=toml.HEAD.format(name="plan.toml"))

    def write(self, path: str | os.PathLike[str]) -> Path:
        """Write plan.toml, whole or not at all.

        Raises:
            WriteError: the file cannot be written; one that was there is unchanged.
        """
        return toml.write(self, path)

    def __str__(self) -> str:
        return show.text(self)

    def _repr_html_(self) -> str:
        return show.html(self)

    def for_budget(self, budget: float | str | Budget) -> Self:
        """The plan for another budget: what one gets for it is its `expected`, what it takes its `cost`.

        Raises:
            PlanError: it is too small for any pilot, or not understood.
        """
        return self.of(Planner.again(self).plan(budget))

    def budget_for(
        self, *, lr: float | None = None, batch: float | None = None, loss: float | None = None
    ) -> Self:
        """The cheapest plan after which the target is known so well; its `cost` is the budget that takes.

        Args:
            lr, batch, loss: relative standard deviation of the optimal lr, the optimal batch, the expected loss:
                0.2 is ±20 %.

        Raises:
            PlanError: no pilots below the target's own cost reach it; the message says what the best do.
            ValueError: nothing is asked for, or a value is not positive.
        """
        asked = {k: v for k, v in (("lr", lr), ("batch", batch), ("loss", loss)) if v is not None}
        if not asked:
            raise ValueError("budget_for needs lr=…, batch=… or loss=…, such as lr=0.2 for ±20 %")
        for name, value in asked.items():
            if not 0 < value < math.inf:
                raise ValueError(f"{name} must be a positive, finite number, got {value!r}")
        limits = {
            n: math.log1p(asked[n]) if n in asked else 1e9 for n in ("lr", "batch", "weight_decay", "loss")
        }
        text = ", ".join(f"±{100 * v:.3g} % in {n}" for n, v in asked.items())
        return self.of(Planner.again(self).reaching(model.Uncertainty(**limits), text))

    def run(
        self, engine: str | SearchEngine = "optuna", *, out: str | os.PathLike[str] = "plan", **options: Any
    ) -> PlanRun:
        """Run the pilots while they pay; see `plan.run.run`.

        Args:
            engine: "optuna" or "ray", or an engine.
            out: folder of the results; what is finished there is not run again.
            options: of `plan.run.run`: `target`, `threads`, `device`, `progress` …
        """
        from metaopt_hpo.plan.run import run

        return run(self, out, engine=engine, **options)

    def recipe(self, trials: TrialTable | Sequence[TrialRecord] | str | os.PathLike[str]) -> Recipe:
        """How to train the target, from the pilots that have run.

        Args:
            trials: their table or records, a table's file, or the folder of `run`.

        Raises:
            PlanError: none has finished, or the folder holds no plan.
        """
        from metaopt_hpo.plan.advise import recipe

        return Recipe.of(recipe(self, _records(trials)))

    def rebudget(
        self,
        trials: TrialTable | Sequence[TrialRecord] | str | os.PathLike[str],
        *,
        seen: float,
        tokens: float,
        schedule: str = "",
    ) -> Rebudget:
        """The rest of the target's run where its budget has shrunk or grown: its lr and the loss to expect.

        Args:
            trials: the pilots, as for `recipe`, by which the run was begun.
            seen: training tokens of the run so far.
            tokens: where it now ends.
            schedule: "wsd" (decay when the budget ends) or "linear" (to zero over what is left); default as the run's.

        Raises:
            PlanError: the new end is not beyond what was seen.
        """
        from metaopt_hpo.plan.advise import law_of, recipe
        from metaopt_hpo.plan.rebudget import rebudget

        rows = _records(trials)
        fitted = law_of(self, rows) if rows else None
        new = rebudget(recipe(self, rows, fitted=fitted), seen=seen, tokens=tokens, schedule=schedule)
        other = replace(self, target=replace(self.target, tokens=tokens), pilots=())
        return replace(new, loss=recipe(other, rows, fitted=fitted).loss)

    def measured(self, flops: float, seconds: float) -> Self:
        """The plan with the throughput that pilots had, and its costs anew.

        Args:
            flops, seconds: of the pilots that ran, together, on all devices of the hardware.
        """
        if not (flops > 0 and seconds > 0):
            raise ValueError(f"flops and seconds must be positive, got {flops!r} and {seconds!r}")
        hardware = replace(self.hardware, measured_flops=flops / seconds)
        pilots = tuple(replace(p, cost=hardware.cost(p.cost.flops, p.cost.tokens)) for p in self.pilots)
        return replace(self, hardware=hardware, pilots=pilots)


def plan(
    *,
    target: float | str,
    tokens: float | str,
    budget: float | str | Budget = "5 % of the target",
    hardware: str | Hardware = "h100",
    workload: str = "",
    schedule: str = "wsd",
    batch: float | None = None,
    sizes: Sequence[float] | None = None,
    widths: Sequence[int] | None = None,
    tokens_per_parameter: Sequence[float] | None = None,
    batches: Sequence[float] | None = None,
    lr: tuple[float, float] = (1e-5, 1e-1),
    seeds: int = 1,
    base: str | Sequence[str] | None = None,
    workload_options: Mapping[str, str] | None = None,
    price: float | None = None,
    currency: str | None = None,
    utilisation: float | None = None,
) -> Plan:
    """Which small runs to make before a large one, in which order, and up to where they pay.

    Args:
        target: trainable non-embedding parameters of the large run: 7e9, "7B", or "width=256" of a built-in workload.
        tokens: its training tokens: 1.4e12 or "1.4T".
        budget: what the pilots may cost together: "2 % of the target", "50 GPU-hours", "1e21 FLOPs", "3 MWh",
            "2000 USD", "1e9 tokens"; a number is FLOPs.
        hardware: by name, with a number of devices ("h100x8"; `plan.hardware.DEVICES` lists them), or your own.
        workload: a built-in workload's name, a Python file, or a command line with placeholders; empty to plan only.
        schedule: of the target's lr, and of pilots that are no MetaOptimize runs.
        batch: tokens per step of every run, where it is given; else it is one of the things to be found.
        sizes: that pilots may have (default: the workload's members below the target, or halves of it).
        widths: of those sizes, where the workload sets its size by a width; for a built-in workload, instead of sizes.
        tokens_per_parameter: lengths of pilots (default: a third, once and three times the target's own; at least
            `MIN_STEPS` steps each).
        batches: tokens per step that pilots may have.
        lr: range of schedule runs.
        seeds: runs of each pilot.
        base: tables, laws' files, or names of the library's fitted laws to borrow strength from; None is
            "fitted-step-law" for targets above ten million parameters, and an empty list is none.
        workload_options: of a training program: `sizes` ("128:4e5,256:1.6e6"), `batch`, `losses`, `metric` …;
            see `workloads.jobs.job_of`. With `sizes` and `widths` given, those are its sizes.
        price, currency, utilisation: of one device for an hour, and what training reaches of its peak.

    Raises:
        PlanError: a budget too small for any pilot, no size below the target, an unknown unit, currency or hardware.
        ValueError: an argument out of range.

    Examples:
        >>> from metaopt_hpo import plan
        >>> made = plan(target="10M", tokens="200M", base=[], batch=2**16, tokens_per_parameter=[20])
        >>> made.cost.flops < 0.05 * 6 * 10e6 * 200e6
        True
    """
    made = Planner.of(
        target=target,
        tokens=tokens,
        hardware=hardware_named(hardware, price=price, currency=currency, utilisation=utilisation),
        workload=workload,
        schedule=schedule,
        batch=batch,
        sizes=sizes,
        widths=widths,
        tokens_per_parameter=tokens_per_parameter,
        batches=batches,
        lr=lr,
        seeds=seeds,
        base=base,
        workload_options=workload_options,
    ).plan(budget)
    return Plan.of(made)


def _records(trials: TrialTable | Sequence[TrialRecord] | str | os.PathLike[str]) -> list[TrialRecord]:
    """Pilots from a table, a list, a table's file, or a plan's folder."""
    from metaopt_hpo.plan.store import read
    from metaopt_hpo.trials.table import TrialTable

    if isinstance(trials, str | os.PathLike):
        path = Path(trials)
        return list(read(path).pilots) if path.is_dir() else TrialTable.read(path).records()
    return trials.records() if isinstance(trials, TrialTable) else list(trials)
